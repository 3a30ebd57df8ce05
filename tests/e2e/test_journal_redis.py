"""The journal in a Redis that is not there, or silent: new leaves are refused, everything else is served, and all is well again as soon
as Redis is. What replicas make of it has tests of its own."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from delayed_homeserver import SERVER, DelayedHomeserver
from livekit_sdks import name_of
from redis_server import Redis
from scenes import SOON, until
from service import DEVICE, SLOT, call, get_token_body
from webhooks import event_of, signed

# seconds: longer than a test
DELAY = 600
PASSWORD = "never-logged-password"
ROOM = name_of("!room:example.org", SLOT)


class Stage:
    """A Redis that wants a password, and a service that knows it."""

    def __init__(self, start, sfu):
        self.redis, self.homeserver, self.number = Redis(PASSWORD), DelayedHomeserver(), 0
        self._start, self._settings = start, {
            "LIVEKIT_API_URL": sfu.url,
            "LIVEKIT_REDIS_URL": self.redis.url,
            "LIVEKIT_REDIS_PASSWORD": PASSWORD,
        }

    def begin(self, **settings):
        self.service = self._start(**self.homeserver.settings() | self._settings | settings)
        return self.service

    def delegate(self):
        """The status of the answer."""
        self.number += 1
        user = f"user-{self.number}"
        body = get_token_body(f"@{user}:{SERVER}", SERVER, f"token-{user}")
        body |= {"delay_id": self.homeserver.schedule(DELAY).id, "delay_timeout": DELAY * 1000}
        return self.service.call("POST", "/delegate_delayed_leave", body).status

    def tell(self, n):
        """The status of the answer to one delivery about the nth participant."""
        identity = name_of(f"@user-{n}:{SERVER}", DEVICE, "member-1")
        body, headers = signed(event_of("participant_joined", ROOM, identity, f"PA_{n}"))
        return call(f"127.0.0.1:{self.service.port}", "POST", "/sfu_webhook", body, headers).status

    def ready(self):
        return self.service.call("GET", "/readyz").status

    def expect_refusal(self):
        """Of new leaves, in time; and of nothing else."""
        began = time.monotonic()
        assert self.delegate() in (400, 503)
        assert self.ready() == 503
        assert self.service.call("GET", "/healthz").status == 200
        assert self.service.get_token(f"@user-0:{SERVER}", SERVER, "token-user-0").status == 200
        assert time.monotonic() - began < SOON

    def expect_well(self):
        until(lambda: self.ready() == 200, SOON, "the service is ready")
        assert self.delegate() == 200
        assert PASSWORD not in self.service.text

    def stop(self):
        self.homeserver.stop()
        self.redis.stop()


@pytest.fixture
def stage(start, sfu):
    stage = Stage(start, sfu)
    yield stage
    stage.stop()


def test_a_redis_that_is_gone_at_the_start_is_used_when_it_comes(stage):
    stage.redis.kill()
    stage.begin()
    stage.expect_refusal()
    stage.redis.start()
    stage.expect_well()


def test_a_redis_that_goes_in_the_midst_is_used_when_it_is_back(stage):
    stage.begin()
    stage.expect_well()
    stage.redis.kill()
    until(lambda: stage.ready() == 503, SOON, "readiness says so")
    stage.expect_refusal()
    stage.redis.start()
    stage.expect_well()


def test_a_wrong_password_is_told_and_not_shown(stage):
    stage.begin(LIVEKIT_REDIS_PASSWORD=PASSWORD + "-not")
    assert "WRONGPASS" in stage.service.text and PASSWORD not in stage.service.text
    stage.expect_refusal()


def test_a_silent_redis_holds_up_nobody_who_needs_none(stage):
    stage.begin()
    stage.expect_well()
    stage.redis.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(40) as crowd:
            waiting = [crowd.submit(stage.tell, n) for n in range(20)] + [crowd.submit(stage.delegate) for _ in range(20)]
            for _ in range(20):
                began = time.monotonic()
                assert stage.service.call("GET", "/healthz").status == 200
                # those who wait for Redis wait for longer, all together
                assert time.monotonic() - began < SOON / 2
            statuses = {one.result() for one in waiting}
        assert statuses <= {400, 503}, statuses
    finally:
        stage.redis.process.send_signal(signal.SIGCONT)
    stage.expect_well()
    until(lambda: stage.tell(1) == 200, SOON, "a webhook is heard")
