"""Homeservers that move, name servers that fail, and unusual settings of the host."""

import json
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fake_internet import NAME_SERVER, USERINFO, WELL_KNOWN, ReceivedRequest
from fake_sfu import FakeSfu
from service import KEY, SECRET, call

WEB, HOME, NEW_HOME = "10.77.0.10", "10.77.0.20", "10.77.0.21"
SILENT = "10.77.0.54"
CONCURRENT_CALLS = 10


def close_connection(_):
    raise ConnectionError("the homeserver closes the connection")


def test_the_deprecated_SRV_record_is_found_when_the_first_name_server_is_silent_with_the_default_timeout(internet, namespace):
    """The default timeout of resolv.conf, 5 s for a name server, is longer than the deadline of an SRV lookup."""
    internet.names.address("hs.test", HOME)
    internet.names.address("target.test", HOME)
    internet.names.srv("_matrix._tcp.hs.test", 7001, "target.test")
    internet.homeserver(HOME, 7001, "hs.test", "hs.test")
    internet.use_name_servers(SILENT, NAME_SERVER)
    resolv_conf = pathlib.Path("/etc/netns", namespace.name, "resolv.conf")
    resolv_conf.write_text(f"nameserver {SILENT}\nnameserver {NAME_SERVER}\n")
    # addresses are looked up by the system's resolver, which may be fast
    internet.start_service_with_private_networks(RES_OPTIONS="timeout:1")
    assert internet.request_token("hs.test").status == 200
    assert internet.received == [ReceivedRequest(HOME, 7001, "hs.test", "hs.test", USERINFO)]


def test_concurrent_calls_just_after_a_listed_server_has_moved_succeed(internet, namespace):
    internet.names.address("hs.test", WEB)
    internet.names.address("old.test", HOME)
    internet.names.address("new.test", NEW_HOME)
    answers = {WELL_KNOWN: json.dumps({"m.server": "old.test:7000"}).encode()}
    internet.listen(WEB, 443, "hs.test", answers)
    old = internet.homeserver(HOME, 7000, "old.test", "hs.test")
    old.answers[USERINFO] = (200, {"Connection": "close"}, old.answers[USERINFO])
    internet.homeserver(NEW_HOME, 7000, "new.test", "hs.test")
    with namespace.inside():
        sfu = FakeSfu(KEY, SECRET)
    try:
        internet.start_service_with_private_networks(LIVEKIT_FULL_ACCESS_HOMESERVERS="hs.test", LIVEKIT_API_URL=sfu.url)
        assert internet.request_token("hs.test").status == 200

        # all calls reach the old address before the first one fails
        together = threading.Barrier(CONCURRENT_CALLS, timeout=5)
        old.answers[USERINFO] = lambda request: close_connection(together.wait())
        answers[WELL_KNOWN] = json.dumps({"m.server": "new.test:7000"}).encode()
        with ThreadPoolExecutor(CONCURRENT_CALLS) as pool:
            replies = list(pool.map(lambda _: internet.request_token("hs.test"), range(CONCURRENT_CALLS)))
    finally:
        sfu.stop()
    assert [reply.status for reply in replies] == [200] * CONCURRENT_CALLS
    # one request before the move and one after
    assert [request.path for request in internet.received].count(WELL_KNOWN) == 2


def test_a_valid_cached_SRV_record_survives_a_failure_of_the_DNS(internet):
    def servfail(query, answer):
        failed = query.reply()
        failed.header.rcode = 2
        return [failed.pack()]

    internet.names.address("hs.test", WEB)
    internet.names.address("target.test", HOME)
    internet.names.srv("_matrix-fed._tcp.hs.test", 7001, "target.test")
    homeserver = internet.homeserver(HOME, 7001, "hs.test", "hs.test")
    userinfo = homeserver.answers[USERINFO]
    homeserver.answers[USERINFO] = (200, {"Connection": "close"}, userinfo)
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200

    # after a failed request the DNS is queried again
    homeserver.answers[USERINFO] = close_connection
    internet.names.fault("SRV", servfail)
    queries = len(internet.names.queried_names("SRV"))
    assert internet.request_token("hs.test").status == 401
    assert len(internet.names.queried_names("SRV")) > queries

    homeserver.answers[USERINFO] = userinfo
    assert internet.request_token("hs.test").status == 200
    assert (WEB, 8448) not in internet.connection_attempts()


@pytest.fixture
def ipv6_only_by_default(namespace):
    setting = pathlib.Path("/proc/sys/net/ipv6/bindv6only")
    with namespace.inside():
        setting.write_text("1")
    yield
    with namespace.inside():
        setting.write_text("0")


def test_a_port_alone_means_IPv4_and_IPv6_on_every_system(start, namespace, ipv6_only_by_default):
    service = start(namespace, LIVEKIT_JWT_BIND=":0")
    for host in "127.0.0.1", "[::1]", "10.77.0.10":
        with namespace.inside():
            assert call(f"{host}:{service.port}", "GET", "/healthz").status == 200
