//! Authentication, databases and TLS of Redis.

use livekit_token_service::internal::RootCertificates;
use livekit_token_service::internal::{LeaveStore, Ownership, RedisAddress, RedisStore};

use crate::conformance::{adopt_all, key};
use crate::open;
use crate::redis_server::{RedisProxy, RedisServer};

#[test]
fn a_password_is_sent_and_never_logged() {
    let server = RedisServer::with(&["--requirepass", "hunter2 %"]);
    let url = format!("redis+unix://{}", server.socket().display());
    let without = open(&url).problem().unwrap();
    assert!(without.contains("NOAUTH"), "{without}");
    let with = |password: &str| {
        let address = RedisAddress::parse(&url).unwrap();
        RedisStore::open(
            address.with_password(Some(password.into())),
            &RootCertificates::built_in_and_system(),
        )
    };
    let wrong = with("hunter3");
    let text = format!("{wrong:?} {}", wrong.problem().unwrap());
    assert!(
        text.contains("WRONGPASS") && !text.contains("hunter"),
        "{text}"
    );
    let right = with("hunter2 %");
    assert_eq!(right.problem(), None);
    right.put(&key("a"), "a").unwrap();
    let proxy = RedisProxy::to(&server);
    let url = proxy
        .url()
        .replace("redis://", "redis://default:hunter2%20%25@")
        + "/3";
    let in_url = open(&url);
    assert_eq!(in_url.problem(), None);
    // another database than that of `right`
    assert_eq!(adopt_all(&in_url), []);
    assert!(in_url.claim(&key("a")).unwrap().is_none());
}

#[test]
fn tls_needs_a_trusted_certificate() {
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
    // a free port, unless another process takes it right now
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let (ca_path, key_path) = (ca.display().to_string(), private.display().to_string());
    let _server = RedisServer::with(&[
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
    let untrusted = open(&url).problem().unwrap();
    assert!(untrusted.contains("certificate"), "{untrusted}");
    let mut roots = RootCertificates::built_in_and_system();
    roots.add_file(&ca).unwrap();
    let store = RedisStore::open(RedisAddress::parse(&url).unwrap(), &roots);
    assert_eq!(store.problem(), None);
    let fence = store.put(&key("a"), "a").unwrap();
    assert_eq!(
        store.check_ownership(&key("a"), fence).unwrap(),
        Ownership::Owned
    );
    std::fs::remove_dir_all(&directory).unwrap();
}
