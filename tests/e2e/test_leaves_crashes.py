"""kill -9 at random moments: no leave that was acknowledged is lost, and none is sent that should not be.

People come, hand over their leaves, stay for a while and leave, all the time that the service is killed and started again; whoever is
not acknowledged keeps their own timer, as clients do. The homeserver writes down what it is asked for, and has the last word."""

import itertools
import os
import random
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from delayed_homeserver import SERVER, DelayedHomeserver
from fake_sfu import FakeSfu
from livekit_sdks import name_of
from redis_server import Redis
from scenes import all_at_once, each, until
from service import DEVICE, KEY, SECRET, SLOT, Service, call, get_token_body
from webhooks import Webhooks, event_of

KILLS = int(os.environ.get("KILLS", 200))
PEOPLE = 16
# seconds from one kill to the next start and the other way round
ALIVE, DEAD = (0.0, 0.8), (0.0, 0.2)
# seconds after which somebody who has left has left: some lives of the service, and for Redis the lease of a dead one
SOON = 30
ROOM = name_of("!room:example.org", SLOT)


class Stage:
    """One service after the other, with the same journal."""

    def __init__(self, journal, delays, seed):
        self.random, self.delays = random.Random(seed), delays
        self.homeserver, self.sfu = DelayedHomeserver(), FakeSfu(KEY, SECRET)
        self.settings = self.homeserver.settings() | {"LIVEKIT_API_URL": self.sfu.url} | journal
        self.log, self.kills, self.numbers = [], 0, itertools.count()
        self.ended = threading.Event()
        self.acknowledged = []
        self.service = Service(self.settings)
        self.webhooks = Webhooks(self.sfu, lambda: [self.address], seed)

    @property
    def address(self):
        return f"127.0.0.1:{self.service.port}"

    def kill(self):
        self.service.signal(signal.SIGKILL)
        self.service.process.wait()
        self.log.append(f"--- {self.kills} killed at {time.monotonic():.3f}\n{self.service.text}")
        self.kills += 1

    def play(self):
        """The people's lives, and the service's deaths in the midst of them."""
        people = ThreadPoolExecutor(PEOPLE)
        lives = [people.submit(self.live, random.Random(n)) for n in range(PEOPLE)]
        while self.kills < KILLS and not any(life.done() for life in lives):
            time.sleep(self.random.uniform(*ALIVE))
            self.kill()
            time.sleep(self.random.uniform(*DEAD))
            self.service = Service(self.settings)
        self.ended.set()
        for life in lives:
            life.result()

    def live(self, luck):
        """One call after the other, each in an identity of its own."""
        while not self.ended.is_set():
            number = next(self.numbers)
            user, member = f"@person-{number}:{SERVER}", f"member-{number}"
            identity = name_of(user, DEVICE, member)
            replaced = [self.delegate(luck, user, member) for _ in range(luck.choice((0, 0, 1, 2)))]
            leave = self.delegate(luck, user, member)
            since = time.monotonic()
            if leave is None:
                continue
            self.acknowledged.append(leave)
            sid = f"PA_{number}"
            self.sfu.present[ROOM, identity] = sid
            self.tell("participant_joined", identity, sid)
            end = time.monotonic() + luck.choice((luck.uniform(0, 1), luck.uniform(0, 1.5 * leave.delay)))
            while time.monotonic() < end:
                assert not leave.fired(), f"it fired in mid-call: {leave}"
                time.sleep(0.05)
            assert leave.sent is None and not leave.fired(), f"it was sent in mid-call: {leave}"
            del self.sfu.present[ROOM, identity]
            self.tell("participant_left", identity, sid)
            until(lambda: leave.sent or leave.fired(), SOON, f"they have left: {leave}")
            assert leave.sent, f"it was left to the homeserver's timer: {leave}"
            for old in filter(None, replaced):
                late = [call for call in old.calls if call.time > since + 1]
                assert not late and old.sent is None, f"it was replaced at {since}: {old}"

    def tell(self, kind, identity, sid):
        """As the SFU does, but without its limit on attempts: on a slow machine most of them may meet no service."""
        event = event_of(kind, ROOM, identity, sid)
        while True:
            try:
                return self.webhooks.play(event)
            except AssertionError:
                pass

    def delegate(self, luck, user, member):
        """The leave if it was acknowledged."""
        leave = self.homeserver.schedule(luck.uniform(*self.delays))
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

    def expect_order_in_the_end(self):
        assert len(self.acknowledged) > 2 * PEOPLE, "hardly anything was acknowledged"
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
        # a fifth of a delay is many lives of the service, also where each of them begins with slow disks
        play({"LIVEKIT_STATE_DIR": folder}, (30, 60), 1)


def in_redis(_):
    redis = Redis()
    try:
        # a fifth of a delay is more than the lease of a dead one takes, and some lives in which it is taken up
        play({"LIVEKIT_REDIS_URL": redis.url}, (50, 80), 2)
        until(lambda: redis.cli("HLEN", "lk-jwt:jobs") == "0", SOON, "nothing is left in Redis")
    finally:
        redis.stop()


def play(journal, delays, seed):
    stage, error = Stage(journal, delays, seed), None
    try:
        stage.play()
        stage.expect_order_in_the_end()
        stage.service.stop()
        stage.service = Service(stage.settings)
        time.sleep(2)
        assert "leave adopted" not in stage.service.text, "leaves that had ended are still there"
    except BaseException as problem:
        error = problem
        raise
    finally:
        stage.close(error)


@pytest.fixture(scope="module")
def playing(request):
    return all_at_once(request, None)


@pytest.mark.timeout(900)
@each(in_a_file, in_redis)
def test_two_hundred_kills(scenario, playing):
    playing[scenario].result()
