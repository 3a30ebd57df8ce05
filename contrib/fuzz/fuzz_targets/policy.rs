//! However a policy file is written, it is understood within its bounds or refused with the line; and whoever is let into a room
//! by it has a name and a room that match its patterns by another reading of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{Caller, CallerName};
use livekit_token_service::internal::read_policy_file;
use livekit_token_service::internal::{ParticipantRequest, MAX_LIFETIME, MIN_LIFETIME, CallerPolicy};
use toml::Table;

const ANY: [&str; 1] = ["*"];

/// Whether a name matches by trying everything, with the claims in the place of their names.
fn matches(pattern: &str, name: &[char], identity: Option<&str>, tenant: Option<&str>) -> bool {
    // none of these characters can be in a name
    let (star, nothing) = ('\u{1}', "\u{2}");
    let text = pattern
        .replace('*', &star.to_string())
        .replace("{identity}", identity.unwrap_or(nothing))
        .replace("{claim:tenant}", tenant.unwrap_or(nothing));
    let pattern: Vec<char> = text.chars().collect();
    // right[n]: whether the pattern so far matches the first n characters
    let mut right = vec![false; name.len() + 1];
    right[0] = true;
    for piece in pattern {
        if piece == star {
            let first = right.iter().position(|right| *right).unwrap_or(right.len());
            right[first..].fill(true);
        } else {
            for at in (1..right.len()).rev() {
                right[at] = right[at - 1] && name[at - 1] == piece;
            }
            right[0] = false;
        }
    }
    right[name.len()]
}

/// The patterns of a caller, as the file has them.
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
    assert!((MIN_LIFETIME..=policy.max_lifetime).contains(&policy.lifetime));
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
    let file = match read(text, &CallerPolicy::default()) {
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
    let stranger = CallerName::parse("a.stranger").expect("a name");
    let claims = tenant.map(|tenant| [("tenant".to_owned(), tenant.into())].into_iter().collect());
    let callers = table.get("callers").and_then(|callers| callers.as_table());
    for (name, policy) in file
        .callers
        .iter()
        .map(|(name, entry)| (name, &entry.policy))
        .chain([(&stranger, &file.default)])
    {
        check_bounds(policy);
        let asked = ParticipantRequest {
            room: room.map(str::to_owned),
            identity: identity.map(str::to_owned),
            standard: true,
            ..Asked::default()
        };
        let caller = Caller {
            name: name.clone(),
            claims: claims.clone(),
        };
        let Ok(terms) = policy.allow(&caller, asked, || "random".to_owned()) else {
            continue;
        };
        for (given, asked) in [
            (terms.room.as_str(), room),
            (terms.identity.as_str(), identity),
        ] {
            assert!(asked.is_none_or(|asked| asked == given));
            assert!((1..=256).contains(&given.len()) && !given.chars().any(char::is_control));
        }
        assert!(terms.lifetime <= policy.max_lifetime);
        assert!(terms.grants.is_subset(&policy.grants));
        let entry = callers.and_then(|callers| callers.get(name.as_str())?.as_table());
        let characters = |name: &str| name.chars().collect::<Vec<_>>();
        let (room, identity) = (terms.room.as_str(), terms.identity.as_str());
        let rooms = patterns(&table, entry, "rooms");
        assert!(
            rooms
                .iter()
                .any(|one| matches(one, &characters(room), Some(identity), tenant)),
            "{room:?} by {rooms:?}"
        );
        let has_login = entry.is_some_and(|entry| entry.contains_key("jwt"));
        let own = entry.is_some_and(|entry| entry.contains_key("identities"));
        if own || !has_login {
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
