"""What strangers do to the service is not felt by others. All of this once worked for them."""

import contextlib
import http.client
import itertools
import json
import pathlib
import socket
import threading
import time

import pytest

from fake_sfu import FakeSfu
from lab import NAME_SERVER, USERINFO, WELL_KNOWN, Visit
from service import KEY, SECRET

OWN, HOME, VICTIM, TARPIT = "10.77.0.10", "10.77.0.20", "10.77.5.77", "10.77.9.9"
PORT = 7000
# two more that resolv.conf may name besides ours, and that say nothing
SILENT = "10.77.0.54", "10.77.0.55"
# of the internet proper; nobody listens at the SFU's
WEB, SFU = "11.1.1.10", ("11.1.1.40", 7880)

# More callers than there are places for strangers, and the look-ups that strangers may have (src/net/dns.rs).
CROWD, LOOKUPS = 45, 128
# The crowd has them after 23 s, with the budgets of today; and how long that is then watched.
USED_UP_SECONDS, WATCHED_SECONDS = 45, 3


@pytest.fixture
def own_sfu(namespace):
    """An SFU inside the namespace, that closes every connection: each call to it looks its name up."""
    with namespace.inside():
        sfu = FakeSfu(KEY, SECRET)
    sfu._server.RequestHandlerClass.protocol_version = "HTTP/1.0"
    yield sfu
    sfu.stop()


@contextlib.contextmanager
def callers(world, count, next_name, over):
    """Clients of strangers' servers, each calling again and again until it is `over`, once at least."""

    def call():
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                world.ask(next_name())
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
def tarpit(world, namespace, address, names):
    """Eight calls hang in a server that takes connections and says nothing: all that one network may have."""
    with namespace.inside():
        server = socket.create_server((address, PORT))
    once = threading.Event()
    once.set()
    in_turn = itertools.cycle(names)
    with callers(world, 8, lambda: next(in_turn), once):
        deadline = time.monotonic() + 10
        while world.dialled().count((address, PORT)) < 8:
            assert time.monotonic() < deadline, world.dialled()
        try:
            yield
        finally:
            # resets whoever is connected
            server.close()


def lookups(service):
    """How many are under way: each has a thread of this name."""
    names = pathlib.Path(f"/proc/{service.process.pid}/task").glob("*/comm")
    count = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            count += name.read_text() == "lookup\n"
    return count


def test_strangers_whose_DNS_is_silent_shut_out_neither_a_listed_homeserver_nor_the_SFU(world, namespace, own_sfu):
    """Their look-ups last longer than their calls, so they pile up."""
    own, sfu_port = f"own.test:{PORT}", own_sfu.url.rpartition(":")[2]
    world.names.address("own.test", OWN)
    world.names.address("sfu.test", "127.0.0.1")
    for kind in "A", "AAAA":
        world.names.fault(kind, lambda query, answer: [] if "evil" in str(query.q.qname) else [answer.pack()])
    world.name_servers(NAME_SERVER, *SILENT)
    homeserver = world.homeserver(OWN, PORT, "own.test", own)
    homeserver.answers[USERINFO] = (200, {"Connection": "close"}, homeserver.answers[USERINFO])
    # the lab's resolver gives up after 6 s; by default it does after 30 s
    world.serve_in_the_lab(
        RES_OPTIONS="timeout:5 attempts:2",
        LIVEKIT_FULL_ACCESS_HOMESERVERS=own,
        LIVEKIT_API_URL=f"http://sfu.test:{sfu_port}",
    )
    numbers, over = itertools.count(), threading.Event()
    with callers(world, CROWD, lambda: f"n{next(numbers)}.evil.test", over):
        deadline, used_up = time.monotonic() + USED_UP_SECONDS, None
        while used_up is None or time.monotonic() < used_up + WATCHED_SECONDS:
            reply = world.ask(own)
            assert reply.status == 200, reply.body
            if used_up is None and lookups(world.service) >= LOOKUPS:
                used_up = time.monotonic()
            assert used_up or time.monotonic() < deadline, f"the crowd got {lookups(world.service)} look-ups only"
            over.wait(0.2)
        # its calls would be waited for
        world.service.process.kill()
    assert 0 < len(own_sfu.rooms) <= world.names.asked("A").count("sfu.test")


