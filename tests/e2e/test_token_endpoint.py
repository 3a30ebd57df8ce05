"""Access tokens of the general token endpoint, as LiveKit's own verifiers read them, compared field by field."""

import dataclasses
import datetime
import re
import time

import pytest

from livekit_sdks import verify_with_node_sdk, verify_with_python_sdk
from service import KEY, SECRET, SFU_URL
from token_endpoint_service import API_KEY, AUTHORIZATION, settings

ROOM, IDENTITY = "appointment-test-123", "user-456"
STANDARD = {"room_name": ROOM, "participant_identity": IDENTITY}
JOIN = {"roomJoin": True, "room": ROOM}
PUBLISH = JOIN | {"canPublish": True, "canSubscribe": True, "canPublishData": True}
GRANTS_ON_REQUEST = ["canUpdateOwnMetadata", "canSubscribeMetrics", "hidden", "recorder", "agent"]


@pytest.fixture
def endpoint(start, policy_file):
    """Starts the service with these rules for the caller."""

    def endpoint(**rules):
        return start(**settings(**({"TOKEN_SERVER_POLICY_FILE": policy_file(**rules)} if rules else {})))

    return endpoint


def request_token(service, fields, status=201):
    """Requests an access token. Returns the reply and the claims, which both SDKs must read alike."""
    reply = service.call("POST", "/token", fields, AUTHORIZATION)
    assert reply.status == status, reply.body
    in_node = verify_with_node_sdk(reply.json["participant_token"], KEY, SECRET)
    in_python = verify_with_python_sdk(reply.json["participant_token"], KEY, SECRET)
    for field in dataclasses.fields(in_python.video):
        # livekit-server takes an absent grant for the default of the field
        assert getattr(in_python.video, field.name) == in_node["video"].get(camel(field.name), field.default), (
            field.name
        )
    assert in_python.identity == in_node["sub"]
    for name in "name", "metadata", "attributes":
        assert (getattr(in_python, name) or None) == in_node.get(name), name
    return reply, in_node


def camel(name):
    return re.sub(r"_(\w)", lambda letter: letter[1].upper(), name)


@pytest.mark.parametrize(
    ("rules", "requested", "video"),
    [
        ({}, {}, PUBLISH),
        ({"grants": ["canSubscribe"]}, {}, JOIN | {"canPublish": False, "canSubscribe": True, "canPublishData": False}),
        ({"grants": []}, {}, JOIN | {"canPublish": False, "canSubscribe": False, "canPublishData": False}),
        ({"sources": ["microphone"]}, {}, PUBLISH | {"canPublishSources": ["microphone"]}),
        ({}, {"canPublish": False, "canPublishData": False}, PUBLISH | {"canPublish": False, "canPublishData": False}),
        ({}, {"canPublishSources": ["camera"]}, PUBLISH | {"canPublishSources": ["camera"]}),
        ({"grants_on_request": GRANTS_ON_REQUEST}, {}, PUBLISH),
        *(({"grants_on_request": GRANTS_ON_REQUEST}, {grant: True}, PUBLISH | {grant: True}) for grant in GRANTS_ON_REQUEST),
    ],
)
def test_a_token_grants_what_was_requested_and_allowed_and_nothing_else(endpoint, rules, requested, video):
    _, claims = request_token(endpoint(**rules), STANDARD | ({"participant_grants": requested} if requested else {}))
    assert claims["video"] == video


def test_a_token_describes_the_participant_as_requested(endpoint):
    requested = STANDARD | {
        "participant_name": 'Zoë "Z" \\ 🎥',
        "participant_metadata": '{"role": "patient", "note": "é\\n"}',
        "participant_attributes": {"language": "de", "🎥": "ja"},
    }
    reply, claims = request_token(endpoint(), requested)
    assert claims["sub"] == IDENTITY
    assert (claims["name"], claims["metadata"]) == (requested["participant_name"], requested["participant_metadata"])
    assert claims["attributes"] == requested["participant_attributes"]
    assert claims.keys() == {"iss", "sub", "nbf", "exp", "name", "video", "metadata", "attributes"}
    body = dict(reply.json)
    assert body["token"] == body.pop("participant_token") and body.pop("token")
    assert body.pop("expires_at")
    assert body == {
        "server_url": SFU_URL,
        "url": SFU_URL,
        "room_name": ROOM,
        "participant_name": requested["participant_name"],
        "participant_identity": IDENTITY,
    }


def test_the_form_of_the_example_server_sets_name_and_identity(endpoint):
    requested = {"room_name": ROOM, "participant_name": IDENTITY, "metadata": '{"role": "participant"}'}
    reply, claims = request_token(endpoint(), requested, status=200)
    assert (claims["sub"], claims["name"], claims["metadata"]) == (IDENTITY, IDENTITY, requested["metadata"])
    assert claims["video"] == PUBLISH
    assert (reply.json["token"], reply.json["url"]) == (reply.json["participant_token"], SFU_URL)


@pytest.mark.parametrize(("requested", "lifetime"), [({}, 86_400), ({"ttl_seconds": 600}, 600)])
def test_expires_at_is_the_expiry_of_the_token(endpoint, requested, lifetime):
    before = int(time.time())
    reply, claims = request_token(endpoint(), STANDARD | requested)
    after = int(time.time())
    assert before - 5 <= claims["nbf"] <= after
    assert before + lifetime <= claims["exp"] <= after + lifetime
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reply.json["expires_at"])
    assert datetime.datetime.fromisoformat(reply.json["expires_at"]).timestamp() == claims["exp"]


def test_the_variables_of_the_example_server_work(start):
    service = start(**settings(TOKEN_EXPIRY_HOURS=2))
    _, claims = request_token(service, {"room_name": ROOM, "participant_name": IDENTITY}, status=200)
    assert claims["exp"] - claims["nbf"] in range(7200, 7206)


def test_only_the_agents_of_a_room_config_are_in_the_token(endpoint):
    service = endpoint(agents=["scribe", "bot-*"])
    agents = [{"agent_name": "scribe", "metadata": "in German"}, {"agent_name": "bot-1"}]
    _, claims = request_token(service, STANDARD | {"room_config": {"agents": agents}})
    assert claims["roomConfig"] == {
        "agents": [{"agentName": "scribe", "metadata": "in German"}, {"agentName": "bot-1"}]
    }
    for nothing in None, {}, {"agents": []}:
        _, claims = request_token(service, STANDARD | {"room_config": nothing})
        assert "roomConfig" not in claims


def test_requests_without_names_get_unique_names(endpoint):
    service = endpoint(random_room=True, random_identity=True)
    replies = [request_token(service, {})[0].json for _ in range(3)]
    for field in "room_name", "participant_identity":
        assert len({reply[field] for reply in replies}) == 3 and all(reply[field] for reply in replies)


def test_keys_are_not_logged(endpoint):
    service = endpoint()
    reply, _ = request_token(service, STANDARD)
    assert service.call("POST", "/token", STANDARD, {"X-API-Key": API_KEY}).status == 201
    assert service.call("POST", "/token", STANDARD, {"Authorization": f"Bearer {API_KEY}x"}).status == 401
    secret, token = API_KEY.rpartition("_")[2], reply.json["token"]
    for leaked in secret, SECRET, token, token.rpartition(".")[2]:
        assert leaked not in service.text
    assert f"Token generated for user {IDENTITY} in room {ROOM}" in service.text
