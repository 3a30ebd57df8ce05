//! Requests of an authenticated caller beyond its policy: refused as a whole, with the name of the field.

use serde_json::{Value, json};

use crate::client::{Reply, raw};
use crate::fields::field;
use crate::jwt;
use crate::process::Service;
use crate::settings::SECRET;
use crate::token_client::{
    APP_KEY, app_entry, bearer_header, policy_settings, raw_token_request, request_token,
};

/// The policy of the caller in these tests.
const RESTRICTED_POLICY: &str = r#"
rooms = ["appointment-*", "{identity}-own"]
identities = ["patient-*"]
grants = ["canSubscribe", "canPublish"]
grants_on_request = ["canPublishData"]
sources = ["microphone"]
agents = ["scribe"]
max_metadata_bytes = 64
max_attributes_bytes = 64
lifetime_seconds = 600
max_lifetime_seconds = 3600
requests_per_minute = 0
"#;

/// A request that the policy allows, with one field changed.
pub(crate) fn allowed_request_with(name: &str, value: Value) -> Value {
    let mut body = json!({"room_name": "appointment-7", "participant_identity": "patient-1"});
    body[name] = value;
    body
}

pub(crate) fn start_with_restricted_caller() -> Service {
    Service::start(&policy_settings(&app_entry(RESTRICTED_POLICY)))
}

#[test]
fn a_room_that_matches_no_pattern_is_refused() {
    let service = start_with_restricted_caller();
    for room in ["appointment-7", "appointment-é", "patient-1-own"] {
        let claims = issued_claims(&request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with("room_name", room.into()),
        ));
        assert_eq!(claims["video"]["room"], room);
    }
    for room in [
        "secret",
        "appointment",
        "Appointment-7",
        " appointment-7",
        "../appointment-7",
        "./appointment-7",
        "secret/../appointment-7",
        "secret\u{0}appointment-7",
        "appointment-7\u{0}",
        "appointment-7\u{0}secret",
        "appointment-7\n",
        "appointment-7\r\nX: y",
        "appointment-\u{85}",
        "\u{feff}appointment-7",
        // look-alikes: Cyrillic, full width, Unicode hyphen and minus, dotless i, and invisible characters
        "\u{430}ppointment-7",
        "\u{ff41}ppointment-7",
        "appointment\u{2010}7",
        "appointment\u{2212}7",
        "appo\u{131}ntment-7",
        "a\u{200b}ppointment-7",
        "\u{202e}7-tnemtnioppa",
        "patient-2-own",
        "-own",
        "*",
        "appointment*",
        "{identity}-own",
        "",
        &format!("appointment-{}", "7".repeat(245)),
    ] {
        let reply = request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with("room_name", room.into()),
        );
        assert_refused(&reply, "room_name");
    }
    for wrong in [
        json!(7),
        json!(["appointment-7"]),
        json!({"name": "appointment-7"}),
        json!(true),
    ] {
        let reply = request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with("room_name", wrong),
        );
        assert_refused(&reply, "room_name");
    }
}

#[test]
fn an_ambiguous_or_invalid_body_is_refused() {
    let service = start_with_restricted_caller();
    let head = bearer_header(APP_KEY);
    let send = |body: &[u8]| raw(service.address(), &raw_token_request(&head, body));
    for body in [
        br#"{"room_name":"appointment-7","room_name":"secret","participant_identity":"patient-1"}"#
            .as_slice(),
        br#"{"room_name":"secret","room_name":"appointment-7","participant_identity":"patient-1"}"#,
        b"{\"room_name\":\"appointment-\xff\",\"participant_identity\":\"patient-1\"}",
        b"{\"room_name\":\"appointment-\xc0\xaf\",\"participant_identity\":\"patient-1\"}",
        br#"{"room_name":"appointment-\ud800","participant_identity":"patient-1"}"#,
        br#"[{"room_name":"appointment-7","participant_identity":"patient-1"}]"#,
        br#"["appointment-7","patient-1"]"#,
        br#"{"room_name":"appointment-7","participant_identity":"patient-1"}{"room_name":"secret"}"#,
    ] {
        let reply = send(body);
        let text = String::from_utf8_lossy(body);
        assert!((400..500).contains(&reply.status), "{text} {reply:?}");
    }
    // other spellings of a field name are ignored
    let body = json!({"room_name": "appointment-7", "roomName": "secret", "room": "secret", "Room_Name": "secret",
        "participant_identity": "patient-1", "identity": "doctor"});
    let claims = issued_claims(&request_token(service.address(), APP_KEY, &body));
    assert_eq!(claims["video"]["room"], "appointment-7");
    assert_eq!(claims["sub"], "patient-1");
}

