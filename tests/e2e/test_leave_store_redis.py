"""The leave store in a Redis that is down or silent: new delegations are refused, everything else is served, and the store recovers with
Redis. test_delegated_leave_replicas.py has several replicas."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from concurrent_scenarios import SOON, wait_until
from fake_delayed_events import SERVER, DelayedEventHomeserver
from livekit_sdks import hashed_name
from redis_server import Redis
from service import DEVICE, SLOT, call, get_token_body
from webhooks import event_of, signed

# seconds: longer than a test
DELAY = 600
PASSWORD = "never-logged-password"
ROOM = hashed_name("!room:example.org", SLOT)


class Setup:
    """A Redis that requires a password, and a service that has it."""

    def __init__(self, start, sfu):
        self.redis, self.homeserver, self.number = Redis(PASSWORD), DelayedEventHomeserver(), 0
        self._start, self._settings = start, {
            "LIVEKIT_API_URL": sfu.url,
            "LIVEKIT_REDIS_URL": self.redis.url,
            "LIVEKIT_REDIS_PASSWORD": PASSWORD,
        }

    def start(self, **settings):
        self.service = self._start(**self.homeserver.settings() | self._settings | settings)
        return self.service

    def delegate(self):
        """Delegates a new leave. Returns the status of the reply."""
        self.number += 1
        user = f"user-{self.number}"
        body = get_token_body(f"@{user}:{SERVER}", SERVER, f"token-{user}")
        body |= {"delay_id": self.homeserver.schedule(DELAY).id, "delay_timeout": DELAY * 1000}
        return self.service.call("POST", "/delegate_delayed_leave", body).status

    def send_webhook(self, n):
        """Sends one webhook about the nth participant. Returns the status of the reply."""
        identity = hashed_name(f"@user-{n}:{SERVER}", DEVICE, "member-1")
        body, headers = signed(event_of("participant_joined", ROOM, identity, f"PA_{n}"))
        return call(f"127.0.0.1:{self.service.port}", "POST", "/sfu_webhook", body, headers).status

    def ready(self):
        return self.service.call("GET", "/readyz").status

    def expect_refusal(self):
        """A new delegation is refused, and everything else is served, in time."""
        began = time.monotonic()
        assert self.delegate() in (400, 503)
        assert self.ready() == 503
        assert self.service.call("GET", "/healthz").status == 200
        assert self.service.get_token(f"@user-0:{SERVER}", SERVER, "token-user-0").status == 200
        assert time.monotonic() - began < SOON

    def expect_recovery(self):
        wait_until(lambda: self.ready() == 200, SOON, "the service is ready")
        assert self.delegate() == 200
        assert PASSWORD not in self.service.text

    def stop(self):
        self.homeserver.stop()
        self.redis.stop()


@pytest.fixture
def setup(start, sfu):
    setup = Setup(start, sfu)
    yield setup
    setup.stop()


def test_a_redis_that_is_down_at_the_start_is_used_once_it_is_up(setup):
    setup.redis.kill()
    setup.start()
    setup.expect_refusal()
    setup.redis.start()
    setup.expect_recovery()


def test_a_redis_that_restarts_is_used_again(setup):
    setup.start()
    setup.expect_recovery()
    setup.redis.kill()
    wait_until(lambda: setup.ready() == 503, SOON, "the service is not ready")
    setup.expect_refusal()
    setup.redis.start()
    setup.expect_recovery()


def test_a_wrong_password_is_reported_without_the_password(setup):
    setup.start(LIVEKIT_REDIS_PASSWORD=PASSWORD + "-not")
    assert "WRONGPASS" in setup.service.text and PASSWORD not in setup.service.text
    setup.expect_refusal()


def test_a_silent_redis_delays_no_request_that_does_not_need_it(setup):
    setup.start()
    setup.expect_recovery()
    setup.redis.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(40) as pool:
            waiting = [pool.submit(setup.send_webhook, n) for n in range(20)] + [pool.submit(setup.delegate) for _ in range(20)]
            for _ in range(20):
                began = time.monotonic()
                assert setup.service.call("GET", "/healthz").status == 200
                # the requests that wait for Redis take longer
                assert time.monotonic() - began < SOON / 2
            statuses = {future.result() for future in waiting}
        assert statuses <= {400, 503}, statuses
    finally:
        setup.redis.process.send_signal(signal.SIGCONT)
    setup.expect_recovery()
    wait_until(lambda: setup.send_webhook(1) == 200, SOON, "a webhook is accepted")
