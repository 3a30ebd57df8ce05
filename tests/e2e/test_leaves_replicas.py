"""Several of us share one real Redis: every leave is worked by exactly one, whatever becomes of the others."""

import random
import signal
import threading
import time

import pytest

from delayed_homeserver import SERVER, DelayedHomeserver
from fake_sfu import FakeSfu
from faults import Cable
from livekit_sdks import name_of
from redis_server import Redis
from scenes import SOON, all_at_once, each, until
from service import DEVICE, KEY, SECRET, SLOT, Service, call, get_token_body
from webhooks import Webhooks

# seconds; what is left of a delay after four fifths must be enough to miss a dead replica
DELAY = 40
# seconds after which another replica has taken over what a dead one kept
TAKEN_OVER = 15


class Callers:
    """Leaves that have been acknowledged, and the people they are about."""

    def __init__(self, stage, count, prefix="caller"):
        self.stage, self.left = stage, False
        self.people = [f"{prefix}-{n}" for n in range(count)]
        self.room = name_of("!room:example.org", SLOT)
        self.leaves, self.sids = {}, {}
        for person in self.people:
            self.delegate(person)

    def identity(self, person):
        return name_of(f"@{person}:{SERVER}", DEVICE, "member-1")

    def delegate(self, person, replica=None):
        """Tries one replica after the other until one has acknowledged the leave, as a client behind a proxy does."""
        leave = self.stage.homeserver.schedule(DELAY)
        body = get_token_body(f"@{person}:{SERVER}", SERVER, f"token-{person}")
        body |= {"delay_id": leave.id, "delay_timeout": DELAY * 1000}
        status = self.stage.ask("POST", "/delegate_delayed_leave", body, replica)
        assert status == 200, status
        self.leaves[person] = leave

    def join(self):
        for person in self.people:
            self.sids[person] = self.stage.webhooks.joined(self.room, self.identity(person))

    def leave(self):
        for person in self.people:
            self.stage.webhooks.left(self.room, self.identity(person), self.sids[person])
        self.left = True

    def expect_in_call_for(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for person, leave in self.leaves.items():
                assert not leave.fired(), f"the leave of {person} has fired in mid-call: {leave}"
                assert leave.sent is None, f"the leave of {person} was sent in mid-call: {leave}"
            time.sleep(0.1)

    def expect_all_sent(self, seconds=SOON):
        until(lambda: all(leave.sent for leave in self.leaves.values()), seconds, "all leaves are sent")
        for leave in self.leaves.values():
            assert not leave.fired() and len(leave.of("send")) == 1, leave
            assert not [call for call in leave.of("restart") if call.time > leave.sent], leave


class Stage:
    """So many replicas, each with a cable of its own to Redis and a door of its own to the homeserver."""

    def __init__(self, replicas, seed):
        self.random = random.Random(seed)
        self.redis, self.sfu = Redis("redis-password"), FakeSfu(KEY, SECRET)
        self.homeserver = DelayedHomeserver(doors=replicas)
        self.cables = [Cable(self.redis.port) for _ in range(replicas)]
        self.replicas, self.well = [None] * replicas, set()
        for n in range(replicas):
            self.start(n)
        self.webhooks = Webhooks(self.sfu, lambda: [self.address(self.random.choice(sorted(self.well)))], seed)

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        for replica in self.replicas:
            if replica.process.poll() is None:
                replica.signal(signal.SIGCONT)
                replica.stop()
        if error:
            logs = "\n".join(f"--- replica {n}\n{replica.text}" for n, replica in enumerate(self.replicas))
            error.add_note(f"now {time.monotonic():.3f}\n{list(self.homeserver.leaves.values())}\n{logs}")
        for part in *self.cables, self.homeserver, self.sfu, self.redis:
            part.close() if isinstance(part, Cable) else part.stop()

    def start(self, n):
        settings = self.homeserver.settings(n) | {
            "LIVEKIT_API_URL": self.sfu.url,
            "LIVEKIT_REDIS_URL": f"redis://127.0.0.1:{self.cables[n].port}",
            "LIVEKIT_REDIS_PASSWORD": "redis-password",
        }
        self.replicas[n] = Service(settings)
        self.well.add(n)

    def address(self, n):
        return f"127.0.0.1:{self.replicas[n].port}"

    def ask(self, method, path, body, replica=None):
        """The status of the first reply that is none of trouble."""
        for _ in range(20):
            n = self.random.choice(sorted(self.well)) if replica is None else replica
            try:
                if (status := call(self.address(n), method, path, body, timeout=20).status) < 500:
                    return status
            except OSError:
                pass
            time.sleep(0.5)
        return None

    def kill(self, n):
        self.well.discard(n)
        self.replicas[n].signal(signal.SIGKILL)
        self.replicas[n].process.wait()

    def pause(self, n, seconds):
        """Nothing of it runs for so long, and it does not know."""
        self.well.discard(n)
        self.replicas[n].signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.replicas[n].signal(signal.SIGCONT)

    def expect_one_keeper_each(self, callers, since):
        """No two replicas have called about one leave after `since`."""
        for person, leave in callers.leaves.items():
            doors = {call.door for call in leave.calls if call.time > since}
            assert len(doors) <= 1, f"{doors} about the leave of {person}: {leave}"


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
    a_replica_cut_off_from_redis_stops_acting_and_the_others_take_over,
    redis_cut_off_from_all_of_us_for_a_while_loses_no_leave,
    replicas_that_are_replaced_one_by_one_lose_no_leave,
    a_replaced_leave_is_dropped_by_the_replica_that_kept_it,
]


@pytest.mark.timeout(400)
@each(*[of(replicas, scenario) for scenario in SCENARIOS for replicas in (2, 3)])
def test_replicas(scenario, playing):
    playing[scenario].result()
