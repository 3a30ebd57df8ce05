"""Leaves of callers on a real Synapse, handed to the service, while an SFU tells who comes and goes."""

import contextlib
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from livekit_sdks import name_of
from real_synapse import Caller, Synapse, well_known_of_hs_test
from scenes import SOON, all_at_once, each, until
from service import DEVICE, MEMBER, SLOT, Service
from synapse_scene import Scene

# the delay that clients ask for when they find that the service sends their leave
LONG = 3600


def a_leave_does_not_fire_while_its_caller_is_connected_and_is_sent_when_they_are_not(synapse):
    with Scene(synapse) as scene:
        scene.delegate(20)
        sid = scene.join()
        until(lambda: scene.calls("restart"), SOON, "a restart when the caller connects")
        scene.expect_restarts_for(45)
        scene.leave(sid)
        assert len(scene.calls("send")) == 1


def a_leave_is_in_the_room_within_a_second(synapse):
    """Of five the fastest one counts: that is nothing for a loaded machine to spoil."""
    with Scene(synapse) as scene:
        took = []
        for path in "/get_token", "/sfu/get", "/delegate_delayed_leave", "/get_token", "/sfu/get":
            scene.caller = Caller(synapse)
            scene.room = name_of(scene.caller.room, SLOT)
            user = scene.caller.user
            scene.identity = f"{user}:{DEVICE}" if path == "/sfu/get" else name_of(user, DEVICE, MEMBER)
            scene.delegate(LONG, path)
            sid = scene.join()
            until(lambda: scene.calls("restart"), SOON, "a restart when the caller connects")
            took.append(scene.leave(sid))
        print(f"leaves in the room after {', '.join(f'{seconds:.3f}' for seconds in took)} s")
        assert min(took) < 1, took


def whoever_never_connects_has_left_when_the_delay_has_passed(synapse):
    with Scene(synapse) as scene:
        at = time.time()
        scene.delegate(LONG, told=6)
        assert scene.expect_sent(6 + SOON) - at > 5.9
        assert not scene.calls("restart")


def a_connection_aborted_before_it_was_one_is_left_to_the_homeserver(synapse):
    with Scene(synapse) as scene:
        scene.delegate(20)
        scene.webhooks.aborted(scene.room, scene.identity)
        since = scene.caller.since(scene.delay_id)
        left_at = until(scene.caller.left_at, 20 + SOON, "the leave is in the room")
        assert left_at >= since + 20 and not scene.proxy.calls


def a_late_end_of_the_old_connection_does_not_end_the_new_one(synapse):
    with Scene(synapse) as scene:
        scene.delegate(15)
        old = scene.join()
        new = scene.join()
        scene.webhooks.left(scene.room, scene.identity, old)
        scene.expect_restarts_for(35)
        assert not scene.calls("send")
        scene.leave(new)


def a_replaced_delegation_does_nothing_more(synapse):
    with Scene(synapse) as scene:
        first = scene.delegate(15)
        sid = scene.join()
        until(lambda: scene.calls("restart"), SOON, "a restart of the first")
        second = scene.delegate(15)
        before = len(scene.calls("restart", first))
        scene.caller.cancel(first)
        # nobody tells the service that this caller is connected already: it has to ask
        scene.expect_restarts_for(35)
        scene.leave(sid)
        assert len(scene.calls("restart", first)) == before and not scene.calls("send", first)
        assert len(scene.calls("send", second)) == 1


def a_leave_that_is_gone_is_given_up(synapse):
    with Scene(synapse) as scene:
        gone = scene.delegate(10)
        sid = scene.join()
        until(lambda: scene.calls("restart"), SOON, "a restart")
        scene.caller.cancel(gone)
        until(
            lambda: any(call.status == 404 for call in scene.calls("restart")), 10 + SOON, "a restart of what is gone"
        )
        scene.webhooks.left(scene.room, scene.identity, sid)
        calls = scene.calls("restart"), scene.calls("send")
        # the same service has done other work in the meantime
        scene.caller = Caller(synapse)
        scene.room, scene.identity = name_of(scene.caller.room, SLOT), name_of(scene.caller.user, DEVICE, MEMBER)
        scene.delegate(5)
        scene.leave(scene.join())
        assert (scene.calls("restart", gone), scene.calls("send", gone)) == calls


def _down_in_mid_call(synapse, fault):
    """The restart falls due while the homeserver is away, and has ten seconds left when it is back."""
    with Scene(synapse) as scene:
        scene.delegate(75)
        sid = scene.join()
        until(lambda: scene.calls("restart"), SOON, "a restart when the caller connects")
        time.sleep(35)
        with scene.proxy.broken(fault):
            time.sleep(30)
        until(lambda: len(scene.calls("restart")) > 1, 20, "a restart when the homeserver is back")
        scene.stays_for(15)
        scene.leave(sid)


def a_homeserver_that_refuses_for_thirty_seconds_in_mid_call_ends_no_call(synapse):
    _down_in_mid_call(synapse, "refused")


def a_homeserver_that_is_silent_for_thirty_seconds_in_mid_call_ends_no_call(synapse):
    _down_in_mid_call(synapse, "silent")


def a_proxy_that_answers_502_for_thirty_seconds_in_mid_call_ends_no_call(synapse):
    _down_in_mid_call(synapse, "502")


def _left_while_down(synapse, fault):
    with Scene(synapse) as scene:
        scene.delegate(LONG)
        sid = scene.join()
        until(lambda: scene.calls("restart"), SOON, "a restart when the caller connects")
        with scene.proxy.broken(fault):
            scene.webhooks.left(scene.room, scene.identity, sid)
            time.sleep(30)
            assert scene.caller.left_at() is None
        scene.expect_sent(60)
        assert len(scene.sent()) == 1


