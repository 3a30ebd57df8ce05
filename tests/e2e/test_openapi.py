"""contrib/openapi.json against the service: schemathesis looks for answers that it does not mention, and what it mentions is
what the service really says."""

import base64
import concurrent.futures
import http.client
import json
import pathlib
import socket
import subprocess
import sys
import tomllib

import jsonschema_rs
import pytest

from fake_homeserver import SERVER, TOKEN, USER, FakeHomeserver
from fake_sfu import FakeSfu
from service import KEY, SECRET, get_token_body, openid, sfu_get_body
from token_door import AUTHORIZATION, STORED, policy

OPENAPI = pathlib.Path(__file__).parents[2] / "contrib" / "openapi.json"
SCHEMATHESIS = pathlib.Path(sys.executable).with_name("schemathesis")
CONFIG = pathlib.Path(__file__).with_name("schemathesis.toml")
# for each operation
EXAMPLES = 50
# for the whole run, which takes twenty where nothing else is going on
SECONDS = 600
DOCUMENT = json.loads(OPENAPI.read_text())
OPERATIONS = [(method, path) for path, item in DOCUMENT["paths"].items() for method in item]
HEALTH = [(method, path) for method, path in OPERATIONS if method != "post"]
MATRIX = [("post", "/get_token"), ("post", "/sfu/get")]
TOKEN_PATH = ("post", "/token")

# A public address, for those on private ones have no limits; nothing is sent there.
CLIENT = "9.9.9.9"
# What tests/gate provokes by a gate with other limits: a minute of work, and a queue that is full.
ELSEWHERE = {(*operation, "504") for operation in OPERATIONS}
ELSEWHERE |= {(*operation, status) for operation in HEALTH for status in ("429", "503")}
ELSEWHERE |= {(*operation, "503") for operation in MATRIX}


@pytest.fixture
def both_doors(namespace, start):
    """The service with both doors open, a homeserver that knows hs.test and an SFU, where no way leads out."""
    fakes = []

    def both_doors(**settings):
        with namespace.inside():
            fakes.extend([FakeHomeserver(), FakeSfu(KEY, SECRET)])
        homeserver, sfu = fakes[-2:]
        ours = {
            "LIVEKIT_LOG_LEVEL": "info",
            "LIVEKIT_FEDERATION_URL_OVERRIDES": homeserver.override,
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": SERVER,
            "LIVEKIT_API_URL": sfu.url,
            "LIVEKIT_OPENID_CACHE_SECONDS": 0,
        }
        return start(namespace, **ours | settings)

    yield both_doors
    for fake in fakes:
        fake.stop()


