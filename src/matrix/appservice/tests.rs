use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

const OK: &str = "200 OK";
const NOT_FOUND: &str = "404 Not Found";
const UNRECOGNIZED: &[u8] = br#"{"errcode":"M_UNRECOGNIZED"}"#;

fn homeserver(fake: &FakeServer) -> HomeserverClient {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    let fetcher = Fetcher::new(tls, AddressPolicy::default(), 8);
    let token = AppServiceSecret::parse("as-token").unwrap();
    HomeserverClient::new(fetcher, server("hs"), fake.url("/base"), token)
}

fn server(name: &str) -> ServerName {
    ServerName::parse(name).unwrap()
}

fn user(id: &str) -> UserId {
    UserId::parse(id).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn room() -> RoomId {
    RoomId::parse_for_path("!a/b?c#d:hs").unwrap()
}

#[test]
fn a_membership_is_looked_up_with_the_as_token_and_cached() {
    let fake = FakeServer::new(|request| {
        let joined = request.request_line.contains("mxid=%40in");
        Some((OK, format!(r#"{{"joined":{joined}}}"#).into_bytes()))
    });
    let homeserver = homeserver(&fake);
    for _ in 0..3 {
        let joined = homeserver.check_joined(&room(), &user("@in&server_name=x:hs"), soon());
        assert!(joined.unwrap().is_some());
    }
    assert_eq!(
        homeserver.check_joined(&room(), &user("@out:hs"), soon()),
        Ok(None)
    );
    assert_eq!(
        homeserver.is_joined_uncached(&room(), &user("@in:hs")),
        Ok(true)
    );
    assert_eq!(
        homeserver.is_joined_uncached(&room(), &user("@in:hs")),
        Ok(true)
    );
    let requests = fake.requests();
    assert_eq!(requests.len(), 4, "uncached lookups make a call each");
    let path = "GET /base/_matrix/client/unstable/io.element.msc4502/rooms/%21a%2Fb%3Fc%23d%3Ahs/is_joined";
    assert_eq!(
        requests[0].request_line,
        format!("{path}?mxid=%40in%26server_name%3Dx%3Ahs")
    );
    assert_eq!(
        requests[0].authorization.as_deref(),
        Some("Bearer as-token")
    );
}

#[test]
fn the_prefix_that_the_homeserver_knows_is_used_first_from_then_on() {
    let fake = FakeServer::new(|request| match request.request_line.contains("/v3/") {
        true => Some((OK, br#"{"joined":true}"#.to_vec())),
        false => Some((NOT_FOUND, UNRECOGNIZED.to_vec())),
    });
    let homeserver = homeserver(&fake);
    for name in ["a", "b"] {
        assert_eq!(
            homeserver.is_server_joined(&room(), &server(name), soon()),
            Ok(true)
        );
    }
    assert_eq!(fake.requests().len(), 3);
}

#[test]
fn a_response_that_proves_no_membership_is_an_error() {
    type FakeResponse = Option<(&'static str, Vec<u8>)>;
    let refusals: [(FakeResponse, &str); 5] = [
        (Some((NOT_FOUND, UNRECOGNIZED.to_vec())), "MSC4502"),
        (
            Some(("403 No", br#"{"errcode":"M_FORBIDDEN"}"#.to_vec())),
            "as_token",
        ),
        (Some((OK, b"<html>".to_vec())), "unexpected"),
        (Some((OK, vec![b' '; 200 * 1024])), "larger"),
        (None, "LIVEKIT_HS_URL"),
    ];
    for (response, word) in refusals {
        let fake = FakeServer::new(move |_| response.clone());
        let error = homeserver(&fake)
            .check_joined(&room(), &user("@a:hs"), soon())
            .unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.to_string().contains("as-token"), "{error}");
    }
}

#[test]
fn a_request_to_another_server_is_relayed() {
    let fake =
        FakeServer::new(|_| Some((OK, br#"{"status":200,"content":{"jwt":"a.b.c"}}"#.to_vec())));
    let body = json!({ "user_id": "@a:hs" });
    let relayed = homeserver(&fake).relay(&server("b.org"), "/path", &body, soon());
    assert!(relayed == Ok(RelayResponse::Token("a.b.c".into())));
    let requests = fake.requests();
    let line = "POST /base/_matrix/client/unstable/io.element.msc4512/appservice/fed_proxy";
    assert_eq!(requests[0].request_line, line);
    let sent: Value = serde_json::from_slice(&requests[0].body).unwrap();
    let expected =
        json!({ "destination": "b.org", "method": "POST", "path": "/path", "body": body });
    assert_eq!(sent, expected);
}

#[test]
fn a_delayed_event_is_looked_up_for_its_user() {
    let fake = FakeServer::new(|_| Some((OK, br#"{"room_id":"!r","delay_ms":1000}"#.to_vec())));
    let id = DelayId::parse("a/b").unwrap();
    let event = homeserver(&fake).get_delayed_event(&user("@a:hs"), &id, soon());
    assert_eq!(event.unwrap().unwrap().room_id, "!r");
    let path = "GET /base/_matrix/client/unstable/org.matrix.msc4140/delayed_events/a%2Fb?user_id=%40a%3Ahs";
    assert_eq!(fake.request_lines(), [path]);
}

#[test]
fn callers_of_a_shared_call_that_fails_share_one_more() {
    const CALLERS: usize = 20;
    let (calls, started) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let started_callers = started.clone();
    let fake = FakeServer::new(move |_| {
        while started_callers.load(Ordering::SeqCst) < CALLERS {
            std::thread::yield_now();
        }
        Some(match calls.fetch_add(1, Ordering::SeqCst) {
            0 => ("500 Broken", b"{}".to_vec()),
            _ => (OK, br#"{"joined":true}"#.to_vec()),
        })
    });
    let homeserver = homeserver(&fake);
    let call = || {
        started.fetch_add(1, Ordering::SeqCst);
        homeserver.is_server_joined(&room(), &server("b.org"), soon())
    };
    let refused = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(call)).collect();
        let results = callers.into_iter().map(|caller| caller.join().unwrap());
        results.filter(Result::is_err).count()
    });
    assert_eq!((fake.requests().len(), refused), (2, 1));
}

#[test]
fn no_call_is_made_after_the_deadline() {
    let fake = FakeServer::new(|_| panic!("called after the deadline"));
    let (homeserver, late) = (homeserver(&fake), Instant::now());
    let body = json!({});
    let id = DelayId::parse("id").unwrap();
    assert!(
        homeserver
            .check_joined(&room(), &user("@a:hs"), late)
            .is_err()
    );
    assert!(
        homeserver
            .is_server_joined(&room(), &server("b"), late)
            .is_err()
    );
    assert!(homeserver.relay(&server("b"), "/", &body, late).is_err());
    assert!(
        homeserver
            .get_delayed_event(&user("@a:hs"), &id, late)
            .is_err()
    );
    assert!(fake.requests().is_empty());
}
