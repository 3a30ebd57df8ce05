use super::*;

fn parse(body: Value) -> Result<ParticipantRequest, Error> {
    parse_token_body(Some("application/json"), body.to_string().as_bytes())
}

/// The locations of the validation errors, or the refused field.
fn invalid_fields(request: Value) -> Vec<String> {
    match parse(request).unwrap_err() {
        Error::Invalid(errors) => errors
            .iter()
            .map(|error| error.location.join("."))
            .collect(),
        Error::Refused(error) => vec![error.field().to_owned()],
    }
}

#[test]
fn both_forms_are_parsed_and_distinguished() {
    let example =
        json!({"room_name": "r", "participant_name": "p", "metadata": "m", "more": {"x": 1}});
    let request = parse(example).unwrap();
    assert!(!request.is_standard_form);
    assert_eq!(request.metadata, Some(("metadata", "m".into())));
    let standard = json!({"room_name": "r", "participant_identity": "i", "participant_name": "p", "participant_metadata": "m",
        "participant_attributes": {"a": "b"}, "room_config": {"agents": [{"agent_name": "x", "metadata": "y"}, {"agentName": "z"}]},
        "participant_grants": {"canPublish": false, "canPublishSources": ["camera"], "hidden": null, "roomJoin": true, "roomAdmin": false},
        "ttl_seconds": 60});
    let request = parse(standard).unwrap();
    assert!(request.is_standard_form);
    assert_eq!(request.metadata, Some(("participant_metadata", "m".into())));
    assert_eq!(request.attributes["a"], "b");
    assert_eq!(request.grants, [(Grant::Publish, false)].into());
    assert_eq!(request.sources, Some([TrackSource::Camera].into()));
    assert_eq!(request.lifetime, Some(60));
    let agents: Vec<_> = request
        .agents
        .iter()
        .map(|agent| agent.agent_name.as_str())
        .collect();
    assert_eq!(agents, ["x", "z"]);
    for other in [
        json!({}),
        json!({"room_name": "r"}),
        json!({"participant_name": "p", "room_config": {}}),
    ] {
        assert!(parse(other).unwrap().is_standard_form);
    }
}

#[test]
fn null_and_defaults_of_protobuf_count_as_absent() {
    let nulls = json!({"room_name": null, "participant_identity": null, "participant_name": null, "participant_metadata": null,
        "participant_attributes": null, "room_config": null, "participant_grants": null, "ttl_seconds": null, "metadata": null});
    let request = parse(nulls).unwrap();
    assert_eq!(
        request,
        ParticipantRequest {
            is_standard_form: true,
            ..ParticipantRequest::default()
        }
    );
    let config = json!({"name": "", "emptyTimeout": 0, "agents": [], "egress": null, "tags": {}, "hide": false});
    assert!(
        parse(json!({"room_config": config}))
            .unwrap()
            .agents
            .is_empty()
    );
}

#[test]
fn fields_of_a_wrong_type_are_named() {
    for (wrong, location) in [
        (json!({"room_name": 1}), "room_name"),
        (json!({"participant_name": ["x"]}), "participant_name"),
        (json!({"participant_identity": {}}), "participant_identity"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"participant_metadata": 1}), "participant_metadata"),
        (
            json!({"participant_attributes": []}),
            "participant_attributes",
        ),
        (
            json!({"participant_attributes": {"a": 1}}),
            "participant_attributes.a",
        ),
        (
            json!({"participant_attributes": {"a": null}}),
            "participant_attributes.a",
        ),
        (json!({"room_config": "x"}), "room_config"),
        (json!({"room_config": {"agents": 0}}), "room_config.agents"),
        (
            json!({"room_config": {"agents": ["x"]}}),
            "room_config.agents.0",
        ),
        (
            json!({"room_config": {"agents": [{"agent_name": 0}]}}),
            "room_config.agents.0.agent_name",
        ),
        (json!({"participant_grants": []}), "participant_grants"),
        (
            json!({"participant_grants": {"canPublish": "true"}}),
            "participant_grants.canPublish",
        ),
        (json!({"ttl_seconds": -1}), "ttl_seconds"),
        (json!({"ttl_seconds": 1.5}), "ttl_seconds"),
        (json!({"ttl_seconds": "60"}), "ttl_seconds"),
    ] {
        assert_eq!(invalid_fields(wrong.clone()), [location], "{wrong}");
    }
    assert_eq!(
        invalid_fields(json!({"room_name": 1, "participant_name": 1})).len(),
        2
    );
    let many: Map<String, Value> = (0..1000).map(|n| (n.to_string(), json!(n))).collect();
    assert_eq!(
        invalid_fields(json!({"participant_attributes": many})).len(),
        MAX_VALIDATION_ERRORS
    );
}

#[test]
fn forbidden_fields_and_values_are_named() {
    for (wrong, field) in [
        (
            json!({"room_config": {"egress": {"room": {}, "x": 1}}}),
            "room_config.egress",
        ),
        (
            json!({"room_config": {"max_participants": 1}}),
            "room_config.max_participants",
        ),
        (
            json!({"room_config": {"agents": [{"agent_name": "x", "deployment": "d"}]}}),
            "room_config.agents[0].deployment",
        ),
        (
            json!({"participant_grants": {"roomAdmin": true}}),
            "participant_grants.roomAdmin",
        ),
        (
            json!({"participant_grants": {"roomCreate": true}}),
            "participant_grants.roomCreate",
        ),
        (
            json!({"participant_grants": {"can_publish": true}}),
            "participant_grants.can_publish",
        ),
        (
            json!({"participant_grants": {"roomJoin": false}}),
            "participant_grants.roomJoin",
        ),
        (
            json!({"participant_grants": {"canPublishSources": []}}),
            "participant_grants.canPublishSources",
        ),
        (
            json!({"participant_grants": {"canPublishSources": ["x"]}}),
            "participant_grants.canPublishSources",
        ),
        (
            json!({"participant_grants": {"canPublishSources": "camera"}}),
            "participant_grants.canPublishSources",
        ),
        (
            json!({"metadata": "a", "participant_metadata": "b"}),
            "metadata",
        ),
    ] {
        assert_eq!(invalid_fields(wrong.clone()), [field], "{wrong}");
    }
}

#[test]
fn the_body_is_a_single_json_object() {
    let error_kind =
        |content_type: Option<&str>, body: &[u8]| match parse_token_body(content_type, body)
            .unwrap_err()
        {
            Error::Invalid(errors) => errors[0].kind,
            Error::Refused(_) => "refused",
        };
    let json = Some("application/json");
    for kind in [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/vnd.x+json",
    ] {
        assert!(parse_token_body(Some(kind), b"{}").is_ok(), "{kind}");
    }
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some(""),
    ] {
        assert_eq!(error_kind(kind, b"{}"), "model_attributes_type");
    }
    assert_eq!(error_kind(json, b""), "missing");
    for body in [
        &b"nope"[..],
        b"{",
        b"{} {}",
        b"{\"room_name\":\"a\",\"room_name\":\"b\"}",
        b"\xff",
    ] {
        assert_eq!(error_kind(json, body), "json_invalid");
    }
    for body in [&b"[]"[..], b"null", b"\"x\"", b"1"] {
        assert_eq!(error_kind(json, body), "model_attributes_type");
    }
}

#[test]
fn a_long_field_name_is_truncated() {
    let long = "x".repeat(10_000);
    let error = parse(json!({"room_config": {long: 1}})).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
}
