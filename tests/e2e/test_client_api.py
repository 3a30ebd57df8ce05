"""Where leaves are sent: the homeserver's client-server API, found by its well-known, and by nothing else.

Each leave here has a delay of a second and a participant who never comes, so that it is sent a second later."""

import json
import time

import pytest

from lab import bracketed
from service import get_token_body
from test_ssrf import PLAIN

# addresses of the internet proper; nothing leaves the namespace
HOME, WEB, API = "11.1.1.10", "11.1.1.20", "11.1.1.30"
SERVER = "hs.test:7001"
WELL_KNOWN = "/.well-known/matrix/client"
VERSIONS = "/_matrix/client/versions"
EVENTS = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
SUPPORTED = json.dumps({"versions": ["v1.11"], "unstable_features": {"org.matrix.msc4140": True}}).encode()
# budgets: 10 s for the look-up; the rest is for a slow machine
SECONDS = 20


def base(url):
    return json.dumps({"m.homeserver": {"base_url": url}, "x": 1}).encode()


def api(prefix="", delay_id="syd_1", versions=SUPPORTED):
    return {f"{prefix}{VERSIONS}": versions, f"{prefix}{EVENTS}/{delay_id}/send": b"{}"}


@pytest.fixture
def homeserver(world):
    """hs.test, whose users are known; what its web site and its client-server API say is the test's to choose."""
    for name, address in ("hs.test", HOME), ("cs.test", API), ("www.test", WEB):
        world.names.address(name, address)
    world.homeserver(HOME, 7001, "hs.test", SERVER)
    return world


def delegate(world, delay_id="syd_1"):
    body = get_token_body(f"@alice:{SERVER}", SERVER) | {"delay_id": delay_id, "delay_timeout": 1000}
    return world.service.call("POST", "/delegate_delayed_leave", body)


def paths(world, address):
    return [visit.path for visit in world.visits if visit.address == address and visit.port != 7001]


def wait_for(world, path):
    deadline = time.monotonic() + SECONDS
    while path not in [visit.path for visit in world.visits]:
        assert time.monotonic() < deadline, f"nobody asked for {path}: {world.visits}"
        time.sleep(0.05)


def test_a_leave_is_sent_where_the_well_known_says(homeserver):
    homeserver.listen(HOME, 443, "hs.test", {WELL_KNOWN: base("https://cs.test:8443/base/")})
    homeserver.listen(API, 8443, "cs.test", api("/base"))
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    for _ in range(3):
        assert delegate(homeserver).status == 200
    wait_for(homeserver, f"/base{EVENTS}/syd_1/send")
    assert paths(homeserver, HOME) == [WELL_KNOWN]
    assert paths(homeserver, API) == [f"/base{VERSIONS}", f"/base{EVENTS}/syd_1/send"]
    assert {visit.host for visit in homeserver.visits if visit.address == API} == {"cs.test:8443"}


def test_a_well_known_may_have_moved(homeserver):
    moved = 301, {"Location": "https://www.test/client"}, b""
    homeserver.listen(HOME, 443, "hs.test", {WELL_KNOWN: moved})
    homeserver.listen(WEB, 443, "www.test", {"/client": base("https://cs.test")})
    homeserver.listen(API, 443, "cs.test", api())
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    assert delegate(homeserver).status == 200
    wait_for(homeserver, f"{EVENTS}/syd_1/send")


USELESS = {
    "404": (404, {}, b"{}"),
    "500": (500, {}, base("https://cs.test")),
    "not_JSON": b"https://cs.test",
    "no_homeserver": b"{}",
    "plain_HTTP": base("http://cs.test"),
    "a_file": base("file:///etc/passwd"),
    "a_user": base("https://u:p@cs.test"),
    "a_query": base("https://cs.test?x"),
    "a_number_that_getaddrinfo_reads": base("https://2130706433"),
    "more_than_50_KiB": base("https://cs.test/" + "x" * 51 * 1024),
    "ten_megabytes": base("https://cs.test") + b" " * 10_000_000,
    "a_redirect_to_itself": (302, {"Location": WELL_KNOWN}, b""),
    "a_redirect_to_http": (302, {"Location": "http://cs.test" + WELL_KNOWN}, b""),
    "a_redirect_to_this_host": (302, {"Location": "https://127.0.0.1" + WELL_KNOWN}, b""),
}


