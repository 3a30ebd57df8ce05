"""Application-service mode with real Synapses: users get access tokens through the client-server API of their homeserver."""

import time

import pytest

from appservice_site import API, Site, User, wait_until_joined
from concurrent_scenarios import SOON, wait_until
from livekit_sdks import verify_with_node_sdk, verify_with_python_sdk
from service import KEY, SECRET

# seconds after which a delayed event fires, more than a slow machine needs for everything before
DELAY = 12
# requests with `member_id` and with `member`
DIALECTS = [None, "DEVICE1"]


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("appservice")
    home = Site(folder, "localhost", "localhost:18448")
    # also serves users of other homeservers in standalone mode
    away = Site(folder, "ip", "127.0.0.1:18449", LIVEKIT_FULL_ACCESS_HOMESERVERS="elsewhere.example")
    yield home, away
    away.stop()
    home.stop()


@pytest.fixture(scope="module")
def home(sites):
    return sites[0]


@pytest.fixture(scope="module")
def away(sites):
    return sites[1]


@pytest.fixture
def alice(home):
    return User(home)


@pytest.fixture
def room(alice):
    return alice.create_room()


def expect_token(reply, user, room, may_publish):
    assert reply.status_code == 200, reply.text
    assert list(reply.json()) == ["jwt"]
    token = reply.json()["jwt"]
    claims = verify_with_python_sdk(token, KEY, SECRET)
    assert (claims.video.room, claims.identity) == user.names(room)
    assert claims.video.room_join and claims.video.can_subscribe and claims.video.can_publish == may_publish
    claims = verify_with_node_sdk(token, KEY, SECRET)
    granted = {name for name, value in claims["video"].items() if value is True}
    assert granted == {"roomJoin", "canSubscribe"} | ({"canPublish"} if may_publish else set())
    assert 500 < claims["exp"] - time.time() <= 600


def expect_error(reply, status, errcode):
    assert (reply.status_code, reply.json()["errcode"]) == (status, errcode), reply.text


def created(site, name):
    return [request.name for request in site.sfu.rooms].count(name)


def test_a_user_in_the_room_gets_a_token_and_another_does_not(home, alice, room):
    expect_token(alice.get_token(room), alice, room, may_publish=True)
    assert created(home, alice.names(room)[0]) == 1
    mallory = User(home)
    expect_error(mallory.get_token(room), 403, "M_FORBIDDEN")
    expect_error(mallory.get_token("!nowhere:example.org"), 403, "M_FORBIDDEN")
    mallory.join(room, home.name)
    wait_until(lambda: mallory.get_token(room).status_code == 200, SOON, "a joined user gets an access token")
    assert "not joined to the Matrix room" in home.service.text


def test_the_stable_path_is_served_as_well(alice, room):
    reply = alice.request("POST", "_matrix/client/v1/rtc/livekit/get_token", alice.request_body(room))
    expect_token(reply, alice, room, may_publish=True)


def test_no_token_is_signed_for_another_sfu(alice, room):
    expect_error(alice.get_token(room, url="wss://sfu.example.net"), 400, "M_INVALID_PARAM")
    # a trailing slash makes no difference
    assert alice.get_token(room, url=f"{alice.site.sfu_url}/").status_code == 200


def test_a_client_cannot_impersonate_another_user_by_extra_fields(home, alice, room):
    mallory = User(home)
    reply = mallory.request("POST", f"{API}/get_token", mallory.request_body(room, user_id=alice.id))
    expect_error(reply, 403, "M_FORBIDDEN")


@pytest.mark.parametrize("device", DIALECTS)
def test_a_user_of_another_homeserver_gets_a_token_for_this_one_s_sfu(home, away, alice, room, device):
    bob = User(away, device)
    request = lambda: bob.get_token(room, home.sfu_url, server_name=home.name)  # noqa: E731
    expect_error(request(), 403, "M_FORBIDDEN")
    bob.join(room, home.name)
    wait_until_joined(home, bob, room)
    wait_until_joined(away, alice, room)
    reply = wait_until(lambda: (reply := request()).status_code == 200 and reply, SOON, "a joined user gets an access token")
    expect_token(reply, bob, room, may_publish=False)
    assert created(home, bob.names(room)[0]) >= 1, "the room is not created for a user of another homeserver"
    # errors of the other site are returned unchanged
    reply = bob.get_token(room, "wss://sfu.example.net", server_name=home.name)
    expect_error(reply, 400, "M_INVALID_PARAM")
    # the SFU of the user's own site, with and without its server name
    expect_token(bob.get_token(room), bob, room, may_publish=True)
    expect_token(bob.get_token(room, server_name=away.name), bob, room, may_publish=True)
    # a homeserver without users in the room receives no request
    reply = bob.get_token(room, home.sfu_url, server_name="absent.example.org")
    expect_error(reply, 403, "M_FORBIDDEN")


def test_an_unreachable_site_is_a_502(home, away, alice):
    bob = User(away)
    room = bob.create_room()
    alice.join(room, away.name)
    wait_until_joined(home, alice, room)
    with away.without_service():
        reply = alice.get_token(room, away.sfu_url, server_name=away.name)
        expect_error(reply, 502, "M_UNKNOWN")


