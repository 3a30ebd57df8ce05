//! Nothing is a webhook that the SFU did not sign as it stands; of what it signed, no more is believed than stands in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livekit_token_service::fuzzing::event;
use livekit_token_service::internal::ApiKey;
use livekit_token_service::internal::{WebhookEventKind, WebhookDelivery, WebhookReceiver};
use serde_json::Value;

const NOW: u64 = 1_800_000_000;
/// A body and what its SFU signed for it.
const BODY: &[u8] = br#"{"event":"participant_left","room":{"name":"r"},"participant":{"identity":"a","sid":"PA_1","disconnectReason":"CLIENT_INITIATED"},"id":"EV_1"}"#;
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJrZXkiLCJuYmYiOjE4MDAwMDAwMDAsImV4cCI6MTgwMDAwMDMwMCwic2hhMjU2IjoiUTk5OHp1KzlCNFlwTzV0WktjaG5tSjNGRnlWRmhGcFdBTTBGM2FNVFVzWT0ifQ.1wJfTaDGMOJfowRTEViexyajaLl9VEqv9YvX5zVAP6U";

fuzz_target!(|bytes: &[u8]| {
    let key = ApiKey::new(
        "key",
        "a secret that the fuzzer does not know, of enough length",
    );
    let receiver = WebhookReceiver::new(key);
    let signed = receiver.receive(Some(TOKEN), BODY, NOW);
    assert!(matches!(signed, Ok(WebhookDelivery::New(_))));
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
    let Ok(Some(webhook)) = event(bytes) else {
        return;
    };
    let body: Value = serde_json::from_slice(bytes).expect("JSON");
    let kind = match webhook.kind {
        WebhookEventKind::Joined => "participant_joined",
        WebhookEventKind::Left => "participant_left",
        WebhookEventKind::Aborted => "participant_connection_aborted",
        WebhookEventKind::RoomFinished => "room_finished",
    };
    assert_eq!(body["event"], kind);
    assert_eq!(body["room"]["name"], webhook.room.as_str());
    assert!(body["id"].as_str().unwrap_or("").starts_with(&webhook.id) && webhook.id.len() <= 255);
    assert_eq!(
        webhook.participant.is_none(),
        webhook.kind == WebhookEventKind::RoomFinished
    );
    if let Some((identity, sid)) = &webhook.participant {
        assert_eq!(body["participant"]["identity"], identity.as_str());
        assert!(
            sid.as_ref()
                .is_none_or(|sid| body["participant"]["sid"] == sid.as_str())
        );
    }
    assert!(webhook.reason.is_none_or(|reason| reason.len() <= 64 && reason.bytes().all(|b| b.is_ascii_graphic())));
});
