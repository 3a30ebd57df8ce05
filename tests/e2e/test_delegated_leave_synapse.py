"""Delegated leave events of users of a real Synapse, with webhooks of a fake SFU."""

import contextlib
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from concurrent_scenarios import SOON, parametrize_scenarios, start_all, wait_until
from leave_scenario import LeaveScenario
from livekit_sdks import hashed_name
from real_synapse import CallMember, Synapse, well_known_of_hs_test
from service import DEVICE, MEMBER, SLOT, Service

# seconds; the delay that clients choose once the service has accepted the delegation
LONG = 3600


def a_leave_is_restarted_while_its_member_is_connected_and_sent_after_that(synapse):
    with LeaveScenario(synapse) as scenario:
        scenario.delegate(20)
        sid = scenario.join()
        wait_until(lambda: scenario.calls("restart"), SOON, "a restart when the member connects")
        scenario.expect_restarts_for(45)
        scenario.leave(sid)
        assert len(scenario.calls("send")) == 1


def a_leave_is_in_the_room_within_a_second(synapse):
    """The fastest of five counts, as the machine may be loaded."""
    with LeaveScenario(synapse) as scenario:
        took = []
        for path in "/get_token", "/sfu/get", "/delegate_delayed_leave", "/get_token", "/sfu/get":
            scenario.member = CallMember(synapse)
            scenario.room = hashed_name(scenario.member.room, SLOT)
            user = scenario.member.user
            scenario.identity = f"{user}:{DEVICE}" if path == "/sfu/get" else hashed_name(user, DEVICE, MEMBER)
            scenario.delegate(LONG, path)
            sid = scenario.join()
            wait_until(lambda: scenario.calls("restart"), SOON, "a restart when the member connects")
            took.append(scenario.leave(sid))
        print(f"leave events sent after {', '.join(f'{seconds:.3f}' for seconds in took)} s")
        assert min(took) < 1, took


def a_member_who_never_connects_has_left_after_the_delay(synapse):
    with LeaveScenario(synapse) as scenario:
        at = time.time()
        scenario.delegate(LONG, claimed_delay=6)
        assert scenario.expect_sent(6 + SOON) - at > 5.9
        assert not scenario.calls("restart")


def the_leave_of_an_aborted_connection_is_left_to_the_homeserver(synapse):
    with LeaveScenario(synapse) as scenario:
        scenario.delegate(20)
        scenario.webhooks.aborted(scenario.room, scenario.identity)
        since = scenario.member.since(scenario.delay_id)
        left_at = wait_until(scenario.member.left_at, 20 + SOON, "the leave event is in the room")
        assert left_at >= since + 20 and not scenario.proxy.calls


def a_late_webhook_about_the_previous_connection_is_ignored(synapse):
    with LeaveScenario(synapse) as scenario:
        scenario.delegate(15)
        old = scenario.join()
        new = scenario.join()
        scenario.webhooks.left(scenario.room, scenario.identity, old)
        scenario.expect_restarts_for(35)
        assert not scenario.calls("send")
        scenario.leave(new)


def a_replaced_delegation_sends_no_more_requests(synapse):
    with LeaveScenario(synapse) as scenario:
        first = scenario.delegate(15)
        sid = scenario.join()
        wait_until(lambda: scenario.calls("restart"), SOON, "a restart of the first")
        second = scenario.delegate(15)
        before = len(scenario.calls("restart", first))
        scenario.member.cancel(first)
        # no webhook says that this member is connected already: the service has to ask the SFU
        scenario.expect_restarts_for(35)
        scenario.leave(sid)
        assert len(scenario.calls("restart", first)) == before and not scenario.calls("send", first)
        assert len(scenario.calls("send", second)) == 1