def test_a_delegated_leave_is_checked_restarted_and_sent(home, alice, room):
    delegate = f"{API}/delegate_delayed_leave"
    other = alice.create_room()
    mallory = User(home)
    mallory.join(room, home.name)
    wait_until(lambda: mallory.get_token(room).status_code == 200, SOON, "the second user is in the room")
    assert alice.get_token(room).status_code == 200
    delay_id = alice.schedule(room, DELAY)
    expect_error(alice.request("POST", delegate, alice.request_body(other, delay_id=delay_id)), 400, "M_INVALID_PARAM")
    stolen = mallory.request("POST", delegate, mallory.request_body(room, delay_id=delay_id))
    expect_error(stolen, 400, "M_INVALID_PARAM")

    scheduled = alice.since(delay_id)
    reply = alice.request("POST", delegate, alice.request_body(room, delay_id=delay_id))
    assert (reply.status_code, reply.json()) == (200, {}), reply.text
    names = alice.names(room)
    sid = home.webhooks.joined(*names)
    end = time.time() + 1.5 * DELAY
    while time.time() < end:
        assert alice.left_at() is None, "the leave event was sent during the call"
        time.sleep(0.5)
    assert alice.since(delay_id) > scheduled
    home.webhooks.left(*names, sid)
    at = wait_until(alice.left_at, SOON, "the leave event is in the room")
    assert at
    assert "Rejected(" not in home.service.text and "leave abandoned" not in home.service.text


@pytest.mark.parametrize("device", DIALECTS)
def test_a_banned_user_is_removed_and_stays_removed(home, alice, room, device):
    carol = User(home, device)
    carol.join(room, home.name)
    wait_until(lambda: carol.get_token(room).status_code == 200, SOON, "a joined user gets an access token")
    names = carol.names(room)
    home.webhooks.joined(*names)
    time.sleep(3)
    assert names not in home.sfu.removed
    alice.matrix_request("POST", f"rooms/{room}/ban", {"user_id": carol.id})
    wait_until(lambda: names in home.sfu.removed, SOON, "the banned user is removed")
    # the access token is still valid
    home.webhooks.joined(*names)
    wait_until(lambda: home.sfu.removed.count(names) == 2, SOON, "the banned user is removed again")
    wait_until(lambda: carol.get_token(room).status_code == 403, SOON, "the banned user gets no new access token")


def user_in_call(home, room):
    """A user whose access token's attributes are known to the SFU, which has sent no webhook about the user."""
    user = User(home)
    user.join(room, home.name)
    reply = wait_until(lambda: (reply := user.get_token(room)).status_code == 200 and reply, SOON, "a joined user gets an access token")
    attributes = verify_with_node_sdk(reply.json()["jwt"], KEY, SECRET)["attributes"]
    assert user.id not in str(attributes) and room not in str(attributes)
    assert verify_with_python_sdk(reply.json()["jwt"], KEY, SECRET).attributes == attributes
    home.sfu.attributes[user.names(room)] = attributes
    return user


def test_a_user_banned_while_the_service_is_down_is_removed_after_its_start(home, alice, room):
    carol, dave = user_in_call(home, room), user_in_call(home, room)
    for user in carol, dave:
        home.sfu.present[user.names(room)] = f"PA_{user.member}"
    with home.without_service():
        alice.matrix_request("POST", f"rooms/{room}/ban", {"user_id": carol.id})
    wait_until(lambda: carol.names(room) in home.sfu.removed, SOON, "the banned user is removed")
    assert dave.names(room) not in home.sfu.removed
    erin = user_in_call(home, room)
    with home.without_service():
        alice.matrix_request("POST", f"rooms/{room}/ban", {"user_id": erin.id})
    home.webhooks.joined(*erin.names(room))
    wait_until(lambda: erin.names(room) in home.sfu.removed, SOON, "a banned user who joins with an older access token is removed")
    assert dave.names(room) not in home.sfu.removed


def test_only_the_homeserver_can_name_the_requesting_user(home, away, alice, room):
    for site in (home, away):
        forged = {"X-Matrix-User-Identifier": alice.id}
        for headers, status in [({}, 401), ({"Authorization": "Bearer guessed"}, 403)]:
            reply = site.service.call("POST", f"/{API}/get_token", alice.request_body(room), forged | headers)
            assert (reply.status, "jwt" in reply.json) == (status, False)
    proven = {"Authorization": f"Bearer {home.hs_token}"}
    for path, names in [
        (f"/{API}/get_token", {"X-Matrix-Origin": away.name}),
        (f"/{API}/get_token", {"X-Matrix-Origin": away.name, "X-Matrix-User-Identifier": alice.id}),
        (f"/{API.replace('client', 'federation')}/get_token", {"X-Matrix-User-Identifier": alice.id}),
    ]:
        reply = home.service.call("POST", path, alice.request_body(room, user_id=alice.id), proven | names)
        assert (reply.status, reply.errcode) == (403, "M_FORBIDDEN")
    reply = home.service.call("POST", "/_matrix/app/v1/ping", {"transaction_id": "x"}, proven)
    assert (reply.status, reply.json) == (200, {})


def test_the_standalone_endpoints_are_open_only_where_full_access_homeservers_are_set(home, away):
    body = {"room_id": "!r"}
    assert home.service.call("POST", "/get_token", body).status == 404
    assert away.service.call("POST", "/get_token", body).status == 400


def test_the_tokens_of_the_registration_are_not_logged(home, away):
    for site in (home, away):
        assert "token issued" in site.text
        assert site.hs_token not in site.text and site.as_token not in site.text
