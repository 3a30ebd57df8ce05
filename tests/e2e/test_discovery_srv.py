"""SRV records as RFC 2782 has them, names with several addresses, and a name server that misbehaves."""

import pytest
from dnslib import CNAME, QTYPE, RR, DNSRecord

from lab import NAME_SERVER, USERINFO, Visit

HOME = "10.77.0.20"
SILENT = "10.77.0.54"
FED, OLD = "_matrix-fed._tcp.hs.test", "_matrix._tcp.hs.test"

# A broken name server costs at most the budget for SRV records (3 s each); the client must not wait for ever.
IN_TIME = 20


@pytest.fixture
def hs(world):
    """hs.test without a well-known, on its default port."""
    world.names.address("hs.test", HOME)
    world.names.address("target.test", HOME)
    world.homeserver(HOME, 8448, "hs.test", "hs.test")
    return world


def asked_at(world):
    return [(visit.address, visit.port) for visit in world.visits if visit.path == USERINFO]


def test_the_lower_priority_comes_first(hs):
    hs.names.srv(FED, 7002, "target.test", priority=20)
    hs.names.srv(FED, 7001, "target.test", priority=10)
    for port in 7001, 7002:
        hs.homeserver(HOME, port, "hs.test", "hs.test")
    hs.serve_in_the_lab()
    assert hs.ask("hs.test").status == 200
    assert asked_at(hs) == [(HOME, 7001)]


def test_the_next_target_is_tried_when_one_is_down(hs):
    hs.names.srv(FED, 7001, "target.test", priority=10)
    hs.names.srv(FED, 7002, "target.test", priority=20)
    hs.homeserver(HOME, 7002, "hs.test", "hs.test")
    hs.serve_in_the_lab()
    assert hs.ask("hs.test").status == 200
    assert hs.dialled()[1:] == [(HOME, 7001), (HOME, 7002)]


def test_weights_spread_the_load(hs):
    for port in 7001, 7002:
        hs.names.srv(FED, port, "target.test", weight=50)
        hs.homeserver(HOME, port, "hs.test", "hs.test")
    # a fresh process each time: an endpoint found is kept; one in 2^19 that fair coins all fall on one side
    for _ in range(20):
        hs.serve_in_the_lab()
        assert hs.ask("hs.test").status == 200
        hs.service.stop()
    assert set(asked_at(hs)) == {(HOME, 7001), (HOME, 7002)}


def test_an_alias_is_followed(hs):
    hs.names.alias(FED, "srv.hoster.test")
    hs.names.srv("srv.hoster.test", 7001, "target.test")
    hs.homeserver(HOME, 7001, "hs.test", "hs.test")
    hs.serve_in_the_lab()
    assert hs.ask("hs.test").status == 200
    assert hs.visits[-1] == Visit(HOME, 7001, "hs.test", "hs.test", USERINFO)


def test_an_answer_larger_than_512_bytes_is_read(hs):
    for n in range(20):
        hs.names.srv(FED, 7100 + n, f"target-{n}.test", priority=100 - n)
    hs.names.address("target-19.test", HOME)
    hs.homeserver(HOME, 7119, "hs.test", "hs.test")
    hs.serve_in_the_lab()
    assert hs.ask("hs.test").status == 200
    assert asked_at(hs) == [(HOME, 7119)]


def test_the_second_name_server_is_asked_when_the_first_is_silent(hs):
    hs.names.srv(FED, 7001, "target.test")
    hs.homeserver(HOME, 7001, "hs.test", "hs.test")
    hs.name_servers(SILENT, NAME_SERVER)
    hs.serve_in_the_lab()
    assert hs.ask("hs.test").status == 200
    assert asked_at(hs) == [(HOME, 7001)]


def test_a_name_with_a_dead_address_is_reached_at_its_other_one(world):
    world.names.address("hs.test", "fd77::20", HOME)
    world.homeserver(HOME, 7000, "hs.test", "hs.test:7000")
    world.serve_in_the_lab()
    assert world.ask("hs.test:7000").status == 200
    assert asked_at(world) == [(HOME, 7000)]


def test_a_truncated_answer_is_asked_for_again_by_TCP(hs):
    def truncate(query, answer):
        short = query.reply()
        short.header.tc = 1
        return [short.pack()]

    hs.names.srv(FED, 7001, "target.test")
    hs.names.fault("SRV", truncate)
    hs.homeserver(HOME, 7001, "hs.test", "hs.test")
    hs.serve_in_the_lab()
    assert hs.ask("hs.test").status == 200
    assert asked_at(hs) == [(HOME, 7001)]
    assert (FED, "SRV", "tcp") in hs.names.queries


def test_a_forged_answer_before_the_right_one_is_ignored(hs):
    def forge(query, answer):
        lie = DNSRecord.parse(answer.pack())
        lie.header.id ^= 1
        for record in lie.rr:
            record.rdata.port = 7666
        return [lie.pack(), answer.pack()]

    hs.names.srv(FED, 7001, "target.test")
    hs.names.fault("SRV", forge)
    for port in 7001, 7666:
        hs.homeserver(HOME, port, "hs.test", "hs.test")
    hs.serve_in_the_lab()
    assert hs.ask("hs.test").status == 200
    assert asked_at(hs) == [(HOME, 7001)]


def servfail(query, answer):
    failed = query.reply()
    failed.header.rcode = 2
    return [failed.pack()]


def wrong_id(query, answer):
    answer.header.id ^= 1
    return [answer.pack()]


def other_question(query, answer):
    return [answer.pack().replace(b"\x02hs\x04test", b"\x02no\x04test")]


def pointer_loop(query, answer):
    """The name of the answer points at itself."""
    packet = query.reply().pack()
    at = len(packet)
    loop = (0xC000 | at).to_bytes(2, "big")
    return [packet[:6] + b"\0\1" + packet[8:] + loop + b"\0\x21\0\1\0\0\1\x2c\0\x08\0\1\0\1\x1b\x59" + loop]


def alias_loop(query, answer):
    looping = query.reply()
    looping.add_answer(RR(query.q.qname, QTYPE.CNAME, ttl=300, rdata=CNAME(query.q.qname)))
    return [looping.pack()]


def cut_off(query, answer):
    return [answer.pack()[:-5]]


FAULTS = {
    "says_SERVFAIL": servfail,
    "answers_with_a_wrong_id": wrong_id,
    "answers_another_question": other_question,
    "is_silent": lambda query, answer: [],
    "sends_a_pointer_loop": pointer_loop,
    "sends_an_alias_of_itself": alias_loop,
    "cuts_its_answer_off": cut_off,
    "sends_nothing_but_noise": lambda query, answer: [b"\xff" * 40],
    "sends_an_empty_datagram": lambda query, answer: [b""],
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_the_default_port_is_used_when_the_name_server(hs, fault):
    for name in FED, OLD:
        hs.names.srv(name, 7001, "target.test")
    hs.homeserver(HOME, 7001, "hs.test", "hs.test")
    hs.names.fault("SRV", fault)
    hs.serve_in_the_lab()
    reply = hs.ask("hs.test")
    assert reply.status == 200
    assert reply.seconds < IN_TIME
    assert asked_at(hs) == [(HOME, 8448)]
    assert FED in hs.names.asked("SRV")


def test_a_name_server_that_answers_nothing_at_all_is_given_up_in_time(hs):
    for kind in "A", "AAAA", "SRV":
        hs.names.fault(kind, lambda query, answer: [])
    hs.serve_in_the_lab()
    reply = hs.ask("hs.test")
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")
    assert reply.seconds < 2 * IN_TIME
    assert hs.dialled() == []
