"""Tokens of the general endpoint as LiveKit's own verifiers understand them, compared field by field."""

import dataclasses
import datetime
import re
import time

import pytest

from livekit_sdks import node_verdict, python_verdict
from service import KEY, SECRET, SFU_URL
from token_door import API_KEY, AUTHORIZATION, settings

ROOM, WHO = "appointment-test-123", "user-456"
STANDARD = {"room_name": ROOM, "participant_identity": WHO}
JOIN = {"roomJoin": True, "room": ROOM}
TALK = JOIN | {"canPublish": True, "canSubscribe": True, "canPublishData": True}
ALL_ON_REQUEST = ["canUpdateOwnMetadata", "canSubscribeMetrics", "hidden", "recorder", "agent"]


@pytest.fixture
def endpoint(start, policy_file):
    """The service with these rules for the one caller."""

    def endpoint(**rules):
        return start(**settings(**({"TOKEN_SERVER_POLICY_FILE": policy_file(**rules)} if rules else {})))

    return endpoint


def granted(service, asked, status=201):
    """The reply, and the claims as both SDKs read them, which must agree."""
    reply = service.call("POST", "/token", asked, AUTHORIZATION)
    assert reply.status == status, reply.body
    in_node = node_verdict(reply.json["participant_token"], KEY, SECRET)
    in_python = python_verdict(reply.json["participant_token"], KEY, SECRET)
    for field in dataclasses.fields(in_python.video):
        # absent means what LiveKit's server takes it for, which is the default of the field
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
    ("rules", "asked", "video"),
    [
        ({}, {}, TALK),
        ({"grants": ["canSubscribe"]}, {}, JOIN | {"canPublish": False, "canSubscribe": True, "canPublishData": False}),
        ({"grants": []}, {}, JOIN | {"canPublish": False, "canSubscribe": False, "canPublishData": False}),
        ({"sources": ["microphone"]}, {}, TALK | {"canPublishSources": ["microphone"]}),
        ({}, {"canPublish": False, "canPublishData": False}, TALK | {"canPublish": False, "canPublishData": False}),
        ({}, {"canPublishSources": ["camera"]}, TALK | {"canPublishSources": ["camera"]}),
        ({"grants_on_request": ALL_ON_REQUEST}, {}, TALK),
        *(({"grants_on_request": ALL_ON_REQUEST}, {grant: True}, TALK | {grant: True}) for grant in ALL_ON_REQUEST),
    ],
)
def test_a_token_grants_what_was_asked_and_allowed_and_nothing_else(endpoint, rules, asked, video):
    _, claims = granted(endpoint(**rules), STANDARD | ({"participant_grants": asked} if asked else {}))
    assert claims["video"] == video


def test_a_token_says_of_the_participant_what_was_asked(endpoint):
    asked = STANDARD | {
        "participant_name": 'Zoë "Z" \\ 🎥',
        "participant_metadata": '{"role": "patient", "note": "é\\n"}',
        "participant_attributes": {"language": "de", "🎥": "ja"},
    }
    reply, claims = granted(endpoint(), asked)
    assert claims["sub"] == WHO
    assert (claims["name"], claims["metadata"]) == (asked["participant_name"], asked["participant_metadata"])
    assert claims["attributes"] == asked["participant_attributes"]
    assert claims.keys() == {"iss", "sub", "nbf", "exp", "name", "video", "metadata", "attributes"}
    body = dict(reply.json)
    assert body["token"] == body.pop("participant_token") and body.pop("token")
    assert body.pop("expires_at")
    assert body == {
        "server_url": SFU_URL,
        "url": SFU_URL,
        "room_name": ROOM,
        "participant_name": asked["participant_name"],
        "participant_identity": WHO,
    }


def test_the_form_of_the_example_has_one_name_for_all(endpoint):
    asked = {"room_name": ROOM, "participant_name": WHO, "metadata": '{"role": "participant"}'}
    reply, claims = granted(endpoint(), asked, status=200)
    assert (claims["sub"], claims["name"], claims["metadata"]) == (WHO, WHO, asked["metadata"])
    assert claims["video"] == TALK
    assert (reply.json["token"], reply.json["url"]) == (reply.json["participant_token"], SFU_URL)


@pytest.mark.parametrize(("asked", "lifetime"), [({}, 86_400), ({"ttl_seconds": 600}, 600)])
def test_expires_at_is_true_to_the_token(endpoint, asked, lifetime):
    before = int(time.time())
    reply, claims = granted(endpoint(), STANDARD | asked)
    after = int(time.time())
    assert before - 5 <= claims["nbf"] <= after
    assert before + lifetime <= claims["exp"] <= after + lifetime
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reply.json["expires_at"])
    assert datetime.datetime.fromisoformat(reply.json["expires_at"]).timestamp() == claims["exp"]


def test_the_variables_of_the_example_do_what_they_did(start):
    service = start(**settings(TOKEN_EXPIRY_HOURS=2))
    _, claims = granted(service, {"room_name": ROOM, "participant_name": WHO}, status=200)
    assert claims["exp"] - claims["nbf"] in range(7200, 7206)


def test_only_agents_of_a_room_config_reach_the_token(endpoint):
    service = endpoint(agents=["scribe", "bot-*"])
    agents = [{"agent_name": "scribe", "metadata": "in German"}, {"agent_name": "bot-1"}]
    _, claims = granted(service, STANDARD | {"room_config": {"agents": agents}})
    assert claims["roomConfig"] == {
        "agents": [{"agentName": "scribe", "metadata": "in German"}, {"agentName": "bot-1"}]
    }
    for nothing in None, {}, {"agents": []}:
        _, claims = granted(service, STANDARD | {"room_config": nothing})
        assert "roomConfig" not in claims


def test_the_unnamed_get_names_that_nobody_else_has(endpoint):
    service = endpoint(random_room=True, random_identity=True)
    replies = [granted(service, {})[0].json for _ in range(3)]
    for field in "room_name", "participant_identity":
        assert len({reply[field] for reply in replies}) == 3 and all(reply[field] for reply in replies)


def test_no_key_is_ever_logged(endpoint):
    service = endpoint()
    reply, _ = granted(service, STANDARD)
    assert service.call("POST", "/token", STANDARD, {"X-API-Key": API_KEY}).status == 201
    assert service.call("POST", "/token", STANDARD, {"Authorization": f"Bearer {API_KEY}x"}).status == 401
    secret, token = API_KEY.rpartition("_")[2], reply.json["token"]
    for leaked in secret, SECRET, token, token.rpartition(".")[2]:
        assert leaked not in service.text
    assert f"Token generated for user {WHO} in room {ROOM}" in service.text
