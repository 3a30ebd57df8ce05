//! How a Redis is entered: with a password, into a database, and over TLS.

use livekit_token_service::internal::RootCertificates;
use livekit_token_service::internal::{LeaveStore, Ownership, RedisAddress, RedisStore};

use crate::conformance::{adopted, key};
use crate::open;
use crate::server::{Cable, Server};

#[test]
fn a_password_is_asked_for_and_never_told() {
    let server = Server::with(&["--requirepass", "hunter2 %"]);
    let place = format!("redis+unix://{}", server.socket().display());
    let without = open(&place).problem().unwrap();
    assert!(without.contains("NOAUTH"), "{without}");
    let with = |password: &str| {
        let address = RedisAddress::parse(&place).unwrap();
        RedisStore::open(
            address.with_password(Some(password.into())),
            &RootCertificates::built_in_and_system(),
        )
    };
    let wrong = with("hunter3");
    let trouble = format!("{wrong:?} {}", wrong.problem().unwrap());
    assert!(
        trouble.contains("WRONGPASS") && !trouble.contains("hunter"),
        "{trouble}"
    );
    let right = with("hunter2 %");
    assert_eq!(right.problem(), None);
    right.put(&key("a"), "a").unwrap();
    let cable = Cable::to(&server);
    let url = cable
        .url()
        .replace("redis://", "redis://default:hunter2%20%25@")
        + "/3";
    let in_url = open(&url);
    assert_eq!(in_url.problem(), None);
    // another database
    assert_eq!(adopted(&in_url), []);
    assert!(in_url.claim(&key("a")).unwrap().is_none());
}

#[test]
fn tls_is_spoken_with_whom_our_roots_know() {
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let directory = std::env::temp_dir().join(format!("lts-redis-tls-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let file = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca = file("ca.pem", certificate.cert.pem());
    let private = file("key.pem", certificate.signing_key.serialize_pem());
    // free a moment ago, and a moment is all that it takes
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let (ca_path, key_path) = (ca.display().to_string(), private.display().to_string());
    let _server = Server::with(&[
        "--tls-port",
        &port,
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        &ca_path,
        "--tls-key-file",
        &key_path,
        "--tls-ca-cert-file",
        &ca_path,
    ]);
    let url = format!("rediss://localhost:{port}");
    let strange = open(&url).problem().unwrap();
    assert!(strange.contains("certificate"), "{strange}");
    let mut roots = RootCertificates::built_in_and_system();
    roots.add_file(&ca).unwrap();
    let journal = RedisStore::open(RedisAddress::parse(&url).unwrap(), &roots);
    assert_eq!(journal.problem(), None);
    let fence = journal.put(&key("a"), "a").unwrap();
    assert_eq!(
        journal.check_ownership(&key("a"), fence).unwrap(),
        Ownership::Owned
    );
    std::fs::remove_dir_all(&directory).unwrap();
}
