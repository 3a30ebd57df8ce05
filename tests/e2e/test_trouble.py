"""Homeservers that move, name servers that fail, and a host that is set up in its own way."""

import json
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fake_sfu import FakeSfu
from lab import NAME_SERVER, USERINFO, WELL_KNOWN, Visit
from service import KEY, SECRET, call

WEB, HOME, NEW_HOME = "10.77.0.10", "10.77.0.20", "10.77.0.21"
SILENT = "10.77.0.54"
AT_ONCE = 10


def hang_up(_):
    raise ConnectionError("this homeserver hangs up")


def test_an_old_SRV_record_is_found_when_the_first_name_server_is_dead_and_patience_is_the_default(world, namespace):
    """By default a resolver waits 5 s for a name server, which is more than there is for SRV records."""
    world.names.address("hs.test", HOME)
    world.names.address("target.test", HOME)
    world.names.srv("_matrix._tcp.hs.test", 7001, "target.test")
    world.homeserver(HOME, 7001, "hs.test", "hs.test")
    world.name_servers(SILENT, NAME_SERVER)
    resolv_conf = pathlib.Path("/etc/netns", namespace.name, "resolv.conf")
    resolv_conf.write_text(f"nameserver {SILENT}\nnameserver {NAME_SERVER}\n")
    # the system's own look-ups of addresses are none of our business, and may be quick
    world.serve_in_the_lab(RES_OPTIONS="timeout:1")
    assert world.ask("hs.test").status == 200
    assert world.visits == [Visit(HOME, 7001, "hs.test", "hs.test", USERINFO)]


def test_everyone_who_calls_just_after_a_listed_server_has_moved_finds_it(world, namespace):
    world.names.address("hs.test", WEB)
    world.names.address("old.test", HOME)
    world.names.address("new.test", NEW_HOME)
    answers = {WELL_KNOWN: json.dumps({"m.server": "old.test:7000"}).encode()}
    world.listen(WEB, 443, "hs.test", answers)
    old = world.homeserver(HOME, 7000, "old.test", "hs.test")
    old.answers[USERINFO] = (200, {"Connection": "close"}, old.answers[USERINFO])
    world.homeserver(NEW_HOME, 7000, "new.test", "hs.test")
    with namespace.inside():
        sfu = FakeSfu(KEY, SECRET)
    try:
        world.serve_in_the_lab(LIVEKIT_FULL_ACCESS_HOMESERVERS="hs.test", LIVEKIT_API_URL=sfu.url)
        assert world.ask("hs.test").status == 200

        # all of them are at the old place before anyone can know better
        together = threading.Barrier(AT_ONCE, timeout=5)
        old.answers[USERINFO] = lambda visit: hang_up(together.wait())
        answers[WELL_KNOWN] = json.dumps({"m.server": "new.test:7000"}).encode()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(lambda _: world.ask("hs.test"), range(AT_ONCE)))
    finally:
        sfu.stop()
    assert [reply.status for reply in replies] == [200] * AT_ONCE
    # once before the move, once after it
    assert [visit.path for visit in world.visits].count(WELL_KNOWN) == 2


def test_an_SRV_record_that_still_holds_outlives_a_failure_of_the_DNS(world):
    def servfail(query, answer):
        failed = query.reply()
        failed.header.rcode = 2
        return [failed.pack()]

    world.names.address("hs.test", WEB)
    world.names.address("target.test", HOME)
    world.names.srv("_matrix-fed._tcp.hs.test", 7001, "target.test")
    homeserver = world.homeserver(HOME, 7001, "hs.test", "hs.test")
    userinfo = homeserver.answers[USERINFO]
    homeserver.answers[USERINFO] = (200, {"Connection": "close"}, userinfo)
    world.serve_in_the_lab()
    assert world.ask("hs.test").status == 200

    # the server is doubted, so the DNS is asked again
    homeserver.answers[USERINFO] = hang_up
    world.names.fault("SRV", servfail)
    asked = len(world.names.asked("SRV"))
    assert world.ask("hs.test").status == 401
    assert len(world.names.asked("SRV")) > asked

    homeserver.answers[USERINFO] = userinfo
    assert world.ask("hs.test").status == 200
    assert (WEB, 8448) not in world.dialled()


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
