//! The clock of the keys, and a key server on loopback that counts what is asked of it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::*;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};
use crate::token::caller::CallerName;
use crate::token::jwt::{JwtIssuer, JwtIssuers, KeySource};
use crate::token::keys::JwsAlgorithm;

const SECOND: Duration = Duration::from_secs(1);

fn on_loopback() -> AddressPolicy {
    AddressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()], Vec::new())
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/login.json")).unwrap()
}

fn document() -> String {
    serde_json::json!({"keys": [vectors()["keys"]["ed25519"]["jwk"]]}).to_string()
}

fn keys() -> KeySet {
    KeySet::parse_jwks(document().as_bytes()).unwrap()
}

/// Answers the n-th request with the n-th answer, and all after the last with that one; nothing at all with an empty one.
fn server(answers: Vec<String>) -> (JwksUrl, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys?of=tests", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    std::thread::spawn(move || {
        let mut held: Vec<TcpStream> = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert_eq!(
                lines.next().unwrap().unwrap(),
                "GET /keys?of=tests HTTP/1.1"
            );
            lines.find(|line| line.as_ref().unwrap().is_empty());
            let number = counting
                .fetch_add(1, Ordering::SeqCst)
                .min(answers.len() - 1);
            let _ = stream.write_all(answers[number].as_bytes());
            if answers[number].is_empty() {
                held.push(stream);
            }
        }
    });
    (JwksUrl::parse(&url, &on_loopback()).unwrap(), asked)
}

fn says(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn start(url: JwksUrl) -> RemoteJwks {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    RemoteJwks::start(url, Fetcher::new(tls, on_loopback(), 0)).unwrap()
}

#[test]
fn keys_come_by_https_or_from_an_allowed_loopback() {
    for text in [
        "https://login.example/keys",
        "https://login.example/keys/?p=a&q=%2F",
        "HTTPS://10.0.0.1:8443",
        "http://127.0.0.1:8080/keys",
        "http://localhost/keys",
    ] {
        let url = JwksUrl::parse(text, &on_loopback());
        assert!(url.is_ok(), "{text}");
    }
    let shown = JwksUrl::parse("https://login.example:8443/a/?b", &on_loopback()).unwrap();
    assert_eq!(shown.to_string(), "https://login.example:8443/a/?b");
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
        assert_eq!(
            JwksUrl::parse(text, &on_loopback()),
            Err(InvalidJwksUrl),
            "{text}"
        );
    }
    let strict = AddressPolicy::default();
    for text in ["http://127.0.0.1/keys", "http://localhost/keys"] {
        assert_eq!(JwksUrl::parse(text, &strict), Err(InvalidJwksUrl));
    }
}

#[test]
fn an_unknown_key_is_asked_for_once_a_minute() {
    let mut state = JwksState::new();
    let now = state.fetch_started_at;
    assert!(state.fetching && state.may_fetch(now));
    assert_eq!(
        state.finish_fetch(Some(keys()), now + SECOND),
        now + REFRESH_INTERVAL
    );
    assert!(state.may_fetch(now), "the first round was nobody's wish");
    state.last_requested_at = Some(now);
    assert_eq!(state.retry_after(now + SECOND), MIN_FETCH_INTERVAL - SECOND);
    assert!(
        !state.may_fetch(now + MIN_FETCH_INTERVAL - SECOND)
            && state.may_fetch(now + MIN_FETCH_INTERVAL)
    );
}

#[test]
fn a_failure_leaves_the_keys_as_they_were_for_a_day() {
    let mut state = JwksState::new();
    let now = state.fetch_started_at;
    assert_eq!(state.finish_fetch(None, now), now + MIN_FETCH_INTERVAL);
    assert!(state.fresh_keys(now).is_none() && state.last_fetch_failed);
    state.finish_fetch(Some(keys()), now);
    state.begin_fetch(now + REFRESH_INTERVAL);
    assert_eq!(
        state.finish_fetch(None, now + REFRESH_INTERVAL),
        now + REFRESH_INTERVAL + MIN_FETCH_INTERVAL
    );
    assert!(state.fresh_keys(now + MAX_KEY_AGE - SECOND).is_some());
    assert!(state.fresh_keys(now + MAX_KEY_AGE).is_none());
}

#[test]
fn any_number_of_callers_make_one_request() {
    let (url, asked) = server(vec![says("200 OK", &document())]);
    let jwks = start(url);
    // whoever comes first waits for the first round
    let first = jwks.refresh().unwrap();
    assert!(first.select(JwsAlgorithm::EdDsa, Some("ed25519")).is_ok());
    assert!(jwks.cached(Instant::now()).is_some());
    let together = Barrier::new(32);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                together.wait();
                (0..20).for_each(|_| drop(jwks.refresh()));
            });
        }
    });
    let asked = asked.load(Ordering::SeqCst);
    assert!((1..=2).contains(&asked), "{asked} requests");
    assert!(!jwks.would_wait(Instant::now()));
}

