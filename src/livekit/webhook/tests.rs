//! `tests/vectors/livekit.json`: webhooks with the results of LiveKit's own receivers.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::livekit::access_token::{ApiKey, ApiKeys, Claims, JoinPermissions};
use crate::livekit::sealed_attribute::MAX_SEALED_ATTRIBUTE_BYTES;

const NOW: u64 = 1_800_000_000;

fn api_key() -> ApiKey {
    ApiKey::new("key", "a secret of the SFU's")
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/livekit.json")).unwrap()
}

fn receive(receiver: &WebhookReceiver, body: &Value) -> Result<WebhookDelivery, Error> {
    let body = body.to_string();
    let token = access_token::tests::webhook_token(&api_key(), body.as_bytes(), NOW);
    receiver.receive(Some(&token), body.as_bytes(), NOW)
}

/// The result of a fresh receiver.
fn receive_first(body: &Value) -> WebhookDelivery {
    receive(&WebhookReceiver::new(api_key()), body).unwrap()
}

/// Id and event of a body with a new event.
fn receive_new(body: &Value) -> (String, WebhookEvent) {
    match receive_first(body) {
        WebhookDelivery::New { id, event } => (id, event),
        other => panic!("{body}: {other:?}"),
    }
}

fn joined(id: &str) -> Value {
    json!({"event": "participant_joined", "id": id, "room": {"name": "r"}, "participant": {"identity": "a", "sid": "PA_1"}})
}

fn left(participant: Value) -> Value {
    json!({"event": "participant_left", "room": {"name": "r"}, "participant": participant})
}

#[test]
fn signatures_are_judged_as_by_livekits_receivers() {
    let all = vectors();
    let text = |name: &str| all[name].as_str().unwrap();
    let api_key = ApiKey::new(text("api_key"), text("api_secret"));
    let now = all["now"].as_u64().unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for vector in all["webhooks"].as_array().unwrap() {
        let text = |name: &str| vector[name].as_str().unwrap();
        // a Bearer scheme is accepted in addition
        let expected = text("id") == "bearer_prefix" || vector["results"]["node"]["ok"] == true;
        let receiver = WebhookReceiver::new(SharedApiKeys::new(ApiKeys::new(
            ApiKey::new("other", "x"),
            [api_key.clone()],
        )));
        let received = receiver.receive(Some(text("authorization")), text("body").as_bytes(), now);
        assert_eq!(received.is_ok(), expected, "{}: {received:?}", text("id"));
        *(if expected {
            &mut accepted
        } else {
            &mut refused
        }) += 1;
    }
    assert!(accepted >= 5 && refused >= 8, "{accepted} {refused}");
}

#[test]
fn the_body_of_a_real_sfu_is_parsed() {
    let body = vectors()["webhooks"][0]["body"].clone();
    let body: Value = serde_json::from_str(body.as_str().unwrap()).unwrap();
    let event = WebhookEvent::Participant {
        change: ConnectionChange::Left,
        key: ParticipantKey {
            room: RoomName::new("Demo Room".into()).unwrap(),
            identity: ParticipantIdentity::new("@alice:example.org:DEV".into()).unwrap(),
        },
        sid: Some(ParticipantSid::new("PA_KcRLuP2fNkMu".into()).unwrap()),
        sealed_attribute: None,
        disconnect_reason: Some("CLIENT_INITIATED".into()),
    };
    assert_eq!(receive_new(&body), ("EV_eugWmGhovZmm".into(), event));
}

#[test]
fn a_token_without_body_hash_is_refused() {
    let receiver = WebhookReceiver::new(api_key());
    let identity = ParticipantIdentity::new("a".into()).unwrap();
    let permissions = JoinPermissions {
        can_publish: true,
        can_subscribe: true,
        can_update_own_metadata: true,
    };
    let claims = Claims::join(identity, &RoomName::new("r".into()).unwrap(), permissions);
    let token = claims.sign(&api_key(), NOW, Duration::from_secs(60));
    assert_eq!(
        receiver.receive(Some(token.expose()), b"{}", NOW),
        Err(Error::MissingBodyHash)
    );
}

#[test]
fn a_signature_is_valid_for_one_body_one_time_and_one_key() {
    let receiver = WebhookReceiver::new(api_key());
    let body = joined("EV_1").to_string();
    let body = body.as_bytes();
    let signed_by = |key: &ApiKey| access_token::tests::webhook_token(key, body, NOW);
    let token = signed_by(&api_key());
    let wrong_secret = signed_by(&ApiKey::new("key", "another secret"));
    let unknown_key = signed_by(&ApiKey::new("unknown", "a secret of the SFU's"));
    let basic = format!("Basic {token}");
    let longer_body = [body, b"\n"].concat();
    let invalid = Error::InvalidToken;
    for (authorization, body, now, error) in [
        (None, body, NOW, Error::MissingAuthorization),
        (Some(""), body, NOW, Error::MissingAuthorization),
        (Some(" "), body, NOW, Error::MissingAuthorization),
        (
            Some("Bearer"),
            body,
            NOW,
            invalid(AccessTokenError::Malformed),
        ),
        (
            Some(&*basic),
            body,
            NOW,
            invalid(AccessTokenError::Malformed),
        ),
        (Some(&token), &longer_body, NOW, Error::BodyHashMismatch),
        (Some(&token), b"", NOW, Error::BodyHashMismatch),
        (
            Some(&token),
            body,
            NOW + 1000,
            invalid(AccessTokenError::Expired),
        ),
        (
            Some(&token),
            body,
            NOW - 1000,
            invalid(AccessTokenError::NotYetValid),
        ),
        (
            Some(&wrong_secret),
            body,
            NOW,
            invalid(AccessTokenError::Signature),
        ),
        (
            Some(&unknown_key),
            body,
            NOW,
            invalid(AccessTokenError::UnknownKey),
        ),
    ] {
        assert_eq!(receiver.receive(authorization, body, now), Err(error));
    }
    let received = receiver.receive(Some(&format!("bearer  {token}")), body, NOW);
    assert!(
        matches!(received, Ok(WebhookDelivery::New { .. })),
        "refused webhooks must not consume the event id: {received:?}"
    );
}

