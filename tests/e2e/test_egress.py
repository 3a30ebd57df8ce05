"""A real forward proxy (tinyproxy) before the internet: homeservers there are reached through it, whatever row of the table leads to
them; what is inside is dialled, and nobody outside has the proxy led inside."""

import json
import time

import pytest

from forward_proxy import ADDRESS, PASSWORD, PORT, ForwardProxy
from lab import USERINFO, WELL_KNOWN, bracketed
from service import get_token_body
from test_client_api import EVENTS, SECONDS, VERSIONS, api, base, wait_for
from test_client_api import WELL_KNOWN as CLIENT_WELL_KNOWN
from test_ssrf import NAMES, WELL_KNOWNS, lay_trap

# addresses of the internet proper; nothing leaves the namespace
WEB, HOME, SFU = "11.1.1.10", "11.1.1.20", "11.1.1.40"
HOME_V6 = "2a00:77::20"
EVIL = "11.1.1.10"
PROXY = (ADDRESS, PORT)
# one of each kind: test_ssrf has them all
INNER = ["127.0.0.1", "10.9.9.9", "169.254.169.254", "::1"]


@pytest.fixture
def proxy(world, namespace, tmp_path):
    """Starts tinyproxy, and stops it after the test."""
    started = []

    def start(**options):
        started.append(ForwardProxy(namespace, tmp_path, **options))
        return started[-1]

    yield start
    for proxy in started:
        proxy.stop()
        print(proxy.text)


def serve(world, url=None, **settings):
    return world.serve(LIVEKIT_HTTPS_PROXY=url or ForwardProxy.url(), **settings)


def expect_line(world, *words):
    """Waits for it, and sees to it that no password is told."""
    deadline = time.monotonic() + SECONDS
    while not any(all(word in line for word in words) for line in list(world.service.log)):
        assert time.monotonic() < deadline, f"no line with {words}"
        time.sleep(0.02)  # between two looks
    assert PASSWORD not in world.service.text


@pytest.mark.parametrize("home", [HOME, HOME_V6], ids=["v4", "v6"])
@pytest.mark.parametrize("asked", ["IP:7000", "hs.test:7000", "delegated", "by_SRV"])
def test_every_way_to_a_homeserver_leads_through_the_proxy(world, proxy, home, asked):
    proxy = proxy()
    world.names.address("hs.test", home)
    web = []
    if asked == "delegated":
        asked = "web.test"
        world.names.address("web.test", WEB)
        world.well_known(WEB, "web.test", "hs.test:7000")
        web = [(WEB, 443)]
    elif asked == "by_SRV":
        asked = "web.test"
        world.names.address("web.test", WEB)
        world.listen(WEB, 443, "web.test", {})
        world.names.srv("_matrix-fed._tcp.web.test", 7000, "hs.test")
        web = [(WEB, 443)]
    asked = asked.replace("IP", bracketed(home))
    world.homeserver(home, 7000, ("hs.test", "web.test", home), asked)
    serve(world)
    for _ in range(2):
        assert world.ask(asked).status == 200
    ways = [*web, (home, 7000)]
    assert proxy.asked == [f"{bracketed(address)}:{port}" for address, port in ways]
    # the second call takes the same tunnel; between the two ends of one there is nothing else
    assert world.dialled() == [end for way in ways for end in (PROXY, way)]
    assert [visit.path for visit in world.visits][-2:] == [USERINFO] * 2


def test_a_redirect_leads_through_the_proxy_too(world, proxy):
    proxy = proxy()
    for name, address in ("hs.test", WEB), ("www.test", SFU), ("home.test", HOME):
        world.names.address(name, address)
    world.listen(WEB, 443, "hs.test", {WELL_KNOWN: (302, {"Location": "https://www.test/here"}, b"")})
    world.listen(SFU, 443, "www.test", {"/here": b'{"m.server": "home.test:7000"}'})
    world.homeserver(HOME, 7000, "home.test", "hs.test")
    serve(world)
    assert world.ask("hs.test").status == 200
    assert proxy.asked == [f"{WEB}:443", f"{SFU}:443", f"{HOME}:7000"]


def test_the_SFU_and_a_homeserver_inside_are_dialled(world, proxy):
    proxy = proxy()
    world.names.address("own.test", "10.9.9.9")
    world.homeserver("10.9.9.9", 7000, "own.test", "own.test:7000")
    serve(world, LIVEKIT_FULL_ACCESS_HOMESERVERS="own.test:7000", LIVEKIT_API_URL=f"https://{SFU}:7880")
    assert world.ask("own.test:7000").status == 500  # no SFU is there, but the user was believed
    assert world.dialled() == [("10.9.9.9", 7000), (SFU, 7880)]
    assert proxy.asked == []


