"""Real clients at the general token endpoint: LiveKit's own token sources in Chromium, Node and Rust, plain fetch, Python requests."""

import os
import subprocess
import sys

import pytest

import token_clients
from livekit_sdks import node_verdict, python_verdict
from service import KEY, SECRET, SFU_URL
from token_clients import Page, Refused
from token_door import API_KEY, WRONG_KEY, settings

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
def ask_by(start, page):
    """The service, with this page's origin allowed, asked by the client of that name."""

    def ask_by(client, asked, bearer=API_KEY, headers=None, **more):
        service = start(**settings(**{"CORS_ORIGINS": page.origin} | more))
        return by_name(client, page)(endpoint(service), bearer, asked, headers or {})

    return ask_by


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
    """Names differ: on the wire and in Rust, in JavaScript, and in the example."""
    names = {"participant_token", "participantToken", "token"} & reply.keys()
    assert names and len({reply[name] for name in names}) == 1, reply
    return reply[names.pop()]


def url_of(reply):
    names = {"server_url", "serverUrl", "url"} & reply.keys()
    assert names and len({reply[name] for name in names}) == 1, reply
    return reply[names.pop()]


@pytest.mark.parametrize("client", LIVEKIT_SOURCES + FETCHES)
def test_a_client_in_the_standard_form_gets_in(client, ask_by):
    reply = ask_by(client, STANDARD)
    assert url_of(reply) == SFU_URL
    assert reply.get("valid", True), "the Rust SDK holds the token for a stale one"
    token = token_of(reply)
    claims = node_verdict(token, KEY, SECRET)
    assert (claims["sub"], claims["name"], claims["video"]["room"]) == ("user-456", "Ünal 🎥", ROOM)
    assert claims["metadata"] == STANDARD["participant_metadata"]
    assert claims["attributes"] == STANDARD["participant_attributes"]
    assert python_verdict(token, KEY, SECRET).attributes == STANDARD["participant_attributes"]


@pytest.mark.parametrize("client", FETCHES)
def test_a_client_in_the_form_of_the_example_gets_in(client, ask_by):
    reply = ask_by(client, EXAMPLE)
    assert {"token", "url", "expires_at"} <= reply.keys()
    claims = node_verdict(token_of(reply), KEY, SECRET)
    assert (claims["sub"], claims["name"], claims["video"]["room"]) == ("user-456", "user-456", ROOM)
    assert claims["metadata"] == EXAMPLE["metadata"]


@pytest.mark.parametrize("client", LIVEKIT_SOURCES)
def test_a_client_may_name_no_more_than_a_room(client, ask_by, policy_file):
    file = policy_file(random_identity=True)
    reply = ask_by(client, {"room_name": ROOM}, TOKEN_SERVER_POLICY_FILE=file)
    claims = node_verdict(token_of(reply), KEY, SECRET)
    assert claims["video"]["room"] == ROOM and claims["sub"]


@pytest.mark.parametrize("client", LIVEKIT_SOURCES)
def test_an_agent_comes_along_where_the_policy_names_it(client, ask_by, policy_file):
    asked = STANDARD | {"agent_name": "scribe", "agent_metadata": "in German"}
    file = policy_file(agents=["scribe"])
    claims = node_verdict(token_of(ask_by(client, asked, TOKEN_SERVER_POLICY_FILE=file)), KEY, SECRET)
    assert claims["roomConfig"] == {"agents": [{"agentName": "scribe", "metadata": "in German"}]}


@pytest.mark.parametrize("client", LIVEKIT_SOURCES + FETCHES)
def test_a_client_learns_which_field_was_too_much(client, ask_by, policy_file):
    asked = {"room_name": "elsewhere", "participant_name": "user-456"}
    with pytest.raises(Refused, match="403.*room_name|room_name.*403"):
        ask_by(client, asked, TOKEN_SERVER_POLICY_FILE=policy_file(rooms=["appointment-*"]))


@pytest.mark.parametrize("client", LIVEKIT_SOURCES + FETCHES)
def test_a_wrong_key_gets_nobody_in(client, ask_by):
    with pytest.raises(Refused, match="401"):
        ask_by(client, {"room_name": ROOM, "participant_name": "user-456"}, bearer=WRONG_KEY)


@pytest.mark.parametrize("client", ["chromium/livekit-client", "chromium/fetch"])
def test_a_page_may_send_fields_of_its_own(client, ask_by):
    reply = ask_by(client, STANDARD, headers={"X-Application": "booking", "X-API-Key": API_KEY})
    assert node_verdict(token_of(reply), KEY, SECRET)["sub"] == "user-456"


@pytest.mark.parametrize("client", ["chromium/livekit-client", "chromium/fetch"])
def test_a_page_of_another_origin_is_kept_out(client, ask_by):
    with pytest.raises(Refused, match="Failed to fetch"):
        ask_by(client, STANDARD, CORS_ORIGINS="https://app.example")


def test_the_python_example_is_a_program_too_for_a_key_of_keygen(start):
    made = subprocess.run(
        [os.environ["BIN"], "keygen", "booking"], capture_output=True, text=True, check=True, timeout=60
    )
    key, stored = made.stdout.splitlines()
    service = start(**settings(TOKEN_SERVER_API_KEYS=stored))
    run = [sys.executable, token_clients.CONTRIB / "get_token.py", endpoint(service), ROOM, "user-456"]
    done = subprocess.run(run, env=os.environ | {"TOKEN_API_KEY": key}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert node_verdict(done.stdout.strip(), KEY, SECRET)["sub"] == "user-456"
    assert "caller=booking" in service.text