#[test]
fn a_repeat_is_a_duplicate_unless_the_first_delivery_failed() {
    let receiver = WebhookReceiver::new(api_key());
    let deliver = |id: &str| receive(&receiver, &joined(id)).unwrap();
    let first = deliver("EV_1");
    let WebhookDelivery::New { id, .. } = &first else {
        panic!("{first:?}")
    };
    assert_eq!(deliver("EV_1"), WebhookDelivery::InProgress);
    assert!(matches!(deliver("EV_2"), WebhookDelivery::New { .. }));
    receiver.mark_failed(id);
    assert_eq!(deliver("EV_1"), first);
    receiver.mark_processed(id);
    assert_eq!(deliver("EV_1"), WebhookDelivery::Duplicate);
}

#[test]
fn fields_of_a_wrong_type_count_as_absent() {
    for (reason, expected) in [
        (json!("FROM_THE_FUTURE"), Some("FROM_THE_FUTURE")),
        (json!(2), Some("DUPLICATE_IDENTITY")),
        (json!(4711), Some("4711")),
        (json!(-1), None),
        (json!(null), None),
        (json!({"a": 1}), None),
        (json!("two words"), None),
    ] {
        let (id, event) = receive_new(&left(json!({"identity": "a", "disconnectReason": reason})));
        assert_eq!(id, "");
        let WebhookEvent::Participant {
            change: ConnectionChange::Left,
            disconnect_reason,
            ..
        } = event
        else {
            panic!("{event:?}")
        };
        assert_eq!(disconnect_reason.as_deref(), expected);
    }
    for sid in [json!(1), json!(""), json!("a".repeat(257)), json!(null)] {
        let (_, event) = receive_new(&left(json!({"identity": "a", "sid": sid})));
        assert!(matches!(event, WebhookEvent::Participant { sid: None, .. }));
    }
    let finished = json!({"event": "room_finished", "id": 5, "createdAt": "17", "room": {"name": "r", "creationTime": 17}, "participant": "a"});
    let room = RoomName::new("r".into()).unwrap();
    assert_eq!(
        receive_new(&finished),
        (String::new(), WebhookEvent::RoomFinished(room))
    );
    let (id, _) = receive_new(&joined(&"ü".repeat(10_000)));
    assert_eq!(id.len(), 254);
}

#[test]
fn other_events_are_ignored() {
    for body in [
        json!({}),
        json!({"event": 1}),
        json!({"event": "track_published", "room": {"name": "r"}, "participant": {"identity": "a"}}),
        json!({"event": "egress_ended", "egressInfo": {}}),
        json!({"event": "future_event", "id": "EV_x"}),
        json!({"event": "room_finished"}),
        json!({"event": "room_finished", "room": {"name": ""}}),
        json!({"event": "room_finished", "room": {"name": "a".repeat(257)}}),
        json!({"event": "participant_left", "room": {"name": "r"}}),
        left(json!(null)),
        left(json!(["a"])),
        left(json!({"identity": "a\nb"})),
        json!({"event": "participant_left", "room": "r", "participant": {"identity": "a"}}),
    ] {
        assert_eq!(receive_first(&body), WebhookDelivery::Ignored, "{body}");
    }
}

#[test]
fn a_body_that_is_no_json_object_is_refused() {
    let receiver = WebhookReceiver::new(api_key());
    for body in [
        "",
        "[]",
        "1",
        "null",
        "{",
        "{} {}",
        r#"{"a":1e9999}"#,
        "\u{feff}{}",
    ] {
        let token = access_token::tests::webhook_token(&api_key(), body.as_bytes(), NOW);
        let received = receiver.receive(Some(&token), body.as_bytes(), NOW);
        assert_eq!(received, Err(Error::MalformedBody), "{body}");
    }
}

#[test]
fn the_sealed_attribute_is_parsed() {
    let sealed_attribute_of = |attributes: &Value| {
        let mut body = joined("EV_1");
        body["participant"]["attributes"] = attributes.clone();
        match receive_new(&body).1 {
            WebhookEvent::Participant {
                sealed_attribute, ..
            } => sealed_attribute,
            other => panic!("{other:?}"),
        }
    };
    let longest = "a".repeat(MAX_SEALED_ATTRIBUTE_BYTES);
    let sealed = sealed_attribute_of(&json!({"x": "y", SEALED_ATTRIBUTE_NAME: longest}));
    assert_eq!(sealed.unwrap().as_str(), longest);
    for attributes in [
        json!({}),
        json!(null),
        json!(SEALED_ATTRIBUTE_NAME),
        json!([[SEALED_ATTRIBUTE_NAME, "a"]]),
        json!({SEALED_ATTRIBUTE_NAME: 1}),
        json!({SEALED_ATTRIBUTE_NAME: ""}),
        json!({SEALED_ATTRIBUTE_NAME: "{}"}),
        json!({SEALED_ATTRIBUTE_NAME: format!("{longest}a")}),
        json!({"x": "y"}),
    ] {
        assert_eq!(sealed_attribute_of(&attributes), None, "{attributes}");
    }
}
