//! The fetch schedule, and fetches from a JWKS server on loopback that counts its requests.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::*;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};
use crate::token::jwt::{JwtIssuer, KeySource, needs_key_fetch, verify_jwt};
use crate::token::keys::JwsAlgorithm;
use crate::token::{CallerName, Error};

const SECOND: Duration = Duration::from_secs(1);
/// Deadline that only a hang would miss.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

fn allow_loopback() -> AddressPolicy {
    AddressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()], Vec::new())
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/jwt_issuer.json")).unwrap()
}

fn jwks_document() -> String {
    serde_json::json!({"keys": [vectors()["keys"]["ed25519"]["jwk"]]}).to_string()
}

fn key_set() -> KeySet {
    KeySet::parse_jwks(jwks_document().as_bytes()).unwrap()
}

/// Sends the n-th response to the n-th request, and the last one to all others; an empty response keeps the connection open.
fn start_server(responses: Vec<String>) -> (JwksUrl, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys?of=tests", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    std::thread::spawn(move || {
        let mut open: Vec<TcpStream> = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert_eq!(
                lines.next().unwrap().unwrap(),
                "GET /keys?of=tests HTTP/1.1"
            );
            lines.find(|line| line.as_ref().unwrap().is_empty());
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let response = &responses[number.min(responses.len() - 1)];
            let _ = stream.write_all(response.as_bytes());
            if response.is_empty() {
                open.push(stream);
            }
        }
    });
    let url = JwksUrl::parse(&url, &allow_loopback()).unwrap();
    (url, requests)
}

fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn fetcher() -> Fetcher {
    let roots = RootCertificates::built_in_and_system();
    let tls = client_config(&roots, CertificateVerification::On);
    Fetcher::new(tls, allow_loopback(), 0)
}

/// The key set at the URL; it is refreshed in the background as long as the refresher exists.
fn start(url: JwksUrl) -> (Arc<RemoteJwks>, JwksRefresher) {
    let mut refresher = JwksRefresher::new(fetcher);
    (refresher.key_set(url).unwrap(), refresher)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_url_is_https_or_http_to_allowed_loopback() {
    for text in [
        "https://login.example/keys",
        "https://login.example/keys/?p=a&q=%2F",
        "HTTPS://10.0.0.1:8443",
        "http://127.0.0.1:8080/keys",
        "http://localhost/keys",
    ] {
        let url = JwksUrl::parse(text, &allow_loopback());
        assert!(url.is_ok(), "{text}");
    }
    let url = JwksUrl::parse("https://login.example:8443/a/?b", &allow_loopback()).unwrap();
    assert_eq!(url.to_string(), "https://login.example:8443/a/?b");
    for text in [
        "http://login.example/keys",
        "http://10.0.0.1/keys",
        "http://[::1]/keys",
        "http://localhost.example/keys",
        "ws://127.0.0.1/keys",
        "wss://login.example/keys",
        "https://user@login.example/keys",
        "https://login.example/keys#a",
        "https://login.example/ keys",
        "file:///keys",
        "/keys",
        "",
    ] {
        let url = JwksUrl::parse(text, &allow_loopback());
        assert_eq!(url, Err(InvalidJwksUrl), "{text}");
    }
    let strict = AddressPolicy::default();
    for text in ["http://127.0.0.1/keys", "http://localhost/keys"] {
        assert_eq!(JwksUrl::parse(text, &strict), Err(InvalidJwksUrl));
    }
}

#[test]
fn an_unknown_key_triggers_a_fetch_once_a_minute() {
    let mut state = JwksState::default();
    let now = Instant::now();
    assert!(state.try_start_fetch(FetchTrigger::UnknownKey, now));
    assert!(state.is_fetching(now) && !state.is_fetching(now + FETCH_TIMEOUT));
    state.finish_fetch(Some(key_set()), now + SECOND);
    assert!(!state.is_fetching(now + SECOND));
    assert_eq!(state.refresh_due(now), now + REFRESH_INTERVAL);
    assert!(!state.try_start_fetch(FetchTrigger::Schedule, now + SECOND));

    // the first fetch does not count against the interval
    assert!(state.try_start_fetch(FetchTrigger::UnknownKey, now));
    state.finish_fetch(Some(key_set()), now);
    assert_eq!(state.retry_after(now + SECOND), MIN_FETCH_INTERVAL - SECOND);
    let too_early = now + MIN_FETCH_INTERVAL - SECOND;
    assert!(!state.try_start_fetch(FetchTrigger::UnknownKey, too_early));
    assert!(state.try_start_fetch(FetchTrigger::UnknownKey, now + MIN_FETCH_INTERVAL));
}

#[test]
fn after_a_failure_the_keys_stay_valid_for_a_day() {
    let mut state = JwksState::default();
    let now = Instant::now();
    assert!(state.try_start_fetch(FetchTrigger::Schedule, now));
    state.finish_fetch(None, now);
    assert_eq!(state.refresh_due(now), now + MIN_FETCH_INTERVAL);
    assert!(state.valid_keys(now).is_none() && state.last_fetch_failed);
    state.finish_fetch(Some(key_set()), now);
    assert!(state.try_start_fetch(FetchTrigger::Schedule, now + REFRESH_INTERVAL));
    state.finish_fetch(None, now + REFRESH_INTERVAL);
    let retry = now + REFRESH_INTERVAL + MIN_FETCH_INTERVAL;
    assert_eq!(state.refresh_due(now), retry);
    assert!(state.valid_keys(now + MAX_KEY_AGE - SECOND).is_some());
    assert!(state.valid_keys(now + MAX_KEY_AGE).is_none());
}

#[test]
fn many_requests_share_one_fetch() {
    let (url, requests) = start_server(vec![response("200 OK", &jwks_document())]);
    let (jwks, _refresher) = start(url);
    // the first request waits for the first fetch
    let first = jwks.fetch().unwrap();
    assert!(first.select(JwsAlgorithm::EdDsa, Some("ed25519")).is_ok());
    assert!(jwks.cached(Instant::now()).is_some());
    let barrier = Barrier::new(32);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                barrier.wait();
                (0..20).for_each(|_| drop(jwks.fetch()));
            });
        }
    });
    let requests = requests.load(Ordering::SeqCst);
    assert!((1..=2).contains(&requests), "{requests} requests");
    assert!(!jwks.can_fetch(Instant::now()));
}

