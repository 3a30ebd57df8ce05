//! Requests of an authenticated caller beyond the bounds of room configuration, lifetime, metadata and attributes.

use serde_json::{Value, json};

use crate::client::raw;
use crate::token_attack_policy::{
    allowed_request_with, assert_refused, issued_claims, start_with_restricted_caller,
};
use crate::token_client::{APP_KEY, bearer_header, raw_token_request, request_token};

#[test]
fn a_room_configuration_has_allowed_agents_only() {
    let service = start_with_restricted_caller();
    let config = |config: Value| {
        request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with("room_config", config),
        )
    };
    for empty in [
        json!({}),
        Value::Null,
        json!({"agents": []}),
        json!({"agents": null, "egress": {}}),
    ] {
        let claims = issued_claims(&config(empty));
        let config = claims["roomConfig"].as_object();
        assert!(config.is_none_or(serde_json::Map::is_empty), "{claims}");
    }
    let claims = issued_claims(&config(json!({"agents": [{"agent_name": "scribe"}]})));
    assert_eq!(
        claims["roomConfig"]["agents"][0]["agentName"], "scribe",
        "{claims}"
    );
    for refused in [
        json!({"egress": {"room": {"room_name": "appointment-7"}}}),
        json!({"egress": null, "empty_timeout": 1}),
        json!({"agents": [], "egress": {"tracks": {"filepath": "/x"}}}),
        json!({"max_participants": 1000}),
        json!({"emptyTimeout": 86400}),
        json!({"metadata": "x"}),
        json!({"name": "secret"}),
        json!({"agents": [{"agent_name": "spy"}]}),
        json!({"agents": [{"agent_name": "scribe"}, {"agentName": "spy"}]}),
        json!({"agents": [{"agent_name": "scribe", "metadata": "x".repeat(65)}]}),
        json!({"agents": vec![json!({"agent_name": "scribe"}); 1000]}),
        json!({"agents": {"agent_name": "scribe"}}),
        json!({"agents": ["scribe"]}),
        json!([]),
        json!("agents"),
        json!(1),
    ] {
        assert_refused(&config(refused), "room_config");
    }
}

#[test]
fn a_lifetime_beyond_the_policy_is_refused() {
    let service = start_with_restricted_caller();
    let lifetime = |seconds: Value| {
        request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with("ttl_seconds", seconds),
        )
    };
    for (requested, expected) in [(json!(3600), 3600), (json!(60), 60), (Value::Null, 600)] {
        let reply = lifetime(requested);
        let claims = issued_claims(&reply);
        let left = claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap();
        assert!((expected..=expected + 5).contains(&left), "{claims}");
    }
    for refused in [
        json!(3601),
        json!(10 * 365 * 86_400),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(60.5),
        json!("60"),
        json!([60]),
    ] {
        assert_refused(&lifetime(refused), "ttl_seconds");
    }
    let number = br#"{"room_name":"appointment-7","participant_identity":"patient-1","ttl_seconds":99999999999999999999999}"#;
    assert_refused(
        &raw(
            service.address(),
            &raw_token_request(&bearer_header(APP_KEY), number),
        ),
        "ttl_seconds",
    );
}

#[test]
fn metadata_and_attributes_are_bounded_and_must_be_text() {
    let service = start_with_restricted_caller();
    let send = |name: &str, value: Value| {
        request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with(name, value),
        )
    };
    for name in ["participant_metadata", "metadata"] {
        assert_eq!(
            issued_claims(&send(name, "m".repeat(64).into()))["metadata"],
            "m".repeat(64)
        );
        assert_refused(&send(name, "m".repeat(65).into()), "metadata");
        assert_refused(&send(name, "é".repeat(33).into()), "metadata");
        assert_refused(&send(name, "m".repeat(60_000).into()), "metadata");
        for wrong in [json!({"a": 1}), json!(7), json!(["a"]), json!(true)] {
            assert_refused(&send(name, wrong), name);
        }
        // beyond the largest body
        let reply = send(name, "m".repeat(1024 * 1024).into());
        assert_eq!(reply.status, 413, "{reply:?}");
    }
    let attributes = |value: Value| send("participant_attributes", value);
    let claims = issued_claims(&attributes(json!({"role": "visitor"})));
    assert_eq!(claims["attributes"], json!({"role": "visitor"}));
    let many: serde_json::Map<String, Value> =
        (0..5000).map(|n| (n.to_string(), "".into())).collect();
    for wrong in [
        json!({"seat": 7}),
        json!({"seat": 1.5}),
        json!({"seat": null}),
        json!({"seat": true}),
        json!({"seat": {"row": "7"}}),
        json!({"seat": ["7"]}),
        json!({"a": "x".repeat(64)}),
        json!({"x".repeat(65): ""}),
        json!(many),
        json!([["role", "visitor"]]),
        json!("role=visitor"),
        json!(7),
    ] {
        assert_refused(&attributes(wrong), "participant_attributes");
    }
}
