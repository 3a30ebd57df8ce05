//! `tests/vectors/livekit.json`: webhooks with the verdict of each of LiveKit's own receivers.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::livekit::access_token::{Claims, JoinPermissions};
use crate::livekit::sealed_attribute;

const NOW: u64 = 1_800_000_000;

fn key() -> ApiKey {
    ApiKey::new("key", "a secret of the SFU's")
}

/// A receiver that has checked nothing yet, and what it makes of `body`.
fn read(body: &Value) -> WebhookDelivery {
    let receiver = WebhookReceiver::new(vec![key()]);
    receive(&receiver, body).unwrap()
}

fn receive(receiver: &WebhookReceiver, body: &Value) -> Result<WebhookDelivery, Error> {
    let body = body.to_string();
    let token = access_token::tests::webhook(&key(), body.as_bytes(), NOW);
    receiver.receive(Some(&token), body.as_bytes(), NOW)
}

fn joined(id: &str) -> Value {
    json!({"event": "participant_joined", "id": id, "room": {"name": "r"}, "participant": {"identity": "a", "sid": "PA_1"}})
}

#[test]
fn livekits_own_receivers_agree() {
    let all: Value =
        serde_json::from_str(include_str!("../../../tests/vectors/livekit.json")).unwrap();
    let of = |name: &str| all[name].as_str().unwrap();
    let key = ApiKey::new(of("api_key"), of("api_secret"));
    let now = all["now"].as_u64().unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for vector in all["webhooks"].as_array().unwrap() {
        let of = |name: &str| vector[name].as_str().unwrap();
        // the one thing in which we are more lenient
        let expected = of("id") == "bearer_prefix" || vector["results"]["node"]["ok"] == true;
        let receiver = WebhookReceiver::new(vec![ApiKey::new("other", "x"), key.clone()]);
        let received = receiver.receive(Some(of("authorization")), of("body").as_bytes(), now);
        assert_eq!(received.is_ok(), expected, "{}: {received:?}", of("id"));
        *(if expected {
            &mut accepted
        } else {
            &mut refused
        }) += 1;
    }
    assert!(accepted >= 5 && refused >= 8, "{accepted} {refused}");
}

#[test]
fn what_the_sfu_sends_is_understood() {
    let all: Value =
        serde_json::from_str(include_str!("../../../tests/vectors/livekit.json")).unwrap();
    let body: Value = serde_json::from_str(all["webhooks"][0]["body"].as_str().unwrap()).unwrap();
    let identity = ParticipantIdentity::new("@alice:example.org:DEV".into()).unwrap();
    let sid = ParticipantSid::new("PA_KcRLuP2fNkMu".into()).unwrap();
    assert_eq!(
        read(&body),
        WebhookDelivery::New(WebhookEvent {
            id: "EV_eugWmGhovZmm".into(),
            kind: WebhookEventKind::Left,
            room: RoomName::new("Demo Room".into()).unwrap(),
            participant: Some((identity, Some(sid))),
            sealed_attribute: None,
            disconnect_reason: Some("CLIENT_INITIATED".into()),
        })
    );
}

#[test]
fn a_token_without_a_hash_is_no_signature() {
    let receiver = WebhookReceiver::new(vec![key()]);
    let (identity, room) = (
        ParticipantIdentity::new("a".into()),
        RoomName::new("r".into()),
    );
    let may = JoinPermissions {
        can_publish: true,
        can_subscribe: true,
        can_update_own_metadata: true,
    };
    let claims = Claims::join(identity.unwrap(), &room.unwrap(), may);
    let join = claims.sign(&key(), NOW, Duration::from_secs(60));
    assert_eq!(
        receiver.receive(Some(join.expose()), b"{}", NOW),
        Err(Error::MissingBodyHash)
    );
}

#[test]
fn a_signature_is_for_one_body_one_time_and_one_key() {
    let receiver = WebhookReceiver::new(vec![key()]);
    let body = joined("EV_1").to_string();
    let body = body.as_bytes();
    let token = access_token::tests::webhook(&key(), body, NOW);
    let longer = [body, b"\n"].concat();
    let forged = access_token::tests::webhook(&ApiKey::new("key", "another secret"), body, NOW);
    let unknown =
        access_token::tests::webhook(&ApiKey::new("strange", "a secret of the SFU's"), body, NOW);
    for (authorization, body, now, error) in [
        (None, body, NOW, Error::MissingAuthorization),
        (Some(""), body, NOW, Error::MissingAuthorization),
        (Some(" "), body, NOW, Error::MissingAuthorization),
        (
            Some("Bearer"),
            body,
            NOW,
            Error::InvalidToken(AccessTokenError::Malformed),
        ),
        (
            Some(&*format!("Basic {token}")),
            body,
            NOW,
            Error::InvalidToken(AccessTokenError::Malformed),
        ),
        (Some(&token), &longer, NOW, Error::BodyHashMismatch),
        (Some(&token), b"", NOW, Error::BodyHashMismatch),
        (
            Some(&token),
            body,
            NOW + 1000,
            Error::InvalidToken(AccessTokenError::Expired),
        ),
        (
            Some(&token),
            body,
            NOW - 1000,
            Error::InvalidToken(AccessTokenError::NotYetValid),
        ),
        (
            Some(&forged),
            body,
            NOW,
            Error::InvalidToken(AccessTokenError::Signature),
        ),
        (
            Some(&unknown),
            body,
            NOW,
            Error::InvalidToken(AccessTokenError::UnknownKey),
        ),
    ] {
        assert_eq!(receiver.receive(authorization, body, now), Err(error));
    }
    // none of them has used up the id
    let received = receiver.receive(Some(&format!("bearer  {token}")), body, NOW);
    assert!(
        matches!(received, Ok(WebhookDelivery::New(_))),
        "{received:?}"
    );
}

