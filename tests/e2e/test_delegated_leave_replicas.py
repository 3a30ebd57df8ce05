"""Several replicas share one real Redis: each leave has exactly one owner, whatever happens to the others."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from concurrent_scenarios import SOON, parametrize_scenarios, start_all, wait_until
from replica_cluster import DELAY, TAKEOVER_SECONDS, Participants, ReplicaCluster


def webhooks_may_reach_any_replica(replicas):
    with ReplicaCluster(replicas, 1) as cluster:
        participants = Participants(cluster, 12)
        participants.join()
        participants.expect_in_call_for(1.2 * DELAY)
        participants.leave()
        participants.expect_all_sent()


def a_participant_who_leaves_right_after_joining_has_left(replicas):
    """The previous owner of a leave may receive the message about a webhook after another replica has taken the leave over."""
    with ReplicaCluster(replicas, 12) as cluster:
        participants = Participants(cluster, 30)
        participants.join()
        participants.leave()
        participants.expect_all_sent()


def the_leaves_of_a_killed_replica_are_taken_over(replicas):
    with ReplicaCluster(replicas, 2) as cluster:
        participants = Participants(cluster, 12)
        participants.join()
        participants.expect_in_call_for(cluster.random.uniform(2, DELAY))
        cluster.kill(0)
        participants.expect_in_call_for(1.2 * DELAY)
        participants.leave()
        participants.expect_all_sent(TAKEOVER_SECONDS)


def a_replica_killed_while_it_sends_loses_no_leave(replicas):
    """The homeserver answers slowly, so that requests are in progress at the kill."""
    with ReplicaCluster(replicas, 3) as cluster:
        participants = Participants(cluster, 12)
        participants.join()
        cluster.homeserver.latency = 0.3
        leaving = threading.Thread(target=participants.leave)
        leaving.start()
        wait_until(lambda: any(leave.sent for leave in participants.leaves.values()), SOON, "the first leave event is sent")
        cluster.kill(0)
        leaving.join()
        participants.expect_all_sent(TAKEOVER_SECONDS)


def a_participant_who_leaves_while_the_owner_is_dead_has_left(replicas):
    with ReplicaCluster(replicas, 4) as cluster:
        participants = Participants(cluster, 12)
        participants.join()
        cluster.kill(0)
        participants.leave()
        participants.expect_all_sent()


def a_replica_that_was_paused_does_not_act_on_leaves_it_lost(replicas):
    with ReplicaCluster(replicas, 5) as cluster:
        participants = Participants(cluster, 8)
        leaving = Participants(cluster, 4, "leaving")
        for group in participants, leaving:
            group.join()
        participants.expect_in_call_for(cluster.random.uniform(2, DELAY / 2))
        pause = threading.Thread(target=cluster.pause, args=(0, TAKEOVER_SECONDS))
        pause.start()
        # webhooks go to the other replicas, which take its leaves over
        wait_until(lambda: 0 not in cluster.reachable, SOON, "the replica is paused")
        leaving.leave()
        leaving.expect_all_sent(TAKEOVER_SECONDS)
        pause.join()
        resumed = time.monotonic()
        participants.expect_in_call_for(1.2 * DELAY)
        cluster.expect_one_owner_each(participants, resumed)
        late = [call for leave in [*participants.leaves.values(), *leaving.leaves.values()] for call in leave.calls]
        late = [call for call in late if call.listener == 0 and call.time > resumed]
        assert not late, f"the paused replica acted on leaves it had lost: {late}"
        participants.leave()
        participants.expect_all_sent()


def a_replica_serves_after_a_pause(replicas):
    with ReplicaCluster(replicas, 6) as cluster:
        cluster.pause(0, TAKEOVER_SECONDS)
        cluster.reachable = {0}
        participants = Participants(cluster, 3)
        participants.join()
        participants.expect_in_call_for(1.2 * DELAY)
        participants.leave()
        participants.expect_all_sent()
        assert {call.listener for leave in participants.leaves.values() for call in leave.calls} == {0}


def redis_may_be_killed_and_started_again(replicas):
    with ReplicaCluster(replicas, 7) as cluster:
        participants = Participants(cluster, 8)
        leaving = Participants(cluster, 4, "leaving")
        for group in participants, leaving:
            group.join()
        participants.expect_in_call_for(5)
        cluster.redis.kill()
        leave_thread = threading.Thread(target=leaving.leave)
        leave_thread.start()
        participants.expect_in_call_for(3)
        cluster.redis.start()
        leave_thread.join()
        leaving.expect_all_sent(TAKEOVER_SECONDS)
        participants.expect_in_call_for(1.2 * DELAY)
        participants.leave()
        participants.expect_all_sent()


def no_replica_acts_on_a_leave_that_may_have_been_taken_over_while_redis_is_down(replicas):
    """A late webhook about the previous connection reaches the replica that has lost the leave, which cannot know that."""
    with ReplicaCluster(replicas, 14) as cluster:
        participants = Participants(cluster, 4)
        cluster.reachable = {0}
        participants.join()
        old, cluster.reachable = dict(participants.sids), {1}
        participants.join()
        cluster.redis.kill()
        cluster.reachable = {0}
        with ThreadPoolExecutor(len(old)) as pool:
            late = [pool.submit(cluster.webhooks.left, participants.room, participants.identity(name), old[name]) for name in old]
            participants.expect_in_call_for(2)
            cluster.redis.start()
            for webhook in late:
                webhook.result()
        participants.expect_in_call_for(SOON)
        participants.leave()
        participants.expect_all_sent()


def a_replica_without_redis_stops_acting_and_the_others_take_over(replicas):
    with ReplicaCluster(replicas, 8) as cluster:
        participants = Participants(cluster, 12)
        participants.join()
        participants.expect_in_call_for(cluster.random.uniform(2, DELAY / 2))
        with cluster.redis_proxies[0].stalled():
            cluster.reachable.discard(0)
            participants.expect_in_call_for(TAKEOVER_SECONDS)
            lease_ended = time.monotonic()
            participants.expect_in_call_for(DELAY)
            late = [call for leave in participants.leaves.values() for call in leave.calls]
            assert not [call for call in late if call.listener == 0 and call.time > lease_ended], late
        participants.expect_in_call_for(5)
        cluster.reachable.add(0)
        participants.leave()
        participants.expect_all_sent()


def a_redis_that_no_replica_reaches_for_a_while_loses_no_leave(replicas):
    with ReplicaCluster(replicas, 9) as cluster:
        participants = Participants(cluster, 12)
        participants.join()
        participants.expect_in_call_for(2)
        stalls = [proxy.stalled() for proxy in cluster.redis_proxies]
        for stall in stalls:
            stall.__enter__()
        participants.expect_in_call_for(12)
        for stall in stalls:
            stall.__exit__(None, None, None)
        participants.expect_in_call_for(1.2 * DELAY)
        participants.leave()
        participants.expect_all_sent(TAKEOVER_SECONDS)


def replicas_that_are_replaced_one_by_one_lose_no_leave(replicas):
    """As in a rolling update: each replica stops before the next one starts in its place."""
    with ReplicaCluster(replicas, 11) as cluster:
        participants = Participants(cluster, 12)
        participants.join()
        for n in range(replicas):
            cluster.reachable.discard(n)
            cluster.replicas[n].stop()
            participants.expect_in_call_for(2)
            cluster.start(n)
        participants.expect_in_call_for(1.2 * DELAY)
        participants.leave()
        participants.expect_all_sent()


def a_minute_of_faults_loses_no_leave(replicas):
    """Participants join, reconnect and leave at random, while replicas and Redis fail one after the other."""
    with ReplicaCluster(replicas, 13) as cluster:
        participants = Participants(cluster, 24)
        participants.join()
        end, left = time.monotonic() + 60, []

        def participate(name):
            """One participant for a minute. Each leave must be sent in spite of this fault and the next one."""
            choice = random.Random(f"{cluster.seed} {name}")
            identity = participants.identity(name)
            while time.monotonic() < end:
                time.sleep(choice.uniform(1, 10))
                old = participants.sids[name]
                if choice.random() < 0.4:
                    participants.sids[name] = cluster.webhooks.joined(participants.room, identity)
                    time.sleep(choice.uniform(0, 2))
                    cluster.webhooks.left(participants.room, identity, old)
                    continue
                leave = participants.leaves[name]
                cluster.webhooks.left(participants.room, identity, old)
                left.append(leave)
                wait_until(lambda leave=leave: leave.sent, 2 * TAKEOVER_SECONDS, f"the leave event of {name} is sent")
                participants.delegate(name)
                participants.sids[name] = cluster.webhooks.joined(participants.room, identity)

        with ThreadPoolExecutor(len(participants.names)) as pool:
            running = [pool.submit(participate, name) for name in participants.names]
            while time.monotonic() < end:
                cluster.inject_fault()
                time.sleep(TAKEOVER_SECONDS / 2)
            for participant in running:
                participant.result()
        participants.expect_in_call_for(1.2 * DELAY)
        assert left and all(leave.sent and len(leave.of("send")) == 1 for leave in left), left
        participants.leave()
        participants.expect_all_sent()


def a_replaced_leave_is_dropped_by_its_previous_owner(replicas):
    with ReplicaCluster(replicas, 10) as cluster:
        participants = Participants(cluster, 0)
        participants.names = ["alice"]
        participants.delegate("alice", replica=0)
        participants.join()
        old = participants.leaves["alice"]
        wait_until(lambda: old.of("restart"), SOON, "a restart of the first")
        participants.delegate("alice", replica=1)
        replaced = time.monotonic()
        participants.expect_in_call_for(1.2 * DELAY)
        participants.leave()
        participants.expect_all_sent()
        assert not [call for call in old.calls if call.time > replaced + 1], old


@pytest.fixture(scope="module")
def futures(request):
    return start_all(request, None)


def with_replicas(replicas, scenario):
    """The scenario with so many replicas, with that number in its name."""

    def run(_):
        scenario(replicas)

    run.__name__ = f"{scenario.__name__}[{replicas} replicas]"
    return run


SCENARIOS = [
    webhooks_may_reach_any_replica,
    a_participant_who_leaves_right_after_joining_has_left,
    the_leaves_of_a_killed_replica_are_taken_over,
    a_replica_killed_while_it_sends_loses_no_leave,
    a_participant_who_leaves_while_the_owner_is_dead_has_left,
    a_replica_that_was_paused_does_not_act_on_leaves_it_lost,
    a_replica_serves_after_a_pause,
    redis_may_be_killed_and_started_again,
    no_replica_acts_on_a_leave_that_may_have_been_taken_over_while_redis_is_down,
    a_replica_without_redis_stops_acting_and_the_others_take_over,
    a_redis_that_no_replica_reaches_for_a_while_loses_no_leave,
    replicas_that_are_replaced_one_by_one_lose_no_leave,
    a_minute_of_faults_loses_no_leave,
    a_replaced_leave_is_dropped_by_its_previous_owner,
]


@pytest.mark.timeout(400)
@parametrize_scenarios(*[with_replicas(replicas, scenario) for scenario in SCENARIOS for replicas in (2, 3)])
def test_replicas(scenario, futures):
    futures[scenario].result()
