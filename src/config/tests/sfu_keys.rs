use super::super::reader::SettingsReader;
use super::super::sfu::{MAX_API_KEYS, read_keys};
use super::{Environment, Mode, TempDir};
use crate::livekit::access_token::{ApiKey, ApiKeys};

const LONG: &str = "0123456789abcdef0123456789abcdef";

/// Key ids, errors and warnings.
fn read_from(variables: &[(&str, &str)], mode: Mode) -> (Vec<String>, Vec<String>, Vec<String>) {
    let env: Environment = variables.iter().copied().collect();
    let mut reader = SettingsReader::new(&env, mode);
    let keys = read_keys(&mut reader).map(|config| config.keys);
    let ids = keys
        .iter()
        .flat_map(|keys| keys.all())
        .map(|key| key.id().to_owned());
    let report = format!("{:?}", reader.report);
    assert!(!report.contains(LONG), "{report}");
    let errors = reader.errors.iter().map(ToString::to_string).collect();
    (ids.collect(), errors, reader.report.warnings)
}

/// The ids of keys that are accepted without a warning.
fn ids(variables: &[(&str, &str)]) -> Vec<String> {
    let (ids, errors, warnings) = read_from(variables, Mode::Serve);
    assert_eq!((errors, warnings), (Vec::new(), Vec::new()));
    ids
}

fn errors(variables: &[(&str, &str)]) -> Vec<String> {
    let (ids, errors, _) = read_from(variables, Mode::Serve);
    assert_eq!(ids, [""; 0]);
    assert!(errors.iter().all(|error| !error.contains(LONG)));
    errors
}

#[test]
fn either_name_of_key_and_secret_works() {
    for key in ["LIVEKIT_KEY", "LIVEKIT_API_KEY"] {
        for secret in ["LIVEKIT_SECRET", "LIVEKIT_API_SECRET"] {
            assert_eq!(ids(&[(key, " APIx "), (secret, LONG)]), ["APIx"]);
        }
    }
    assert_eq!(
        ids(&[
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_API_KEY", "APIx"),
            ("LIVEKIT_SECRET", LONG)
        ]),
        ["APIx"]
    );
}

#[test]
fn key_and_secret_can_each_be_in_a_file() {
    let directory = TempDir::new();
    let key = directory.file("key", "\nAPIx\n");
    let secret = directory.file("secret", format!("  {LONG}\r\n"));
    let (key, secret) = (&*key, &*secret);
    for (name, file) in [
        ("LIVEKIT_SECRET_FROM_FILE", secret),
        ("LIVEKIT_SECRET_FILE", secret),
    ] {
        for (key_name, key_value) in [
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_KEY_FROM_FILE", key),
            ("LIVEKIT_KEY_FILE", key),
        ] {
            assert_eq!(ids(&[(key_name, key_value), (name, file)]), ["APIx"]);
        }
    }
    assert_eq!(
        ids(&[("LIVEKIT_KEY_FROM_FILE", key), ("LIVEKIT_API_SECRET", LONG)]),
        ["APIx"]
    );
}

#[test]
fn a_key_file_can_hold_several_keys_in_yaml() {
    let directory = TempDir::new();
    let text = format!(
        "# comment\n\nAPIb: {LONG}\r\n\"APIa\": '{LONG}#:x' # old\n  APIc : {LONG}  # note\nAPId:{LONG}\n"
    );
    let path = directory.file("keys", &text);
    assert_eq!(
        ids(&[("LIVEKIT_KEY_FILE", &path)]),
        ["APIb", "APIa", "APIc", "APId"]
    );
    let list = "'a': \"s#:x\" # c\nb: s # c";
    let env = [("LIVEKIT_KEYS", list)].into_iter().collect();
    let keys = read_keys(&mut SettingsReader::new(&env, Mode::Serve));
    let expected = ApiKeys::new(ApiKey::new("a", "s#:x"), [ApiKey::new("b", "s")]);
    assert_eq!(keys.unwrap().keys, expected);
}

#[test]
fn a_list_is_separated_by_commas_or_lines_and_the_first_signs() {
    let list = format!("APIb: {LONG}, APIa: {LONG}\nAPIb: {LONG},");
    assert_eq!(ids(&[("LIVEKIT_KEYS", &list)]), ["APIb", "APIa"]);
    // a separate pair comes before the list; a key alone chooses from it
    assert_eq!(
        ids(&[
            ("LIVEKIT_KEYS", &list),
            ("LIVEKIT_KEY", "APIz"),
            ("LIVEKIT_SECRET", LONG)
        ]),
        ["APIz", "APIb", "APIa"]
    );
    assert_eq!(
        ids(&[("LIVEKIT_KEYS", &list), ("LIVEKIT_KEY", "APIa")]),
        ["APIa", "APIb"]
    );
}

