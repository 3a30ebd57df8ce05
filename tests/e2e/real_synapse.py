"""A real Synapse, its users, their OpenID tokens and their call membership events."""

import hashlib
import hmac
import secrets
import time
import urllib.parse

import requests

from synapse_server import SynapseServer, WellKnownServer

TIMEOUT = 30  # seconds for one call to Synapse, generous for a loaded machine
HS_TEST = "hs.test:18450"  # the address of the variant hs.test with TLS
MEMBER_EVENT = "org.matrix.msc3401.call.member"

_servers = {}


class Synapse:
    """A running server of one variant (`localhost`, `ip` or `hs.test`), shared with the tests before it if its settings are the same."""

    def __init__(self, variant, **settings):
        """`settings` are the keyword arguments of `SynapseServer`."""
        server, server_settings = _servers.get(variant, (None, None))
        if server is None or server_settings != settings or settings.get("fresh"):
            if server:
                server.stop()
            server = SynapseServer(variant, **settings)
            _servers[variant] = server, settings
        self._server = server
        self.server_name, self.ca_file = server.server_name, server.ca_file
        self.client_url, self._secret = server.client_url, server.registration_secret
        self.start()

    def start(self):
        """Starts Synapse again after `stop`, with its data."""
        self._server.start()

    def register(self):
        """Registers a user, and returns the user id and access token."""
        url = f"{self.client_url}/_synapse/admin/v1/register"
        nonce = requests.get(url, timeout=TIMEOUT).json()["nonce"]
        name, password = f"user-{secrets.token_hex(6)}", secrets.token_hex(12)
        message = "\0".join([nonce, name, password, "notadmin"]).encode()
        reply = requests.post(
            url,
            timeout=TIMEOUT,
            json={
                "nonce": nonce,
                "username": name,
                "password": password,
                "admin": False,
                "mac": hmac.new(self._secret.encode(), message, hashlib.sha1).hexdigest(),
            },
        )
        reply.raise_for_status()
        return reply.json()["user_id"], reply.json()["access_token"]

    def openid_token(self, user, access_token):
        reply = requests.post(
            f"{self.client_url}/_matrix/client/v3/user/{urllib.parse.quote(user)}/openid/request_token",
            timeout=TIMEOUT,
            json={},
            headers={"Authorization": f"Bearer {access_token}"},
        )
        reply.raise_for_status()
        assert reply.json()["matrix_server_name"] == self.server_name
        return reply.json()["access_token"]

    def stop(self):
        self._server.stop()


def well_known_of_hs_test():
    """Serves `https://hs.test/.well-known/matrix/*`, which names only the TLS port of the variant `hs.test`, as the service requires.

    Synapse must be started with another `well_known_port` than 443."""
    documents = {"server": {"m.server": HS_TEST}, "client": {"m.homeserver": {"base_url": f"https://{HS_TEST}"}}}
    return WellKnownServer(443, documents)


class CallMember:
    """A new user with a call membership event in a room. Without `room` the user creates one."""

    def __init__(self, synapse, room=None):
        self._synapse = synapse
        self.user, self.access_token = synapse.register()
        if room is None:
            open_room = {"preset": "public_chat", "power_level_content_override": {"state_default": 0}}
            room = self._call("POST", "createRoom", open_room)["room_id"]
        else:
            self._call("POST", f"join/{urllib.parse.quote(room)}", {})
        self.room = room
        state_key = urllib.parse.quote(f"_{self.user}_DEVICE1_m.call", safe="")
        self._membership = f"rooms/{urllib.parse.quote(room)}/state/{MEMBER_EVENT}/{state_key}"
        self._call("PUT", self._membership, {"application": "m.call"})

    @property
    def openid_token(self):
        return self._synapse.openid_token(self.user, self.access_token)

    def schedule(self, delay):
        """Schedules the delayed leave event at Synapse, and returns its id."""
        return self._call("PUT", f"{self._membership}?org.matrix.msc4140.delay={int(delay * 1000)}", {})["delay_id"]

    def since(self, delay_id):
        """When the delayed event was scheduled or last restarted, in seconds since the epoch; None if it is no longer there."""
        pending = self._call("GET", "../unstable/org.matrix.msc4140/delayed_events")["delayed_events"]
        return next((event["delayed_since_ts"] / 1000 for event in pending if event["delay_id"] == delay_id), None)

    def cancel(self, delay_id):
        self._call("POST", f"../unstable/org.matrix.msc4140/delayed_events/{delay_id}/cancel", {})

    def left_at(self):
        """When the leave event was sent, in seconds since the epoch; None if it has not been."""
        event = self._call("GET", f"{self._membership}?format=event")
        return None if event["content"] else event["origin_server_ts"] / 1000

    def _call(self, method, path, body=None):
        while True:
            reply = requests.request(
                method,
                f"{self._synapse.client_url}/_matrix/client/v3/{path}",
                json=body,
                timeout=TIMEOUT,
                headers={"Authorization": f"Bearer {self.access_token}"},
            )
            if reply.status_code != 429:
                assert reply.ok, f"{method} {path}: {reply.status_code} {reply.text}"
                return reply.json()
            time.sleep(reply.json()["retry_after_ms"] / 1000)
