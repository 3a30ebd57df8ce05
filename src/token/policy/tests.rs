use super::*;
use crate::token::caller::CallerName;
use serde_json::json;

fn patterns(texts: &[&str]) -> Vec<NamePattern> {
    texts
        .iter()
        .map(|text| NamePattern::parse(text).unwrap())
        .collect()
}

fn allow_as(
    policy: &CallerPolicy,
    claims: serde_json::Value,
    asked: ParticipantRequest,
) -> Result<TokenGrant, PolicyError> {
    let caller = Caller {
        name: CallerName::parse("app").unwrap(),
        claims: claims.as_object().cloned(),
    };
    policy.authorize(&caller, asked, || "random".into())
}

fn allow(policy: &CallerPolicy, asked: ParticipantRequest) -> Result<TokenGrant, PolicyError> {
    allow_as(policy, json!(null), asked)
}

fn asked(room: &str, name: &str) -> ParticipantRequest {
    ParticipantRequest {
        room: Some(room.into()),
        display_name: Some(name.into()),
        ..ParticipantRequest::default()
    }
}

/// The field that is refused.
fn refused(outcome: Result<TokenGrant, PolicyError>) -> String {
    outcome.unwrap_err().field().to_owned()
}

#[test]
fn by_default_anyone_enters_any_one_room_to_talk_and_listen() {
    let terms = allow(&CallerPolicy::default(), asked("room", "me")).unwrap();
    assert_eq!(
        (terms.room.as_str(), terms.identity.as_str()),
        ("room", "me")
    );
    assert_eq!(terms.profile.name.as_deref(), Some("me"));
    assert_eq!((terms.lifetime, terms.sources.len()), (86_400, 0));
    assert_eq!(
        terms.grants,
        [Grant::Publish, Grant::Subscribe, Grant::PublishData].into()
    );
}

#[test]
fn what_is_missing_is_missing_unless_the_policy_makes_it_up() {
    let nothing = ParticipantRequest::default();
    assert_eq!(
        allow(&CallerPolicy::default(), nothing.clone()),
        Err(PolicyError::Missing(vec!["room_name", "participant_name"]))
    );
    let generous = CallerPolicy {
        rooms: patterns(&["meeting-*"]),
        identities: patterns(&["guest-*"]),
        random_room: true,
        random_identity: true,
        ..CallerPolicy::default()
    };
    let terms = allow(&generous, nothing).unwrap();
    assert_eq!(terms.room.as_str(), "meeting-random");
    assert_eq!(terms.identity.as_str(), "guest-random");
    let definite = CallerPolicy {
        rooms: patterns(&["lobby"]),
        ..CallerPolicy::default()
    };
    let nameless = ParticipantRequest {
        room: None,
        ..asked("", "me")
    };
    assert_eq!(allow(&definite, nameless).unwrap().room.as_str(), "lobby");
}

#[test]
fn a_name_says_who_somebody_is_where_nothing_else_does() {
    let standard = |identity: Option<&str>| ParticipantRequest {
        identity: identity.map(str::to_owned),
        is_standard_form: true,
        ..asked("room", "My Name")
    };
    let policy = CallerPolicy::default();
    assert_eq!(
        allow(&policy, standard(Some("me")))
            .unwrap()
            .identity
            .as_str(),
        "me"
    );
    assert_eq!(
        allow(&policy, standard(None)).unwrap().identity.as_str(),
        "My Name"
    );
    let random = CallerPolicy {
        random_identity: true,
        ..policy
    };
    let terms = allow(&random, standard(None)).unwrap();
    assert_eq!(terms.identity.as_str(), "random");
    assert_eq!(terms.profile.name.as_deref(), Some("My Name"));
    let example = allow(&random, asked("room", "My Name")).unwrap();
    assert_eq!(example.identity.as_str(), "My Name");
}

#[test]
fn a_user_of_a_login_is_themselves_whatever_they_call_themselves() {
    let policy = CallerPolicy {
        rooms: patterns(&["{claim:tenant}/*", "home-{identity}"]),
        identities: vec![NamePattern::equal_to_claim("sub")],
        ..CallerPolicy::default()
    };
    let claims = || json!({"sub": "u1", "tenant": "acme"});
    let terms = allow_as(&policy, claims(), asked("acme/1", "Alice")).unwrap();
    assert_eq!(terms.identity.as_str(), "u1");
    assert_eq!(terms.profile.name.as_deref(), Some("Alice"));
    assert!(allow_as(&policy, claims(), asked("home-u1", "Alice")).is_ok());
    for room in [
        "other/1",
        "acme",
        "home-u2",
        "home-Alice",
        "acme\u{2044}1",
        "../acme/1",
    ] {
        assert_eq!(
            refused(allow_as(&policy, claims(), asked(room, "Alice"))),
            "room_name"
        );
    }
    let other = ParticipantRequest {
        identity: Some("u2".into()),
        ..asked("acme/1", "Alice")
    };
    assert_eq!(
        refused(allow_as(&policy, claims(), other)),
        "participant_identity"
    );
    // without the claim there is nobody to be
    let nobody = allow_as(&policy, json!({"tenant": "acme"}), asked("acme/1", "Alice"));
    assert_eq!(refused(nobody), "participant_name");
}

