use super::*;
use crate::livekit::access_token::ApiKey;
use crate::livekit::sealed_attribute::SEALED_ATTRIBUTE_NAME;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::http_client::Fetcher;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

const OK: &str = "200 OK\r\nContent-Type: application/protobuf";

/// A length-delimited field of protobuf.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    assert!(length < 0x80);
    [&[number << 3 | 2, length], bytes].concat()
}

/// An SFU with these rooms. Each has two participants: `alice`, whose sealed attribute is the first letter of the room's name, and
/// `bob` without attribute. A room with an `x` in its name cannot be listed.
fn sfu(rooms: &[String]) -> FakeServer {
    let list = rooms
        .iter()
        .map(|name| field(1, &field(2, name.as_bytes())));
    let list = list.collect::<Vec<_>>().concat();
    FakeServer::new(move |request| {
        if request.request_line.ends_with("/ListRooms") {
            return Some((OK, list.clone()));
        }
        let room = &request.body[2..];
        if room.contains(&b'x') {
            return Some(("500 Internal Server Error", Vec::new()));
        }
        let name = field(1, SEALED_ATTRIBUTE_NAME.as_bytes());
        let attribute = [name, field(2, &room[..1])].concat();
        let alice = [field(2, b"alice"), field(15, &attribute)].concat();
        let bob = field(2, b"bob");
        Some((OK, [field(1, &alice), field(1, &bob)].concat()))
    })
}

/// The result of a run, and the sealed attributes that it has found. The participant with the attribute `b` counts as tracked.
fn reconcile_with(sfu: &FakeServer) -> (Result<ReconcileSummary, Error>, Vec<String>) {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    let fetcher = Fetcher::new(tls, AddressPolicy::default(), 1);
    let client = RoomServiceClient::new(fetcher, sfu.url(""), ApiKey::new("key", "secret"));
    let mut found = Vec::new();
    let result = reconcile(&client, |key, attribute| {
        assert_eq!(key.identity.as_str(), "alice");
        assert_eq!(attribute.as_str(), &key.room.as_str()[..1]);
        found.push(attribute.as_str().to_owned());
        attribute.as_str() != "b"
    });
    (result, found)
}

/// A room name of the derived format with these first letters.
fn derived_name(letters: &str) -> String {
    format!("{letters}{}", "A".repeat(43 - letters.len()))
}

#[test]
fn participants_are_found_in_rooms_with_a_derived_name_only() {
    let rooms = [
        derived_name("a"),
        "standup".into(),
        derived_name("b"),
        derived_name("c"),
    ];
    let fake = sfu(&rooms);
    let (result, found) = reconcile_with(&fake);
    let summary = ReconcileSummary {
        rooms: 3,
        discovered: 2,
        skipped: 0,
    };
    assert_eq!(result.unwrap(), summary);
    assert_eq!(found, ["a", "b", "c"]);
    assert_eq!(fake.request_lines().len(), 4, "one list, and three rooms");
}

#[test]
fn a_room_that_cannot_be_listed_is_skipped() {
    let rooms = ["a", "x", "xx", "b", "x", "c"].map(derived_name);
    let (result, found) = reconcile_with(&sfu(&rooms));
    let summary = ReconcileSummary {
        rooms: 3,
        discovered: 2,
        skipped: 3,
    };
    assert_eq!(result.unwrap(), summary);
    assert_eq!(found, ["a", "b", "c"]);
}

#[test]
fn a_run_ends_after_three_failures_in_a_row() {
    let mut rooms = vec![derived_name("a")];
    rooms.extend((0..20).map(|_| derived_name("x")));
    let fake = sfu(&rooms);
    let (result, found) = reconcile_with(&fake);
    assert!(result.is_err());
    assert_eq!(found, ["a"]);
    assert_eq!(fake.request_lines().len(), 2 + MAX_CONSECUTIVE_FAILURES);
    let closes_connections = FakeServer::new(|_| None);
    assert!(reconcile_with(&closes_connections).0.is_err());
}

#[test]
fn retries_become_less_frequent() {
    let seconds = (1..=8).map(|failures| RETRY.delay(failures).as_secs());
    assert!(seconds.eq([1, 2, 4, 8, 16, 32, 60, 60]));
}

#[test]
fn a_run_is_bounded_and_every_room_is_in_some_run() {
    let rooms = |count: usize| -> Vec<_> {
        let name = |n| RoomName::new(format!("{n}")).unwrap();
        (0..count).map(name).collect()
    };
    assert_eq!(sample_rooms(rooms(MAX_ROOMS)), rooms(MAX_ROOMS));
    assert!(sample_rooms(vec![]).is_empty());
    let all = rooms(MAX_ROOMS * 2);
    let last = &all[all.len() - 1];
    // a run has half of the rooms: 200 runs miss the same room with a probability of 2^-200
    let found = (0..200).any(|_| {
        let sample = sample_rooms(all.clone());
        assert_eq!(sample.len(), MAX_ROOMS);
        sample.contains(last)
    });
    assert!(found);
}
