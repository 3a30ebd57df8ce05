"""nginx and Caddy in front of the service, with the unchanged files of contrib/."""

import concurrent.futures
import socket

import pytest

import reverse_proxies
from fake_homeserver import SERVER, USER, FakeHomeserver
from fake_sfu import WebSocketSfu
from livekit_sdks import hashed_name, verify_with_python_sdk
from service import DEVICE, KEY, MEMBER, ROOM, SECRET, SLOT, call, get_token_body, sfu_get_body

PREFIX = "/livekit/jwt"
KEEP_ALIVE = 'proxy_http_version 1.1; proxy_set_header Connection "";'
versions = pytest.mark.parametrize("version", ["", KEEP_ALIVE], ids=["HTTP_1.0", "HTTP_1.1_keep_alive"])
locations = pytest.mark.parametrize(
    "location, path",
    [(PREFIX + "/", "/"), (PREFIX, "/"), (PREFIX, "")],
    ids=["prefix_stripped", "slash_doubled", "prefix_kept"],
)


@pytest.fixture(scope="module")
def homeserver():
    homeserver = FakeHomeserver()
    yield homeserver
    homeserver.stop()


@pytest.fixture
def service(start, homeserver):
    return start(LIVEKIT_FEDERATION_URL_OVERRIDES=homeserver.override)


@pytest.fixture
def run(tmp_path):
    """Runs `reverse_proxies.nginx` or `reverse_proxies.caddy` until the end of the test, and returns its authority."""
    running = []

    def run(proxy, *arguments):
        running.append(proxy(tmp_path, *arguments))
        return running[-1].authority

    yield run
    for proxy in running:
        proxy.stop()
        print(proxy.text)


def upstream(server):
    return f"upstream service {{ server {server}; keepalive 4; }}"


def test_the_nginx_file_of_contrib_works_unchanged(service, run):
    expect_service(run(reverse_proxies.nginx, reverse_proxies.contrib("nginx.conf", service.port)))


def test_the_Caddyfile_of_contrib_works_unchanged(service, run):
    expect_service(run(reverse_proxies.caddy, reverse_proxies.contrib("Caddyfile", service.port)))


def test_the_nginx_file_of_contrib_forwards_websockets(run):
    sfu = WebSocketSfu()
    expect_websocket(run(reverse_proxies.nginx, reverse_proxies.contrib("nginx.conf", 8080, sfu.port)), sfu)


def test_the_Caddyfile_of_contrib_forwards_websockets(run):
    sfu = WebSocketSfu()
    expect_websocket(run(reverse_proxies.caddy, reverse_proxies.contrib("Caddyfile", 8080, sfu.port)), sfu)


@locations
@versions
def test_every_style_of_nginx_location_works(service, run, location, path, version):
    block = f"location {location} {{ proxy_pass http://service{path}; {version} }}"
    expect_service(run(reverse_proxies.nginx, block, upstream(f"127.0.0.1:{service.port}")))


@versions
def test_nginx_reaches_the_service_on_a_unix_socket(start, homeserver, run, tmp_path, version):
    path = f"unix:{tmp_path}/service.sock"
    start(LIVEKIT_JWT_BIND=path, LIVEKIT_FEDERATION_URL_OVERRIDES=homeserver.override)
    expect_service(
        run(reverse_proxies.nginx, f"location {PREFIX}/ {{ proxy_pass http://service/; {version} }}", upstream(path))
    )


@versions
def test_many_clients_at_once_are_all_served_through_nginx(service, run, version):
    block = f"location / {{ proxy_pass http://service; {version} }}"
    proxy = run(reverse_proxies.nginx, block, upstream(f"127.0.0.1:{service.port}"))
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        replies = list(clients.map(lambda _: call(proxy, "GET", "/healthz"), range(400)))
    assert {reply.status for reply in replies} == {200}


def expect_service(proxy):
    """Sends all requests of a browser's client through the proxy, and requests that must fail."""
    reply = call(proxy, "POST", f"{PREFIX}/get_token", get_token_body(USER, SERVER))
    expect_token(reply, hashed_name(USER, DEVICE, MEMBER), hashed_name(ROOM, SLOT))
    reply = call(proxy, "POST", f"{PREFIX}/sfu/get", sfu_get_body(SERVER))
    expect_token(reply, f"{USER}:{DEVICE}", hashed_name(ROOM, "m.call#ROOM"))

    preflight = {"Origin": "https://call.example.org", "Access-Control-Request-Method": "POST"}
    for path in "/get_token", "/sfu/get":
        reply = call(proxy, "OPTIONS", PREFIX + path, headers=preflight)
        assert reply.status == 200
        expect_single_cors(reply)
    assert call(proxy, "GET", f"{PREFIX}/healthz").status == 200

    for method, path, body, status, errcode in [
        ("POST", "/get_token", get_token_body(USER, SERVER, "another-token"), 401, "M_UNAUTHORIZED"),
        ("POST", "/sfu/get", b"{", 400, "M_NOT_JSON"),
        ("POST", "/sfu/get", {}, 400, "M_BAD_JSON"),
        ("PUT", "/get_token", {}, 405, "M_UNRECOGNIZED"),
        ("POST", "/get_token", b" " * 200_000, 413, "M_TOO_LARGE"),
        ("POST", "/no/such/path", {}, 404, "M_UNRECOGNIZED"),
    ]:
        reply = call(proxy, method, PREFIX + path, body)
        assert (reply.status, reply.errcode) == (status, errcode)
        expect_single_cors(reply)


def expect_token(reply, identity, room):
    assert reply.status == 200, reply.body
    expect_single_cors(reply)
    claims = verify_with_python_sdk(reply.json["jwt"], KEY, SECRET)
    assert (claims.identity, claims.video.room) == (identity, room)


def expect_single_cors(reply):
    """A browser refuses a reply with two of these headers."""
    assert reply.headers.get_all("Access-Control-Allow-Origin") == ["*"]


def expect_websocket(proxy, sfu):
    """Opens a WebSocket below /livekit/sfu, and sends bytes both ways."""
    with socket.create_connection(proxy.split(":"), timeout=20) as client, client.makefile("rb") as stream:
        client.sendall(
            f"GET /livekit/sfu/rtc?access_token=x HTTP/1.1\r\nHost: {proxy}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert b" 101 " in stream.readline()
        while stream.readline().strip():
            pass
        client.sendall(b"ping")
        assert stream.read(4) == b"PING"
    assert sfu.request.startswith("GET /rtc?access_token=x ")