def test_a_strangers_address_records_take_no_places_of_the_network_that_they_name(world, namespace):
    """Only one of a name's addresses is dialled at a time."""
    victim = f"victim.test:{PORT}"
    world.names.address("victim.test", VICTIM)
    world.homeserver(VICTIM, PORT, "victim.test", victim)
    evil = [f"evil{n}.test" for n in range(2)]
    for name in evil:
        world.names.address(name, TARPIT, "10.77.5.1")
    world.serve_in_the_lab()
    with tarpit(world, namespace, TARPIT, [f"{name}:{PORT}" for name in evil]):
        assert world.ask(victim).status == 200


def test_a_want_of_places_is_not_remembered_as_a_servers_absence(world, namespace):
    world.names.address("victim.test", VICTIM)
    world.names.address("other.test", HOME)
    world.well_known(VICTIM, "victim.test", f"other.test:{PORT}")
    world.homeserver(HOME, PORT, "other.test", "victim.test")
    neighbour = "10.77.5.66"
    evil = [f"evil{n}.test" for n in range(2)]
    for name in evil:
        world.names.address(name, neighbour)
    world.serve_in_the_lab()
    with tarpit(world, namespace, neighbour, [f"{name}:{PORT}" for name in evil]):
        for _ in range(3):
            assert world.ask("victim.test").status == 429
    assert VICTIM not in {address for address, _ in world.dialled()}
    assert world.ask("victim.test").status == 200
    assert world.visits[-1] == Visit(HOME, PORT, "other.test", f"other.test:{PORT}", USERINFO)
    assert (VICTIM, 8448) not in world.dialled()


def test_a_well_known_that_uses_up_its_time_leaves_some_for_the_server(world):
    """Each of its redirects is slow, though not too slow by itself; all of them together would last 24 s."""

    def slowly(visit):
        time.sleep(4)
        return 302, {"Location": WELL_KNOWN}, b""

    world.names.address("hs.test", HOME)
    world.listen(HOME, 443, "hs.test", {WELL_KNOWN: slowly})
    world.homeserver(HOME, 8448, "hs.test", "hs.test")
    world.serve_in_the_lab()
    reply = world.ask("hs.test")
    assert reply.status == 200
    assert reply.seconds < 15
    assert [visit.path for visit in world.visits].count(WELL_KNOWN) >= 2


def serve_with(world, listed):
    """Default settings but for the listed server; a user who is believed gets 500, as there is no SFU."""
    world.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS=listed, LIVEKIT_API_URL=f"http://{SFU[0]}:{SFU[1]}")


private = pytest.mark.parametrize("ip", ["127.0.0.1", "10.9.9.9", "fd00::9", "::1"])


@private
def test_a_listed_servers_web_site_redirects_to_no_private_address(world, ip):
    """The administrator has named the homeserver, not whatever its web site names."""
    world.names.address("own.test", WEB)
    world.names.address("inside.test", ip)
    location = f"https://inside.test{WELL_KNOWN}"
    world.listen(WEB, 443, "own.test", {WELL_KNOWN: (302, {"Location": location}, b"")})
    world.homeserver(WEB, 8448, "own.test", "own.test")
    world.well_known(ip, "inside.test", f"inside.test:{PORT}")
    world.homeserver(ip, PORT, "inside.test", "own.test")
    serve_with(world, "own.test")
    assert world.ask("own.test").status == 500
    assert world.dialled() == [(WEB, 443), (WEB, 8448), SFU]


@private
def test_a_listed_server_delegates_to_a_private_address(world, ip):
    world.names.address("own.test", WEB)
    world.names.address("inside.test", ip)
    world.well_known(WEB, "own.test", f"inside.test:{PORT}")
    world.homeserver(ip, PORT, "inside.test", "own.test")
    serve_with(world, "own.test")
    assert world.ask("own.test").status == 500
    assert world.dialled() == [(WEB, 443), (ip, PORT), SFU]


@private
def test_a_listed_server_on_a_private_address_redirects_to_itself(world, ip):
    world.names.address("own.test", ip)
    there = json.dumps({"m.server": f"own.test:{PORT}"}).encode()
    world.listen(ip, 443, "own.test", {WELL_KNOWN: (302, {"Location": "/there"}, b""), "/there": there})
    world.homeserver(ip, PORT, "own.test", "own.test")
    serve_with(world, "own.test")
    assert world.ask("own.test").status == 500
    assert (ip, PORT) in world.dialled()
