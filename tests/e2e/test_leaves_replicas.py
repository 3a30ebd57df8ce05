"""Several of us share one real Redis: every leave is worked by exactly one, whatever becomes of the others."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from replicas_stage import DELAY, TAKEN_OVER, Callers, Stage
from scenes import SOON, all_at_once, each, until


def webhooks_may_reach_any_replica(replicas):
    with Stage(replicas, 1) as stage:
        callers = Callers(stage, 12)
        callers.join()
        callers.expect_in_call_for(1.2 * DELAY)
        callers.leave()
        callers.expect_all_sent()


def whoever_leaves_as_soon_as_they_have_come_has_left(replicas):
    """Whoever kept a leave before hears of it after another one has taken it: that must not be the end of the message."""
    with Stage(replicas, 12) as stage:
        callers = Callers(stage, 30)
        callers.join()
        callers.leave()
        callers.expect_all_sent()


def the_leaves_of_a_killed_replica_go_on(replicas):
    with Stage(replicas, 2) as stage:
        callers = Callers(stage, 12)
        callers.join()
        callers.expect_in_call_for(stage.random.uniform(2, DELAY))
        stage.kill(0)
        callers.expect_in_call_for(1.2 * DELAY)
        callers.leave()
        callers.expect_all_sent(TAKEN_OVER)


def a_replica_killed_among_sends_loses_none(replicas):
    """The homeserver takes its time, so that the kill hits calls under way."""
    with Stage(replicas, 3) as stage:
        callers = Callers(stage, 12)
        callers.join()
        stage.homeserver.latency = 0.3
        leaving = threading.Thread(target=callers.leave)
        leaving.start()
        until(lambda: any(leave.sent for leave in callers.leaves.values()), SOON, "the first leave is sent")
        stage.kill(0)
        leaving.join()
        callers.expect_all_sent(TAKEN_OVER)


def whoever_leaves_while_their_keeper_is_dead_has_left(replicas):
    with Stage(replicas, 4) as stage:
        callers = Callers(stage, 12)
        callers.join()
        stage.kill(0)
        callers.leave()
        callers.expect_all_sent()


def a_replica_that_was_paused_does_not_act_on_what_it_lost(replicas):
    with Stage(replicas, 5) as stage:
        callers = Callers(stage, 8)
        leaving = Callers(stage, 4, "leaving")
        for them in callers, leaving:
            them.join()
        callers.expect_in_call_for(stage.random.uniform(2, DELAY / 2))
        pause = threading.Thread(target=stage.pause, args=(0, TAKEN_OVER))
        pause.start()
        # its webhooks go to the others, which take what it keeps
        until(lambda: 0 not in stage.well, SOON, "the replica is paused")
        leaving.leave()
        leaving.expect_all_sent(TAKEN_OVER)
        pause.join()
        woken = time.monotonic()
        callers.expect_in_call_for(1.2 * DELAY)
        stage.expect_one_keeper_each(callers, woken)
        late = [call for leave in [*callers.leaves.values(), *leaving.leaves.values()] for call in leave.calls]
        late = [call for call in late if call.door == 0 and call.time > woken]
        assert not late, f"the paused replica acted on what it had lost: {late}"
        callers.leave()
        callers.expect_all_sent()


def a_paused_replica_serves_again(replicas):
    with Stage(replicas, 6) as stage:
        stage.pause(0, TAKEN_OVER)
        stage.well = {0}
        callers = Callers(stage, 3)
        callers.join()
        callers.expect_in_call_for(1.2 * DELAY)
        callers.leave()
        callers.expect_all_sent()
        assert {call.door for leave in callers.leaves.values() for call in leave.calls} == {0}


def redis_may_be_killed_and_started_again(replicas):
    with Stage(replicas, 7) as stage:
        callers = Callers(stage, 8)
        leaving = Callers(stage, 4, "leaving")
        for them in callers, leaving:
            them.join()
        callers.expect_in_call_for(5)
        stage.redis.kill()
        gone = threading.Thread(target=leaving.leave)
        gone.start()
        callers.expect_in_call_for(3)
        stage.redis.start()
        gone.join()
        leaving.expect_all_sent(TAKEN_OVER)
        callers.expect_in_call_for(1.2 * DELAY)
        callers.leave()
        callers.expect_all_sent()


def nobody_acts_on_what_others_may_have_taken_while_redis_is_gone(replicas):
    """A late end of the old connection reaches the replica that has lost the leave, when it can't know that."""
    with Stage(replicas, 14) as stage:
        callers = Callers(stage, 4)
        stage.well = {0}
        callers.join()
        old, stage.well = dict(callers.sids), {1}
        callers.join()
        stage.redis.kill()
        stage.well = {0}
        with ThreadPoolExecutor(len(old)) as pool:
            late = [pool.submit(stage.webhooks.left, callers.room, callers.identity(who), old[who]) for who in old]
            callers.expect_in_call_for(2)
            stage.redis.start()
            for webhook in late:
                webhook.result()
        callers.expect_in_call_for(SOON)
        callers.leave()
        callers.expect_all_sent()


