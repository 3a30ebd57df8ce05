"""Discovery of the client-server API, to which leave events are sent, by the homeserver's client well-known alone.

Each leave here has a delay of a second and a participant who never joins, so that it is sent a second later."""

import json
import time

import pytest

from fake_internet import bracketed
from service import get_token_body
from test_ssrf import PLAIN

# public addresses; nothing leaves the namespace
HOME, WEB, API = "11.1.1.10", "11.1.1.20", "11.1.1.30"
SERVER = "hs.test:7001"
WELL_KNOWN = "/.well-known/matrix/client"
VERSIONS = "/_matrix/client/versions"
EVENTS = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
SUPPORTED = json.dumps({"versions": ["v1.11"], "unstable_features": {"org.matrix.msc4140": True}}).encode()
# deadline: 10 s for discovery, and a margin for a slow machine
SECONDS = 20


def base(url):
    return json.dumps({"m.homeserver": {"base_url": url}, "x": 1}).encode()


def api(prefix="", delay_id="syd_1", versions=SUPPORTED):
    return {f"{prefix}{VERSIONS}": versions, f"{prefix}{EVENTS}/{delay_id}/send": b"{}"}


@pytest.fixture
def internet(internet):
    """With hs.test, which accepts OpenID tokens; a test adds its web site and its client-server API."""
    for name, address in ("hs.test", HOME), ("cs.test", API), ("www.test", WEB):
        internet.names.address(name, address)
    internet.homeserver(HOME, 7001, "hs.test", SERVER)
    return internet


def delegate(internet, delay_id="syd_1"):
    body = get_token_body(f"@alice:{SERVER}", SERVER) | {"delay_id": delay_id, "delay_timeout": 1000}
    return internet.service.call("POST", "/delegate_delayed_leave", body)


def paths(internet, address):
    return [request.path for request in internet.received if request.address == address and request.port != 7001]


def wait_for_request(internet, path):
    deadline = time.monotonic() + SECONDS
    while path not in [request.path for request in internet.received]:
        assert time.monotonic() < deadline, f"no request for {path}: {internet.received}"
        time.sleep(0.05)


def test_a_leave_is_sent_to_the_api_that_the_well_known_names(internet):
    internet.listen(HOME, 443, "hs.test", {WELL_KNOWN: base("https://cs.test:8443/base/")})
    internet.listen(API, 8443, "cs.test", api("/base"))
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    for _ in range(3):
        assert delegate(internet).status == 200
    wait_for_request(internet, f"/base{EVENTS}/syd_1/send")
    assert paths(internet, HOME) == [WELL_KNOWN]
    assert paths(internet, API) == [f"/base{VERSIONS}", f"/base{EVENTS}/syd_1/send"]
    assert {request.host for request in internet.received if request.address == API} == {"cs.test:8443"}


def test_a_redirect_of_the_well_known_is_followed(internet):
    moved = 301, {"Location": "https://www.test/client"}, b""
    internet.listen(HOME, 443, "hs.test", {WELL_KNOWN: moved})
    internet.listen(WEB, 443, "www.test", {"/client": base("https://cs.test")})
    internet.listen(API, 443, "cs.test", api())
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    assert delegate(internet).status == 200
    wait_for_request(internet, f"{EVENTS}/syd_1/send")


UNUSABLE = {
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


@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_delegation_is_refused_without_a_usable_well_known(internet, answer):
    internet.listen(HOME, 443, "hs.test", {WELL_KNOWN: answer})
    internet.listen(API, 443, "cs.test", api())
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    for _ in range(2):
        reply = delegate(internet)
        assert (reply.status, reply.errcode) == (400, "M_BAD_JSON")
    requested = paths(internet, HOME)
    assert 1 <= len(requested) <= 6 and set(requested) == {WELL_KNOWN}
    assert {address for address, _ in internet.connection_attempts()} == {HOME}


def test_the_timeout_of_a_silent_well_known_is_cached(internet):
    internet.silent(HOME, 443)
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    replies = [delegate(internet) for _ in range(3)]
    assert [(reply.status, reply.errcode) for reply in replies] == [(400, "M_BAD_JSON")] * 3
    assert replies[0].seconds < SECONDS
    assert internet.connection_attempts().count((HOME, 443)) == 1


def test_a_well_known_with_a_wrong_certificate_is_ignored(internet):
    internet.listen(HOME, 443, ("cs.test", "www.test"), {WELL_KNOWN: base("https://cs.test")})
    internet.listen(API, 443, "cs.test", api())
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    assert delegate(internet).status == 400
    assert (API, 443) not in internet.connection_attempts()


def add_trap(internet, ip):
    """Starts an API at `ip` with a valid certificate and valid answers."""
    internet.names.address("trap.test", ip)
    internet.listen(ip, 7000, (ip, "trap.test"), api())


@pytest.mark.parametrize("host", [bracketed, lambda _: "trap.test"], ids=["address", "name"])
@pytest.mark.parametrize("ip", PLAIN)
def test_a_well_known_leads_to_no_denied_address(internet, ip, host):
    add_trap(internet, ip)
    internet.listen(HOME, 443, "hs.test", {WELL_KNOWN: base(f"https://{host(ip)}:7000")})
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    reply = delegate(internet)
    assert (reply.status, reply.errcode) == (400, "M_BAD_JSON")
    assert {address for address, _ in internet.connection_attempts()} == {HOME}


@pytest.mark.parametrize("ip", ["10.9.9.9", "fd00::9"])
def test_a_listed_homeserver_may_have_its_api_on_a_private_network(internet, ip):
    add_trap(internet, ip)
    internet.listen(HOME, 443, "hs.test", {WELL_KNOWN: base("https://trap.test:7000")})
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS=SERVER)
    assert delegate(internet).status == 200
    wait_for_request(internet, f"{EVENTS}/syd_1/send")


def test_a_redirect_of_a_listed_homeserver_leads_to_no_private_address(internet):
    internet.names.address("trap.test", "10.9.9.9")
    internet.listen("10.9.9.9", 443, "trap.test", {WELL_KNOWN: base("https://cs.test")})
    internet.listen(HOME, 443, "hs.test", {WELL_KNOWN: (302, {"Location": "https://trap.test" + WELL_KNOWN}, b"")})
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS=SERVER)
    assert delegate(internet).status == 400
    assert ("10.9.9.9", 443) not in internet.connection_attempts()


def test_an_override_replaces_discovery(internet):
    internet.listen(API, 443, "cs.test", api("/x"))
    overrides = f"{SERVER}=https://cs.test/x"
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*", LIVEKIT_CS_API_URL_OVERRIDES=overrides)
    assert delegate(internet).status == 200
    wait_for_request(internet, f"/x{EVENTS}/syd_1/send")
    assert (HOME, 443) not in internet.connection_attempts()


def test_an_api_that_moved_is_discovered_again(internet):
    """The old address refuses connections, and the well-known names the new one."""
    base_urls = ["https://cs.test:1", "https://cs.test"]
    internet.listen(HOME, 443, "hs.test", {WELL_KNOWN: lambda _: base(base_urls.pop(0) if len(base_urls) > 1 else base_urls[0])})
    internet.listen(API, 443, "cs.test", api(delay_id="syd_2"))
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    body = get_token_body(f"@alice:{SERVER}", SERVER) | {"delay_id": "syd_2", "delay_timeout": 1000}
    # an unreachable API is no reason to refuse a delegation
    assert internet.service.call("POST", "/delegate_delayed_leave", body).status == 200
    wait_for_request(internet, VERSIONS)
    assert paths(internet, HOME) == [WELL_KNOWN] * 2
