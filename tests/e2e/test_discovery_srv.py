"""SRV records (RFC 2782), names with several addresses, and faulty name servers."""

import pytest
from dnslib import CNAME, QTYPE, RR, DNSRecord

from fake_internet import NAME_SERVER, USERINFO, ReceivedRequest

HOME = "10.77.0.20"
SILENT = "10.77.0.54"
FED, OLD = "_matrix-fed._tcp.hs.test", "_matrix._tcp.hs.test"

# seconds; a faulty name server costs at most 3 s for each SRV query
RESPONSE_SECONDS = 20


@pytest.fixture
def internet(internet):
    """With hs.test on its default port, without a well-known."""
    internet.names.address("hs.test", HOME)
    internet.names.address("target.test", HOME)
    internet.homeserver(HOME, 8448, "hs.test", "hs.test")
    return internet


def userinfo_addresses(internet):
    return [(request.address, request.port) for request in internet.received if request.path == USERINFO]


def test_the_target_with_the_lower_priority_value_comes_first(internet):
    internet.names.srv(FED, 7002, "target.test", priority=20)
    internet.names.srv(FED, 7001, "target.test", priority=10)
    for port in 7001, 7002:
        internet.homeserver(HOME, port, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert userinfo_addresses(internet) == [(HOME, 7001)]


def test_the_next_target_is_tried_when_one_is_down(internet):
    internet.names.srv(FED, 7001, "target.test", priority=10)
    internet.names.srv(FED, 7002, "target.test", priority=20)
    internet.homeserver(HOME, 7002, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert internet.connection_attempts()[1:] == [(HOME, 7001), (HOME, 7002)]


def test_weights_distribute_the_load(internet):
    for port in 7001, 7002:
        internet.names.srv(FED, port, "target.test", weight=50)
        internet.homeserver(HOME, port, "hs.test", "hs.test")
    # a new process each time, as results are cached; all choices are equal with a probability of 1 in 2^19
    for _ in range(20):
        internet.start_service_with_private_networks()
        assert internet.request_token("hs.test").status == 200
        internet.service.stop()
    assert set(userinfo_addresses(internet)) == {(HOME, 7001), (HOME, 7002)}


def test_an_alias_is_followed(internet):
    internet.names.alias(FED, "srv.hoster.test")
    internet.names.srv("srv.hoster.test", 7001, "target.test")
    internet.homeserver(HOME, 7001, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert internet.received[-1] == ReceivedRequest(HOME, 7001, "hs.test", "hs.test", USERINFO)


def test_an_answer_larger_than_512_bytes_is_read(internet):
    for n in range(20):
        internet.names.srv(FED, 7100 + n, f"target-{n}.test", priority=100 - n)
    internet.names.address("target-19.test", HOME)
    internet.homeserver(HOME, 7119, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert userinfo_addresses(internet) == [(HOME, 7119)]


def test_the_second_name_server_is_queried_when_the_first_is_silent(internet):
    internet.names.srv(FED, 7001, "target.test")
    internet.homeserver(HOME, 7001, "hs.test", "hs.test")
    internet.use_name_servers(SILENT, NAME_SERVER)
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert userinfo_addresses(internet) == [(HOME, 7001)]


def test_a_name_with_a_dead_address_is_reached_at_its_other_address(internet):
    internet.names.address("dual.test", "fd77::20", HOME)
    internet.homeserver(HOME, 7000, "dual.test", "dual.test:7000")
    internet.start_service_with_private_networks()
    assert internet.request_token("dual.test:7000").status == 200
    assert userinfo_addresses(internet) == [(HOME, 7000)]


def test_a_truncated_answer_is_queried_again_by_TCP(internet):
    def truncate(query, answer):
        short = query.reply()
        short.header.tc = 1
        return [short.pack()]

    internet.names.srv(FED, 7001, "target.test")
    internet.names.fault("SRV", truncate)
    internet.homeserver(HOME, 7001, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert userinfo_addresses(internet) == [(HOME, 7001)]
    assert (FED, "SRV", "tcp") in internet.names.queries


def test_a_forged_answer_before_the_right_one_is_ignored(internet):
    def forge(query, answer):
        forged = DNSRecord.parse(answer.pack())
        forged.header.id ^= 1
        for record in forged.rr:
            record.rdata.port = 7666
        return [forged.pack(), answer.pack()]

    internet.names.srv(FED, 7001, "target.test")
    internet.names.fault("SRV", forge)
    for port in 7001, 7666:
        internet.homeserver(HOME, port, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert userinfo_addresses(internet) == [(HOME, 7001)]


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
    """The name of the answer is a compression pointer to itself."""
    packet = query.reply().pack()
    at = len(packet)
    loop = (0xC000 | at).to_bytes(2, "big")
    return [packet[:6] + b"\0\1" + packet[8:] + loop + b"\0\x21\0\1\0\0\1\x2c\0\x08\0\1\0\1\x1b\x59" + loop]


def alias_loop(query, answer):
    looping = query.reply()
    looping.add_answer(RR(query.q.qname, QTYPE.CNAME, ttl=300, rdata=CNAME(query.q.qname)))
    return [looping.pack()]


def cut_short(query, answer):
    return [answer.pack()[:-5]]


FAULTS = {
    "says_SERVFAIL": servfail,
    "answers_with_a_wrong_id": wrong_id,
    "answers_another_question": other_question,
    "is_silent": lambda query, answer: [],
    "sends_a_pointer_loop": pointer_loop,
    "sends_an_alias_of_itself": alias_loop,
    "cuts_its_answer_short": cut_short,
    "sends_nothing_but_noise": lambda query, answer: [b"\xff" * 40],
    "sends_an_empty_datagram": lambda query, answer: [b""],
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_the_default_port_is_used_when_the_name_server(internet, fault):
    for name in FED, OLD:
        internet.names.srv(name, 7001, "target.test")
    internet.homeserver(HOME, 7001, "hs.test", "hs.test")
    internet.names.fault("SRV", fault)
    internet.start_service_with_private_networks()
    reply = internet.request_token("hs.test")
    assert reply.status == 200
    assert reply.seconds < RESPONSE_SECONDS
    assert userinfo_addresses(internet) == [(HOME, 8448)]
    assert FED in internet.names.queried_names("SRV")


def test_a_silent_name_server_delays_the_response_only_so_long(internet):
    for kind in "A", "AAAA", "SRV":
        internet.names.fault(kind, lambda query, answer: [])
    internet.start_service_with_private_networks()
    reply = internet.request_token("hs.test")
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")
    assert reply.seconds < 2 * RESPONSE_SECONDS
    assert internet.connection_attempts() == []
