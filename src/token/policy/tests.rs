use super::*;
use serde_json::json;

fn patterns(texts: &[&str]) -> Vec<NamePattern> {
    texts
        .iter()
        .map(|text| NamePattern::parse(text).unwrap())
        .collect()
}

fn authorize_with_claims(
    policy: &CallerPolicy,
    claims: Value,
    request: ParticipantRequest,
) -> Result<TokenGrant, PolicyError> {
    policy.authorize(claims.as_object(), request, || "random".into())
}

fn authorize(
    policy: &CallerPolicy,
    request: ParticipantRequest,
) -> Result<TokenGrant, PolicyError> {
    authorize_with_claims(policy, Value::Null, request)
}

fn request(room: &str, name: &str) -> ParticipantRequest {
    ParticipantRequest {
        room: Some(room.into()),
        display_name: Some(name.into()),
        ..ParticipantRequest::default()
    }
}

/// The field of the error.
fn refused_field(result: Result<TokenGrant, PolicyError>) -> String {
    result.unwrap_err().field().to_owned()
}

#[test]
fn the_default_policy_allows_publishing_and_subscribing_in_any_one_room() {
    let grant = authorize(&CallerPolicy::default(), request("room", "me")).unwrap();
    assert_eq!(
        (grant.room.as_str(), grant.identity.as_str()),
        ("room", "me")
    );
    assert_eq!(grant.profile.name.as_deref(), Some("me"));
    assert_eq!((grant.lifetime, grant.sources.len()), (86_400, 0));
    assert_eq!(
        grant.grants,
        [Grant::Publish, Grant::Subscribe, Grant::PublishData].into()
    );
}

#[test]
fn a_missing_room_or_identity_is_an_error_unless_the_policy_implies_it() {
    let nothing = ParticipantRequest::default();
    assert_eq!(
        authorize(&CallerPolicy::default(), nothing.clone()),
        Err(PolicyError::Missing(vec!["room_name", "participant_name"]))
    );
    let permissive = CallerPolicy {
        rooms: patterns(&["meeting-*"]),
        identities: patterns(&["visitor-*"]),
        random_room: true,
        random_identity: true,
        ..CallerPolicy::default()
    };
    let grant = authorize(&permissive, nothing).unwrap();
    assert_eq!(grant.room.as_str(), "meeting-random");
    assert_eq!(grant.identity.as_str(), "visitor-random");
    let one_room = CallerPolicy {
        rooms: patterns(&["lobby"]),
        ..CallerPolicy::default()
    };
    let without_room = ParticipantRequest {
        room: None,
        ..request("", "me")
    };
    assert_eq!(
        authorize(&one_room, without_room).unwrap().room.as_str(),
        "lobby"
    );
}

#[test]
fn a_display_name_is_the_identity_if_the_request_has_no_other() {
    let standard = |identity: Option<&str>| ParticipantRequest {
        identity: identity.map(str::to_owned),
        is_standard_form: true,
        ..request("room", "My Name")
    };
    let policy = CallerPolicy::default();
    assert_eq!(
        authorize(&policy, standard(Some("me")))
            .unwrap()
            .identity
            .as_str(),
        "me"
    );
    assert_eq!(
        authorize(&policy, standard(None))
            .unwrap()
            .identity
            .as_str(),
        "My Name"
    );
    let random = CallerPolicy {
        random_identity: true,
        ..policy
    };
    let grant = authorize(&random, standard(None)).unwrap();
    assert_eq!(grant.identity.as_str(), "random");
    assert_eq!(grant.profile.name.as_deref(), Some("My Name"));
    let example = authorize(&random, request("room", "My Name")).unwrap();
    assert_eq!(example.identity.as_str(), "My Name");
}

#[test]
fn a_jwt_user_has_the_identity_of_the_claim_whatever_the_display_name() {
    let policy = CallerPolicy {
        rooms: patterns(&["{claim:tenant}/*", "home-{identity}"]),
        identities: vec![NamePattern::equal_to_claim("sub")],
        ..CallerPolicy::default()
    };
    let claims = || json!({"sub": "u1", "tenant": "acme"});
    let grant = authorize_with_claims(&policy, claims(), request("acme/1", "Alice")).unwrap();
    assert_eq!(grant.identity.as_str(), "u1");
    assert_eq!(grant.profile.name.as_deref(), Some("Alice"));
    assert!(authorize_with_claims(&policy, claims(), request("home-u1", "Alice")).is_ok());
    for room in [
        "other/1",
        "acme",
        "home-u2",
        "home-Alice",
        "acme\u{2044}1",
        "../acme/1",
    ] {
        assert_eq!(
            refused_field(authorize_with_claims(
                &policy,
                claims(),
                request(room, "Alice")
            )),
            "room_name"
        );
    }
    let other = ParticipantRequest {
        identity: Some("u2".into()),
        ..request("acme/1", "Alice")
    };
    assert_eq!(
        refused_field(authorize_with_claims(&policy, claims(), other)),
        "participant_identity"
    );
    // without the claim there is no allowed identity
    let without_claim = authorize_with_claims(
        &policy,
        json!({"tenant": "acme"}),
        request("acme/1", "Alice"),
    );
    assert_eq!(refused_field(without_claim), "participant_name");
}

