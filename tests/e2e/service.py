"""The binary under test as a child process, and single HTTP requests to it."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import subprocess
import threading
import time
from dataclasses import dataclass

KEY, SECRET = "e2e-key", "e2e-secret-of-more-than-32-characters"
SFU_URL = "wss://sfu.example.org"

# Deadline for the log line that says where the service listens.
START_SECONDS = 20


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def errcode(self):
        return self.json["errcode"]


class Service:
    """Runs from the constructor to `stop`. All settings are environment variables."""

    def __init__(self, settings, namespace=None, arguments=(), as_init=False):
        self.namespace, self.as_init = namespace, as_init
        self.log = []
        self._listening = threading.Event()
        prefix = ["ip", "netns", "exec", namespace.name] if namespace else []
        if as_init:
            # PID 1 of a PID namespace, as in a container: signals without a handler are ignored there
            prefix += ["unshare", "--pid", "--fork", "--kill-child"]
        env = {
            "PATH": os.environ["PATH"],
            "LIVEKIT_URL": SFU_URL,
            "LIVEKIT_KEY": KEY,
            "LIVEKIT_SECRET": SECRET,
            "LIVEKIT_JWT_BIND": "127.0.0.1:0",
            "LIVEKIT_LOG_LEVEL": "debug",
        } | {name: str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(
            [*prefix, os.environ["BIN"], *arguments], env=env, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        threading.Thread(target=self._read_log, daemon=True).start()
        assert self._listening.wait(START_SECONDS) and self.address, f"the service did not start:\n{self.text}"

    def _read_log(self):
        self.address = None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r'msg=listening address="?(unix:[^\s"]+|[^\s"]+:\d+)', line):
                self.address = found[1]
                self._listening.set()
        self._listening.set()

    @property
    def text(self):
        return "".join(self.log)

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    def call(self, method, path, body=None, headers=None):
        """Sends one request on a new connection; `body` is sent as JSON."""
        with self.namespace.inside() if self.namespace else contextlib.nullcontext():
            return call(f"127.0.0.1:{self.port}", method, path, body, headers)

    def get_token(self, user, server, token="a-token"):
        return self.call("POST", "/get_token", get_token_body(user, server, token))

    def sfu_get(self, server, token="a-token"):
        return self.call("POST", "/sfu/get", sfu_get_body(server, token))

    def signal(self, signal):
        """Sends a signal to the service itself, not to the wrapper that started it."""
        pid = self.process.pid
        if self.as_init:
            pid = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        os.kill(pid, signal)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def call(authority, method, path, body=None, headers=None, timeout=60):
    """Sends one request to `host:port`. `body` is sent as JSON, bytes as they are."""
    started = time.monotonic()
    connection = http.client.HTTPConnection(authority, timeout=timeout)
    try:
        payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, payload, {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        return Reply(reply.status, reply.headers, reply.read(), time.monotonic() - started)
    finally:
        connection.close()


ROOM, SLOT, DEVICE, MEMBER = "!room:example.org", "m.call#ROOM", "DEVICE1", "member-1"


def openid(server, token):
    return {"access_token": token, "token_type": "Bearer", "matrix_server_name": server, "expires_in": 3600}


def get_token_body(user, server, token="a-token"):
    return {
        "room_id": ROOM,
        "slot_id": SLOT,
        "openid_token": openid(server, token),
        "member": {"id": MEMBER, "claimed_user_id": user, "claimed_device_id": DEVICE},
    }


def sfu_get_body(server, token="a-token"):
    return {"room": ROOM, "openid_token": openid(server, token), "device_id": DEVICE}
