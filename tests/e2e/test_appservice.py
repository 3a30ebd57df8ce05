"""Beside a real Synapse that has the service for an application service: its users get tokens by its own client API."""

import time

import pytest

from appservice_scene import API, Site, User, eventually_joined
from livekit_sdks import node_verdict, python_verdict
from scenes import SOON, until
from service import KEY, SECRET

# seconds after which the homeserver sends a leave by itself, far more than a slow machine needs for what comes before
DELAY = 12


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("appservice")
    home = Site(folder, "localhost", "localhost:18448")
    # this one serves users of any homeserver as well
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
    claims = python_verdict(token, KEY, SECRET)
    assert (claims.video.room, claims.identity) == user.names(room)
    assert claims.video.room_join and claims.video.can_subscribe and claims.video.can_publish == may_publish
    claims = node_verdict(token, KEY, SECRET)
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
    until(lambda: mallory.get_token(room).status_code == 200, SOON, "who joins is let in")
    assert "not joined to the Matrix room" in home.service.text


def test_the_stable_path_is_served_as_well(alice, room):
    reply = alice.ask("POST", "_matrix/client/v1/rtc/livekit/get_token", alice.place(room))
    expect_token(reply, alice, room, may_publish=True)


def test_an_sfu_that_is_not_ours_is_not_signed_for(alice, room):
    expect_error(alice.get_token(room, url="wss://sfu.example.net"), 400, "M_INVALID_PARAM")
    # the slash at its end is nobody's fault
    assert alice.get_token(room, url=f"{alice.site.sfu_url}/").status_code == 200


def test_a_client_cannot_pose_as_another_by_fields_of_its_own(home, alice, room):
    mallory = User(home)
    reply = mallory.ask("POST", f"{API}/get_token", mallory.place(room, user_id=alice.id))
    expect_error(reply, 403, "M_FORBIDDEN")


def test_a_user_of_another_homeserver_gets_a_token_for_this_one_s_sfu(home, away, alice, room):
    bob = User(away)
    ask = lambda: bob.get_token(room, home.sfu_url, server_name=home.name)  # noqa: E731
    expect_error(ask(), 403, "M_FORBIDDEN")
    bob.join(room, home.name)
    eventually_joined(home, bob, room)
    eventually_joined(away, alice, room)
    reply = until(lambda: (reply := ask()).status_code == 200 and reply, SOON, "who joins is let in")
    expect_token(reply, bob, room, may_publish=False)
    assert created(home, bob.names(room)[0]) >= 1, "the room is created for them as well"
    # its answers come back as they are
    reply = bob.get_token(room, "wss://sfu.example.net", server_name=home.name)
    expect_error(reply, 400, "M_INVALID_PARAM")
    # their own SFU is theirs, and named or not
    expect_token(bob.get_token(room), bob, room, may_publish=True)
    expect_token(bob.get_token(room, server_name=away.name), bob, room, may_publish=True)
    # a server with nobody in the room is not asked at all
    reply = bob.get_token(room, home.sfu_url, server_name="nobody.example.org")
    expect_error(reply, 403, "M_FORBIDDEN")


def test_a_server_that_is_gone_is_a_502(home, away, alice):
    bob = User(away)
    room = bob.create_room()
    alice.join(room, away.name)
    eventually_joined(home, alice, room)
    with away.without_service():
        reply = alice.get_token(room, away.sfu_url, server_name=away.name)
        expect_error(reply, 502, "M_UNKNOWN")


def test_a_leave_is_looked_up_restarted_and_sent(home, alice, room):
    delegate = f"{API}/delegate_delayed_leave"
    other = alice.create_room()
    mallory = User(home)
    mallory.join(room, home.name)
    until(lambda: mallory.get_token(room).status_code == 200, SOON, "they are in the room")
    assert alice.get_token(room).status_code == 200
    delay_id = alice.schedule(room, DELAY)
    expect_error(alice.ask("POST", delegate, alice.place(other, delay_id=delay_id)), 400, "M_INVALID_PARAM")
    theft = mallory.ask("POST", delegate, mallory.place(room, delay_id=delay_id))
    expect_error(theft, 400, "M_INVALID_PARAM")

    scheduled = alice.since(delay_id)
    reply = alice.ask("POST", delegate, alice.place(room, delay_id=delay_id))
    assert (reply.status_code, reply.json()) == (200, {}), reply.text
    names = alice.names(room)
    sid = home.webhooks.joined(*names)
    end = time.time() + 1.5 * DELAY
    while time.time() < end:
        assert alice.left_at() is None, "the leave came into the room in mid-call"
        time.sleep(0.5)
    assert alice.since(delay_id) > scheduled
    home.webhooks.left(*names, sid)
    at = until(alice.left_at, SOON, "the leave is in the room")
    assert at
    assert "outcome=Denied" not in home.service.text


