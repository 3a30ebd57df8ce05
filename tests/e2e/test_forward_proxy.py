"""LIVEKIT_HTTPS_PROXY with a real forward proxy (tinyproxy): homeservers on public addresses are reached through it, listed ones on private
addresses directly, and no server makes the proxy connect to a private address."""

import json
import time

import pytest

from fake_internet import USERINFO, WELL_KNOWN, bracketed
from forward_proxy import ADDRESS, PASSWORD, PORT, ForwardProxy
from service import get_token_body
from test_client_api_discovery import EVENTS, SECONDS, VERSIONS, api, base, wait_for_request
from test_client_api_discovery import WELL_KNOWN as CLIENT_WELL_KNOWN
from test_ssrf import NAMES, WELL_KNOWNS, add_trap

# public addresses; nothing leaves the namespace
WEB, HOME, SFU = "11.1.1.10", "11.1.1.20", "11.1.1.40"
HOME_V6 = "2a00:77::20"
EVIL = "11.1.1.10"
PROXY = (ADDRESS, PORT)
# one of each kind; test_ssrf has all
PRIVATE = ["127.0.0.1", "10.9.9.9", "169.254.169.254", "::1"]


@pytest.fixture
def proxy(internet, namespace, tmp_path):
    """Starts tinyproxy, and stops it after the test."""
    started = []

    def start(**options):
        started.append(ForwardProxy(namespace, tmp_path, **options))
        return started[-1]

    yield start
    for proxy in started:
        proxy.stop()
        print(proxy.text)


def start_service(internet, url=None, **settings):
    return internet.start_service(LIVEKIT_HTTPS_PROXY=url or ForwardProxy.url(), **settings)


def expect_line(internet, *words):
    """Waits for a log line with all these words, and asserts that the log has no password."""
    deadline = time.monotonic() + SECONDS
    while not any(all(word in line for word in words) for line in list(internet.service.log)):
        assert time.monotonic() < deadline, f"no log line with {words}"
        time.sleep(0.02)
    assert PASSWORD not in internet.service.text


@pytest.mark.parametrize("home", [HOME, HOME_V6], ids=["v4", "v6"])
@pytest.mark.parametrize("server_name", ["IP:7000", "hs.test:7000", "delegated", "by_SRV"])
def test_a_homeserver_is_reached_through_the_proxy(internet, proxy, home, server_name):
    proxy = proxy()
    internet.names.address("hs.test", home)
    web = []
    if server_name == "delegated":
        server_name = "web.test"
        internet.names.address("web.test", WEB)
        internet.well_known(WEB, "web.test", "hs.test:7000")
        web = [(WEB, 443)]
    elif server_name == "by_SRV":
        server_name = "web.test"
        internet.names.address("web.test", WEB)
        internet.listen(WEB, 443, "web.test", {})
        internet.names.srv("_matrix-fed._tcp.web.test", 7000, "hs.test")
        web = [(WEB, 443)]
    server_name = server_name.replace("IP", bracketed(home))
    internet.homeserver(home, 7000, ("hs.test", "web.test", home), server_name)
    start_service(internet)
    for _ in range(2):
        assert internet.request_token(server_name).status == 200
    targets = [*web, (home, 7000)]
    assert proxy.connect_targets == [f"{bracketed(address)}:{port}" for address, port in targets]
    # the second request reuses the tunnel; there are no other connections
    assert internet.connection_attempts() == [end for target in targets for end in (PROXY, target)]
    assert [request.path for request in internet.received][-2:] == [USERINFO] * 2


def test_a_redirect_is_followed_through_the_proxy(internet, proxy):
    proxy = proxy()
    for name, address in ("hs.test", WEB), ("www.test", SFU), ("home.test", HOME):
        internet.names.address(name, address)
    internet.listen(WEB, 443, "hs.test", {WELL_KNOWN: (302, {"Location": "https://www.test/here"}, b"")})
    internet.listen(SFU, 443, "www.test", {"/here": b'{"m.server": "home.test:7000"}'})
    internet.homeserver(HOME, 7000, "home.test", "hs.test")
    start_service(internet)
    assert internet.request_token("hs.test").status == 200
    assert proxy.connect_targets == [f"{WEB}:443", f"{SFU}:443", f"{HOME}:7000"]


def test_the_SFU_and_a_listed_homeserver_on_a_private_address_are_reached_directly(internet, proxy):
    proxy = proxy()
    internet.names.address("own.test", "10.9.9.9")
    internet.homeserver("10.9.9.9", 7000, "own.test", "own.test:7000")
    start_service(internet, LIVEKIT_FULL_ACCESS_HOMESERVERS="own.test:7000", LIVEKIT_API_URL=f"https://{SFU}:7880")
    assert internet.request_token("own.test:7000").status == 500  # the OpenID token was accepted, and there is no SFU
    assert internet.connection_attempts() == [("10.9.9.9", 7000), (SFU, 7880)]
    assert proxy.connect_targets == []


