"""A homeserver with OpenID tokens and delayed events (MSC4140) that records every request.

A fake: its tests need to know which replica sent which request and when, across kill -9, ten thousand times, and with lost answers.
Its answers are those of Synapse, which test_delegated_leave_synapse.py uses. Needs no package."""

import asyncio
import json
import re
import secrets
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

SERVER = "hs.test"
MANAGE = re.compile(
    r"/_matrix/client/(?:unstable/org\.matrix\.msc4140|v1)/delayed_events/([^/]+)(?:/(restart|send|cancel))?$"
)
VERSIONS = json.dumps({"versions": ["v1.11"], "unstable_features": {"org.matrix.msc4140": True}}).encode()


@dataclass(frozen=True)
class Call:
    """A request about a delayed event. `listener` is the index of the port that received it; `time` is time.monotonic()."""

    time: float
    listener: int
    action: str
    status: int


@dataclass
class Leave:
    """A delayed event. It fires `delay` seconds after `since`, which is when it was scheduled or last restarted, unless it was sent."""

    id: str
    delay: float
    since: float
    calls: list = field(default_factory=list)
    sent: float | None = None

    def fired(self, now=None):
        """When its timer fired, or None."""
        due = self.since + self.delay
        return due if self.sent is None and (now or time.monotonic()) >= due else None

    def of(self, action, status=200):
        return [call for call in self.calls if (call.action, call.status) == (action, status)]

    def manage(self, action, listener, now):
        """Carries out an action and returns the status of the answer."""
        ended = self.sent is not None or self.fired(now) is not None
        status = 404 if ended or action is None else 200
        if status == 200 and action == "restart":
            self.since = now
        elif status == 200:
            self.sent = now
        self.calls.append(Call(now, listener, action, status))
        return status


class DelayedEventHomeserver:
    """Listens on `listeners` ports of loopback. Each service under test uses another port, which identifies it in `Call.listener`.

    The OpenID token of @x:hs.test is `token-x`."""

    def __init__(self, listeners=1):
        self.leaves = {}
        # seconds before each answer; statuses that the next requests get in place of the real ones
        self.latency, self.statuses = 0.0, []
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listeners, ready), daemon=True)
        self._thread.start()
        ready.wait()
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]

    def settings(self, listener=0):
        """Settings of a service that uses this homeserver through the port with that index."""
        url = f"{SERVER}={self.urls[listener]}"
        return {
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": SERVER,
            "LIVEKIT_FEDERATION_URL_OVERRIDES": url,
            "LIVEKIT_CS_API_URL_OVERRIDES": url,
        }

    def schedule(self, delay):
        """Creates a delayed event that fires after `delay` seconds."""
        leave = Leave(f"syd_{secrets.token_hex(8)}", delay, time.monotonic())
        self.leaves[leave.id] = leave
        return leave

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, listeners, ready):
        asyncio.set_event_loop(self._loop)
        self._ports = []
        for listener in range(listeners):
            listening = self._loop.create_server(
                lambda listener=listener: _Connection(self, listener), "127.0.0.1", 0, backlog=1024
            )
            server = self._loop.run_until_complete(listening)
            self._ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        self._loop.run_forever()

    def content_type(self, target):
        return "application/json"

    def answer(self, listener, method, target, body):
        """Returns status and body of the answer."""
        url = urllib.parse.urlsplit(target)
        if url.path == "/_matrix/federation/v1/openid/userinfo":
            token = urllib.parse.parse_qs(url.query).get("access_token", [""])[0]
            if token.startswith("token-"):
                return 200, json.dumps({"sub": f"@{token.removeprefix('token-')}:{SERVER}"}).encode()
            return 401, b'{"errcode":"M_UNKNOWN_TOKEN"}'
        if url.path == "/_matrix/client/versions":
            return 200, VERSIONS
        if method == "POST" and (found := MANAGE.match(url.path)):
            id, action = urllib.parse.unquote(found[1]), found[2] or json.loads(body).get("action")
            leave = self.leaves.get(id)
            if self.statuses:
                status = self.statuses.pop(0)
                if leave:
                    leave.calls.append(Call(time.monotonic(), listener, action, status))
            else:
                status = leave.manage(action, listener, time.monotonic()) if leave else 404
            return status, b"{}" if status == 200 else b'{"errcode":"M_NOT_FOUND"}'
        return 404, b'{"errcode":"M_UNRECOGNIZED"}'


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as the service's client speaks it: one request after the other, bodies with Content-Length."""

    def __init__(self, homeserver, listener):
        self._homeserver, self._listener, self._buffer = homeserver, listener, b""

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1")
            length = re.search(r"(?im)^content-length: *(\d+)\r?$", head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            body, self._buffer = self._buffer[end + 4 : whole], self._buffer[whole:]
            method, target, _ = head.partition("\r\n")[0].split(" ")
            status, payload = self._homeserver.answer(self._listener, method, target, body)
            kind = self._homeserver.content_type(target)
            head = f"HTTP/1.1 {status} .\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\n\r\n"
            if self._homeserver.latency:
                self._homeserver._loop.call_later(self._homeserver.latency, self._write, head.encode() + payload)
            else:
                self._write(head.encode() + payload)

    def _write(self, data):
        if not self._transport.is_closing():
            self._transport.write(data)