#[test]
fn names_are_those_that_livekit_takes() {
    let policy = CallerPolicy {
        min_name_length: 3,
        ..CallerPolicy::default()
    };
    let long = "a".repeat(MAX_NAME_BYTES + 1);
    for name in ["", "ab", "éé", "a\0bc", "a\nbc", &long] {
        assert_eq!(
            refused(allow(&policy, asked(name, "abc"))),
            "room_name",
            "{name:?}"
        );
        assert_eq!(
            refused(allow(&policy, asked("abc", name))),
            "participant_name"
        );
        if name.chars().count() != 2 {
            let named = ParticipantRequest {
                identity: Some("me, myself".into()),
                ..asked("abc", name)
            };
            let outcome = allow(&policy, named);
            assert_eq!(outcome.is_ok(), name.is_empty(), "{name:?}");
        }
    }
    assert!(allow(&policy, asked("   ", "   ")).is_ok());
    assert!(allow(&policy, asked(&"a".repeat(MAX_NAME_BYTES), "ééé")).is_ok());
}

#[test]
fn grants_are_given_by_policy_and_can_be_declined() {
    let policy = CallerPolicy {
        grants_on_request: [Grant::UpdateOwnMetadata].into(),
        sources: [TrackSource::Microphone, TrackSource::Camera].into(),
        ..CallerPolicy::default()
    };
    let asking = |grants: &[(Grant, bool)], sources: Option<&[TrackSource]>| ParticipantRequest {
        grants: grants.iter().copied().collect(),
        sources: sources.map(|sources| sources.iter().copied().collect()),
        ..asked("room", "me")
    };
    let plain = allow(&policy, asking(&[], None)).unwrap();
    assert_eq!((plain.grants.len(), &plain.sources), (3, &policy.sources));
    let wishes = [
        (Grant::UpdateOwnMetadata, true),
        (Grant::Publish, false),
        (Grant::Hidden, false),
    ];
    let terms = allow(&policy, asking(&wishes, Some(&[TrackSource::Microphone]))).unwrap();
    assert_eq!(
        terms.grants,
        [
            Grant::Subscribe,
            Grant::PublishData,
            Grant::UpdateOwnMetadata
        ]
        .into()
    );
    assert_eq!(terms.sources, [TrackSource::Microphone].into());
    for grant in [
        Grant::Hidden,
        Grant::Agent,
        Grant::Recorder,
        Grant::SubscribeMetrics,
    ] {
        let field = refused(allow(&policy, asking(&[(grant, true)], None)));
        assert_eq!(field, format!("participant_grants.{}", grant.as_str()));
    }
    let beyond = asking(
        &[],
        Some(&[TrackSource::Microphone, TrackSource::ScreenShare]),
    );
    assert_eq!(
        refused(allow(&policy, beyond)),
        "participant_grants.canPublishSources"
    );
}

#[test]
fn a_lifetime_is_what_is_asked_for_within_bounds() {
    let policy = CallerPolicy {
        default_lifetime: 600,
        max_lifetime: 3600,
        ..CallerPolicy::default()
    };
    let lasting = |lifetime| {
        let asked = ParticipantRequest {
            lifetime,
            ..asked("room", "me")
        };
        allow(&policy, asked).map(|terms| terms.lifetime)
    };
    assert_eq!(lasting(None), Ok(600));
    assert_eq!(lasting(Some(MIN_LIFETIME)), Ok(MIN_LIFETIME));
    assert_eq!(lasting(Some(3600)), Ok(3600));
    for seconds in [0, MIN_LIFETIME - 1, 3601, 315_360_000, u64::MAX] {
        assert_eq!(lasting(Some(seconds)).unwrap_err().field(), "ttl_seconds");
    }
}

#[test]
fn metadata_attributes_and_agents_have_the_bounds_of_the_policy() {
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
        ..asked("room", "me")
    };
    assert!(allow(&policy, full("0123456789", "4567890", "helper-1", "")).is_ok());
    for (asked, field) in [
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
        assert_eq!(refused(allow(&policy, asked)), field);
    }
    let none = CallerPolicy {
        max_metadata: 0,
        max_attributes: 0,
        ..policy.clone()
    };
    assert_eq!(
        refused(allow(&none, full("x", "", "helper-1", ""))),
        "metadata"
    );
    assert_eq!(
        refused(allow(&none, full("", "", "helper-1", ""))),
        "participant_attributes"
    );
    let mut many = asked("room", "me");
    many.agents = vec![full("", "", "helper-1", "").agents[0].clone(); MAX_AGENTS + 1];
    assert_eq!(refused(allow(&policy, many)), "room_config.agents");
    let by_default = allow(&CallerPolicy::default(), full("", "", "helper-1", ""));
    assert_eq!(refused(by_default), "room_config.agents[0].agent_name");
}
