"""contrib/openapi.json and the service agree: schemathesis finds no undocumented answer, and the service gives every documented one."""

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
from token_endpoint_service import AUTHORIZATION, policy

OPENAPI = pathlib.Path(__file__).parents[2] / "contrib" / "openapi.json"
SCHEMATHESIS = pathlib.Path(sys.executable).with_name("schemathesis")
CONFIG = pathlib.Path(__file__).with_name("schemathesis.toml")
# examples of each operation
EXAMPLES = 50
# deadline of the run, which takes twenty seconds on an idle machine
SECONDS = 600
DOCUMENT = json.loads(OPENAPI.read_text())
OPERATIONS = [(method, path) for path, item in DOCUMENT["paths"].items() for method in item]
HEALTH = [(method, path) for method, path in OPERATIONS if method != "post"]
MATRIX = [("post", "/get_token"), ("post", "/sfu/get")]
TOKEN_PATH = ("post", "/token")

# A public address, as clients on private ones have no limits; nothing is sent there.
CLIENT = "9.9.9.9"
# Statuses that tests/server provokes with other limits: a minute of work, and a full queue.
TESTED_ELSEWHERE = {(*operation, "504") for operation in OPERATIONS}
TESTED_ELSEWHERE |= {(*operation, status) for operation in HEALTH for status in ("429", "503")}
TESTED_ELSEWHERE |= {(*operation, "503") for operation in MATRIX}


@pytest.fixture
def start_with_all_endpoints(namespace, start):
    """Starts services with all endpoints open, a homeserver hs.test and an SFU, in the network namespace."""
    fakes = []

    def start_with_all_endpoints(**settings):
        with namespace.inside():
            fakes.extend([FakeHomeserver(), FakeSfu(KEY, SECRET)])
        homeserver, sfu = fakes[-2:]
        common = {
            "LIVEKIT_LOG_LEVEL": "info",
            "LIVEKIT_FEDERATION_URL_OVERRIDES": homeserver.override,
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": SERVER,
            "LIVEKIT_API_URL": sfu.url,
            "LIVEKIT_OPENID_CACHE_SECONDS": 0,
        }
        return start(namespace, **common | settings)

    yield start_with_all_endpoints
    for fake in fakes:
        fake.stop()


@pytest.mark.timeout(SECONDS + 60)
def test_schemathesis_finds_neither_an_error_nor_an_undocumented_answer(namespace, start_with_all_endpoints, policy_file, tmp_path):
    file = policy_file(requests_per_minute=0, random_room=True, random_identity=True)
    service = start_with_all_endpoints(TOKEN_SERVER_POLICY_FILE=file)
    run = ["ip", "netns", "exec", namespace.name, SCHEMATHESIS, "--config-file", CONFIG, "run", OPENAPI]
    run += ["--url", f"http://127.0.0.1:{service.port}", "--header", f"Authorization:{AUTHORIZATION['Authorization']}"]
    run += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--continue-on-failure"]
    run += ["--request-timeout", "30", "--seed", "4195", "--no-color"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_document_has_the_version_of_the_service():
    manifest = tomllib.loads((OPENAPI.parents[1] / "Cargo.toml").read_text())
    assert DOCUMENT["info"]["version"] == manifest["package"]["version"]


def test_every_documented_status_occurs_with_the_documented_body(start_with_all_endpoints, tmp_path):
    # one thread for each request that waits for the server's read deadline
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        outcomes = list(pool.map(lambda arguments: (arguments, exchange(*arguments)), requests(start_with_all_endpoints, tmp_path)))
    seen = set()
    for (_, method, path, request), (status, headers, body) in outcomes:
        assert str(status) in responses(method, path), (request[:200], status, body)
        check(responses(method, path)[str(status)], headers, body)
        seen.add((method, path, str(status)))
    documented = {(method, path, status) for method, path in OPERATIONS for status in responses(method, path)}
    assert documented - seen == TESTED_ELSEWHERE


def requests(start_with_all_endpoints, tmp_path):
    """Yields (service, method, path, bytes) for each status that takes only seconds."""
    usual, limited, sfu_down = tmp_path / "usual.toml", tmp_path / "limited.toml", "http://127.0.0.1:1"
    usual.write_text(policy(rooms=["appointment-*"]) + ISSUER_WITHOUT_KEYS)
    limited.write_text(policy(requests_per_minute=1))
    service = start_with_all_endpoints(TOKEN_SERVER_POLICY_FILE=usual, LIVEKIT_ALLOWED_NETWORKS="127.0.0.0/8")

    for method, path in OPERATIONS:
        for request in requests_refused_by_the_server(method.upper(), path):
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
    yield token({}, Authorization="Bearer unknown")
    yield token({}, Authorization=f"Bearer {JWT_OF_THE_ISSUER}")
    busy = start_with_all_endpoints(TOKEN_SERVER_POLICY_FILE=limited)
    for _ in range(5):
        yield token({"room_name": "appointment-1", "participant_name": "alice"}, busy)

    no_room = start_with_all_endpoints(LIVEKIT_API_URL=sfu_down)
    for path, body in ("/get_token", get_token_body(USER, SERVER, TOKEN)), ("/sfu/get", sfu_get_body(SERVER, TOKEN)):
        yield service, "post", path, post(path, body)
        yield service, "post", path, post(path, body | {"openid_token": {}})
        yield service, "post", path, post(path, body | {"openid_token": openid(SERVER, "another")})
        yield no_room, "post", path, post(path, body)
        # more at once than one client may have in progress for an unlisted homeserver
        nowhere = post(path, body | {"openid_token": openid("nowhere.invalid", TOKEN)}, {"X-Forwarded-For": CLIENT})
        yield from [(service, "post", path, nowhere)] * 40


# a JWT issuer whose JWKS is unavailable
ISSUER_WITHOUT_KEYS = """
[callers.login]
jwt = { issuer = "https://login.example.org", audience = "tokens", keys = "http://127.0.0.1:1/jwks" }
"""
JWT_OF_THE_ISSUER = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (
        b'{"alg":"ES256","typ":"JWT","kid":"1"}',
        b'{"iss":"https://login.example.org","aud":"tokens","sub":"alice","exp":9999999999}',
        bytes(64),
    )
)


def requests_refused_by_the_server(method, path):
    yield head(method, path, "Host: another")
    # the empty line is missing
    yield head(method, path)[:-2]
    yield head(method, path, f"Content-Length: {64 * 1024 + 1}")
    yield head(method, f"{path}?{'x' * 8192}")
    yield head(method, path, "Expect: something-else")
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
    """Asserts that headers and body of a reply are the documented ones."""
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