def test_whoever_is_banned_is_put_out_and_stays_out(home, alice, room):
    carol = User(home)
    carol.join(room, home.name)
    until(lambda: carol.get_token(room).status_code == 200, SOON, "who joins is let in")
    names = carol.names(room)
    home.webhooks.joined(*names)
    time.sleep(3)
    assert names not in home.sfu.removed
    alice.do("POST", f"rooms/{room}/ban", {"user_id": carol.id})
    until(lambda: names in home.sfu.removed, SOON, "the banned user is removed")
    # the token is still valid
    home.webhooks.joined(*names)
    until(lambda: home.sfu.removed.count(names) == 2, SOON, "they are removed again")
    until(lambda: carol.get_token(room).status_code == 403, SOON, "no new token either")


def in_call(home, room):
    """A user of whom the SFU knows what their token carries, and nobody was told that they have come."""
    user = User(home)
    user.join(room, home.name)
    reply = until(lambda: (reply := user.get_token(room)).status_code == 200 and reply, SOON, "who joins is let in")
    attributes = node_verdict(reply.json()["jwt"], KEY, SECRET)["attributes"]
    assert user.id not in str(attributes) and room not in str(attributes)
    assert python_verdict(reply.json()["jwt"], KEY, SECRET).attributes == attributes
    home.sfu.attributes[user.names(room)] = attributes
    return user


def test_whoever_is_banned_while_the_service_is_away_is_put_out_when_it_is_back(home, alice, room):
    carol, dave = in_call(home, room), in_call(home, room)
    for user in carol, dave:
        home.sfu.present[user.names(room)] = f"PA_{user.member}"
    with home.without_service():
        alice.do("POST", f"rooms/{room}/ban", {"user_id": carol.id})
    until(lambda: carol.names(room) in home.sfu.removed, SOON, "the banned user is found and removed")
    assert dave.names(room) not in home.sfu.removed
    erin = in_call(home, room)
    with home.without_service():
        alice.do("POST", f"rooms/{room}/ban", {"user_id": erin.id})
    home.webhooks.joined(*erin.names(room))
    until(lambda: erin.names(room) in home.sfu.removed, SOON, "who comes with an older token is removed")
    assert dave.names(room) not in home.sfu.removed


def test_only_the_homeserver_is_believed_about_who_asks(home, away, alice, room):
    for site in (home, away):
        forged = {"X-Matrix-User-Identifier": alice.id}
        for headers, status in [({}, 401), ({"Authorization": "Bearer guessed"}, 403)]:
            reply = site.service.call("POST", f"/{API}/get_token", alice.place(room), forged | headers)
            assert (reply.status, "jwt" in reply.json) == (status, False)
    proven = {"Authorization": f"Bearer {home.hs_token}"}
    for path, names in [
        (f"/{API}/get_token", {"X-Matrix-Origin": away.name}),
        (f"/{API}/get_token", {"X-Matrix-Origin": away.name, "X-Matrix-User-Identifier": alice.id}),
        (f"/{API.replace('client', 'federation')}/get_token", {"X-Matrix-User-Identifier": alice.id}),
    ]:
        reply = home.service.call("POST", path, alice.place(room, user_id=alice.id), proven | names)
        assert (reply.status, reply.errcode) == (403, "M_FORBIDDEN")
    reply = home.service.call("POST", "/_matrix/app/v1/ping", {"transaction_id": "x"}, proven)
    assert (reply.status, reply.json) == (200, {})


def test_the_door_of_any_homeserver_is_open_only_where_somebody_opened_it(home, away):
    body = {"room_id": "!r"}
    assert home.service.call("POST", "/get_token", body).status == 404
    assert away.service.call("POST", "/get_token", body).status == 400


def test_no_token_of_the_registration_reaches_the_log(home, away):
    for site in (home, away):
        assert "token issued" in site.text
        assert site.hs_token not in site.text and site.as_token not in site.text