def test_a_leave_is_sent_through_the_proxy(world, proxy):
    proxy = proxy()
    for name, address in ("hs.test", WEB), ("cs.test", HOME):
        world.names.address(name, address)
    world.homeserver(WEB, 7001, "hs.test", "hs.test:7001")
    world.listen(WEB, 443, "hs.test", {CLIENT_WELL_KNOWN: base("https://cs.test:8443")})
    world.listen(HOME, 8443, "cs.test", api())
    serve(world, LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    body = get_token_body("@alice:hs.test:7001", "hs.test:7001") | {"delay_id": "syd_1", "delay_timeout": 1000}
    assert world.service.call("POST", "/delegate_delayed_leave", body).status == 200
    wait_for(world, f"{EVENTS}/syd_1/send")
    assert {(visit.address, visit.port) for visit in world.visits} == {(WEB, 7001), (WEB, 443), (HOME, 8443)}
    assert world.dialled().count(PROXY) == len(proxy.asked)
    assert set(proxy.asked) == {f"{WEB}:7001", f"{WEB}:443", f"{HOME}:8443"}
    assert VERSIONS in [visit.path for visit in world.visits]


@pytest.mark.parametrize("ip", INNER)
@pytest.mark.parametrize("well_known", WELL_KNOWNS.values(), ids=WELL_KNOWNS.keys())
def test_a_well_known_has_the_proxy_led_to_no_inner_address(world, proxy, well_known, ip):
    proxy = proxy()
    lay_trap(world, ip, "evil.test")
    world.listen(EVIL, 443, "evil.test", {WELL_KNOWN: well_known(ip)})
    serve(world)
    assert world.ask("evil.test").status == 401
    assert proxy.asked[0] == f"{EVIL}:443"
    assert {address for address, _ in world.dialled()} == {ADDRESS, EVIL}
    assert all(asked.startswith(f"{EVIL}:") for asked in proxy.asked)


@pytest.mark.parametrize("ip", INNER)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_server_name_has_the_proxy_led_to_no_inner_address(world, proxy, name, ip):
    proxy = proxy()
    lay_trap(world, ip, name(ip))
    serve(world)
    assert world.ask(name(ip)).status == 401
    assert (world.dialled(), proxy.asked) == ([], [])


def test_a_name_that_changes_its_address_is_not_looked_up_by_the_proxy(world, proxy):
    """The first look-up gets a good address, every later one loopback: a proxy that was told the name would go there."""
    proxy = proxy()
    asked = "evil.test:7000"
    lay_trap(world, "127.0.0.1", asked)
    world.names.in_turn("evil.test", EVIL, "127.0.0.1")
    world.homeserver(EVIL, 7000, "evil.test", asked)
    serve(world)
    assert world.ask(asked).status == 200
    assert proxy.asked == [f"{EVIL}:7000"]
    assert world.names.asked("A") == ["evil.test"]


def test_without_a_name_server_the_log_says_so_and_the_proxy_is_not_asked(world, proxy):
    proxy = proxy()
    world.name_servers("10.77.0.99")
    serve(world)
    assert world.ask("hs.test:7000").status == 401
    expect_line(world, "refused", "looking up hs.test")
    assert proxy.asked == []


def test_a_proxy_that_has_a_name_is_found(world, proxy):
    proxy = proxy()
    world.names.address("proxy.test", "10.77.0.4", ADDRESS)  # nobody is at the first
    world.homeserver(HOME, 7000, HOME, f"{HOME}:7000")
    serve(world, ForwardProxy.url(host="proxy.test"))
    assert world.ask(f"{HOME}:7000").status == 200
    assert proxy.asked == [f"{HOME}:7000"]


def test_a_wrong_password_is_told_apart(world, proxy):
    proxy = proxy()
    world.homeserver(HOME, 7000, HOME, f"{HOME}:7000")
    # tinyproxy's word for it; others say 407
    serve(world, ForwardProxy.url(PASSWORD + "-or-not"))
    reply = world.ask(f"{HOME}:7000")
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")
    expect_line(world, "refused", f"http://{ADDRESS}:{PORT}", "LIVEKIT_HTTPS_PROXY", "status 401", "password")
    assert world.dialled() == [PROXY]


def test_a_proxy_that_allows_the_web_only_is_told_apart(world, proxy):
    """tinyproxy as Debian ships it."""
    proxy = proxy(connect_ports=(443, 563))
    world.homeserver(HOME, 8448, HOME, HOME)
    serve(world)
    assert world.ask(HOME).status == 401
    expect_line(world, "refused", f"CONNECT {HOME}:8448", "403", "allow")
    assert world.dialled() == [PROXY]


def test_a_homeserver_that_the_proxy_does_not_reach_is_told_apart(world, proxy):
    proxy = proxy()
    serve(world)
    assert world.ask(f"{HOME}:7000").status == 401
    expect_line(world, "refused", f"CONNECT {HOME}:7000", "status 50", "does not get there")
    assert world.dialled() == [PROXY, (HOME, 7000)]


def test_keys_of_a_login_come_through_the_proxy(world, proxy):
    proxy = proxy()
    world.names.address("login.test", WEB)
    key = {"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    world.listen(WEB, 443, "login.test", {"/jwks": json.dumps({"keys": [key]}).encode()})
    serve(
        world,
        TOKEN_SERVER_JWT_ISSUER="https://login.test",
        TOKEN_SERVER_JWT_AUDIENCE="e2e",
        TOKEN_SERVER_JWT_KEYS="https://login.test/jwks",
    )
    wait_for(world, "/jwks")
    assert proxy.asked == [f"{WEB}:443"]
    assert world.dialled() == [PROXY, (WEB, 443)]
