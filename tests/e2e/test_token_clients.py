"""Real clients of the general token endpoint: LiveKit's own token sources in Chromium, Node and Rust, fetch, and Python's requests."""

import os
import subprocess
import sys

import pytest

import token_clients
from livekit_sdks import verify_with_node_sdk, verify_with_python_sdk
from service import KEY, SECRET, SFU_URL
from token_clients import Page, Refused
from token_endpoint_service import API_KEY, WRONG_KEY, settings

ROOM = "appointment-test-123"
STANDARD = {
    "room_name": ROOM,
    "participant_identity": "user-456",
    "participant_name": "Ünal 🎥",
    "participant_metadata": '{"role": "patient"}',
    "participant_attributes": {"language": "de", "empty": ""},
}
EXAMPLE = {"room_name": ROOM, "participant_name": "user-456", "metadata": '{"role": "participant"}'}
LIVEKIT_SOURCES = ["node/livekit-client", "chromium/livekit-client", "rust"]
FETCHES = ["node/fetch", "chromium/fetch", "python"]


@pytest.fixture
def page():
    page = Page()
    yield page
    page.close()


@pytest.fixture
def request_by(start, page):
    """Starts the service, with the page's origin allowed, and requests an access token with the client of that name."""

    def request_by(client, fields, bearer=API_KEY, headers=None, **more):
        service = start(**settings(**{"CORS_ORIGINS": page.origin} | more))
        return by_name(client, page)(endpoint(service), bearer, fields, headers or {})

    return request_by


def by_name(client, page):
    if client == "python":
        return token_clients.in_python
    if client == "rust":
        return token_clients.in_rust
    where, _, what = client.partition("/")
    return token_clients.in_node(what) if where == "node" else page.client(what)


def endpoint(service):
    return f"http://127.0.0.1:{service.port}/token"


def token_of(reply):
    """The access token; its field has different names in the response, in JavaScript and in the example server."""
    names = {"participant_token", "participantToken", "token"} & reply.keys()
    assert names and len({reply[name] for name in names}) == 1, reply
    return reply[names.pop()]


def url_of(reply):
    names = {"server_url", "serverUrl", "url"} & reply.keys()
    assert names and len({reply[name] for name in names}) == 1, reply
    return reply[names.pop()]


@pytest.mark.parametrize("client", LIVEKIT_SOURCES + FETCHES)
def test_a_request_in_the_standard_form_gets_a_token(client, request_by):
    reply = request_by(client, STANDARD)
    assert url_of(reply) == SFU_URL
    assert reply.get("valid", True), "the Rust SDK takes the access token for an expired one"
    token = token_of(reply)
    claims = verify_with_node_sdk(token, KEY, SECRET)
    assert (claims["sub"], claims["name"], claims["video"]["room"]) == ("user-456", "Ünal 🎥", ROOM)
    assert claims["metadata"] == STANDARD["participant_metadata"]
    assert claims["attributes"] == STANDARD["participant_attributes"]
    assert verify_with_python_sdk(token, KEY, SECRET).attributes == STANDARD["participant_attributes"]


@pytest.mark.parametrize("client", FETCHES)
def test_a_request_in_the_form_of_the_example_server_gets_a_token(client, request_by):
    reply = request_by(client, EXAMPLE)
    assert {"token", "url", "expires_at"} <= reply.keys()
    claims = verify_with_node_sdk(token_of(reply), KEY, SECRET)
    assert (claims["sub"], claims["name"], claims["video"]["room"]) == ("user-456", "user-456", ROOM)
    assert claims["metadata"] == EXAMPLE["metadata"]


@pytest.mark.parametrize("client", LIVEKIT_SOURCES)
def test_a_request_may_name_the_room_alone(client, request_by, policy_file):
    file = policy_file(random_identity=True)
    reply = request_by(client, {"room_name": ROOM}, TOKEN_SERVER_POLICY_FILE=file)
    claims = verify_with_node_sdk(token_of(reply), KEY, SECRET)
    assert claims["video"]["room"] == ROOM and claims["sub"]


@pytest.mark.parametrize("client", LIVEKIT_SOURCES)
def test_an_agent_is_dispatched_if_the_policy_names_it(client, request_by, policy_file):
    fields = STANDARD | {"agent_name": "scribe", "agent_metadata": "in German"}
    file = policy_file(agents=["scribe"])
    claims = verify_with_node_sdk(token_of(request_by(client, fields, TOKEN_SERVER_POLICY_FILE=file)), KEY, SECRET)
    assert claims["roomConfig"] == {"agents": [{"agentName": "scribe", "metadata": "in German"}]}


@pytest.mark.parametrize("client", LIVEKIT_SOURCES + FETCHES)
def test_the_error_names_the_refused_field(client, request_by, policy_file):
    fields = {"room_name": "elsewhere", "participant_name": "user-456"}
    with pytest.raises(Refused, match="403.*room_name|room_name.*403"):
        request_by(client, fields, TOKEN_SERVER_POLICY_FILE=policy_file(rooms=["appointment-*"]))


@pytest.mark.parametrize("client", LIVEKIT_SOURCES + FETCHES)
def test_a_wrong_key_is_refused(client, request_by):
    with pytest.raises(Refused, match="401"):
        request_by(client, {"room_name": ROOM, "participant_name": "user-456"}, bearer=WRONG_KEY)


@pytest.mark.parametrize("client", ["chromium/livekit-client", "chromium/fetch"])
def test_a_page_may_send_additional_header_fields(client, request_by):
    reply = request_by(client, STANDARD, headers={"X-Application": "booking", "X-API-Key": API_KEY})
    assert verify_with_node_sdk(token_of(reply), KEY, SECRET)["sub"] == "user-456"


@pytest.mark.parametrize("client", ["chromium/livekit-client", "chromium/fetch"])
def test_a_page_of_another_origin_is_refused(client, request_by):
    with pytest.raises(Refused, match="Failed to fetch"):
        request_by(client, STANDARD, CORS_ORIGINS="https://app.example")


def test_the_python_example_works_as_a_program_with_a_key_of_keygen(start):
    made = subprocess.run(
        [os.environ["BIN"], "keygen", "booking"], capture_output=True, text=True, check=True, timeout=60
    )
    key, stored = made.stdout.splitlines()
    service = start(**settings(TOKEN_SERVER_API_KEYS=stored))
    run = [sys.executable, token_clients.CONTRIB / "get_token.py", endpoint(service), ROOM, "user-456"]
    done = subprocess.run(run, env=os.environ | {"TOKEN_API_KEY": key}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert verify_with_node_sdk(done.stdout.strip(), KEY, SECRET)["sub"] == "user-456"
    assert "caller=booking" in service.text
