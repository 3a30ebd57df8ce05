//! Parsing of responses. The exchange with misbehaving servers is tested in `tests/e2e`.

use simple_dns::ResourceRecord;
use simple_dns::rdata::{CNAME, SRV};

use super::*;

const NAME: &str = "_matrix-fed._tcp.example.org";

fn name(text: &str) -> Name<'_> {
    Name::new(text).unwrap()
}

fn question(text: &str) -> Question<'_> {
    Question::new(
        name(text),
        QTYPE::TYPE(TYPE::SRV),
        QCLASS::CLASS(CLASS::IN),
        false,
    )
}

fn srv<'a>(
    owner: &'a str,
    priority: u16,
    port: u16,
    target: &'a str,
    ttl: u32,
) -> ResourceRecord<'a> {
    let data = SRV {
        priority,
        weight: 0,
        port,
        target: name(target),
    };
    ResourceRecord::new(name(owner), CLASS::IN, ttl, RData::SRV(data))
}

fn reply(records: Vec<ResourceRecord<'_>>) -> Packet<'_> {
    let mut packet = Packet::new_reply(7);
    packet.questions.push(question(NAME));
    packet.answers = records;
    packet
}

fn parse(packet: &Packet<'_>) -> DnsReply {
    parse_reply(&packet.build_bytes_vec_compressed().unwrap(), 7, NAME)
}

#[test]
fn records_are_ordered_and_the_shortest_ttl_applies() {
    let packet = reply(vec![
        srv(NAME, 20, 2, "B.example.org", 60),
        srv(NAME, 10, 1, "a.example.org", 300),
    ]);
    let DnsReply::Answer(answer) = parse(&packet) else {
        panic!("no answer")
    };
    let hosts: Vec<_> = answer
        .targets
        .iter()
        .map(|t| (t.host.as_str(), t.port))
        .collect();
    assert_eq!(hosts, [("a.example.org", 1), ("b.example.org", 2)]);
    assert_eq!(answer.ttl, Duration::from_secs(60));
}

#[test]
fn aliases_are_followed_and_records_of_other_names_ignored() {
    let alias = RData::CNAME(CNAME(name("srv.example.net")));
    let packet = reply(vec![
        ResourceRecord::new(name(NAME), CLASS::IN, 30, alias),
        srv("srv.example.net", 1, 443, "real.example.net", 60),
        srv("_matrix-fed._tcp.evil.org", 0, 25, "evil.org", 60),
    ]);
    let DnsReply::Answer(answer) = parse(&packet) else {
        panic!("no answer")
    };
    assert_eq!(
        answer.targets,
        [SrvTarget {
            host: "real.example.net".into(),
            port: 443
        }]
    );
    assert_eq!(answer.ttl, Duration::from_secs(30));
}

#[test]
fn only_a_response_to_the_query_is_read() {
    let mut other = reply(vec![]);
    other.questions = vec![question("_matrix._tcp.example.org")];
    assert!(matches!(parse(&other), DnsReply::Unrelated));
    let packet = reply(vec![]);
    let bytes = packet.build_bytes_vec().unwrap();
    assert!(matches!(parse_reply(&bytes, 8, NAME), DnsReply::Unrelated));
    assert!(matches!(
        parse_reply(&bytes, 7, &NAME.to_uppercase()),
        DnsReply::Answer(_)
    ));
    let mut query = bytes.clone();
    query[2] &= 0x7f;
    assert!(matches!(parse_reply(&query, 7, NAME), DnsReply::Unrelated));
    let mut truncated = packet.clone();
    truncated.set_flags(PacketFlag::TRUNCATION);
    assert!(matches!(parse(&truncated), DnsReply::Truncated));
    let mut failed = packet.clone();
    *failed.rcode_mut() = RCODE::ServerFailure;
    assert!(matches!(
        parse(&failed),
        DnsReply::Failed(RCODE::ServerFailure)
    ));
    *failed.rcode_mut() = RCODE::NameError;
    assert!(matches!(parse(&failed), DnsReply::Answer(answer) if answer.targets.is_empty()));
}

#[test]
fn a_service_that_does_not_exist_has_an_empty_target() {
    let packet = reply(vec![srv(NAME, 0, 0, ".", 60)]);
    let DnsReply::Answer(answer) = parse(&packet) else {
        panic!("no answer")
    };
    assert_eq!(
        answer.targets,
        [SrvTarget {
            host: String::new(),
            port: 0
        }]
    );
}

#[test]
fn broken_messages_neither_panic_nor_loop() {
    for pointer in [[0xc0, 12], [0xc0, 14], [0xff, 0xff]] {
        let message = [
            &[0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0][..],
            &pointer,
            &[0, 33, 0, 1],
        ]
        .concat();
        assert!(matches!(
            parse_reply(&message, 7, NAME),
            DnsReply::Unrelated
        ));
    }
    let packet = reply(vec![
        srv(NAME, 1, 1, "a.example.org", 1),
        srv(NAME, 2, 2, "b.example.org", 1),
    ]);
    let bytes = packet.build_bytes_vec_compressed().unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut answers = 0;
    for _ in 0..100_000 {
        let mut mutant = bytes.clone();
        for _ in 0..3 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let index = 2 + usize::try_from(state >> 40).unwrap() % (mutant.len() - 2);
            mutant[index] = state.to_le_bytes()[0];
        }
        answers += usize::from(matches!(parse_reply(&mutant, 7, NAME), DnsReply::Answer(_)));
    }
    assert!(answers > 0, "no mutated message was a valid response");
}

#[test]
fn targets_are_ordered_by_weight_as_in_rfc_2782() {
    let record = |priority, weight, host: &str| SrvRecord {
        priority,
        weight,
        target: SrvTarget {
            host: host.into(),
            port: 1,
        },
    };
    let first = |pick| {
        let records = vec![
            record(20, 0, "last"),
            record(10, 0, "zero"),
            record(10, 60, "big"),
            record(10, 20, "small"),
        ];
        let ordered = order_targets(records, |max| if max == 80 { pick } else { 0 });
        assert_eq!(ordered.len(), 4);
        assert_eq!(ordered[3].host, "last");
        ordered[0].host.clone()
    };
    assert_eq!(first(0), "zero");
    assert_eq!((first(1), first(20)), ("small".into(), "small".into()));
    assert_eq!((first(21), first(80)), ("big".into(), "big".into()));
}