@pytest.mark.parametrize("answer", USELESS.values(), ids=USELESS.keys())
def test_without_a_usable_well_known_the_client_keeps_its_own_timer(homeserver, answer):
    homeserver.listen(HOME, 443, "hs.test", {WELL_KNOWN: answer})
    homeserver.listen(API, 443, "cs.test", api())
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    for _ in range(2):
        reply = delegate(homeserver)
        assert (reply.status, reply.errcode) == (400, "M_BAD_JSON")
    asked = paths(homeserver, HOME)
    assert 1 <= len(asked) <= 6 and set(asked) == {WELL_KNOWN}
    assert {address for address, _ in homeserver.dialled()} == {HOME}


def test_a_silent_well_known_is_waited_for_once(homeserver):
    homeserver.silent(HOME, 443)
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    replies = [delegate(homeserver) for _ in range(3)]
    assert [(reply.status, reply.errcode) for reply in replies] == [(400, "M_BAD_JSON")] * 3
    assert replies[0].seconds < SECONDS
    assert homeserver.dialled().count((HOME, 443)) == 1


def test_a_well_known_of_another_certificate_is_not_believed(homeserver):
    homeserver.listen(HOME, 443, ("cs.test", "www.test"), {WELL_KNOWN: base("https://cs.test")})
    homeserver.listen(API, 443, "cs.test", api())
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    assert delegate(homeserver).status == 400
    assert (API, 443) not in homeserver.dialled()


def lay_trap(world, ip):
    """On `ip` waits an API whose certificate and answers would satisfy anybody."""
    world.names.address("trap.test", ip)
    world.listen(ip, 7000, (ip, "trap.test"), api())


@pytest.mark.parametrize("host", [bracketed, lambda _: "trap.test"], ids=["address", "name"])
@pytest.mark.parametrize("ip", PLAIN)
def test_a_well_known_leads_to_no_denied_address(homeserver, ip, host):
    lay_trap(homeserver, ip)
    homeserver.listen(HOME, 443, "hs.test", {WELL_KNOWN: base(f"https://{host(ip)}:7000")})
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    reply = delegate(homeserver)
    assert (reply.status, reply.errcode) == (400, "M_BAD_JSON")
    assert {address for address, _ in homeserver.dialled()} == {HOME}


@pytest.mark.parametrize("ip", ["10.9.9.9", "fd00::9"])
def test_a_listed_homeserver_may_have_its_api_on_this_network(homeserver, ip):
    lay_trap(homeserver, ip)
    homeserver.listen(HOME, 443, "hs.test", {WELL_KNOWN: base("https://trap.test:7000")})
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS=SERVER)
    assert delegate(homeserver).status == 200
    wait_for(homeserver, f"{EVENTS}/syd_1/send")


def test_where_a_listed_web_site_redirects_to_is_a_strangers_word(homeserver):
    homeserver.names.address("trap.test", "10.9.9.9")
    homeserver.listen("10.9.9.9", 443, "trap.test", {WELL_KNOWN: base("https://cs.test")})
    homeserver.listen(HOME, 443, "hs.test", {WELL_KNOWN: (302, {"Location": "https://trap.test" + WELL_KNOWN}, b"")})
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS=SERVER)
    assert delegate(homeserver).status == 400
    assert ("10.9.9.9", 443) not in homeserver.dialled()


def test_an_override_asks_nobody_where_the_api_is(homeserver):
    homeserver.listen(API, 443, "cs.test", api("/x"))
    overrides = f"{SERVER}=https://cs.test/x"
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*", LIVEKIT_CS_API_URL_OVERRIDES=overrides)
    assert delegate(homeserver).status == 200
    wait_for(homeserver, f"/x{EVENTS}/syd_1/send")
    assert (HOME, 443) not in homeserver.dialled()


def test_an_api_that_moves_is_found_again(homeserver):
    """Where it was nobody listens any more, and the well-known knows better."""
    said = ["https://cs.test:1", "https://cs.test"]
    homeserver.listen(HOME, 443, "hs.test", {WELL_KNOWN: lambda _: base(said.pop(0) if len(said) > 1 else said[0])})
    homeserver.listen(API, 443, "cs.test", api(delay_id="syd_2"))
    homeserver.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    body = get_token_body(f"@alice:{SERVER}", SERVER) | {"delay_id": "syd_2", "delay_timeout": 1000}
    # nobody answers there, which is no reason to refuse a leave
    assert homeserver.service.call("POST", "/delegate_delayed_leave", body).status == 200
    wait_for(homeserver, VERSIONS)
    assert paths(homeserver, HOME) == [WELL_KNOWN] * 2