#[test]
fn only_a_valid_jwt_with_an_unknown_key_needs_a_fetch() {
    let (url, _) = start_server(vec![response("200 OK", &jwks_document())]);
    let (jwks, _refresher) = start(url);
    jwks.fetch().unwrap();
    // whether that was the first fetch or one that counts against the interval
    lock(&jwks.state).last_requested_at = None;
    let all = vectors();
    let text = |name: &str| all[name].as_str().unwrap().to_owned();
    let issuers = |audience: String| {
        [JwtIssuer {
            name: CallerName::parse("users").unwrap(),
            issuer: text("issuer"),
            audience,
            identity_claim: "sub".to_owned(),
            keys: KeySource::Remote(jwks.clone()),
        }]
    };
    let configured = issuers(text("audience"));
    let now = all["now"].as_u64().unwrap();
    let token = |id: &str| {
        let tokens = all["tokens"].as_array().unwrap();
        let found = tokens.iter().find(|token| token["id"] == id).unwrap();
        found["token"].as_str().unwrap().to_owned()
    };
    let unknown = token("ed25519, with an unknown key id");
    let known = token("ed25519, with its key id");
    assert!(needs_key_fetch(&unknown, &configured, now));
    assert!(!needs_key_fetch(&known, &configured, now));
    assert!(verify_jwt(&known, &configured, now).is_ok());
    for (text, issuers, now) in [
        (&*unknown, &configured, now + 3600),
        ("a.b.c", &configured, now),
        (&unknown, &issuers("other".into()), now),
    ] {
        assert!(!needs_key_fetch(text, issuers, now), "{text} at {now}");
    }
    let result = verify_jwt(&unknown, &configured, now);
    assert!(matches!(result, Err(Error::JwtRejected(_))));
    let again = needs_key_fetch(&unknown, &configured, now);
    assert!(!again, "fetched a moment ago");
}

#[test]
fn a_hanging_server_delays_few_requests_for_a_bounded_time() {
    let (url, requests) = start_server(vec![String::new()]);
    let (jwks, _refresher) = start(url);
    assert!(jwks.can_fetch(Instant::now()));
    let barrier = Barrier::new(MAX_WAITERS);
    std::thread::scope(|scope| {
        for _ in 0..MAX_WAITERS {
            scope.spawn(|| {
                barrier.wait();
                let retry_after = jwks.fetch().unwrap_err();
                let expected = MIN_RETRY_AFTER..=MIN_FETCH_INTERVAL;
                assert!(expected.contains(&retry_after), "{retry_after:?}");
            });
        }
    });
    assert!(requests.load(Ordering::SeqCst) <= 2);
}