@pytest.mark.timeout(SECONDS + 60)
def test_schemathesis_finds_neither_a_fault_nor_an_undocumented_answer(namespace, both_doors, policy_file, tmp_path):
    file = policy_file(requests_per_minute=0, random_room=True, random_identity=True)
    service = both_doors(TOKEN_SERVER_POLICY_FILE=file)
    run = ["ip", "netns", "exec", namespace.name, SCHEMATHESIS, "--config-file", CONFIG, "run", OPENAPI]
    run += ["--url", f"http://127.0.0.1:{service.port}", "--header", f"Authorization:{AUTHORIZATION['Authorization']}"]
    run += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--continue-on-failure"]
    run += ["--request-timeout", "30", "--seed", "4195", "--no-color"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_document_is_of_this_version():
    manifest = tomllib.loads((OPENAPI.parents[1] / "Cargo.toml").read_text())
    assert DOCUMENT["info"]["version"] == manifest["package"]["version"]


def test_every_documented_status_is_given_and_has_the_documented_body(both_doors, tmp_path):
    # as many at once as there are clients that are too slow
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        outcomes = list(pool.map(lambda ask: (ask, exchange(*ask)), requests(both_doors, tmp_path)))
    seen = set()
    for (_, method, path, request), (status, headers, body) in outcomes:
        assert str(status) in responses(method, path), (request[:200], status, body)
        check(responses(method, path)[str(status)], headers, body)
        seen.add((method, path, str(status)))
    documented = {(method, path, status) for method, path in OPERATIONS for status in responses(method, path)}
    assert documented - seen == ELSEWHERE


def requests(both_doors, tmp_path):
    """(service, method, path, bytes) for each answer that can be had within seconds."""
    usual, rare, sfu_down = tmp_path / "usual.toml", tmp_path / "rare.toml", "http://127.0.0.1:1"
    usual.write_text(policy(rooms=["appointment-*"]) + LOGIN_WITHOUT_KEYS)
    rare.write_text(policy(requests_per_minute=1))
    service = both_doors(TOKEN_SERVER_POLICY_FILE=usual, LIVEKIT_ALLOWED_NETWORKS="127.0.0.0/8")

    for method, path in OPERATIONS:
        for request in refused_by_the_gate(method.upper(), path):
            yield service, method, path, request
    for method, path in HEALTH:
        yield service, method, path, head(method.upper(), path)

    def token(body, service=service, **fields):
        return service, *TOKEN_PATH, post("/token", body, AUTHORIZATION | fields)

    for example in DOCUMENT["paths"]["/token"]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ].values():
        yield token(example["value"])
    yield token({"room_name": "appointment-\0", "participant_name": "alice"})
    yield token({"room_name": "elsewhere", "participant_name": "alice"})
    yield token({})
    yield token([])
    yield token({"room_name": 1, "participant_name": "alice"})
    yield token({}, Authorization="Bearer nobody")
    yield token({}, Authorization=f"Bearer {JWT_OF_THE_LOGIN}")
    busy = both_doors(TOKEN_SERVER_POLICY_FILE=rare)
    for _ in range(5):
        yield token({"room_name": "appointment-1", "participant_name": "alice"}, busy)

    no_room = both_doors(LIVEKIT_API_URL=sfu_down)
    for path, body in ("/get_token", get_token_body(USER, SERVER, TOKEN)), ("/sfu/get", sfu_get_body(SERVER, TOKEN)):
        yield service, "post", path, post(path, body)
        yield service, "post", path, post(path, body | {"openid_token": {}})
        yield service, "post", path, post(path, body | {"openid_token": openid(SERVER, "another")})
        yield no_room, "post", path, post(path, body)
        # more at once than one client may ask of a stranger's server
        nowhere = post(path, body | {"openid_token": openid("nowhere.invalid", TOKEN)}, {"X-Forwarded-For": CLIENT})
        yield from [(service, "post", path, nowhere)] * 40


# the application's own login, whose keys nobody serves
LOGIN_WITHOUT_KEYS = """
[callers.login]
jwt = { issuer = "https://login.example.org", audience = "tokens", keys = "http://127.0.0.1:1/jwks" }
"""
JWT_OF_THE_LOGIN = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (
        b'{"alg":"ES256","typ":"JWT","kid":"1"}',
        b'{"iss":"https://login.example.org","aud":"tokens","sub":"alice","exp":9999999999}',
        bytes(64),
    )
)


def refused_by_the_gate(method, path):
    yield head(method, path, "Host: another")
    # the empty line is missing
    yield head(method, path)[:-2]
    yield head(method, path, f"Content-Length: {64 * 1024 + 1}")
    yield head(method, f"{path}?{'x' * 8192}")
    yield head(method, path, "Expect: a-miracle")
    yield head(method, path, *["X-Field: 1"] * 65)
    yield head(method, path, "Transfer-Encoding: gzip")
    yield head(method, path, version="HTTP/2.0")


def head(method, path, *fields, version="HTTP/1.1"):
    return "\r\n".join([f"{method} {path} {version}", "Host: localhost", *fields, "", ""]).encode()


def post(path, body, fields=None):
    body = json.dumps(body).encode()
    fields = {"Content-Type": "application/json", "Content-Length": len(body)} | (fields or {})
    return head("POST", path, *(f"{name}: {value}" for name, value in fields.items())) + body


def exchange(service, method, path, request):
    with service.namespace.inside():
        client = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    with client:
        client.sendall(request)
        reply = http.client.HTTPResponse(client, method=method.upper())
        reply.begin()
        return reply.status, reply.headers, reply.read()


def check(response, headers, body):
    """Whether a reply is what the document says of it."""
    response = resolved(response)
    for name, header in response.get("headers", {}).items():
        assert name in headers or not header.get("required"), name
        if name in headers and "const" in header["schema"]:
            assert headers[name] == header["schema"]["const"]
    content = response.get("content")
    assert bool(content) == bool(body), (response, body)
    if content:
        assert headers["Content-Type"] == "application/json"
        schema = content["application/json"]["schema"] | {"components": DOCUMENT["components"]}
        jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(json.loads(body))


def responses(method, path):
    return DOCUMENT["paths"][path][method]["responses"]


def resolved(part):
    return DOCUMENT["components"]["responses"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
