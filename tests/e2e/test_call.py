"""Calls of real clients: Element Call in two browsers, one Synapse, livekit-server, and the service behind nginx with contrib/nginx.conf.

A call counts when both sides decode the other's video. Screenshots of both sides stay in .cache/e2e/call."""

import contextlib
import os
import pathlib
import time

import pytest
from playwright.sync_api import sync_playwright

import reverse_proxies
from concurrent_scenarios import SOON, wait_until
from element_call import Pages, Participant
from livekit_server import LiveKitServer
from real_synapse import Synapse
from service import Service

SERVICE_PORT, SFU_PORT = 18880, 17880
# seconds until both sides see each other, on a loaded machine
CONNECT_SECONDS = 60
# seconds until a participant who hangs up has left, on a loaded machine; LiveKit's time-out and the delayed event's timer are longer
HANG_UP_SECONDS = 10
# seconds until a participant whose browser was killed has left: LiveKit's own time-out of 20 s, and a margin
KILLED_SECONDS = 40
SCREENSHOTS = pathlib.Path(os.environ["SCREENSHOTS"])


class Call:
    """All parts of one call. `settings` are further settings of the service."""

    def __init__(self, folder, auto_create=True, **settings):
        self.participants = []
        # what has started is stopped, also if a later part does not start
        with contextlib.ExitStack() as started:
            conf = reverse_proxies.contrib("nginx.conf", SERVICE_PORT, SFU_PORT)
            self._nginx = reverse_proxies.nginx(folder, conf)
            started.callback(self._nginx.stop)
            public = f"{self._nginx.authority}/livekit"
            self.synapse = Synapse("localhost", service_url=f"http://{public}/jwt")
            started.callback(self.synapse.stop)
            self.sfu = LiveKitServer(SFU_PORT, auto_create, webhook=f"http://{public}/jwt/sfu_webhook")
            started.callback(self.sfu.stop)
            self.service = Service(
                {
                    "LIVEKIT_URL": f"ws://{public}/sfu",
                    "LIVEKIT_API_URL": self.sfu.api_url,
                    "LIVEKIT_JWT_BIND": f"127.0.0.1:{SERVICE_PORT}",
                    "LIVEKIT_CA_FILE": self.synapse.ca_file,
                    "LIVEKIT_FULL_ACCESS_HOMESERVERS": self.synapse.server_name,
                    "LIVEKIT_CS_API_URL_OVERRIDES": f"{self.synapse.server_name}={self.synapse.client_url}",
                }
                | settings
            )
            started.callback(self.service.stop)
            self._pages = Pages()
            started.callback(self._pages.stop)
            self._playwright = sync_playwright().start()
            started.callback(self._playwright.stop)
            self._started = started.pop_all()

    def participant(self, room=None):
        self.participants.append(Participant(self._playwright, self._pages, self.synapse, room))
        return self.participants[-1]

    def two_participants(self):
        """Alice and Bob, who decode each other's video."""
        alice = self.participant()
        bob = self.participant(alice.room)
        alice.join(), bob.join()
        until_all_see_video(alice, bob)
        return alice, bob

    def close(self, test):
        """Takes screenshots under the test's name, stops everything, and prints the logs."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        with self._started:
            for number, participant in enumerate(self.participants):
                try:
                    participant.screenshot(SCREENSHOTS / f"{test}-{number}.png")
                    print(participant.report())
                except Exception as reason:  # a killed browser has no screenshot
                    print(f"no screenshot: {reason}")
                participant.close()
        print(self.service.text, self.sfu.text[-5000:], self._nginx.text)


def until_all_see_video(*participants, seconds=CONNECT_SECONDS):
    """Waits until all of them decode video; returns the seconds that took."""
    began = time.monotonic()
    while not all([participant.sees_video() for participant in participants]):
        assert time.monotonic() < began + seconds, f"no video on both sides within {seconds} s"
    return time.monotonic() - began


def until_left(participant, seconds):
    """Waits until the participant's membership event is empty; returns when it was sent, in seconds since the epoch."""
    deadline = time.monotonic() + seconds
    while True:
        content, sent_at = participant.membership()
        if not content:
            return sent_at
        assert time.monotonic() < deadline, f"{participant.user} is still a member of the call after {seconds} s"
        time.sleep(0.2)


@pytest.fixture
def call(tmp_path, request):
    started = []

    def call(**settings):
        started.append(Call(tmp_path, **settings))
        return started[-1]

    yield call
    for call in started:
        call.close(request.node.name)


def test_both_sides_decode_video_and_a_participant_who_hangs_up_leaves_at_once(call):
    alice, bob = call().two_participants()
    at = time.time()
    alice.hang_up()
    print(f"left {until_left(alice, HANG_UP_SECONDS) - at:.1f} s after the hang-up")
    assert bob.membership()[0], "Bob has left the call, too"


def test_a_killed_browser_leaves_the_call(call):
    running_call = call()
    alice, bob = running_call.two_participants()
    at = time.time()
    alice.kill()
    print(f"left {until_left(alice, KILLED_SECONDS) - at:.1f} s after the kill")
    wait_until(lambda: "leave sent" in running_call.service.text, SOON, "the service logs that it has sent the leave")


def test_a_call_continues_after_a_restart_of_an_sfu_that_creates_rooms(call):
    running_call = call(auto_create=True)
    alice, bob = running_call.two_participants()
    running_call.sfu.crash()
    running_call.sfu.start()
    print(f"video is back after {until_all_see_video(alice, bob):.1f} s")