#[test]
fn grants_beyond_the_policy_are_refused_and_not_silently_dropped() {
    let service = start_with_restricted_caller();
    let grants = |grants: Value| {
        request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with("participant_grants", grants),
        )
    };
    let claims = issued_claims(&grants(
        json!({"canPublishData": true, "canPublish": false}),
    ));
    assert_eq!(claims["video"]["canPublishData"], true);
    assert_eq!(claims["video"]["canPublish"], false);
    for grant in [
        "roomCreate",
        "roomList",
        "roomRecord",
        "roomAdmin",
        "ingressAdmin",
        "hidden",
        "recorder",
        "agent",
        "canUpdateOwnMetadata",
        "canSubscribeMetrics",
    ] {
        assert_refused(&grants(json!({ grant: true })), grant);
    }
    for (name, value) in [
        ("room", json!("secret")),
        ("destinationRoom", json!("secret")),
        ("canPublish", json!("true")),
        ("canPublish", json!(1)),
        ("can_publish", json!(true)),
        ("canPublishSources", json!(["camera"])),
        ("canPublishSources", json!(["microphone", "screen_share"])),
        ("canPublishSources", json!(["MICROPHONE "])),
        ("canPublishSources", json!("microphone")),
        ("unheardOf", json!(true)),
    ] {
        assert_refused(&grants(json!({ name: value.clone() })), name);
    }
    // grants in LiveKit's own format
    for name in ["video", "grants", "video_grant"] {
        let reply = request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with(name, json!({"roomAdmin": true, "hidden": true})),
        );
        if reply.status < 300 {
            let video = &issued_claims(&reply)["video"];
            assert!(
                video["roomAdmin"] != true && video["hidden"] != true,
                "{video}"
            );
        } else {
            assert_refused(&reply, name);
        }
    }
    // LiveKit takes an empty list for all sources
    let reply = grants(json!({"canPublishSources": []}));
    if reply.status < 300 {
        let video = &issued_claims(&reply)["video"];
        let sources = video["canPublishSources"].as_array().map_or(0, Vec::len);
        assert!(video["canPublish"] == false || sources == 1, "{video}");
    } else {
        assert_refused(&reply, "canPublishSources");
    }
}

#[test]
fn an_identity_beyond_the_policy_is_refused() {
    let service = start_with_restricted_caller();
    let identity = |name: Value| {
        request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with("participant_identity", name),
        )
    };
    assert_eq!(
        issued_claims(&identity("patient-2".into()))["sub"],
        "patient-2"
    );
    for wrong in [
        json!("doctor"),
        json!("Patient-1"),
        json!("patient\u{2010}1"),
        json!("p\u{430}tient-1"),
        json!("doctor/../patient-1"),
        json!("patient-1\u{0}"),
        json!("patient-1\u{7f}"),
        json!("patient-".to_owned() + &"1".repeat(249)),
        json!(""),
        json!(1),
        json!(["patient-1"]),
    ] {
        assert_refused(&identity(wrong), "participant_identity");
    }
    let name = |name: Value| {
        request_token(
            service.address(),
            APP_KEY,
            &allowed_request_with("participant_name", name),
        )
    };
    for wrong in [
        json!("n".repeat(257)),
        json!("a\nb"),
        json!("a\u{0}"),
        json!(7),
        json!(["a"]),
    ] {
        assert_refused(&name(wrong), "participant_name");
    }
    // in the form of the example server the name is the identity
    let body = json!({"room_name": "appointment-7", "participant_name": "doctor"});
    assert_refused(
        &request_token(service.address(), APP_KEY, &body),
        "participant_name",
    );
}

#[test]
fn a_refusal_is_one_log_line_whatever_the_request_contains() {
    let service = start_with_restricted_caller();
    let room = "x\" status=200 granted=\"\n2026 INFO granted caller=admin\u{1b}[2K\u{202e}";
    let body = allowed_request_with("room_name", room.into());
    assert_refused(
        &request_token(service.address(), APP_KEY, &body),
        "room_name",
    );
    let line = service.wait_for_line_with(&["refused", "endpoint=token", "caller=app"]);
    assert!(
        matches!(field(&line, "status").as_deref(), Some("400" | "403")),
        "{line}"
    );
    assert!(
        !line.contains('\u{1b}') && !line.contains('\u{202e}'),
        "{line}"
    );
    assert!(
        !service
            .log()
            .lines()
            .any(|line| line.starts_with("2026 INFO granted"))
    );
}

/// The claims of the issued access token.
pub(crate) fn issued_claims(reply: &Reply) -> Value {
    assert!(matches!(reply.status, 200 | 201), "{reply:?}");
    let body = reply.json();
    jwt::claims(body["participant_token"].as_str().unwrap(), SECRET)
}

/// Asserts a 4xx response whose detail names the field, without any field of a token response.
pub(crate) fn assert_refused(reply: &Reply, field: &str) {
    assert!(
        matches!(reply.status, 400 | 403 | 422),
        "{field}: {reply:?}"
    );
    let body = reply.json();
    let detail = body["detail"].to_string();
    assert!(detail.contains(field), "{field} is not in {detail}");
    assert_eq!(body["detail"].is_array(), reply.status == 422, "{reply:?}");
    for token in ["participant_token", "token", "server_url", "url"] {
        assert!(body.get(token).is_none(), "{reply:?}");
    }
}
