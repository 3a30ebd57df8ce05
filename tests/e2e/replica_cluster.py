"""Replicas of the service on one real Redis, participants whose leave events are delegated to them, and faults."""

import os
import random
import signal
import time

from concurrent_scenarios import SOON, wait_until
from fake_delayed_events import SERVER, DelayedEventHomeserver
from fake_sfu import FakeSfu
from faulty_proxies import StallingProxy
from livekit_sdks import hashed_name
from redis_server import Redis
from service import DEVICE, KEY, SECRET, SLOT, Service, call, get_token_body
from webhooks import Webhooks

# seconds; a fifth of it must be longer than the lease of a dead replica
DELAY = 40
# seconds after which another replica has taken over the leaves of a dead one
TAKEOVER_SECONDS = 15


class Participants:
    """Participants of one call, and their acknowledged leaves."""

    def __init__(self, cluster, count, prefix="participant"):
        self.cluster, self.left = cluster, False
        self.names = [f"{prefix}-{n}" for n in range(count)]
        self.room = hashed_name("!room:example.org", SLOT)
        self.leaves, self.sids = {}, {}
        for name in self.names:
            self.delegate(name)

    def identity(self, name):
        return hashed_name(f"@{name}:{SERVER}", DEVICE, "member-1")

    def delegate(self, name, replica=None):
        """Delegates a new leave to any replica, or to the given one, until one acknowledges it, as a client behind a proxy does."""
        leave = self.cluster.homeserver.schedule(DELAY)
        body = get_token_body(f"@{name}:{SERVER}", SERVER, f"token-{name}")
        body |= {"delay_id": leave.id, "delay_timeout": DELAY * 1000}
        status = self.cluster.send_request("POST", "/delegate_delayed_leave", body, replica)
        assert status == 200, status
        self.leaves[name] = leave

    def join(self):
        for name in self.names:
            self.sids[name] = self.cluster.webhooks.joined(self.room, self.identity(name))

    def leave(self):
        for name in self.names:
            self.cluster.webhooks.left(self.room, self.identity(name), self.sids[name])
        self.left = True

    def expect_in_call_for(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, leave in self.leaves.items():
                assert not leave.fired(), f"the leave event of {name} has fired during the call: {leave}"
                assert leave.sent is None, f"the leave event of {name} was sent during the call: {leave}"
            time.sleep(0.1)

    def expect_all_sent(self, seconds=SOON):
        wait_until(lambda: all(leave.sent for leave in self.leaves.values()), seconds, "all leave events are sent")
        for leave in self.leaves.values():
            assert not leave.fired() and len(leave.of("send")) == 1, leave
            assert not [call for call in leave.of("restart") if call.time > leave.sent], leave


class ReplicaCluster:
    """Replicas, each with another proxy to Redis and another port of the homeserver. `reachable` are those that clients and the SFU use."""

    def __init__(self, replicas, seed):
        # set SEED for other random choices
        self.seed = f"{os.environ.get('SEED')} {seed}"
        self.random = random.Random(self.seed)
        self.redis, self.sfu = Redis("redis-password"), FakeSfu(KEY, SECRET)
        self.homeserver = DelayedEventHomeserver(listeners=replicas)
        self.redis_proxies = [StallingProxy(self.redis.path) for _ in range(replicas)]
        self.replicas, self.reachable, self._started = [None] * replicas, set(), []
        for n in range(replicas):
            self.start(n)
        self.webhooks = Webhooks(self.sfu, lambda: [self.address(self.random.choice(sorted(self.reachable)))], self.seed)

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
        for part in *self.redis_proxies, self.homeserver, self.sfu, self.redis:
            part.close() if isinstance(part, StallingProxy) else part.stop()

    def start(self, n):
        settings = self.homeserver.settings(n) | {
            "LIVEKIT_API_URL": self.sfu.url,
            "LIVEKIT_REDIS_URL": f"redis://127.0.0.1:{self.redis_proxies[n].port}",
            "LIVEKIT_REDIS_PASSWORD": "redis-password",
        }
        self.replicas[n] = Service(settings)
        self._started.append((n, self.replicas[n]))
        self.reachable.add(n)

    def address(self, n):
        return f"127.0.0.1:{self.replicas[n].port}"

    def send_request(self, method, path, body, replica=None):
        """Repeats a request until a reply is not a server error, and returns its status; None after 20 failures."""
        for _ in range(20):
            n = self.random.choice(sorted(self.reachable)) if replica is None else replica
            try:
                if (status := call(self.address(n), method, path, body, timeout=20).status) < 500:
                    return status
            except OSError:
                pass
            time.sleep(0.5)
        return None

    def kill(self, n):
        self.reachable.discard(n)
        self.replicas[n].signal(signal.SIGKILL)
        self.replicas[n].process.wait()

    def pause(self, n, seconds):
        """Stops the process for so many seconds; the process does not notice."""
        self.reachable.discard(n)
        self.replicas[n].signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.replicas[n].signal(signal.SIGCONT)

    def inject_fault(self):
        """A random fault that the other replicas compensate."""
        n, seconds = self.random.choice(sorted(self.reachable)), self.random.uniform(1, 12)
        match self.random.choice(["kill", "pause", "stall", "redis"]):
            case "kill":
                self.kill(n)
                time.sleep(seconds)
                self.start(n)
            case "pause":
                self.pause(n, seconds)
                self.reachable.add(n)
            case "stall":
                with self.redis_proxies[n].stalled():
                    # the load balancer takes two seconds to notice; until then the replica refuses requests
                    time.sleep(2)
                    self.reachable.discard(n)
                    time.sleep(seconds)
                self.reachable.add(n)
            case "redis":
                self.redis.kill()
                time.sleep(seconds / 4)
                self.redis.start()

    def expect_one_owner_each(self, participants, since):
        """Asserts that since then only one replica has sent requests for each leave."""
        for name, leave in participants.leaves.items():
            replicas = {call.listener for call in leave.calls if call.time > since}
            assert len(replicas) <= 1, f"replicas {replicas} sent requests for the leave of {name}: {leave}"
