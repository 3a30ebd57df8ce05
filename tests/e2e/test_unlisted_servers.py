"""Unlisted servers and their clients do not disturb others. Each attack here has succeeded against an earlier version."""

import contextlib
import http.client
import itertools
import json
import pathlib
import socket
import threading
import time

import pytest

from fake_internet import NAME_SERVER, USERINFO, WELL_KNOWN, ReceivedRequest
from fake_sfu import FakeSfu
from service import KEY, SECRET

OWN, HOME, VICTIM, TARPIT = "10.77.0.10", "10.77.0.20", "10.77.5.77", "10.77.9.9"
PORT = 7000
# silent name servers, beside the fake one
SILENT = "10.77.0.54", "10.77.0.55"
# public addresses; the SFU's refuses connections
WEB, SFU = "11.1.1.10", ("11.1.1.40", 7880)

# More clients than unlisted servers have permits, and the lookups that unlisted servers may have in progress (src/net/dns).
CLIENTS, LOOKUPS = 45, 128
# Deadline until the clients use all lookups, which takes 23 s with today's timeouts; and how long the test continues after that.
EXHAUSTED_SECONDS, OBSERVED_SECONDS = 45, 3


@pytest.fixture
def own_sfu(namespace):
    """An SFU in the namespace that closes every connection, so that each request looks its name up."""
    with namespace.inside():
        sfu = FakeSfu(KEY, SECRET)
    sfu._server.RequestHandlerClass.protocol_version = "HTTP/1.0"
    yield sfu
    sfu.stop()