#[test]
fn names_must_be_accepted_by_livekit_and_the_policy() {
    let policy = CallerPolicy {
        min_name_length: 3,
        ..CallerPolicy::default()
    };
    let long = "a".repeat(MAX_NAME_BYTES + 1);
    for name in ["", "ab", "éé", "a\0bc", "a\nbc", &long] {
        assert_eq!(
            refused_field(authorize(&policy, request(name, "abc"))),
            "room_name",
            "{name:?}"
        );
        assert_eq!(
            refused_field(authorize(&policy, request("abc", name))),
            "participant_name"
        );
        if name.chars().count() != 2 {
            let named = ParticipantRequest {
                identity: Some("me, myself".into()),
                ..request("abc", name)
            };
            let result = authorize(&policy, named);
            assert_eq!(result.is_ok(), name.is_empty(), "{name:?}");
        }
    }
    assert!(authorize(&policy, request("   ", "   ")).is_ok());
    assert!(authorize(&policy, request(&"a".repeat(MAX_NAME_BYTES), "ééé")).is_ok());
}

#[test]
fn the_policy_determines_grants_and_a_request_can_decline_them() {
    let policy = CallerPolicy {
        grants_on_request: [Grant::UpdateOwnMetadata].into(),
        sources: [TrackSource::Microphone, TrackSource::Camera].into(),
        ..CallerPolicy::default()
    };
    let asking = |grants: &[(Grant, bool)], sources: Option<&[TrackSource]>| ParticipantRequest {
        grants: grants.iter().copied().collect(),
        sources: sources.map(|sources| sources.iter().copied().collect()),
        ..request("room", "me")
    };
    let plain = authorize(&policy, asking(&[], None)).unwrap();
    assert_eq!((plain.grants.len(), &plain.sources), (3, &policy.sources));
    let changes = [
        (Grant::UpdateOwnMetadata, true),
        (Grant::Publish, false),
        (Grant::Hidden, false),
    ];
    let grant = authorize(&policy, asking(&changes, Some(&[TrackSource::Microphone]))).unwrap();
    assert_eq!(
        grant.grants,
        [
            Grant::Subscribe,
            Grant::PublishData,
            Grant::UpdateOwnMetadata
        ]
        .into()
    );
    assert_eq!(grant.sources, [TrackSource::Microphone].into());
    for grant in [
        Grant::Hidden,
        Grant::Agent,
        Grant::Recorder,
        Grant::SubscribeMetrics,
    ] {
        let field = refused_field(authorize(&policy, asking(&[(grant, true)], None)));
        assert_eq!(field, format!("participant_grants.{}", grant.as_str()));
    }
    let beyond = asking(
        &[],
        Some(&[TrackSource::Microphone, TrackSource::ScreenShare]),
    );
    assert_eq!(
        refused_field(authorize(&policy, beyond)),
        "participant_grants.canPublishSources"
    );
}

#[test]
fn a_requested_lifetime_is_bounded() {
    let policy = CallerPolicy {
        default_lifetime: 600,
        max_lifetime: 3600,
        ..CallerPolicy::default()
    };
    let granted_lifetime = |lifetime| {
        let request = ParticipantRequest {
            lifetime,
            ..request("room", "me")
        };
        authorize(&policy, request).map(|grant| grant.lifetime)
    };
    assert_eq!(granted_lifetime(None), Ok(600));
    assert_eq!(granted_lifetime(Some(MIN_LIFETIME)), Ok(MIN_LIFETIME));
    assert_eq!(granted_lifetime(Some(3600)), Ok(3600));
    for seconds in [0, MIN_LIFETIME - 1, 3601, 315_360_000, u64::MAX] {
        assert_eq!(
            granted_lifetime(Some(seconds)).unwrap_err().field(),
            "ttl_seconds"
        );
    }
}

#[test]
fn the_policy_bounds_metadata_attributes_and_agents() {
    let policy = CallerPolicy {
        max_metadata: 10,
        max_attributes: 10,
        agents: patterns(&["helper-*"]),
        ..CallerPolicy::default()
    };
    let full = |metadata: &str, value: &str, agent: &str, task: &str| ParticipantRequest {
        metadata: Some(("metadata", metadata.into())),
        attributes: [("key".to_owned(), value.to_owned())].into(),
        agents: vec![AgentDispatch {
            agent_name: agent.into(),
            metadata: task.into(),
        }],
        ..request("room", "me")
    };
    assert!(authorize(&policy, full("0123456789", "4567890", "helper-1", "")).is_ok());
    for (request, field) in [
        (full("0123456789x", "", "helper-1", ""), "metadata"),
        (
            full("", "45678901", "helper-1", ""),
            "participant_attributes",
        ),
        (
            full("", "", "other", ""),
            "room_config.agents[0].agent_name",
        ),
        (full("", "", "", ""), "room_config.agents[0].agent_name"),
        (
            full("", "", "helper-1", "0123456789x"),
            "room_config.agents[0].metadata",
        ),
    ] {
        assert_eq!(refused_field(authorize(&policy, request)), field);
    }
    let none = CallerPolicy {
        max_metadata: 0,
        max_attributes: 0,
        ..policy.clone()
    };
    assert_eq!(
        refused_field(authorize(&none, full("x", "", "helper-1", ""))),
        "metadata"
    );
    assert_eq!(
        refused_field(authorize(&none, full("", "", "helper-1", ""))),
        "participant_attributes"
    );
    let mut many = request("room", "me");
    many.agents = vec![full("", "", "helper-1", "").agents[0].clone(); MAX_AGENTS + 1];
    assert_eq!(
        refused_field(authorize(&policy, many)),
        "room_config.agents"
    );
    let by_default = authorize(&CallerPolicy::default(), full("", "", "helper-1", ""));
    assert_eq!(
        refused_field(by_default),
        "room_config.agents[0].agent_name"
    );
}