#[test]
fn a_repeat_is_told_unless_the_first_was_taken_back() {
    let receiver = WebhookReceiver::new(vec![key()]);
    let Ok(WebhookDelivery::New(webhook)) = receive(&receiver, &joined("EV_1")) else {
        panic!("was not new")
    };
    assert_eq!(
        receive(&receiver, &joined("EV_1")),
        Ok(WebhookDelivery::InProgress)
    );
    assert!(matches!(
        receive(&receiver, &joined("EV_2")),
        Ok(WebhookDelivery::New(_))
    ));
    receiver.mark_failed(&webhook);
    assert_eq!(
        receive(&receiver, &joined("EV_1")),
        Ok(WebhookDelivery::New(webhook.clone()))
    );
    receiver.mark_processed(&webhook);
    assert_eq!(
        receive(&receiver, &joined("EV_1")),
        Ok(WebhookDelivery::Duplicate)
    );
}

#[test]
fn bodies_are_read_as_leniently_as_their_writers_may_change() {
    let new = |body: &Value| match read(body) {
        WebhookDelivery::New(webhook) => webhook,
        other => panic!("{body}: {other:?}"),
    };
    let left = |who: Value| json!({"event": "participant_left", "room": {"name": "r"}, "participant": who});
    for (reason, read) in [
        (json!("FROM_THE_FUTURE"), Some("FROM_THE_FUTURE")),
        (json!(2), Some("DUPLICATE_IDENTITY")),
        (json!(4711), Some("4711")),
        (json!(-1), None),
        (json!(null), None),
        (json!({"a": 1}), None),
        (json!("two words"), None),
    ] {
        let webhook = new(&left(json!({"identity": "a", "disconnectReason": reason})));
        assert_eq!(webhook.disconnect_reason.as_deref(), read);
        assert_eq!(
            (webhook.id.as_str(), webhook.kind),
            ("", WebhookEventKind::Left)
        );
    }
    for sid in [json!(1), json!(""), json!("a".repeat(257)), json!(null)] {
        let webhook = new(&left(json!({"identity": "a", "sid": sid})));
        assert_eq!(webhook.participant.unwrap().1, None);
    }
    let mut finished = json!({"event": "room_finished", "id": 5, "createdAt": "17", "room": {"name": "r", "creationTime": 17}});
    finished["participant"] = json!("nobody");
    assert_eq!(new(&finished).kind, WebhookEventKind::RoomFinished);
    let long = new(&joined(&"ü".repeat(10_000)));
    assert_eq!(long.id.len(), 254);
}

#[test]
fn events_that_do_not_matter_are_fine() {
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
        json!({"event": "participant_left", "room": {"name": "r"}, "participant": null}),
        json!({"event": "participant_left", "room": {"name": "r"}, "participant": ["a"]}),
        json!({"event": "participant_left", "room": {"name": "r"}, "participant": {"identity": "a\nb"}}),
        json!({"event": "participant_left", "room": "r", "participant": {"identity": "a"}}),
    ] {
        assert_eq!(read(&body), WebhookDelivery::Ignored, "{body}");
    }
    let receiver = WebhookReceiver::new(vec![key()]);
    for body in ["", "[]", "1", "null", "{", "\u{feff}{}"] {
        let token = access_token::tests::webhook(&key(), body.as_bytes(), NOW);
        let received = receiver.receive(Some(&token), body.as_bytes(), NOW);
        assert_eq!(received, Err(Error::MalformedBody), "{body}");
    }
}

#[test]
fn what_somebody_carries_is_read_if_it_may_be_a_note_of_ours() {
    let carried = |attributes: Value| {
        let mut body = joined("EV_1");
        body["participant"]["attributes"] = attributes;
        match read(&body) {
            WebhookDelivery::New(webhook) => webhook.sealed_attribute,
            other => panic!("{other:?}"),
        }
    };
    let longest = "a".repeat(sealed_attribute::MAX_SEALED_ATTRIBUTE_BYTES);
    let sealed = carried(json!({"x": "y", sealed_attribute::SEALED_ATTRIBUTE_NAME: longest}));
    assert_eq!(sealed.unwrap().as_str(), longest);
    for other in [
        json!({}),
        json!(null),
        json!(sealed_attribute::SEALED_ATTRIBUTE_NAME),
        json!([[sealed_attribute::SEALED_ATTRIBUTE_NAME, "a"]]),
        json!({sealed_attribute::SEALED_ATTRIBUTE_NAME: 1}),
        json!({sealed_attribute::SEALED_ATTRIBUTE_NAME: ""}),
        json!({sealed_attribute::SEALED_ATTRIBUTE_NAME: "{}"}),
        json!({sealed_attribute::SEALED_ATTRIBUTE_NAME: format!("{longest}a")}),
        json!({"x": "y"}),
    ] {
        assert_eq!(carried(other.clone()), None, "{other}");
    }
}
