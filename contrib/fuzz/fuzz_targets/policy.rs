//! Policy files: each is parsed within its bounds or rejected with a line; every authorized room and identity matches the patterns
//! of the file by a second matcher.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{
    CallerName, CallerPolicy, MAX_LIFETIME, MIN_LIFETIME, ParticipantRequest, read_policy_file,
};
use serde_json::{Map, Value};
use toml::Table;

const ANY: [&str; 1] = ["*"];

/// Whether a name matches a pattern, by dynamic programming over both, with the claims substituted as text.
fn matches(pattern: &str, name: &[char], identity: Option<&str>, tenant: Option<&str>) -> bool {
    // none of these characters can be in a name
    let (star, nothing) = ('\u{1}', "\u{2}");
    let text = pattern
        .replace('*', &star.to_string())
        .replace("{identity}", identity.unwrap_or(nothing))
        .replace("{claim:tenant}", tenant.unwrap_or(nothing));
    let pattern: Vec<char> = text.chars().collect();
    // matched[n]: whether the pattern so far matches the first n characters
    let mut matched = vec![false; name.len() + 1];
    matched[0] = true;
    for piece in pattern {
        if piece == star {
            let matches = matched.iter().position(|matched| *matched);
            matched[matches.unwrap_or(name.len() + 1)..].fill(true);
        } else {
            for at in (1..matched.len()).rev() {
                matched[at] = matched[at - 1] && name[at - 1] == piece;
            }
            matched[0] = false;
        }
    }
    matched[name.len()]
}

/// The patterns of a caller in the file.
fn patterns<'a>(file: &'a Table, caller: Option<&'a Table>, key: &str) -> Vec<&'a str> {
    let default = file.get("default").and_then(|entry| entry.as_table());
    let of = |entry: Option<&'a Table>| entry?.get(key)?.as_array();
    match of(caller).or_else(|| of(default)) {
        Some(list) => list.iter().filter_map(|pattern| pattern.as_str()).collect(),
        None => ANY.into(),
    }
}

fn check_bounds(policy: &CallerPolicy) {
    assert!(!policy.rooms.is_empty() && !policy.identities.is_empty());
    assert!((MIN_LIFETIME..=policy.max_lifetime).contains(&policy.default_lifetime));
    assert!(policy.max_lifetime <= MAX_LIFETIME);
    assert!(policy.max_metadata <= 512 << 10 && policy.max_attributes <= 64 << 10);
    for grant in policy.grants.iter().chain(&policy.grants_on_request) {
        let word = grant.as_str();
        assert!(
            !word.starts_with("room") && !word.starts_with("ingress"),
            "{word}"
        );
    }
}

fuzz_target!(|text: &str| {
    let mut parts = text.split('\0');
    let text = parts.next().unwrap_or_default();
    let [room, identity, tenant] = [(); 3].map(|()| parts.next());
    let file = match read_policy_file(text, &CallerPolicy::default()) {
        Ok(file) => file,
        Err(error) => {
            let lines = text.split('\n').count();
            assert!(
                error.line.is_none_or(|line| (1..=lines).contains(&line)),
                "{error}"
            );
            return;
        }
    };
    let table: Table = text.parse().expect("TOML");
    check_bounds(&file.default);
    let unlisted = CallerName::parse("not.in.the.file").expect("a name");
    let claims: Option<Map<String, Value>> = tenant.map(|tenant| [("tenant".to_owned(), tenant.into())].into_iter().collect());
    let callers = table.get("callers").and_then(|callers| callers.as_table());
    for (name, policy) in file
        .callers
        .iter()
        .map(|(name, entry)| (name, &entry.policy))
        .chain([(&unlisted, &file.default)])
    {
        check_bounds(policy);
        let request = ParticipantRequest {
            room: room.map(str::to_owned),
            identity: identity.map(str::to_owned),
            is_standard_form: true,
            ..ParticipantRequest::default()
        };
        let random = || "random".to_owned();
        let Ok(grant) = policy.authorize(claims.as_ref(), request, random) else {
            continue;
        };
        for (granted, requested) in [
            (grant.room.as_str(), room),
            (grant.identity.as_str(), identity),
        ] {
            assert!(requested.is_none_or(|requested| requested == granted));
            assert!((1..=256).contains(&granted.len()) && !granted.chars().any(char::is_control));
        }
        assert!(grant.lifetime <= policy.max_lifetime);
        assert!(grant.grants.is_subset(&policy.grants));
        let entry = callers.and_then(|callers| callers.get(name.as_str())?.as_table());
        let characters = |name: &str| name.chars().collect::<Vec<_>>();
        let (room, identity) = (grant.room.as_str(), grant.identity.as_str());
        let rooms = patterns(&table, entry, "rooms");
        assert!(
            rooms
                .iter()
                .any(|one| matches(one, &characters(room), Some(identity), tenant)),
            "{room:?} by {rooms:?}"
        );
        let has_jwt = entry.is_some_and(|entry| entry.contains_key("jwt"));
        let has_identities = entry.is_some_and(|entry| entry.contains_key("identities"));
        if has_identities || !has_jwt {
            let identities = patterns(&table, entry, "identities");
            assert!(
                identities
                    .iter()
                    .any(|one| matches(one, &characters(identity), None, tenant)),
                "{identity:?} by {identities:?}"
            );
        }
    }
});
