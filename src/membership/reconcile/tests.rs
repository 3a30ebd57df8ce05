use super::*;
use crate::livekit::access_token::ApiKey;
use crate::net::address::AddressPolicy;
use crate::net::fake_server::FakeServer;
use crate::net::http_client::Fetcher;
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

/// A field of bytes in protobuf.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    assert!(length < 0x80);
    [&[number << 3 | 2, length], bytes].concat()
}

/// An SFU with rooms of these names, in each of which there are alice, who carries her room's first letter, and bob, who carries
/// nothing; rooms with an `x` in their names cannot be listed.
fn sfu(rooms: &[String]) -> FakeServer {
    let names = rooms
        .iter()
        .map(|name| field(1, &field(2, name.as_bytes())));
    let names = names.collect::<Vec<_>>().concat();
    FakeServer::new(move |asked| {
        if asked.request_line.ends_with("/ListRooms") {
            return Some(("200 OK", names.clone()));
        }
        let room = &asked.body[2..];
        if room.contains(&b'x') {
            return Some(("500 Internal Server Error", Vec::new()));
        }
        let name = field(
            1,
            crate::livekit::sealed_attribute::SEALED_ATTRIBUTE_NAME.as_bytes(),
        );
        let carried = [name, field(2, &room[..1])].concat();
        let alice = [field(2, b"alice"), field(15, &carried)].concat();
        let bob = field(2, b"bob");
        Some(("200 OK", [field(1, &alice), field(1, &bob)].concat()))
    })
}

/// What a walk comes to, and the rooms in which somebody carried something.
fn walked(sfu: &FakeServer) -> (Result<ReconcileSummary, Error>, Vec<String>) {
    let tls = client_config(
        &RootCertificates::built_in_and_system(),
        CertificateVerification::On,
    );
    let fetcher = Fetcher::new(tls, AddressPolicy::default(), 1);
    let rooms = RoomServiceClient::new(fetcher, sfu.url(""), ApiKey::new("key", "secret"));
    let mut met = Vec::new();
    let result = reconcile(&rooms, |key, sealed| {
        assert_eq!(key.identity.as_str(), "alice");
        assert_eq!(sealed.as_str(), &key.room.as_str()[..1]);
        met.push(sealed.as_str().to_owned());
        sealed.as_str() != "b"
    });
    (result, met)
}

/// The name of one of our rooms, made of these letters.
fn ours(letters: &str) -> String {
    format!("{letters}{}", "A".repeat(43 - letters.len()))
}

#[test]
fn everybody_in_our_rooms_is_met_and_nobody_elsewhere() {
    let fake = sfu(&[ours("a"), "standup".into(), ours("b"), ours("c")]);
    let (result, met) = walked(&fake);
    let walked = ReconcileSummary {
        rooms: 3,
        discovered: 2,
        skipped: 0,
    };
    assert_eq!(result.unwrap(), walked);
    assert_eq!(met, ["a", "b", "c"]);
    assert_eq!(fake.request_lines().len(), 4, "the list, and three rooms");
}

#[test]
fn a_room_that_cannot_be_listed_keeps_nobody_from_the_next() {
    let rooms = ["a", "x", "xx", "b", "x", "c"].map(ours);
    let (result, met) = walked(&sfu(&rooms));
    let walked = ReconcileSummary {
        rooms: 3,
        discovered: 2,
        skipped: 3,
    };
    assert_eq!(result.unwrap(), walked);
    assert_eq!(met, ["a", "b", "c"]);
}

#[test]
fn an_sfu_that_answers_no_more_is_left_alone() {
    let mut rooms = vec![ours("a")];
    rooms.extend((0..20).map(|_| ours("x")));
    let fake = sfu(&rooms);
    let (result, met) = walked(&fake);
    assert!(result.is_err());
    assert_eq!(met, ["a"]);
    assert_eq!(fake.request_lines().len(), 2 + MAX_CONSECUTIVE_FAILURES);
    let gone = FakeServer::new(|_| None);
    assert!(walked(&gone).0.is_err());
}

#[test]
fn an_sfu_that_does_not_answer_is_asked_less_and_less() {
    let mut waits = vec![next_retry(None)];
    for _ in 0..7 {
        waits.push(next_retry(waits.last().copied()));
    }
    let seconds = waits.iter().map(Duration::as_secs);
    assert!(seconds.eq([1, 2, 4, 8, 16, 32, 60, 60]));
}

#[test]
fn a_walk_is_bounded_and_leaves_out_nobody_always() {
    let rooms = |count: usize| -> Vec<_> {
        let name = |n| RoomName::new(format!("{n}")).unwrap();
        (0..count).map(name).collect()
    };
    assert_eq!(sample_rooms(rooms(MAX_ROOMS)), rooms(MAX_ROOMS));
    assert!(sample_rooms(vec![]).is_empty());
    let all = rooms(MAX_ROOMS * 2);
    let last = &all[all.len() - 1];
    // a walk has half of them: all of 200 miss the same one once in 2^200 times
    let met = (0..200).any(|_| {
        let some = sample_rooms(all.clone());
        assert_eq!(some.len(), MAX_ROOMS);
        some.contains(last)
    });
    assert!(met);
}
