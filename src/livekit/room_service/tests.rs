use super::*;
use crate::livekit::access_token::ApiKey;
use crate::livekit::access_token::verify;
use crate::livekit::id::MAX_NAME_BYTES;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

const NOT_FOUND: &str = r#"{"code":"not_found","msg":"participant does not exist"}"#;

const OK: &str = "200 OK\r\nContent-Type: application/protobuf";
/// A `livekit.Room` of the name of [`participant`]'s room: sid = 1, name = 2.
const ROOM: &[u8] = b"\x0a\x04RM_1\x12\x01r";

fn api_key() -> ApiKey {
    ApiKey::new("key", "secret")
}

fn client(fake: &FakeServer) -> RoomServiceClient {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    let fetcher = Fetcher::new(tls, AddressPolicy::default(), 1);
    RoomServiceClient::new(fetcher, fake.url("/sfu"), api_key())
}

fn participant() -> ParticipantKey {
    ParticipantKey {
        room: RoomName::new("r".into()).unwrap(),
        identity: ParticipantIdentity::new("me".into()).unwrap(),
    }
}

fn responding(head: &'static str, body: impl Into<Vec<u8>>) -> FakeServer {
    let body = body.into();
    FakeServer::new(move |_| Some((head, body.clone())))
}

/// The `video` claim of the last call.
fn last_grant(fake: &FakeServer) -> serde_json::Value {
    use base64::Engine;
    let request = fake.requests().pop().unwrap();
    let token = request.authorization.unwrap();
    let token = token.strip_prefix("Bearer ").unwrap();
    verify(token, &[api_key()], clock::unix_seconds_now()).unwrap();
    let claims = token.split('.').nth(1).unwrap();
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let claims = engine.decode(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    claims["video"].clone()
}

#[test]
fn the_token_of_a_call_has_no_grant_beyond_the_call() {
    let key = participant();
    let fake = FakeServer::new(|request| {
        let creates = request.request_line.ends_with("/CreateRoom");
        Some((OK, if creates { ROOM.to_vec() } else { Vec::new() }))
    });
    let client = client(&fake);
    let in_room = serde_json::json!({"roomAdmin": true, "room": "r"});
    client.create_room(&key.room).unwrap();
    assert_eq!(last_grant(&fake), serde_json::json!({"roomCreate": true}));
    client.get_participant(&key).unwrap();
    assert_eq!(last_grant(&fake), in_room);
    client.remove_participant(&key).unwrap();
    assert_eq!(last_grant(&fake), in_room);
    client.list_participants(&key.room).unwrap();
    assert_eq!(last_grant(&fake), in_room);
    client.list_rooms().unwrap();
    assert_eq!(last_grant(&fake), serde_json::json!({"roomList": true}));
    let method = |name| format!("POST /sfu/twirp/livekit.RoomService/{name}");
    let methods = [
        "CreateRoom",
        "GetParticipant",
        "RemoveParticipant",
        "ListParticipants",
        "ListRooms",
    ];
    assert_eq!(fake.request_lines(), methods.map(method));
    assert_eq!(fake.requests()[1].body, b"\x0a\x01r\x12\x02me");
}

#[test]
fn only_an_explicit_not_found_of_the_sfu_means_absent() {
    let key = participant();
    let presence = |head, body: &str| client(&responding(head, body)).get_participant(&key);
    assert_eq!(
        presence("404 Not Found", NOT_FOUND).unwrap(),
        ParticipantPresence::Absent
    );
    for (head, body) in [
        ("404 Not Found", ""),
        ("404 Not Found", "<html>404 Not Found</html>"),
        (
            "404 Not Found",
            r#"{"code":"bad_route","msg":"no handler"}"#,
        ),
        ("404 Not Found", r#"{"errcode":"M_UNRECOGNIZED"}"#),
        (
            "401 Unauthorized",
            r#"{"code":"unauthenticated","msg":"x"}"#,
        ),
        ("503 Unavailable", NOT_FOUND),
        ("302 Found\r\nLocation: /", NOT_FOUND),
        ("204 No Content", ""),
        ("200 OK", ""),
        ("200 OK\r\nContent-Type: text/html", "<!doctype html>"),
    ] {
        let presence = presence(head, body);
        assert!(presence.is_err(), "{head} {body}: {presence:?}");
    }
    let closes_connection = FakeServer::new(|_| None);
    assert!(client(&closes_connection).get_participant(&key).is_err());
}

#[test]
fn a_present_participant_has_the_sid_that_the_sfu_names() {
    let key = participant();
    let presence = |body: &[u8]| client(&responding(OK, body)).get_participant(&key);
    let sid = ParticipantSid::new("PA_1".into()).unwrap();
    assert_eq!(
        presence(b"\x0a\x04PA_1\x12\x02me").unwrap(),
        ParticipantPresence::Present(Some(sid))
    );
    assert_eq!(presence(b"").unwrap(), ParticipantPresence::Present(None));
    assert_eq!(presence(b"{}").unwrap(), ParticipantPresence::Present(None));
}

#[test]
fn removing_an_absent_participant_is_no_error() {
    let key = participant();
    let remove = |head, body| client(&responding(head, body)).remove_participant(&key);
    remove(OK, "").unwrap();
    remove("404 Not Found", NOT_FOUND).unwrap();
    assert!(matches!(
        remove("403 Forbidden", ""),
        Err(Error::KeyRefused(_))
    ));
    assert!(matches!(
        remove("404 Not Found", "<html>"),
        Err(Error::Refused(404, _))
    ));
}

#[test]
fn rooms_are_listed_without_invalid_names() {
    let room = participant().room;
    let list = |body: &[u8]| client(&responding(OK, body)).list_rooms();
    assert_eq!(list(b"\x0a\x03\x12\x01r").unwrap(), vec![room]);
    assert_eq!(list(b"").unwrap(), vec![]);
    assert!(list(b"<html>").is_err());
    let long = [b'a'; MAX_NAME_BYTES + 1];
    let long = [b"\x0a\x84\x02\x12\x81\x02", &long[..]].concat();
    assert_eq!(list(&long).unwrap(), vec![]);
}

#[test]
fn long_lists_of_participants_are_decoded_up_to_the_limit() {
    let key = participant();
    let list = |head, body: Vec<u8>| client(&responding(head, body)).list_participants(&key.room);
    let one = b"\x0a\x04\x12\x02me";
    let many = list(OK, one.repeat(20_000)).unwrap();
    assert_eq!(many.len(), 20_000);
    assert_eq!(many[0].identity, key.identity);
    let too_long = one.repeat(LIST_LIMITS.max_body / one.len() + 1);
    assert!(list(OK, too_long).is_err());
    let no_room = list("404 Not Found", NOT_FOUND.into());
    assert_eq!(no_room.unwrap(), vec![]);
    assert!(list("404 Not Found", "<html>".into()).is_err());
    assert!(list(OK, "<html>".into()).is_err());
}

#[test]
fn a_success_without_the_requested_room_is_not_of_an_sfu() {
    let room = participant().room;
    let create = |head, body: &[u8]| client(&responding(head, body)).create_room(&room);
    for head in [
        OK,
        "200 OK\r\nContent-Type: Application/Protobuf; x=y",
        "200 OK\r\ncontent-type: application/protobuf ;x",
    ] {
        create(head, ROOM).unwrap();
    }
    for (head, body, difference) in [
        (
            "200 OK\r\nContent-Type: text/HTML; charset=utf-8",
            ROOM,
            r#"expected content type application/protobuf, found "text/HTML; charset=utf-8", a web page"#,
        ),
        (
            "200 OK\r\nContent-Type: application/protobufs",
            ROOM,
            r#"expected content type application/protobuf, found "application/protobufs""#,
        ),
        (
            "200 OK",
            ROOM,
            "expected content type application/protobuf, found none",
        ),
        (OK, b"", "expected room r, found no room"),
        (OK, b"\x0a\x04RM_1", "expected room r, found no room"),
        (OK, b"<!doctype html>", "expected room r, found no room"),
        (OK, b"\x12\x02r\n", r#"expected room r, found room "r\n""#),
        (
            OK,
            b"\x12\x01r\x12\x01s",
            r#"expected room r, found room "s""#,
        ),
    ] {
        let error = create(head, body).unwrap_err();
        assert!(matches!(error, Error::NotSfu(..)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(difference), "{text}");
        assert!(text.contains("is LIVEKIT_API_URL the SFU's address?"));
        assert!(text.len() < 400, "{text}");
    }
    let long = [b'a'; 10_000];
    let long = [b"\x12\x90\x4e", &long[..]].concat();
    assert!(create(OK, &long).unwrap_err().to_string().len() < 400);
    let refused = create("302 Found\r\nLocation: /", b"");
    assert!(matches!(refused, Err(Error::Refused(302, _))));
}

#[test]
fn a_web_page_is_no_response_to_any_call() {
    let key = participant();
    let page = responding("200 OK\r\nContent-Type: text/html", "<!doctype html>");
    let client = client(&page);
    let results = [
        client.probe(),
        client.create_room(&key.room),
        client.get_participant(&key).map(drop),
        client.remove_participant(&key),
        client.list_rooms().map(drop),
        client.list_participants(&key.room).map(drop),
    ];
    for result in results {
        assert!(matches!(result, Err(Error::NotSfu(..))), "{result:?}");
    }
}

#[test]
fn the_probe_accepts_lists_of_rooms_only() {
    let probe = |body: &[u8]| client(&responding(OK, body)).probe();
    probe(b"").unwrap();
    probe(b"\x0a\x03\x12\x01r").unwrap();
    assert!(matches!(probe(b"<html>"), Err(Error::NotSfu(..))));
}

#[test]
fn error_texts_of_the_sfu_are_truncated() {
    assert_eq!(
        error_text(br#"{"code":"unauthenticated","msg":"permissions denied"}"#),
        "unauthenticated: permissions denied"
    );
    assert_eq!(error_text(b"invalid token\n"), "invalid token");
    assert_eq!(error_text(&[b'x'; 5000]).len(), MAX_ERROR_TEXT_CHARS);
}
