"""A real Synapse by shared/tools/synapse, its users, their OpenID tokens and their places in calls."""

import hashlib
import hmac
import http.server
import json
import os
import pathlib
import secrets
import ssl
import subprocess
import threading
import time
import urllib.parse

import requests

STARTER = pathlib.Path(os.environ["SHARED"]) / "tools" / "synapse" / "start-synapse.sh"
TIMEOUT = 30  # seconds for one call to Synapse, generous for a loaded machine
HS_TEST = "hs.test:18450"  # where the variant hs.test speaks TLS
MEMBER_EVENT = "org.matrix.msc3401.call.member"


class Synapse:
    """One variant of the starter, up when the constructor returns: `localhost`, `ip` or `hs.test`."""

    def __init__(self, variant, **settings):
        """`settings` are more of those at the head of the starter."""
        self._env = os.environ | {"SYN_VARIANT": variant} | settings
        self.start()

    def start(self):
        """Again after `stop`, with all that it knew."""
        done = subprocess.run([STARTER, "start"], env=self._env, capture_output=True, text=True, timeout=230)
        assert done.returncode == 0, f"Synapse ({self._env['SYN_VARIANT']}) did not start:\n{done.stderr}"
        told = json.loads(done.stdout)
        self.server_name, self.ca_file = told["server_name"], told["ca_path"]
        self.client_url, self._secret = told["client_base_url"], told["registration_shared_secret"]

    def register(self):
        """A new user's id and access token."""
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
        subprocess.run([STARTER, "stop"], env=self._env, capture_output=True, timeout=60)


class WellKnown:
    """https://hs.test/.well-known/matrix/* that leads to the variant `hs.test` and nowhere without TLS, as discovery demands.

    That Synapse has to be started with SYN_WK_PORT on another port, where the starter's own answers are out of the way."""

    def __init__(self, synapse):
        documents = {"server": {"m.server": HS_TEST}, "client": {"m.homeserver": {"base_url": f"https://{HS_TEST}"}}}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                document = documents.get(self.path.removeprefix("/.well-known/matrix/"))
                self.send_response(200 if document else 404)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def log_message(self, *_):
                pass

        folder = pathlib.Path(synapse.ca_file).parent
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


class Caller:
    """A user of their own with a place in the call of a room: their member event is in it. The room is theirs unless it is given."""

    def __init__(self, synapse, room=None):
        self._synapse = synapse
        self.user, self._access_token = synapse.register()
        if room is None:
            everybody_may = {"preset": "public_chat", "power_level_content_override": {"state_default": 0}}
            room = self._call("POST", "createRoom", everybody_may)["room_id"]
        else:
            self._call("POST", f"join/{urllib.parse.quote(room)}", {})
        self.room = room
        place = urllib.parse.quote(f"_{self.user}_DEVICE1_m.call", safe="")
        self._place = f"rooms/{urllib.parse.quote(room)}/state/{MEMBER_EVENT}/{place}"
        self._call("PUT", self._place, {"application": "m.call"})

    @property
    def openid_token(self):
        return self._synapse.openid_token(self.user, self._access_token)

    def schedule(self, delay):
        """The id of a delayed leave that Synapse itself carries out after so many seconds."""
        return self._call("PUT", f"{self._place}?org.matrix.msc4140.delay={int(delay * 1000)}", {})["delay_id"]

    def since(self, delay_id):
        """When the delayed leave was scheduled or last restarted, in seconds since the epoch; None when it is no longer there."""
        pending = self._call("GET", "../unstable/org.matrix.msc4140/delayed_events")["delayed_events"]
        return next((event["delayed_since_ts"] / 1000 for event in pending if event["delay_id"] == delay_id), None)

    def cancel(self, delay_id):
        self._call("POST", f"../unstable/org.matrix.msc4140/delayed_events/{delay_id}/cancel", {})

    def left_at(self):
        """When the leave came into the room, in seconds since the epoch; None while it has not."""
        event = self._call("GET", f"{self._place}?format=event")
        return None if event["content"] else event["origin_server_ts"] / 1000

    def _call(self, method, path, body=None):
        while True:
            reply = requests.request(
                method,
                f"{self._synapse.client_url}/_matrix/client/v3/{path}",
                json=body,
                timeout=TIMEOUT,
                headers={"Authorization": f"Bearer {self._access_token}"},
            )
            if reply.status_code != 429:
                assert reply.ok, f"{method} {path}: {reply.status_code} {reply.text}"
                return reply.json()
            time.sleep(reply.json()["retry_after_ms"] / 1000)
