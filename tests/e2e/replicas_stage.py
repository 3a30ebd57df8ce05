"""Several services on one real Redis, callers whose leaves they keep, and troubles that they may have."""

import os
import random
import signal
import time

from delayed_homeserver import SERVER, DelayedHomeserver
from fake_sfu import FakeSfu
from faults import Cable
from livekit_sdks import name_of
from redis_server import Redis
from scenes import SOON, until
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
        # SEED=… for another course of events
        self.seed = f"{os.environ.get('SEED')} {seed}"
        self.random = random.Random(self.seed)
        self.redis, self.sfu = Redis("redis-password"), FakeSfu(KEY, SECRET)
        self.homeserver = DelayedHomeserver(doors=replicas)
        self.cables = [Cable(self.redis.path) for _ in range(replicas)]
        self.replicas, self.well, self._started = [None] * replicas, set(), []
        for n in range(replicas):
            self.start(n)
        self.webhooks = Webhooks(self.sfu, lambda: [self.address(self.random.choice(sorted(self.well)))], self.seed)

    def __enter__(self):
        return self

    def __exit__(self, _, error, __):
        for _, replica in self._started:
            if replica.process.poll() is None:
                replica.signal(signal.SIGCONT)
                replica.stop()
        if error:
            logs = "\n".join(f"--- replica {n}\n{replica.text}" for n, replica in self._started)
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
        self._started.append((n, self.replicas[n]))
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

    def trouble(self):
        """One that others are there to make up for."""
        n, seconds = self.random.choice(sorted(self.well)), self.random.uniform(1, 12)
        match self.random.choice(["kill", "pause", "cut", "redis"]):
            case "kill":
                self.kill(n)
                time.sleep(seconds)
                self.start(n)
            case "pause":
                self.pause(n, seconds)
                self.well.add(n)
            case "cut":
                with self.cables[n].cut():
                    # it refuses what it hears until whoever checks its health has found out
                    time.sleep(2)
                    self.well.discard(n)
                    time.sleep(seconds)
                self.well.add(n)
            case "redis":
                self.redis.kill()
                time.sleep(seconds / 4)
                self.redis.start()

    def expect_one_keeper_each(self, callers, since):
        """No two replicas have called about one leave after `since`."""
        for person, leave in callers.leaves.items():
            doors = {call.door for call in leave.calls if call.time > since}
            assert len(doors) <= 1, f"{doors} about the leave of {person}: {leave}"
