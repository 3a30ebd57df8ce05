"""kill -9 at random moments: no acknowledged leave is lost, and none is sent too early.

Participants join, delegate their leaves, stay for a while and leave, while the service is killed and started again and again. A delegation
that was not acknowledged does not count, as clients then keep their own timer. The fake homeserver records all requests."""

import itertools
import os
import random
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from concurrent_scenarios import parametrize_scenarios, start_all, wait_until
from fake_delayed_events import SERVER, DelayedEventHomeserver
from fake_sfu import FakeSfu
from livekit_sdks import hashed_name
from redis_server import Redis
from service import DEVICE, KEY, SECRET, SLOT, Service, call, get_token_body
from webhooks import Webhooks, event_of

KILLS = int(os.environ.get("KILLS", 200))
PARTICIPANTS = 16
# seconds from a start to the next kill, and from a kill to the next start, if a start takes at most QUICK_START
UP, DOWN, QUICK_START = (0.0, 0.8), (0.0, 0.2), 0.5
# seconds: a deadline that only a hang misses
DEADLINE = 300
ROOM = hashed_name("!room:example.org", SLOT)


class CrashLoop:
    """One service after the other, with the same leave store."""

    def __init__(self, store, delays, seed):
        self.random, self.delays = random.Random(seed), delays
        self.homeserver, self.sfu = DelayedEventHomeserver(), FakeSfu(KEY, SECRET)
        self.settings = self.homeserver.settings() | {"LIVEKIT_API_URL": self.sfu.url} | store
        self.log, self.kills, self.numbers = [], 0, itertools.count()
        self.ended = threading.Event()
        self.acknowledged = []
        # on a slow machine the service runs longer between two kills, and delays are longer
        self.slowness = 1.0
        self.start()
        self.webhooks = Webhooks(self.sfu, lambda: [self.address], seed)

    @property
    def address(self):
        return f"127.0.0.1:{self.service.port}"

    def start(self):
        begin = time.monotonic()
        self.service = Service(self.settings)
        self.slowness = max(self.slowness, (time.monotonic() - begin) / QUICK_START)

    def kill(self):
        self.service.signal(signal.SIGKILL)
        self.service.process.wait()
        self.log.append(f"--- {self.kills} killed at {time.monotonic():.3f}\n{self.service.text}")
        self.kills += 1

    def run(self):
        """Runs the participants, and kills and starts the service meanwhile."""
        pool = ThreadPoolExecutor(PARTICIPANTS)
        participants = [pool.submit(self.participate, random.Random(n)) for n in range(PARTICIPANTS)]
        while self.kills < KILLS and not any(participant.done() for participant in participants):
            time.sleep(self.random.uniform(*UP) * self.slowness)
            self.kill()
            time.sleep(self.random.uniform(*DOWN))
            self.start()
        self.ended.set()
        for participant in participants:
            participant.result()

    def participate(self, rng):
        """Joins one call after the other, each with a new identity."""
        while not self.ended.is_set():
            number = next(self.numbers)
            user, member = f"@participant-{number}:{SERVER}", f"member-{number}"
            identity = hashed_name(user, DEVICE, member)
            replaced = [self.delegate(rng, user, member) for _ in range(rng.choice((0, 0, 1, 2)))]
            leave = self.delegate(rng, user, member)
            since = time.monotonic()
            if leave is None:
                continue
            self.acknowledged.append(leave)
            sid = f"PA_{number}"
            self.sfu.present[ROOM, identity] = sid
            self.send_webhook("participant_joined", identity, sid)
            end = time.monotonic() + rng.choice((rng.uniform(0, 1), rng.uniform(0, 1.5 * leave.delay)))
            while time.monotonic() < end:
                assert not leave.fired(), f"the leave event fired during the call: {leave}"
                time.sleep(0.05)
            assert leave.sent is None and not leave.fired(), f"the leave event was sent during the call: {leave}"
            del self.sfu.present[ROOM, identity]
            self.send_webhook("participant_left", identity, sid)
            wait_until(lambda: leave.sent or leave.fired(), DEADLINE, f"the leave event is sent: {leave}")
            assert leave.sent, f"the leave event fired by the homeserver's timer: {leave}"
            for old in filter(None, replaced):
                # a request that had been sent before may arrive a little later
                late = [call for call in old.calls if call.time > since + self.slowness]
                assert not late and old.sent is None, f"a request for a delegation that was replaced at {since}: {old}"

    def send_webhook(self, kind, identity, sid):
        """Sends a webhook as the SFU does, but without a limit on attempts: on a slow machine most of them may find no service."""
        event = event_of(kind, ROOM, identity, sid)
        while True:
            try:
                return self.webhooks.deliver(event)
            except AssertionError:
                pass

    def delegate(self, rng, user, member):
        """Delegates a new leave. Returns it if the delegation was acknowledged, or else None."""
        leave = self.homeserver.schedule(rng.uniform(*self.delays) * self.slowness)
        localpart = user[1:].split(":")[0]
        body = get_token_body(user, SERVER, f"token-{localpart}")
        body["member"]["id"] = member
        body |= {"delay_id": leave.id, "delay_timeout": int(leave.delay * 1000)}
        try:
            reply = call(self.address, "POST", "/delegate_delayed_leave", body, timeout=20)
        except OSError:
            reply = None
        if reply is None or reply.status != 200:
            time.sleep(0.1)
            return None
        return leave

    def expect_each_leave_sent_once(self):
        assert len(self.acknowledged) > 2 * PARTICIPANTS, "too few delegations were acknowledged"
        for leave in self.acknowledged:
            sends = leave.of("send")
            assert len(sends) == 1, leave
            assert not [call for call in leave.of("restart") if call.time > sends[0].time], leave

    def close(self, error):
        self.ended.set()
        self.service.stop()
        if error:
            tail = "\n".join([*self.log[-40:], self.service.text])
            error.add_note(f"now {time.monotonic():.3f}, {self.kills} kills\n{tail}")
        self.homeserver.stop()
        self.sfu.stop()


def in_a_file(_):
    with tempfile.TemporaryDirectory() as folder:
        # a fifth of a delay is time for many restarts of the service, even with slow disks
        run({"LIVEKIT_STATE_DIR": folder}, (30, 60), 1)


def in_redis(_):
    redis = Redis()
    try:
        # a fifth of a delay is more than the lease of a killed service, and time for some restarts
        run({"LIVEKIT_REDIS_URL": redis.url}, (50, 80), 2)
        wait_until(lambda: redis.cli("HLEN", "lk-jwt:jobs") == "0", DEADLINE, "Redis has no leaves")
    finally:
        redis.stop()


def run(store, delays, seed):
    crash_loop, error = CrashLoop(store, delays, seed), None
    try:
        crash_loop.run()
        crash_loop.expect_each_leave_sent_once()
        crash_loop.service.stop()
        crash_loop.start()
        time.sleep(2 * crash_loop.slowness)
        assert "leave adopted" not in crash_loop.service.text, "the store has leaves that had ended"
    except BaseException as problem:
        error = problem
        raise
    finally:
        crash_loop.close(error)


@pytest.fixture(scope="module")
def futures(request):
    return start_all(request, None)


@pytest.mark.timeout(3600)
@parametrize_scenarios(in_a_file, in_redis)
def test_two_hundred_kills(scenario, futures):
    futures[scenario].result()
