use super::*;
use crate::livekit::access_token::ApiKey;
use crate::livekit::access_token::verify;
use crate::livekit::id::MAX_NAME_BYTES;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

const NOT_FOUND: &str = r#"{"code":"not_found","msg":"participant does not exist"}"#;

fn key() -> ApiKey {
    ApiKey::new("key", "secret")
}

fn rooms(fake: &FakeServer) -> RoomServiceClient {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    let fetcher = Fetcher::new(tls, AddressPolicy::default(), 1);
    RoomServiceClient::new(fetcher, fake.url("/sfu"), key())
}

fn names() -> (RoomName, ParticipantIdentity) {
    let (room, identity) = (
        RoomName::new("r".into()),
        ParticipantIdentity::new("me".into()),
    );
    (room.unwrap(), identity.unwrap())
}

fn answering(head: &'static str, body: impl Into<Vec<u8>>) -> FakeServer {
    let body = body.into();
    FakeServer::new(move |_| Some((head, body.clone())))
}

/// The `video` grant of the one call that was made.
fn grant(fake: &FakeServer) -> serde_json::Value {
    use base64::Engine;
    let asked = fake.requests().pop().unwrap();
    let token = asked.authorization.unwrap();
    let token = token.strip_prefix("Bearer ").unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    verify(token, &[key()], now.as_secs()).unwrap();
    let claims = token.split('.').nth(1).unwrap();
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let claims = engine.decode(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    claims["video"].clone()
}

#[test]
fn each_call_may_do_what_it_does_and_nothing_else() {
    let (room, identity) = names();
    let fake = answering("200 OK", "");
    let rooms = rooms(&fake);
    let in_room = serde_json::json!({"roomAdmin": true, "room": "r"});
    rooms.create_room(&room).unwrap();
    assert_eq!(grant(&fake), serde_json::json!({"roomCreate": true}));
    rooms.get_participant(&room, &identity).unwrap();
    assert_eq!(grant(&fake), in_room);
    rooms.remove_participant(&room, &identity).unwrap();
    assert_eq!(grant(&fake), in_room);
    rooms.list_participants(&room).unwrap();
    assert_eq!(grant(&fake), in_room);
    rooms.list_rooms(&[room]).unwrap();
    assert_eq!(grant(&fake), serde_json::json!({"roomList": true}));
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
fn only_the_sfu_itself_can_say_that_somebody_is_gone() {
    let (room, identity) = names();
    let presence =
        |head, body: &str| rooms(&answering(head, body)).get_participant(&room, &identity);
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
    ] {
        let presence = presence(head, body);
        assert!(presence.is_err(), "{head} {body}: {presence:?}");
    }
    let hangs_up = FakeServer::new(|_| None);
    assert!(rooms(&hangs_up).get_participant(&room, &identity).is_err());
}

#[test]
fn who_is_there_is_so_on_a_connection_if_the_sfu_says_which() {
    let (room, identity) = names();
    let presence =
        |body: &[u8]| rooms(&answering("200 OK", body)).get_participant(&room, &identity);
    let sid = ParticipantSid::new("PA_1".into()).unwrap();
    assert_eq!(
        presence(b"\x0a\x04PA_1\x12\x02me").unwrap(),
        ParticipantPresence::Present(Some(sid))
    );
    assert_eq!(presence(b"").unwrap(), ParticipantPresence::Present(None));
    assert_eq!(presence(b"{}").unwrap(), ParticipantPresence::Present(None));
}

#[test]
fn removing_somebody_who_is_not_there_is_no_error() {
    let (room, identity) = names();
    let remove = |head, body| rooms(&answering(head, body)).remove_participant(&room, &identity);
    remove("200 OK", "").unwrap();
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
fn rooms_that_exist_are_listed() {
    let (room, _) = names();
    let list =
        |body: &[u8]| rooms(&answering("200 OK", body)).list_rooms(std::slice::from_ref(&room));
    assert_eq!(list(b"\x0a\x03\x12\x01r").unwrap(), vec![room.clone()]);
    assert_eq!(list(b"").unwrap(), vec![]);
    assert!(list(b"<html>").is_err());
    let long = [b'a'; MAX_NAME_BYTES + 1];
    let long = [b"\x0a\x84\x02\x12\x81\x02", &long[..]].concat();
    assert_eq!(list(&long).unwrap(), vec![], "no room has such a name");
}

#[test]
fn whoever_is_in_a_room_is_listed_even_if_they_are_many() {
    let (room, me) = names();
    let list = |head, body: Vec<u8>| rooms(&answering(head, body)).list_participants(&room);
    let one = b"\x0a\x04\x12\x02me";
    let many = list("200 OK", one.repeat(20_000)).unwrap();
    assert_eq!(many.len(), 20_000);
    assert_eq!(many[0].identity, me);
    let too_much = one.repeat(LIST_LIMITS.max_body / one.len() + 1);
    assert!(list("200 OK", too_much).is_err());
    let gone = list("404 Not Found", NOT_FOUND.into());
    assert_eq!(gone.unwrap(), vec![]);
    assert!(list("404 Not Found", "<html>".into()).is_err());
    assert!(list("200 OK", "<html>".into()).is_err());
}

#[test]
fn the_sfus_words_are_short_and_plain() {
    assert_eq!(
        error_text(br#"{"code":"unauthenticated","msg":"permissions denied"}"#),
        "unauthenticated: permissions denied"
    );
    assert_eq!(error_text(b"invalid token\n"), "invalid token");
    assert_eq!(error_text(&[b'x'; 5000]).len(), MAX_ERROR_TEXT_CHARS);
}