#[test]
fn a_wrong_line_is_named_by_its_number_and_not_shown() {
    let directory = TempDir::new();
    for (text, number) in [
        (format!("\n# c\nAPIa: {LONG}\n{LONG}\n"), 4),
        (format!("{LONG}\n{LONG}x"), 1),
        (format!("APIa: {LONG}\nAPIb:\n"), 2),
        (format!(": {LONG}\n"), 1),
        (format!("API a: {LONG}\n"), 1),
        (format!("APIa: \"{LONG}\n"), 1),
        (format!("APIa: \"{LONG}\" x\n"), 1),
    ] {
        let path = directory.file("keys", &text);
        assert_eq!(
            errors(&[("LIVEKIT_KEY_FILE", &path)]),
            [format!(
                "LIVEKIT_KEY_FILE: expected `key: secret`, found something else in line {number}"
            )]
        );
    }
    assert_eq!(
        errors(&[("LIVEKIT_KEYS", &format!("APIa: {LONG},{LONG}"))]),
        ["LIVEKIT_KEYS: expected `key: secret`, found something else in entry 2"]
    );
    assert_eq!(
        errors(&[("LIVEKIT_KEYS", LONG)]),
        ["LIVEKIT_KEYS: expected `key: secret`, found something else in entry 1"]
    );
}

#[test]
fn half_a_pair_is_an_error_of_the_other_half() {
    assert_eq!(
        errors(&[("LIVEKIT_API_KEY", "APIx")]),
        [
            "LIVEKIT_SECRET: expected the secret of LIVEKIT_API_KEY, here or in the file that LIVEKIT_SECRET_FROM_FILE names, found nothing"
        ]
    );
    assert_eq!(
        errors(&[("LIVEKIT_SECRET", LONG)]),
        [
            "LIVEKIT_KEY: expected the API key of LIVEKIT_SECRET, here or in the file that LIVEKIT_KEY_FROM_FILE names, found nothing"
        ]
    );
    let none = errors(&[("LIVEKIT_KEY", ""), ("LIVEKIT_SECRET", " ")]);
    assert_eq!(none.len(), 1);
    for name in [
        "LIVEKIT_KEY",
        "LIVEKIT_SECRET",
        "LIVEKIT_KEY_FROM_FILE",
        "LIVEKIT_SECRET_FROM_FILE",
        "LIVEKIT_KEY_FILE",
    ] {
        assert!(none[0].contains(name), "{}", none[0]);
    }
}

#[test]
fn different_values_for_the_same_half_are_a_conflict() {
    let directory = TempDir::new();
    let path = directory.file("secret", format!("{LONG}!"));
    assert_eq!(
        errors(&[
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_API_KEY", "APIy"),
            ("LIVEKIT_SECRET", LONG),
            ("LIVEKIT_SECRET_FILE", &path),
        ]),
        [
            "LIVEKIT_API_KEY: expected the same as in LIVEKIT_KEY, found another value",
            "LIVEKIT_SECRET_FILE: expected the same as in LIVEKIT_SECRET, found another value",
        ]
    );
    let list = format!("APIx: {LONG}!");
    assert_eq!(
        errors(&[
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_SECRET", LONG),
            ("LIVEKIT_KEYS", &list)
        ]),
        [
            r#"LIVEKIT_KEYS: expected one secret for API key "APIx", as in LIVEKIT_SECRET, found another one"#
        ]
    );
}

#[test]
fn a_wrong_half_is_refused_and_not_shown() {
    let pair = format!("APIx: {LONG}");
    assert_eq!(
        errors(&[("LIVEKIT_KEY", &pair), ("LIVEKIT_SECRET", LONG)]),
        [
            "LIVEKIT_KEY: expected an API key: at most 256 bytes without spaces or colons, found 38 characters"
        ]
    );
    let two_lines = format!("{LONG}\nx");
    assert_eq!(
        errors(&[("LIVEKIT_KEY", "APIx"), ("LIVEKIT_SECRET", &two_lines)]),
        [
            "LIVEKIT_SECRET: expected a secret in one line without control characters, found 34 characters"
        ]
    );
}

#[test]
fn a_short_secret_draws_a_warning_that_does_not_show_it() {
    let (ids, errors, warnings) = read_from(
        &[("LIVEKIT_KEY", "APIx"), ("LIVEKIT_SECRET", "hunter2")],
        Mode::Serve,
    );
    assert_eq!((ids, errors), (vec!["APIx".to_owned()], Vec::new()));
    assert_eq!(
        warnings,
        [
            r#"LIVEKIT_SECRET: the secret of API key "APIx" has 7 bytes; the SFU requires 32 or more"#
        ]
    );
}

#[test]
fn dev_has_a_key_only_if_none_is_set() {
    let (ids, errors, warnings) = read_from(&[], Mode::Dev);
    assert_eq!(ids, ["devkey"]);
    assert_eq!((errors, warnings), (Vec::new(), Vec::new()));
    let (ids, ..) = read_from(
        &[("LIVEKIT_KEY", "APIx"), ("LIVEKIT_SECRET", LONG)],
        Mode::Dev,
    );
    assert_eq!(ids, ["APIx"]);
    let (ids, errors, _) = read_from(&[("LIVEKIT_KEY", "devkey")], Mode::Dev);
    assert_eq!((ids.len(), errors.len()), (0, 1));
}

#[test]
fn the_number_of_keys_is_bounded() {
    let list = |n| -> String { (0..n).map(|i| format!("API{i}: {LONG}\n")).collect() };
    assert_eq!(
        ids(&[("LIVEKIT_KEYS", &list(MAX_API_KEYS))]).len(),
        MAX_API_KEYS
    );
    assert_eq!(
        errors(&[("LIVEKIT_KEYS", &list(MAX_API_KEYS + 1))]),
        ["LIVEKIT_KEYS: expected at most 64 keys in all, found 65"]
    );
}