#[test]
fn only_a_token_that_could_be_good_waits_for_a_server_and_only_if_its_key_is_new() {
    let (url, _) = server(vec![says("200 OK", &document())]);
    let jwks = start(url);
    jwks.refresh().unwrap();
    // this may have been the first round, or one of a caller's own
    jwks.refresher.lock().last_requested_at = None;
    let all = vectors();
    let text = |name: &str| all[name].as_str().unwrap().to_owned();
    let issuers = |audience: String| {
        let name = CallerName::parse("users").unwrap();
        let keys = KeySource::Remote(jwks.clone());
        JwtIssuers::new(vec![JwtIssuer::new(name, text("issuer"), audience, keys)])
    };
    let ours = issuers(text("audience"));
    let now = all["now"].as_u64().unwrap();
    let token = |id: &str| {
        let tokens = all["tokens"].as_array().unwrap();
        let found = tokens.iter().find(|token| token["id"] == id).unwrap();
        found["token"].as_str().unwrap().to_owned()
    };
    let unknown = token("ed25519, unknown name");
    assert!(ours.would_wait(&unknown, now));
    assert!(!ours.would_wait(&token("ed25519, named"), now));
    assert!(!ours.would_wait(&unknown, now + 3600), "expired");
    assert!(!ours.would_wait("a.b.c", now));
    assert!(!issuers("other".into()).would_wait(&unknown, now));
    assert!(ours.verify(&unknown, now).is_err());
    assert!(!ours.would_wait(&unknown, now), "asked a moment ago");
}

#[test]
fn a_server_that_hangs_holds_up_few_and_not_for_long() {
    let (url, asked) = server(vec![String::new()]);
    let jwks = start(url);
    let started = Instant::now();
    assert!(jwks.would_wait(started));
    let together = Barrier::new(20);
    let refused_at_once = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                together.wait();
                let pause = jwks.refresh().unwrap_err();
                assert!(
                    pause >= MIN_RETRY_AFTER && pause <= MIN_FETCH_INTERVAL,
                    "{pause:?}"
                );
                if jwks.refresher.lock().fetching {
                    refused_at_once.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert!(
        started.elapsed() < FETCH_TIMEOUT * 10,
        "{:?}",
        started.elapsed()
    );
    let refused = refused_at_once.into_inner();
    assert!(refused >= 20 - MAX_WAITERS, "{refused}");
    assert!(asked.load(Ordering::SeqCst) <= 2);
}

#[test]
fn what_is_no_key_set_is_no_answer() {
    let large = format!("{}{}", document(), " ".repeat(10 * 1024 * 1024));
    let endless = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{large}");
    for answer in [
        says("404 Not Found", &document()),
        "HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\nContent-Length: 0\r\n\r\n"
            .into(),
        says("200 OK", "{}"),
        says("200 OK", &large),
        endless,
        "SSH-2.0-OpenSSH_9.9\r\n".to_owned(),
    ] {
        let shown = answer[..30.min(answer.len())].to_owned();
        let (url, _) = server(vec![answer]);
        let jwks = start(url);
        assert!(jwks.refresh().is_err(), "{shown}");
        assert!(jwks.cached(Instant::now()).is_none());
    }
}

#[test]
fn a_server_that_fails_cannot_say_that_a_key_is_unknown() {
    let (url, _) = server(vec![says("200 OK", &document()), says("503 Busy", "")]);
    let jwks = start(url);
    let deadline = Instant::now() + Duration::from_secs(60);
    while jwks.cached(Instant::now()).is_none() {
        assert!(Instant::now() < deadline, "no keys came");
        std::thread::yield_now();
    }
    assert!(jwks.refresh().is_err());
    assert!(jwks.cached(Instant::now()).is_some());
}

#[test]
fn of_an_endless_answer_no_more_is_read_than_keys_may_have() {
    let large = format!("{}{}", document(), " ".repeat(10 * 1024 * 1024));
    let unannounced = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{large}");
    for answer in [says("200 OK", &large), unannounced] {
        let (url, _) = server(vec![answer]);
        let cause = start(url).refresher.fetch_key_set().unwrap_err();
        assert!(
            cause.contains("answer") && cause.contains("262144 bytes"),
            "{cause}"
        );
    }
}

#[test]
fn a_failed_first_round_is_made_good_by_the_first_caller() {
    let (url, asked) = server(vec![says("503 Busy", ""), says("200 OK", &document())]);
    let jwks = start(url);
    // the first round may be over by now, or not
    let known = jwks.refresh().or_else(|_| jwks.refresh());
    assert!(known.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn the_thread_ends_with_the_last_clone() {
    let (url, _) = server(vec![says("200 OK", &document())]);
    let jwks = start(url);
    let _ = jwks.refresh();
    let shared = Arc::downgrade(&jwks.refresher);
    let clone = jwks.clone();
    drop(jwks);
    assert!(clone.refresh().is_ok());
    drop(clone);
    let deadline = Instant::now() + Duration::from_secs(60);
    while shared.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the thread is still there");
        std::thread::yield_now();
    }
}