@contextlib.contextmanager
def clients(internet, count, next_name, over):
    """Clients of unlisted servers that request tokens until `over` is set, at least once each."""

    def call():
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                internet.request_token(next_name())
            if over.wait(0.1):
                return

    threads = [threading.Thread(target=call, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def tarpit(internet, namespace, address, names):
    """Starts a server that accepts connections and never answers, with eight requests waiting, the limit of one network."""
    with namespace.inside():
        server = socket.create_server((address, PORT))
    once = threading.Event()
    once.set()
    in_turn = itertools.cycle(names)
    with clients(internet, 8, lambda: next(in_turn), once):
        deadline = time.monotonic() + 10
        while internet.connection_attempts().count((address, PORT)) < 8:
            assert time.monotonic() < deadline, internet.connection_attempts()
        try:
            yield
        finally:
            # resets the connections
            server.close()


def lookups(service):
    """The number of lookups in progress: each has a thread of this name."""
    names = pathlib.Path(f"/proc/{service.process.pid}/task").glob("*/comm")
    count = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            count += name.read_text() == "dns-lookup\n"
    return count


def test_unlisted_servers_with_silent_DNS_block_neither_a_listed_homeserver_nor_the_SFU(internet, namespace, own_sfu):
    """The lookups last longer than the requests, so they accumulate."""
    own, sfu_port = f"own.test:{PORT}", own_sfu.url.rpartition(":")[2]
    internet.names.address("own.test", OWN)
    internet.names.address("sfu.test", "127.0.0.1")
    for kind in "A", "AAAA":
        internet.names.fault(kind, lambda query, answer: [] if "evil" in str(query.q.qname) else [answer.pack()])
    internet.use_name_servers(NAME_SERVER, *SILENT)
    homeserver = internet.homeserver(OWN, PORT, "own.test", own)
    homeserver.answers[USERINFO] = (200, {"Connection": "close"}, homeserver.answers[USERINFO])
    # the resolver of the namespace gives up after 6 s; the default is 30 s
    internet.start_service_with_private_networks(
        RES_OPTIONS="timeout:5 attempts:2",
        LIVEKIT_FULL_ACCESS_HOMESERVERS=own,
        LIVEKIT_API_URL=f"http://sfu.test:{sfu_port}",
    )
    numbers, over = itertools.count(), threading.Event()
    with clients(internet, CLIENTS, lambda: f"n{next(numbers)}.evil.test", over):
        deadline, exhausted = time.monotonic() + EXHAUSTED_SECONDS, None
        while exhausted is None or time.monotonic() < exhausted + OBSERVED_SECONDS:
            reply = internet.request_token(own)
            assert reply.status == 200, reply.body
            if exhausted is None and lookups(internet.service) >= LOOKUPS:
                exhausted = time.monotonic()
            assert exhausted or time.monotonic() < deadline, f"the clients caused only {lookups(internet.service)} lookups"
            over.wait(0.2)
        # a stop would wait for the requests
        internet.service.process.kill()
    assert 0 < len(own_sfu.rooms) <= internet.names.queried_names("A").count("sfu.test")


def test_address_records_of_an_unlisted_server_use_no_permits_of_the_networks_in_them(internet, namespace):
    """Only one address of a name is connected to at a time."""
    victim = f"victim.test:{PORT}"
    internet.names.address("victim.test", VICTIM)
    internet.homeserver(VICTIM, PORT, "victim.test", victim)
    evil = [f"evil{n}.test" for n in range(2)]
    for name in evil:
        internet.names.address(name, TARPIT, "10.77.5.1")
    internet.start_service_with_private_networks()
    with tarpit(internet, namespace, TARPIT, [f"{name}:{PORT}" for name in evil]):
        assert internet.request_token(victim).status == 200


def test_a_lack_of_permits_is_not_cached_as_an_absent_server(internet, namespace):
    internet.names.address("victim.test", VICTIM)
    internet.names.address("other.test", HOME)
    internet.well_known(VICTIM, "victim.test", f"other.test:{PORT}")
    internet.homeserver(HOME, PORT, "other.test", "victim.test")
    neighbour = "10.77.5.66"
    evil = [f"evil{n}.test" for n in range(2)]
    for name in evil:
        internet.names.address(name, neighbour)
    internet.start_service_with_private_networks()
    with tarpit(internet, namespace, neighbour, [f"{name}:{PORT}" for name in evil]):
        for _ in range(3):
            assert internet.request_token("victim.test").status == 429
    assert VICTIM not in {address for address, _ in internet.connection_attempts()}
    assert internet.request_token("victim.test").status == 200
    assert internet.received[-1] == ReceivedRequest(HOME, PORT, "other.test", f"other.test:{PORT}", USERINFO)
    assert (VICTIM, 8448) not in internet.connection_attempts()


def test_a_slow_well_known_leaves_time_for_the_homeserver(internet):
    """Each redirect is slow but within its timeout; all of them together would last 24 s."""

    def slowly(request):
        time.sleep(4)
        return 302, {"Location": WELL_KNOWN}, b""

    internet.names.address("hs.test", HOME)
    internet.listen(HOME, 443, "hs.test", {WELL_KNOWN: slowly})
    internet.homeserver(HOME, 8448, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    reply = internet.request_token("hs.test")
    assert reply.status == 200
    assert reply.seconds < 15
    assert [request.path for request in internet.received].count(WELL_KNOWN) >= 2


def start_service_with_listed_server(internet, listed):
    """Starts the service with a listed server and default settings. A user whose OpenID token is accepted gets 500, as there is no SFU."""
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS=listed, LIVEKIT_API_URL=f"http://{SFU[0]}:{SFU[1]}")


private = pytest.mark.parametrize("ip", ["127.0.0.1", "10.9.9.9", "fd00::9", "::1"])


@private
def test_a_redirect_of_a_listed_server_leads_to_no_private_address(internet, ip):
    """The administrator has listed the homeserver, not the targets of its redirects."""
    internet.names.address("own.test", WEB)
    internet.names.address("inside.test", ip)
    location = f"https://inside.test{WELL_KNOWN}"
    internet.listen(WEB, 443, "own.test", {WELL_KNOWN: (302, {"Location": location}, b"")})
    internet.homeserver(WEB, 8448, "own.test", "own.test")
    internet.well_known(ip, "inside.test", f"inside.test:{PORT}")
    internet.homeserver(ip, PORT, "inside.test", "own.test")
    start_service_with_listed_server(internet, "own.test")
    assert internet.request_token("own.test").status == 500
    assert internet.connection_attempts() == [(WEB, 443), (WEB, 8448), SFU]


@private
def test_a_listed_server_may_delegate_to_a_private_address(internet, ip):
    internet.names.address("own.test", WEB)
    internet.names.address("inside.test", ip)
    internet.well_known(WEB, "own.test", f"inside.test:{PORT}")
    internet.homeserver(ip, PORT, "inside.test", "own.test")
    start_service_with_listed_server(internet, "own.test")
    assert internet.request_token("own.test").status == 500
    assert internet.connection_attempts() == [(WEB, 443), (ip, PORT), SFU]


@private
def test_a_listed_server_on_a_private_address_may_redirect_to_itself(internet, ip):
    internet.names.address("own.test", ip)
    there = json.dumps({"m.server": f"own.test:{PORT}"}).encode()
    internet.listen(ip, 443, "own.test", {WELL_KNOWN: (302, {"Location": "/there"}, b""), "/there": there})
    internet.homeserver(ip, PORT, "own.test", "own.test")
    start_service_with_listed_server(internet, "own.test")
    assert internet.request_token("own.test").status == 500
    assert (ip, PORT) in internet.connection_attempts()