def test_a_leave_is_sent_through_the_proxy(internet, proxy):
    proxy = proxy()
    for name, address in ("hs.test", WEB), ("cs.test", HOME):
        internet.names.address(name, address)
    internet.homeserver(WEB, 7001, "hs.test", "hs.test:7001")
    internet.listen(WEB, 443, "hs.test", {CLIENT_WELL_KNOWN: base("https://cs.test:8443")})
    internet.listen(HOME, 8443, "cs.test", api())
    start_service(internet, LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    body = get_token_body("@alice:hs.test:7001", "hs.test:7001") | {"delay_id": "syd_1", "delay_timeout": 1000}
    assert internet.service.call("POST", "/delegate_delayed_leave", body).status == 200
    wait_for_request(internet, f"{EVENTS}/syd_1/send")
    assert {(request.address, request.port) for request in internet.received} == {(WEB, 7001), (WEB, 443), (HOME, 8443)}
    assert internet.connection_attempts().count(PROXY) == len(proxy.connect_targets)
    assert set(proxy.connect_targets) == {f"{WEB}:7001", f"{WEB}:443", f"{HOME}:8443"}
    assert VERSIONS in [request.path for request in internet.received]


@pytest.mark.parametrize("ip", PRIVATE)
@pytest.mark.parametrize("well_known", WELL_KNOWNS.values(), ids=WELL_KNOWNS.keys())
def test_a_well_known_leads_the_proxy_to_no_private_address(internet, proxy, well_known, ip):
    proxy = proxy()
    add_trap(internet, ip, "evil.test")
    internet.listen(EVIL, 443, "evil.test", {WELL_KNOWN: well_known(ip)})
    start_service(internet)
    assert internet.request_token("evil.test").status == 401
    assert proxy.connect_targets[0] == f"{EVIL}:443"
    assert {address for address, _ in internet.connection_attempts()} == {ADDRESS, EVIL}
    assert all(target.startswith(f"{EVIL}:") for target in proxy.connect_targets)


@pytest.mark.parametrize("ip", PRIVATE)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_server_name_leads_the_proxy_to_no_private_address(internet, proxy, name, ip):
    proxy = proxy()
    add_trap(internet, ip, name(ip))
    start_service(internet)
    assert internet.request_token(name(ip)).status == 401
    assert (internet.connection_attempts(), proxy.connect_targets) == ([], [])


def test_the_proxy_gets_addresses_and_looks_up_no_name(internet, proxy):
    """The first lookup returns a public address, every later one loopback, where a proxy would connect that got the name."""
    proxy = proxy()
    server_name = "evil.test:7000"
    add_trap(internet, "127.0.0.1", server_name)
    internet.names.address_sequence("evil.test", EVIL, "127.0.0.1")
    internet.homeserver(EVIL, 7000, "evil.test", server_name)
    start_service(internet)
    assert internet.request_token(server_name).status == 200
    assert proxy.connect_targets == [f"{EVIL}:7000"]
    assert internet.names.queried_names("A") == ["evil.test"]


def test_a_failed_lookup_is_logged_and_causes_no_request_to_the_proxy(internet, proxy):
    proxy = proxy()
    internet.use_name_servers("10.77.0.99")
    start_service(internet)
    assert internet.request_token("hs.test:7000").status == 401
    expect_line(internet, "refused", "looking up hs.test")
    assert proxy.connect_targets == []


def test_the_proxy_may_have_a_name(internet, proxy):
    proxy = proxy()
    internet.names.address("proxy.test", "10.77.0.4", ADDRESS)  # the first address refuses connections
    internet.homeserver(HOME, 7000, HOME, f"{HOME}:7000")
    start_service(internet, ForwardProxy.url(host="proxy.test"))
    assert internet.request_token(f"{HOME}:7000").status == 200
    assert proxy.connect_targets == [f"{HOME}:7000"]


def test_a_wrong_password_is_logged(internet, proxy):
    proxy = proxy()
    internet.homeserver(HOME, 7000, HOME, f"{HOME}:7000")
    # tinyproxy answers 401, other proxies 407
    start_service(internet, ForwardProxy.url(PASSWORD + "-or-not"))
    reply = internet.request_token(f"{HOME}:7000")
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")
    expect_line(internet, "refused", f"http://{ADDRESS}:{PORT}", "LIVEKIT_HTTPS_PROXY", "status 401", "password")
    assert internet.connection_attempts() == [PROXY]


def test_a_proxy_that_allows_only_some_ports_is_logged(internet, proxy):
    """tinyproxy with Debian's configuration."""
    proxy = proxy(connect_ports=(443, 563))
    internet.homeserver(HOME, 8448, HOME, HOME)
    start_service(internet)
    assert internet.request_token(HOME).status == 401
    expect_line(internet, "refused", f"CONNECT {HOME}:8448", "403", "allow")
    assert internet.connection_attempts() == [PROXY]


def test_a_homeserver_that_the_proxy_cannot_reach_is_logged(internet, proxy):
    proxy = proxy()
    start_service(internet)
    assert internet.request_token(f"{HOME}:7000").status == 401
    expect_line(internet, "refused", f"CONNECT {HOME}:7000", "status 50", "cannot reach the server")
    assert internet.connection_attempts() == [PROXY, (HOME, 7000)]


def test_a_JWKS_is_fetched_through_the_proxy(internet, proxy):
    proxy = proxy()
    internet.names.address("login.test", WEB)
    key = {"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    internet.listen(WEB, 443, "login.test", {"/jwks": json.dumps({"keys": [key]}).encode()})
    start_service(
        internet,
        TOKEN_SERVER_JWT_ISSUER="https://login.test",
        TOKEN_SERVER_JWT_AUDIENCE="e2e",
        TOKEN_SERVER_JWT_KEYS="https://login.test/jwks",
    )
    wait_for_request(internet, "/jwks")
    assert proxy.connect_targets == [f"{WEB}:443"]
    assert internet.connection_attempts() == [PROXY, (WEB, 443)]