def whoever_leaves_while_the_homeserver_refuses_has_left_when_it_is_back(synapse):
    _left_while_down(synapse, "refused")


def whoever_leaves_while_the_homeserver_is_silent_has_left_when_it_is_back(synapse):
    _left_while_down(synapse, "silent")


def a_lost_webhook_is_made_up_for_by_asking_the_sfu(synapse):
    with Scene(synapse, LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS=2) as scene:
        scene.delegate(15)
        scene.sfu.present[scene.room, scene.identity] = "PA_untold"
        scene.expect_restarts_for(20)
        scene.sfu.present.clear()
        scene.expect_sent()
        assert len(scene.sent()) == 1


def a_service_killed_in_mid_call_takes_the_leave_up_again(synapse):
    with tempfile.TemporaryDirectory() as folder, Scene(synapse, LIVEKIT_STATE_DIR=folder) as scene:
        scene.delegate(20)
        sid = scene.join()
        until(lambda: scene.calls("restart"), SOON, "a restart when the caller connects")
        scene.service.process.kill()
        scene.service.process.wait()
        scene.service = Service(scene.settings)
        scene.expect_restarts_for(30)
        scene.leave(sid)


def a_real_synapse_stopped_for_thirty_seconds_and_found_by_discovery_loses_no_leave(_):
    with contextlib.ExitStack() as stack:
        synapse = Synapse("hs.test", well_known_port=18451)
        stack.callback(synapse.stop)
        stack.callback(well_known_of_hs_test().stop)
        scene = stack.enter_context(Scene(synapse, LIVEKIT_CS_API_URL_OVERRIDES=""))
        scene.delegate(LONG)
        since = scene.caller.since(scene.delay_id)
        sid = scene.join()
        until(lambda: scene.caller.since(scene.delay_id) > since, SOON, "a restart when the caller connects")
        synapse.stop()
        scene.webhooks.left(scene.room, scene.identity, sid)
        time.sleep(30)
        synapse.start()
        until(scene.caller.left_at, 60 + SOON, "the leave is in the room")


def twenty_callers_on_a_synapse_with_stock_limits_lose_no_leave(_):
    """One bucket of a call a second, and five at once: not enough for twenty to be careless with."""
    delay, synapse = 30, Synapse("ip", default_limits=True)
    with contextlib.ExitStack() as stack:
        stack.callback(synapse.stop)
        scene = stack.enter_context(Scene(synapse))
        with ThreadPoolExecutor(20) as pool:
            callers = list(pool.map(lambda _: Caller(synapse, scene.caller.room), range(20)))
            begin = time.time()
            list(pool.map(lambda caller: scene.delegate(delay, caller=caller), callers))
            identities = {caller: name_of(caller.user, DEVICE, MEMBER) for caller in callers}
            sids = {caller: scene.webhooks.joined(scene.room, identities[caller]) for caller in callers}

            def expect_in_call(callers, seconds):
                end = time.time() + seconds
                while time.time() < end:
                    left = [caller.user for caller, at in zip(callers, pool.map(Caller.left_at, callers)) if at]
                    assert not left, f"left in mid-call, after {time.time() - begin:.0f} s: {left}"
                    time.sleep(1)

            def expect_to_leave(callers):
                at = time.time()
                for caller in callers:
                    scene.webhooks.left(scene.room, identities[caller], sids[caller])
                ended = [until(caller.left_at, delay + SOON, f"{caller.user} has left") for caller in callers]
                assert all(at - 1 < left < at + delay + 1 for left in ended)
                print(
                    f"leaves of {len(ended)} in the room after {', '.join(f'{left - at:.1f}' for left in sorted(ended))} s"
                )

            expect_in_call(callers, 2.2 * delay)
            expect_to_leave(callers[:10])
            expect_in_call(callers[10:], 10)
            expect_to_leave(callers[10:])
        assert len(re.findall("rc_delayed_event_mgmt", scene.service.text)) == 1


@pytest.fixture(scope="module")
def playing(request):
    synapse = Synapse("localhost")
    yield all_at_once(request, synapse)
    synapse.stop()


@pytest.mark.timeout(400)
@each(
    a_leave_does_not_fire_while_its_caller_is_connected_and_is_sent_when_they_are_not,
    a_leave_is_in_the_room_within_a_second,
    whoever_never_connects_has_left_when_the_delay_has_passed,
    a_connection_aborted_before_it_was_one_is_left_to_the_homeserver,
    a_late_end_of_the_old_connection_does_not_end_the_new_one,
    a_replaced_delegation_does_nothing_more,
    a_leave_that_is_gone_is_given_up,
    a_homeserver_that_refuses_for_thirty_seconds_in_mid_call_ends_no_call,
    a_homeserver_that_is_silent_for_thirty_seconds_in_mid_call_ends_no_call,
    a_proxy_that_answers_502_for_thirty_seconds_in_mid_call_ends_no_call,
    whoever_leaves_while_the_homeserver_refuses_has_left_when_it_is_back,
    whoever_leaves_while_the_homeserver_is_silent_has_left_when_it_is_back,
    a_lost_webhook_is_made_up_for_by_asking_the_sfu,
    a_service_killed_in_mid_call_takes_the_leave_up_again,
    a_real_synapse_stopped_for_thirty_seconds_and_found_by_discovery_loses_no_leave,
    twenty_callers_on_a_synapse_with_stock_limits_lose_no_leave,
)
def test_leaves(scenario, playing):
    playing[scenario].result()
