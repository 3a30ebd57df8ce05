//! A parsed body of `POST /token` matches the JSON that it comes from, and what the default policy then allows is what was requested,
//! within LiveKit's limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::internal::{CallerPolicy, parse_token_body};
use serde_json::Value;

/// A string field; absent and null are the same.
fn text<'a>(body: &'a Value, name: &str) -> Option<&'a str> {
    match body.get(name) {
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_str().expect("a string")),
    }
}

fn is_livekit_name(name: &str) -> bool {
    (1..=256).contains(&name.len()) && !name.chars().any(char::is_control)
}

fuzz_target!(|bytes: &[u8]| {
    assert!(parse_token_body(None, bytes).is_err());
    assert!(parse_token_body(Some("text/plain"), bytes).is_err());
    let request = match parse_token_body(Some("application/json"), bytes) {
        Ok(request) => request,
        Err(error) => {
            // responses and log lines are bounded
            assert!(error.to_string().len() < 10_000);
            return;
        }
    };
    let body: Value = serde_json::from_slice(bytes).expect("JSON");
    assert_eq!(request.room.as_deref(), text(&body, "room_name"));
    assert_eq!(
        request.identity.as_deref(),
        text(&body, "participant_identity")
    );
    assert_eq!(request.display_name.as_deref(), text(&body, "participant_name"));
    let metadata = text(&body, "participant_metadata").or(text(&body, "metadata"));
    assert_eq!(
        request.metadata.as_ref().map(|(_, text)| text.as_str()),
        metadata
    );
    let attributes = body["participant_attributes"].as_object();
    assert_eq!(
        request.attributes.len(),
        attributes.map_or(0, |all| all.len())
    );
    for (key, value) in &request.attributes {
        assert_eq!(body["participant_attributes"][key], value.as_str());
    }
    assert_eq!(request.lifetime, body["ttl_seconds"].as_u64());
    for (grant, wanted) in &request.grants {
        assert_eq!(body["participant_grants"][grant.as_str()], *wanted);
    }
    for (index, agent) in request.agents.iter().enumerate() {
        let agent_json = &body["room_config"]["agents"][index];
        let names = [&agent_json["agent_name"], &agent_json["agentName"]];
        assert!(agent.agent_name.is_empty() || names.contains(&&Value::from(&*agent.agent_name)));
    }

    let policy = CallerPolicy::default();
    let Ok(allowed) = policy.authorize(None, request.clone(), || "random".to_owned()) else {
        return;
    };
    assert_eq!(Some(allowed.room.as_str()), request.room.as_deref());
    let identity = request.identity.or(request.display_name.clone());
    assert_eq!(Some(allowed.identity.as_str()), identity.as_deref());
    assert!(is_livekit_name(allowed.room.as_str()) && is_livekit_name(allowed.identity.as_str()));
    assert!(allowed.profile.name.as_deref().is_none_or(is_livekit_name));
    assert!(allowed.lifetime <= policy.max_lifetime && allowed.grants.is_subset(&policy.grants));
    for (grant, wanted) in &request.grants {
        assert_eq!(allowed.grants.contains(grant), *wanted);
    }
    assert!(allowed.profile.agents.is_empty());
    assert!(
        allowed
            .profile
            .metadata
            .is_none_or(|text| text.len() <= policy.max_metadata)
    );
});
