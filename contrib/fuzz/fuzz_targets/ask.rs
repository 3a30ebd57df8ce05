//! What is understood of a body of `/token` stands in it under that name and with that type, once; and what a policy then allows
//! is what was asked for, within LiveKit's limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{Caller, CallerName};
use livekit_token_service::internal::parse_token_body;
use livekit_token_service::internal::CallerPolicy;
use serde_json::Value;

/// A field as text; absent and null are the same.
fn text<'a>(body: &'a Value, name: &str) -> Option<&'a str> {
    match body.get(name) {
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_str().expect("text")),
    }
}

fn fits(name: &str) -> bool {
    (1..=256).contains(&name.len()) && !name.chars().any(char::is_control)
}

fuzz_target!(|bytes: &[u8]| {
    assert!(read(None, bytes).is_err() && read(Some("text/plain"), bytes).is_err());
    let asked = match read(Some("application/json"), bytes) {
        Ok(asked) => asked,
        Err(error) => {
            // what a client or the log is told has an end
            assert!(error.to_string().len() < 10_000);
            return;
        }
    };
    let body: Value = serde_json::from_slice(bytes).expect("JSON");
    assert_eq!(asked.room.as_deref(), text(&body, "room_name"));
    assert_eq!(
        asked.identity.as_deref(),
        text(&body, "participant_identity")
    );
    assert_eq!(asked.name.as_deref(), text(&body, "participant_name"));
    let metadata = text(&body, "participant_metadata").or(text(&body, "metadata"));
    assert_eq!(
        asked.metadata.as_ref().map(|(_, text)| text.as_str()),
        metadata
    );
    let attributes = body["participant_attributes"].as_object();
    assert_eq!(
        asked.attributes.len(),
        attributes.map_or(0, |all| all.len())
    );
    for (key, value) in &asked.attributes {
        assert_eq!(body["participant_attributes"][key], value.as_str());
    }
    assert_eq!(asked.lifetime, body["ttl_seconds"].as_u64());
    for (grant, wanted) in &asked.grants {
        assert_eq!(body["participant_grants"][grant.as_str()], *wanted);
    }
    for (index, agent) in asked.agents.iter().enumerate() {
        let said = &body["room_config"]["agents"][index];
        let names = [&said["agent_name"], &said["agentName"]];
        assert!(agent.agent_name.is_empty() || names.contains(&&Value::from(&*agent.agent_name)));
    }

    let caller = Caller {
        name: CallerName::parse("fuzz").expect("a name"),
        claims: None,
    };
    let policy = CallerPolicy::default();
    let Ok(terms) = policy.allow(&caller, asked.clone(), || "random".to_owned()) else {
        return;
    };
    assert_eq!(Some(terms.room.as_str()), asked.room.as_deref());
    let identity = asked.identity.or(asked.name.clone());
    assert_eq!(Some(terms.identity.as_str()), identity.as_deref());
    assert!(fits(terms.room.as_str()) && fits(terms.identity.as_str()));
    assert!(terms.profile.name.as_deref().is_none_or(fits));
    assert!(terms.lifetime <= policy.max_lifetime && terms.grants.is_subset(&policy.grants));
    for (grant, wanted) in &asked.grants {
        assert_eq!(terms.grants.contains(grant), *wanted);
    }
    assert!(terms.profile.agents.is_empty());
    assert!(
        terms
            .profile
            .metadata
            .is_none_or(|text| text.len() <= policy.max_metadata)
    );
});
