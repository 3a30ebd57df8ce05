//! Webhooks of the SFU: none is accepted without a signature of its exact body, and a parsed event has nothing that its body lacks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::webhook_event;
use livekit_token_service::internal::{
    ApiKey, ConnectionChange, WebhookDelivery, WebhookEvent, WebhookReceiver,
};
use serde_json::Value;

const NOW: u64 = 1_800_000_000;
/// A body, and the token that the SFU signs for it.
const BODY: &[u8] = br#"{"event":"participant_left","room":{"name":"r"},"participant":{"identity":"a","sid":"PA_1","disconnectReason":"CLIENT_INITIATED"},"id":"EV_1"}"#;
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJrZXkiLCJuYmYiOjE4MDAwMDAwMDAsImV4cCI6MTgwMDAwMDMwMCwic2hhMjU2IjoiUTk5OHp1KzlCNFlwTzV0WktjaG5tSjNGRnlWRmhGcFdBTTBGM2FNVFVzWT0ifQ.1wJfTaDGMOJfowRTEViexyajaLl9VEqv9YvX5zVAP6U";

fuzz_target!(|bytes: &[u8]| {
    let key = ApiKey::new(
        "key",
        "a secret that the fuzzer does not know, of enough length",
    );
    let receiver = WebhookReceiver::new(key);
    let Ok(WebhookDelivery::New { id, .. }) = receiver.receive(Some(TOKEN), BODY, NOW) else {
        panic!("the signed body is not accepted")
    };
    assert_eq!(id, "EV_1");
    assert_eq!(
        receiver.receive(Some(TOKEN), bytes, NOW).is_ok(),
        bytes == BODY
    );
    if let Ok(text) = std::str::from_utf8(bytes) {
        let token = text.trim();
        let token = token
            .get(7..)
            .filter(|_| token[..7].eq_ignore_ascii_case("bearer "))
            .unwrap_or(token);
        assert!(receiver.receive(Some(text), BODY, NOW).is_err() || token.trim() == TOKEN);
    }
    let Ok(Some(event)) = webhook_event(bytes) else {
        return;
    };
    let body: Value = serde_json::from_slice(bytes).expect("JSON");
    match event {
        WebhookEvent::RoomFinished(room) => {
            assert_eq!(body["event"], "room_finished");
            assert_eq!(body["room"]["name"], room.as_str());
        }
        WebhookEvent::Participant {
            change,
            key,
            sid,
            sealed_attribute,
            disconnect_reason,
        } => {
            let name = match change {
                ConnectionChange::Joined => "participant_joined",
                ConnectionChange::Left => "participant_left",
                ConnectionChange::Aborted => "participant_connection_aborted",
            };
            assert_eq!(body["event"], name);
            assert_eq!(body["room"]["name"], key.room.as_str());
            let participant = &body["participant"];
            assert_eq!(participant["identity"], key.identity.as_str());
            assert!(sid.is_none_or(|sid| participant["sid"] == sid.as_str()));
            assert!(sealed_attribute.is_none() || participant["attributes"].is_object());
            assert!(disconnect_reason.is_none_or(|reason| reason.len() <= 64
                && reason.bytes().all(|b| b.is_ascii_graphic())));
        }
    }
});