#[test]
fn with_enough_waiters_a_request_is_refused_at_once() {
    let (url, requests) = start_server(vec![response("200 OK", &jwks_document())]);
    let jwks = RemoteJwks::new(url, fetcher());
    let acquire = |_| jwks.waiters.try_acquire((), MAX_WAITERS).unwrap();
    let waiters: Vec<_> = (0..MAX_WAITERS).map(acquire).collect();
    assert_eq!(jwks.fetch().unwrap_err(), FETCH_TIMEOUT);
    assert_eq!(requests.load(Ordering::SeqCst), 0);
    drop(waiters);
    assert!(jwks.fetch().is_ok());
}

#[test]
fn a_response_without_a_key_set_is_a_failure() {
    let large = format!("{}{}", jwks_document(), " ".repeat(10 * 1024 * 1024));
    let without_length = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{large}");
    for response in [
        response("404 Not Found", &jwks_document()),
        "HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\nContent-Length: 0\r\n\r\n"
            .into(),
        response("200 OK", "{}"),
        response("200 OK", &large),
        without_length,
        "SSH-2.0-OpenSSH_9.9\r\n".to_owned(),
    ] {
        let start_of_response = response[..30.min(response.len())].to_owned();
        let (url, _) = start_server(vec![response]);
        let (jwks, _refresher) = start(url);
        assert!(jwks.fetch().is_err(), "{start_of_response}");
        assert!(jwks.cached(Instant::now()).is_none());
    }
}

#[test]
fn a_failing_server_does_not_make_a_key_unknown() {
    let (url, _) = start_server(vec![
        response("200 OK", &jwks_document()),
        response("503 Busy", ""),
    ]);
    let (jwks, _refresher) = start(url);
    wait_until("no keys fetched", || jwks.cached(Instant::now()).is_some());
    assert!(jwks.fetch().is_err());
    assert!(jwks.cached(Instant::now()).is_some());
}

#[test]
fn a_response_is_read_up_to_its_bound() {
    let large = format!("{}{}", jwks_document(), " ".repeat(10 * 1024 * 1024));
    let without_length = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{large}");
    for response in [response("200 OK", &large), without_length] {
        let (url, _) = start_server(vec![response]);
        let jwks = RemoteJwks::new(url, fetcher());
        let cause = jwks
            .fetch_key_set(Instant::now() + TEST_TIMEOUT)
            .unwrap_err();
        assert!(cause.contains("262144 bytes"), "{cause}");
    }
}

#[test]
fn the_first_request_after_a_failed_first_fetch_fetches_again() {
    let (url, requests) = start_server(vec![
        response("503 Busy", ""),
        response("200 OK", &jwks_document()),
    ]);
    let (jwks, _refresher) = start(url);
    // the first call joins the first fetch, if it has not ended yet
    let keys = jwks.fetch().or_else(|_| jwks.fetch());
    assert!(keys.is_ok());
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[test]
fn a_url_has_one_key_set_which_is_dropped_with_its_last_user() {
    let (url, _) = start_server(vec![response("200 OK", &jwks_document())]);
    let mut refresher = JwksRefresher::new(fetcher);
    let jwks = refresher.key_set(url.clone()).unwrap();
    let again = refresher.key_set(url.clone()).unwrap();
    assert!(Arc::ptr_eq(&jwks, &again));
    drop(jwks);
    assert!(again.fetch().is_ok());
    let weak = Arc::downgrade(&again);
    drop(again);
    // the thread holds it during a fetch only
    wait_until("the key set is still there", || weak.strong_count() == 0);
    assert!(refresher.key_set(url).unwrap().fetch().is_ok());
}

#[test]
fn the_thread_ends_with_the_refresher() {
    let (url, _) = start_server(vec![response("200 OK", &jwks_document())]);
    let (jwks, refresher) = start(url);
    drop(refresher);
    // the thread's list has the last weak reference
    wait_until("the thread is still there", || Arc::weak_count(&jwks) == 0);
    assert!(jwks.fetch().is_ok(), "a request can still fetch the keys");
}