def a_cancelled_leave_is_abandoned(synapse):
    with LeaveScenario(synapse) as scenario:
        cancelled = scenario.delegate(10)
        sid = scenario.join()
        wait_until(lambda: scenario.calls("restart"), SOON, "a restart")
        scenario.member.cancel(cancelled)
        wait_until(
            lambda: any(call.status == 404 for call in scenario.calls("restart")), 10 + SOON, "a restart of the cancelled leave"
        )
        scenario.webhooks.left(scenario.room, scenario.identity, sid)
        calls = scenario.calls("restart"), scenario.calls("send")
        # the same service serves another member meanwhile
        scenario.member = CallMember(synapse)
        scenario.room, scenario.identity = hashed_name(scenario.member.room, SLOT), hashed_name(scenario.member.user, DEVICE, MEMBER)
        scenario.delegate(5)
        scenario.leave(scenario.join())
        assert (scenario.calls("restart", cancelled), scenario.calls("send", cancelled)) == calls


def _down_during_a_call(synapse, fault):
    """The restart falls due while the homeserver is down, and has ten seconds left when the homeserver is up again."""
    with LeaveScenario(synapse) as scenario:
        scenario.delegate(75)
        sid = scenario.join()
        wait_until(lambda: scenario.calls("restart"), SOON, "a restart when the member connects")
        time.sleep(35)
        with scenario.proxy.broken(fault):
            time.sleep(30)
        wait_until(lambda: len(scenario.calls("restart")) > 1, 20, "a restart when the homeserver is up again")
        scenario.stay_connected(15)
        scenario.leave(sid)


def a_homeserver_that_refuses_for_thirty_seconds_during_a_call_ends_no_call(synapse):
    _down_during_a_call(synapse, "refused")


def a_homeserver_that_is_silent_for_thirty_seconds_during_a_call_ends_no_call(synapse):
    _down_during_a_call(synapse, "silent")


def a_proxy_that_answers_502_for_thirty_seconds_during_a_call_ends_no_call(synapse):
    _down_during_a_call(synapse, "502")


def _left_while_down(synapse, fault):
    with LeaveScenario(synapse) as scenario:
        scenario.delegate(LONG)
        sid = scenario.join()
        wait_until(lambda: scenario.calls("restart"), SOON, "a restart when the member connects")
        with scenario.proxy.broken(fault):
            scenario.webhooks.left(scenario.room, scenario.identity, sid)
            time.sleep(30)
            assert scenario.member.left_at() is None
        scenario.expect_sent(60)
        assert len(scenario.sent()) == 1


def a_member_who_leaves_while_the_homeserver_refuses_connections_has_left_after_that(synapse):
    _left_while_down(synapse, "refused")


def a_member_who_leaves_while_the_homeserver_is_silent_has_left_after_that(synapse):
    _left_while_down(synapse, "silent")


def a_lost_webhook_is_replaced_by_a_question_to_the_sfu(synapse):
    with LeaveScenario(synapse, LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS=2) as scenario:
        scenario.delegate(15)
        scenario.sfu.present[scenario.room, scenario.identity] = "PA_without_webhook"
        scenario.expect_restarts_for(20)
        scenario.sfu.present.clear()
        scenario.expect_sent()
        assert len(scenario.sent()) == 1


def a_service_killed_during_a_call_continues_after_its_start(synapse):
    with tempfile.TemporaryDirectory() as folder, LeaveScenario(synapse, LIVEKIT_STATE_DIR=folder) as scenario:
        scenario.delegate(20)
        sid = scenario.join()
        wait_until(lambda: scenario.calls("restart"), SOON, "a restart when the member connects")
        scenario.service.process.kill()
        scenario.service.process.wait()
        scenario.service = Service(scenario.settings)
        scenario.expect_restarts_for(30)
        scenario.leave(sid)


