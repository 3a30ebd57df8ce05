use super::*;

const HASH: &str = "sha256:a3b27c1c2f20dc5d6ee2d4e0a27d9ea2d9c9a0d1d9c8f31bd6f3c9cd8f3f6a11";

fn parse_text(text: &str) -> Result<PolicyFile, String> {
    parse(text, &CallerPolicy::default()).map_err(|error| error.to_string())
}

fn caller<'a>(file: &'a PolicyFile, name: &str) -> &'a PolicyFileCaller {
    &file.callers[&CallerName::parse(name).unwrap()]
}

#[test]
fn the_example_documents_every_key_with_its_default() {
    let text = include_str!("../../../contrib/policy.toml");
    let file = parse_text(text).unwrap();
    assert_eq!(file.default, CallerPolicy::default());
    assert_eq!(caller(&file, "booking").policy.default_lifetime, 3600);
    assert_eq!(caller(&file, "booking").key_hashes.len(), 1);

    // the commented settings are the defaults
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") || rest.starts_with('[') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let file = parse_text(&uncommented).unwrap_or_else(|error| panic!("{error}\n{uncommented}"));
    let default_with_sources = CallerPolicy {
        sources: TrackSource::ALL.iter().copied().collect(),
        ..CallerPolicy::default()
    };
    assert_eq!(file.default, default_with_sources);
    let jwt = caller(&file, "app").jwt.as_ref().unwrap();
    assert_eq!(jwt.audience, "livekit");
    assert_eq!(
        caller(&file, "app").policy.identities,
        [NamePattern::equal_to_claim("sub")]
    );
    for key in [
        "keys",
        "jwt",
        "rooms",
        "identities",
        "grants",
        "grants_on_request",
        "sources",
        "agents",
        "max_metadata_bytes",
        "max_attributes_bytes",
        "lifetime_seconds",
        "max_lifetime_seconds",
        "random_room",
        "random_identity",
        "min_name_length",
        "requests_per_minute",
        "secret_file",
    ] {
        assert!(text.contains(key), "{key}");
    }
}

#[test]
fn a_caller_inherits_from_the_default_entry_and_then_from_the_settings() {
    let base = CallerPolicy {
        default_lifetime: 7200,
        max_lifetime: 7200,
        min_name_length: 3,
        ..CallerPolicy::default()
    };
    let text = format!(
        "[default]\nrooms = ['d-*']\nrandom_room = true\n[callers.a]\nkeys = ['{HASH}']\n[callers.b]\nrooms = ['b']\nrandom_room = false"
    );
    let file = parse(&text, &base).unwrap();
    let d = NamePattern::parse("d-*").unwrap();
    let a = &caller(&file, "a").policy;
    assert_eq!((&a.rooms, a.random_room), (&vec![d], true));
    assert_eq!((a.default_lifetime, a.min_name_length), (7200, 3));
    let b = &caller(&file, "b").policy;
    assert_eq!((b.rooms.len(), b.random_room), (1, false));
    assert_eq!(parse("", &base).unwrap().default, base);
}

#[test]
fn the_maximum_lifetime_lowers_the_default_and_the_default_raises_the_maximum() {
    let policy = |text: &str| parse_text(&format!("[default]\n{text}")).unwrap().default;
    let short = policy("max_lifetime_seconds = 60");
    assert_eq!((short.default_lifetime, short.max_lifetime), (60, 60));
    let long = policy("lifetime_seconds = 100000");
    assert_eq!(
        (long.default_lifetime, long.max_lifetime),
        (100_000, 100_000)
    );
    let both = policy("lifetime_seconds = 60\nmax_lifetime_seconds = 90");
    assert_eq!((both.default_lifetime, both.max_lifetime), (60, 90));
}

#[test]
fn an_error_names_its_line() {
    for (text, line, reason) in [
        ("\n[defaults]", 2, "unknown field `defaults`"),
        ("[default]\nroom = ['a']", 2, "unknown field `room`"),
        ("[default]\n\nrooms = 'a'", 3, "invalid type"),
        (
            "[default]\nrooms = []",
            2,
            "expected a list of 1 to 100 entries",
        ),
        (
            "[default]\nrooms = [\n 'a',\n '{user}']",
            4,
            "expected {identity} or {claim:NAME}",
        ),
        ("[default]\nidentities = ['{identity}']", 2, "in rooms only"),
        (
            "[default]\nrooms = ['{claim:a}*']",
            2,
            "expected a separator",
        ),
        (
            "[default]\ngrants = ['roomAdmin']",
            2,
            "roomAdmin is never granted",
        ),
        (
            "[default]\ngrants = ['can_publish']",
            2,
            "expected grants of canPublish",
        ),
        (
            "[default]\nsources = ['cam']",
            2,
            "expected sources of camera",
        ),
        (
            "[default]\nsources = []",
            2,
            "expected a list of 1 to 100 entries",
        ),
        ("[default]\nkeys = []", 1, "[default] is not a caller"),
        (
            "[default]\nmax_metadata_bytes = 524289",
            2,
            "expected 0 to 524288, found 524289",
        ),
        ("[default]\nmax_metadata_bytes = -1", 2, "invalid value"),
        (
            "[default]\nmax_lifetime_seconds = 9",
            2,
            "expected 10 to 31536000",
        ),
        (
            "[default]\nmax_lifetime_seconds = 60\nlifetime_seconds = 61",
            3,
            "at most max_lifetime_seconds",
        ),
        (
            "[default]\nrequests_per_minute = 1000001",
            2,
            "expected 0 to 1000000",
        ),
        ("[callers.\"a b\"]", 1, "caller name"),
        ("[callers.a]\nkeys = ['lts_x']", 2, "keys: expected sha256:"),
        ("[callers.anyone]\nkeys = []", 1, "[callers.anyone]"),
        (
            "[callers.a]\njwt = { issuer = 'i', audience = 'a' }",
            2,
            "expected either keys or secret_file",
        ),
        (
            "[callers.a]\njwt = { issuer = '', audience = 'a', keys = 'k' }",
            2,
            "issuer: expected a text",
        ),
        (
            "[callers.a]\njwt = { issuer = 'i', keys = 'k' }",
            2,
            "missing field `audience`",
        ),
        ("[callers.a]\n[callers.a]", 2, "duplicate key"),
        ("[callers.a", 1, ""),
    ] {
        let error = parse(text, &CallerPolicy::default()).unwrap_err();
        assert_eq!(error.line, Some(line), "{text}: {error}");
        assert!(error.reason.contains(reason), "{text}: {error}");
    }
}

#[test]
fn an_error_does_not_repeat_an_api_key() {
    let error = parse_text("[callers.a]\nkeys = ['lts_00000000_never-logged']").unwrap_err();
    assert!(!error.contains("never-logged"), "{error}");
}

#[test]
fn lists_are_bounded() {
    let rooms = |count| format!("[default]\nrooms = [{}]", "'a',".repeat(count));
    assert!(parse_text(&rooms(MAX_LIST_ENTRIES)).is_ok());
    assert!(
        parse_text(&rooms(MAX_LIST_ENTRIES + 1))
            .unwrap_err()
            .contains("1 to 100 entries")
    );
}
