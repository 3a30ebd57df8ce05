"""Users of a real Synapse exchange a real OpenID token for an access token that LiveKit's own SDKs accept."""

import time

import pytest

from livekit_sdks import hashed_name, verify_with_node_sdk, verify_with_python_sdk
from real_synapse import Synapse
from service import DEVICE, KEY, MEMBER, ROOM, SECRET, SFU_URL, SLOT


@pytest.fixture(scope="module", params=["localhost", "ip", "hs.test"])
def synapse(request):
    synapse = Synapse(request.param)
    yield synapse
    synapse.stop()


@pytest.fixture(scope="module")
def user(synapse):
    return synapse.register()


@pytest.fixture
def service(synapse, sfu, start):
    return start(
        LIVEKIT_CA_FILE=synapse.ca_file,
        LIVEKIT_FULL_ACCESS_HOMESERVERS=synapse.server_name,
        LIVEKIT_API_URL=sfu.url,
    )


def expect_token(reply, room, identity):
    """Both SDKs accept the access token, and read the same grants."""
    assert reply.status == 200, reply.body
    assert reply.json["url"] == SFU_URL
    assert reply.headers["Access-Control-Allow-Origin"] == "*"

    claims = verify_with_python_sdk(reply.json["jwt"], KEY, SECRET)
    assert (claims.identity, claims.video.room) == (identity, room)
    assert claims.video.room_join and claims.video.can_publish and claims.video.can_subscribe
    assert not (claims.video.room_create or claims.video.hidden or claims.video.room_admin or claims.video.room_list)
    assert not claims.video.can_update_own_metadata

    claims = verify_with_node_sdk(reply.json["jwt"], KEY, SECRET)
    assert (claims["iss"], claims["sub"], claims["video"]["room"]) == (KEY, identity, room)
    granted = {name for name, value in claims["video"].items() if value is True}
    assert granted == {"roomJoin", "canPublish", "canSubscribe"}
    assert 3300 < claims["exp"] - time.time() <= 3600


def expect_refusal(reply):
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")
    assert reply.headers["Access-Control-Allow-Origin"] == "*"


def test_a_registered_user_gets_a_token_at_get_token(synapse, user, service, sfu):
    name, access_token = user
    reply = service.get_token(name, synapse.server_name, synapse.openid_token(name, access_token))
    room = hashed_name(ROOM, SLOT)
    expect_token(reply, room, hashed_name(name, DEVICE, MEMBER))
    assert [created.name for created in sfu.rooms] == [room] and not sfu.refusals


def test_a_registered_user_gets_a_token_at_sfu_get(synapse, user, service, sfu):
    name, access_token = user
    reply = service.sfu_get(synapse.server_name, synapse.openid_token(name, access_token))
    room = hashed_name(ROOM, "m.call#ROOM")
    expect_token(reply, room, f"{name}:{DEVICE}")
    assert [created.name for created in sfu.rooms] == [room] and not sfu.refusals


def test_a_room_is_created_with_the_timeouts_that_clients_expect(synapse, user, service, sfu):
    name, access_token = user
    assert service.get_token(name, synapse.server_name, synapse.openid_token(name, access_token)).status == 200
    (room,) = sfu.rooms
    assert (room.empty_timeout, room.departure_timeout, room.max_participants) == (300, 20, 0)


def test_an_unknown_openid_token_is_refused(synapse, user, service, sfu):
    expect_refusal(service.get_token(user[0], synapse.server_name, "no-such-token"))
    expect_refusal(service.sfu_get(synapse.server_name, "no-such-token"))
    assert not sfu.rooms


def test_a_user_cannot_impersonate_another(synapse, user, service, sfu):
    token = synapse.openid_token(*user)
    expect_refusal(service.get_token(f"@admin:{synapse.server_name}", synapse.server_name, token))
    assert not sfu.rooms


def test_an_unlisted_homeserver_on_loopback_is_refused_by_default(synapse, user, start):
    """The OpenID token is valid, and only the address policy refuses it."""
    service = start(LIVEKIT_CA_FILE=synapse.ca_file)
    token = synapse.openid_token(*user)
    expect_refusal(service.get_token(user[0], synapse.server_name, token))
    expect_refusal(service.sfu_get(synapse.server_name, token))


def test_the_openid_token_is_not_logged(synapse, user, service):
    token = synapse.openid_token(*user)
    assert service.get_token(user[0], synapse.server_name, token).status == 200
    service.stop()
    assert "msg=listening" in service.text
    assert token not in service.text and SECRET not in service.text
