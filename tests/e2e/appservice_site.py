"""A site of application-service mode: a real Synapse that federates, a service registered there as application service, and an SFU."""

import contextlib
import os
import secrets
import socket
import subprocess
import time
import urllib.parse

import requests

from fake_sfu import FakeSfu
from livekit_sdks import hashed_name
from real_synapse import MEMBER_EVENT, TIMEOUT, Synapse
from service import KEY, SECRET, SLOT, Service
from webhooks import Webhooks

API = "_matrix/client/unstable/io.element.msc4195/rtc/livekit"
# LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS
CHECK_SECONDS = 1

CONFIG = """
app_service_config_files: ["{registration}"]
experimental_features: {{msc4143_enabled: true, msc4354_enabled: true, msc4502_enabled: true, msc4512_enabled: true}}
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Site:
    """A homeserver, its service and its SFU. `settings` are further settings of the service."""

    def __init__(self, folder, variant, name, **settings):
        self.name, self.port, self.folder = name, free_port(), folder
        self.sfu_url = f"wss://sfu.{variant.replace('.', '-')}.example"
        registration, config = folder / f"{variant}.yaml", folder / f"{variant}-homeserver.yaml"
        made = subprocess.run(
            [os.environ["BIN"], "generate-registration", name, f"http://127.0.0.1:{self.port}"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        registration.write_text(made.stdout)
        config.write_text(CONFIG.format(registration=registration))
        tokens = dict(line.split(": ") for line in made.stdout.splitlines() if line.startswith(("as_token", "hs_token")))
        self.hs_token, self.as_token = tokens["hs_token"], tokens["as_token"]
        self.synapse = Synapse(variant, extra=config, fresh=True)
        assert self.synapse.server_name == name
        self.sfu = FakeSfu(KEY, SECRET)
        self.settings = {
            "LIVEKIT_URL": self.sfu_url,
            "LIVEKIT_API_URL": self.sfu.url,
            "LIVEKIT_JWT_BIND": f"127.0.0.1:{self.port}",
            "LIVEKIT_AS_REGISTRATION_FILE": registration,
            "LIVEKIT_HS_SERVER_NAME": name,
            "LIVEKIT_HS_URL": self.synapse.client_url,
            "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS": CHECK_SECONDS,
        } | settings
        self.service, self._earlier_logs = Service(self.settings), ""
        self.webhooks = Webhooks(self.sfu, lambda: [f"127.0.0.1:{self.port}"])

    @property
    def text(self):
        """The logs of all services of this site so far."""
        return self._earlier_logs + self.service.text

    @contextlib.contextmanager
    def without_service(self):
        """Within this context no service runs."""
        self.service.stop()
        self._earlier_logs = self.text
        try:
            yield
        finally:
            self.service = Service(self.settings)

    def stop(self):
        self.service.stop()
        print(self.text)
        self.synapse.stop()
        self.sfu.stop()


class User:
    """A user of a site's homeserver. With a device, the requests have `member` instead of `member_id`."""

    def __init__(self, site, device=None):
        self.site, self.device, self.member = site, device, f"member-{secrets.token_hex(4)}"
        self.id, self._token = site.synapse.register()

    def request(self, method, path, body=None):
        """Sends a request of the user's client to the homeserver, and returns the reply."""
        url = f"{self.site.synapse.client_url}/{path}"
        headers = {"Authorization": f"Bearer {self._token}"}
        return requests.request(method, url, json=body, timeout=TIMEOUT, headers=headers)

    def matrix_request(self, method, path, body=None):
        """Sends a request of the client-server API that must succeed, and returns the reply's JSON."""
        reply = self.request(method, f"_matrix/client/v3/{path}", body)
        assert reply.ok, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json()

    def create_room(self):
        open_room = {"preset": "public_chat", "power_level_content_override": {"state_default": 0}}
        return self.matrix_request("POST", "createRoom", open_room)["room_id"]

    def join(self, room, via):
        self.matrix_request("POST", f"join/{urllib.parse.quote(room)}?via={urllib.parse.quote(via)}", {})

    def request_body(self, room, url=None, **more):
        body = {"url": url or self.site.sfu_url, "room_id": room, "slot_id": SLOT}
        if self.device:
            body["member"] = {"id": self.member, "claimed_device_id": self.device}
        else:
            body["member_id"] = self.member
        return body | more

    def get_token(self, room, url=None, **more):
        return self.request("POST", f"{API}/get_token", self.request_body(room, url, **more))

    def names(self, room):
        """The names of the LiveKit room and of the user's identity in it."""
        parts = [self.id, self.device, self.member] if self.device else [self.id, self.member]
        return hashed_name(room, SLOT), hashed_name(*parts)

    def schedule(self, room, seconds):
        """Schedules the user's delayed leave event at the homeserver, and returns its id."""
        key = urllib.parse.quote(f"_{self.id}_DEVICE1_m.call", safe="")
        self._state = f"rooms/{urllib.parse.quote(room)}/state/{MEMBER_EVENT}/{key}"
        self.matrix_request("PUT", self._state, {"application": "m.call"})
        return self.matrix_request("PUT", f"{self._state}?org.matrix.msc4140.delay={int(seconds * 1000)}", {})["delay_id"]

    def left_at(self):
        """When the leave event was sent, in seconds since the epoch; None if it has not been."""
        event = self.matrix_request("GET", f"{self._state}?format=event")
        return None if event["content"] else event["origin_server_ts"] / 1000

    def since(self, delay_id):
        """When the delayed event was scheduled or last restarted, in seconds since the epoch; None if it is no longer there."""
        events = self.request("GET", "_matrix/client/unstable/org.matrix.msc4140/delayed_events").json()["delayed_events"]
        return next((event["delayed_since_ts"] / 1000 for event in events if event["delay_id"] == delay_id), None)


def wait_until_joined(site, user, room):
    """Waits until the site's homeserver knows, by federation, that the user has joined the room."""
    end = time.monotonic() + TIMEOUT
    path = f"_matrix/client/unstable/io.element.msc4502/rooms/{urllib.parse.quote(room)}/is_joined"
    while True:
        reply = requests.get(
            f"{site.synapse.client_url}/{path}",
            params={"mxid": user.id},
            timeout=TIMEOUT,
            headers={"Authorization": f"Bearer {site.as_token}"},
        )
        if reply.json() == {"joined": True}:
            return
        assert time.monotonic() < end, reply.text
        time.sleep(0.1)