def a_real_synapse_stopped_for_thirty_seconds_and_found_by_discovery_loses_no_leave(_):
    with contextlib.ExitStack() as stack:
        synapse = Synapse("hs.test", well_known_port=18451)
        stack.callback(synapse.stop)
        stack.callback(well_known_of_hs_test().stop)
        scenario = stack.enter_context(LeaveScenario(synapse, LIVEKIT_CS_API_URL_OVERRIDES=""))
        scenario.delegate(LONG)
        since = scenario.member.since(scenario.delay_id)
        sid = scenario.join()
        wait_until(lambda: scenario.member.since(scenario.delay_id) > since, SOON, "a restart when the member connects")
        synapse.stop()
        scenario.webhooks.left(scenario.room, scenario.identity, sid)
        time.sleep(30)
        synapse.start()
        wait_until(scenario.member.left_at, 60 + SOON, "the leave event is in the room")


def twenty_members_on_a_synapse_with_default_limits_lose_no_leave(_):
    """Synapse's default rate limit, one request a second and five at once for all of them."""
    delay, synapse = 30, Synapse("ip", default_limits=True)
    with contextlib.ExitStack() as stack:
        stack.callback(synapse.stop)
        scenario = stack.enter_context(LeaveScenario(synapse))
        with ThreadPoolExecutor(20) as pool:
            members = list(pool.map(lambda _: CallMember(synapse, scenario.member.room), range(20)))
            begin = time.time()
            list(pool.map(lambda member: scenario.delegate(delay, member=member), members))
            identities = {member: hashed_name(member.user, DEVICE, MEMBER) for member in members}
            sids = {member: scenario.webhooks.joined(scenario.room, identities[member]) for member in members}

            def expect_in_call(members, seconds):
                end = time.time() + seconds
                while time.time() < end:
                    left = [member.user for member, at in zip(members, pool.map(CallMember.left_at, members)) if at]
                    assert not left, f"left during the call, after {time.time() - begin:.0f} s: {left}"
                    time.sleep(1)

            def expect_to_leave(members):
                at = time.time()
                for member in members:
                    scenario.webhooks.left(scenario.room, identities[member], sids[member])
                ended = [wait_until(member.left_at, delay + SOON, f"{member.user} has left") for member in members]
                assert all(at - 1 < left < at + delay + 1 for left in ended)
                print(
                    f"leave events of {len(ended)} sent after {', '.join(f'{left - at:.1f}' for left in sorted(ended))} s"
                )

            expect_in_call(members, 2.2 * delay)
            expect_to_leave(members[:10])
            expect_in_call(members[10:], 10)
            expect_to_leave(members[10:])
        assert len(re.findall("rc_delayed_event_mgmt", scenario.service.text)) == 1


@pytest.fixture(scope="module")
def futures(request):
    synapse = Synapse("localhost")
    yield start_all(request, synapse)
    synapse.stop()


@pytest.mark.timeout(400)
@parametrize_scenarios(
    a_leave_is_restarted_while_its_member_is_connected_and_sent_after_that,
    a_leave_is_in_the_room_within_a_second,
    a_member_who_never_connects_has_left_after_the_delay,
    the_leave_of_an_aborted_connection_is_left_to_the_homeserver,
    a_late_webhook_about_the_previous_connection_is_ignored,
    a_replaced_delegation_sends_no_more_requests,
    a_cancelled_leave_is_abandoned,
    a_homeserver_that_refuses_for_thirty_seconds_during_a_call_ends_no_call,
    a_homeserver_that_is_silent_for_thirty_seconds_during_a_call_ends_no_call,
    a_proxy_that_answers_502_for_thirty_seconds_during_a_call_ends_no_call,
    a_member_who_leaves_while_the_homeserver_refuses_connections_has_left_after_that,
    a_member_who_leaves_while_the_homeserver_is_silent_has_left_after_that,
    a_lost_webhook_is_replaced_by_a_question_to_the_sfu,
    a_service_killed_during_a_call_continues_after_its_start,
    a_real_synapse_stopped_for_thirty_seconds_and_found_by_discovery_loses_no_leave,
    twenty_members_on_a_synapse_with_default_limits_lose_no_leave,
)
def test_leaves(scenario, futures):
    futures[scenario].result()