def a_replica_cut_off_from_redis_stops_acting_and_the_others_take_over(replicas):
    with Stage(replicas, 8) as stage:
        callers = Callers(stage, 12)
        callers.join()
        callers.expect_in_call_for(stage.random.uniform(2, DELAY / 2))
        with stage.cables[0].cut():
            stage.well.discard(0)
            callers.expect_in_call_for(TAKEN_OVER)
            lapsed = time.monotonic()
            callers.expect_in_call_for(DELAY)
            late = [call for leave in callers.leaves.values() for call in leave.calls]
            assert not [call for call in late if call.door == 0 and call.time > lapsed], late
        callers.expect_in_call_for(5)
        stage.well.add(0)
        callers.leave()
        callers.expect_all_sent()


def redis_cut_off_from_all_of_us_for_a_while_loses_no_leave(replicas):
    with Stage(replicas, 9) as stage:
        callers = Callers(stage, 12)
        callers.join()
        callers.expect_in_call_for(2)
        cuts = [cable.cut() for cable in stage.cables]
        for cut in cuts:
            cut.__enter__()
        callers.expect_in_call_for(12)
        for cut in cuts:
            cut.__exit__(None, None, None)
        callers.expect_in_call_for(1.2 * DELAY)
        callers.leave()
        callers.expect_all_sent(TAKEN_OVER)


def replicas_that_are_replaced_one_by_one_lose_no_leave(replicas):
    """As by a rolling update: each is told to stop before the next one starts in its place."""
    with Stage(replicas, 11) as stage:
        callers = Callers(stage, 12)
        callers.join()
        for n in range(replicas):
            stage.well.discard(n)
            stage.replicas[n].stop()
            callers.expect_in_call_for(2)
            stage.start(n)
        callers.expect_in_call_for(1.2 * DELAY)
        callers.leave()
        callers.expect_all_sent()


def a_minute_of_trouble_loses_no_leave(replicas):
    """Callers come, reconnect and go as they like, while replicas and Redis fail one after the other in every way."""
    with Stage(replicas, 13) as stage:
        callers = Callers(stage, 24)
        callers.join()
        end, left = time.monotonic() + 60, []

        def live(person):
            """A caller's minute. What they left behind must be sent, in spite of the trouble of the moment and the next one."""
            choice = random.Random(f"{stage.seed} {person}")
            identity = callers.identity(person)
            while time.monotonic() < end:
                time.sleep(choice.uniform(1, 10))
                old = callers.sids[person]
                if choice.random() < 0.4:
                    callers.sids[person] = stage.webhooks.joined(callers.room, identity)
                    time.sleep(choice.uniform(0, 2))
                    stage.webhooks.left(callers.room, identity, old)
                    continue
                leave = callers.leaves[person]
                stage.webhooks.left(callers.room, identity, old)
                left.append(leave)
                until(lambda leave=leave: leave.sent, 2 * TAKEN_OVER, f"the leave of {person} is sent")
                callers.delegate(person)
                callers.sids[person] = stage.webhooks.joined(callers.room, identity)

        with ThreadPoolExecutor(len(callers.people)) as pool:
            lives = [pool.submit(live, person) for person in callers.people]
            while time.monotonic() < end:
                stage.trouble()
                time.sleep(TAKEN_OVER / 2)
            for life in lives:
                life.result()
        callers.expect_in_call_for(1.2 * DELAY)
        assert left and all(leave.sent and len(leave.of("send")) == 1 for leave in left), left
        callers.leave()
        callers.expect_all_sent()


def a_replaced_leave_is_dropped_by_the_replica_that_kept_it(replicas):
    with Stage(replicas, 10) as stage:
        callers = Callers(stage, 0)
        callers.people = ["somebody"]
        callers.delegate("somebody", replica=0)
        callers.join()
        old = callers.leaves["somebody"]
        until(lambda: old.of("restart"), SOON, "a restart of the first")
        callers.delegate("somebody", replica=1)
        replaced = time.monotonic()
        callers.expect_in_call_for(1.2 * DELAY)
        callers.leave()
        callers.expect_all_sent()
        assert not [call for call in old.calls if call.time > replaced + 1], old


@pytest.fixture(scope="module")
def playing(request):
    return all_at_once(request, None)


def of(replicas, scenario):
    """The scenario with so many replicas, under a name of its own."""

    def play(_):
        scenario(replicas)

    play.__name__ = f"{scenario.__name__}[{replicas} replicas]"
    return play


SCENARIOS = [
    webhooks_may_reach_any_replica,
    whoever_leaves_as_soon_as_they_have_come_has_left,
    the_leaves_of_a_killed_replica_go_on,
    a_replica_killed_among_sends_loses_none,
    whoever_leaves_while_their_keeper_is_dead_has_left,
    a_replica_that_was_paused_does_not_act_on_what_it_lost,
    a_paused_replica_serves_again,
    redis_may_be_killed_and_started_again,
    nobody_acts_on_what_others_may_have_taken_while_redis_is_gone,
    a_replica_cut_off_from_redis_stops_acting_and_the_others_take_over,
    redis_cut_off_from_all_of_us_for_a_while_loses_no_leave,
    replicas_that_are_replaced_one_by_one_lose_no_leave,
    a_minute_of_trouble_loses_no_leave,
    a_replaced_leave_is_dropped_by_the_replica_that_kept_it,
]


@pytest.mark.timeout(400)
@each(*[of(replicas, scenario) for scenario in SCENARIOS for replicas in (2, 3)])
def test_replicas(scenario, playing):
    playing[scenario].result()
