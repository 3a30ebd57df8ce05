"""A real Synapse by shared/tools/synapse, its users and their OpenID tokens."""

import hashlib
import hmac
import json
import os
import pathlib
import secrets
import subprocess
import urllib.parse

import requests

STARTER = pathlib.Path(os.environ["SHARED"]) / "tools" / "synapse" / "start-synapse.sh"
TIMEOUT = 30  # seconds for one call to Synapse, generous for a loaded machine


class Synapse:
    """One variant of the starter, up when the constructor returns: `localhost`, `ip` or `hs.test`."""

    def __init__(self, variant):
        self._env = os.environ | {"SYN_VARIANT": variant}
        done = subprocess.run([STARTER, "start"], env=self._env, capture_output=True, text=True, timeout=230)
        assert done.returncode == 0, f"Synapse ({variant}) did not start:\n{done.stderr}"
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
