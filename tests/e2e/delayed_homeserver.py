"""A homeserver of OpenID tokens and delayed events that writes down every call, and judges in the end.

A fake: its tests want to know which replica asked for what and when, through kill -9 and by the ten thousand, and with answers that
get lost; Synapse has its own tests. It keeps to what Synapse answered (shared/tools/synapse/README.md). Needs no package."""

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
    """`door` is the number of the port that it came in by; times are of time.monotonic()."""

    time: float
    door: int
    action: str
    status: int


@dataclass
class Leave:
    """A delayed event; it fires by itself `delay` seconds after the last restart, unless it has been sent."""

    id: str
    delay: float
    since: float
    calls: list = field(default_factory=list)
    sent: float | None = None

    def fired(self, now=None):
        """When it fired by itself, or None."""
        due = self.since + self.delay
        return due if self.sent is None and (now or time.monotonic()) >= due else None

    def of(self, action, status=200):
        return [call for call in self.calls if (call.action, call.status) == (action, status)]

    def manage(self, action, door, now):
        """The status of the answer."""
        gone = self.sent is not None or self.fired(now) is not None
        status = 404 if gone or action is None else 200
        if status == 200 and action == "restart":
            self.since = now
        elif status == 200:
            self.sent = now
        self.calls.append(Call(now, door, action, status))
        return status


class DelayedHomeserver:
    """Listens on `doors` ports of loopback; each service under test is given a door of its own, and so is told from the others.

    The OpenID token of @x:hs.test is `token-x`."""

    def __init__(self, doors=1):
        self.leaves = {}
        # seconds before an answer; statuses that the next calls get in place of the real ones
        self.latency, self.statuses = 0.0, []
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(doors, ready), daemon=True)
        self._thread.start()
        ready.wait()
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]

    def settings(self, door=0):
        """What makes a service ask here, by that door."""
        url = f"{SERVER}={self.urls[door]}"
        return {
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": SERVER,
            "LIVEKIT_FEDERATION_URL_OVERRIDES": url,
            "LIVEKIT_CS_API_URL_OVERRIDES": url,
        }

    def schedule(self, delay):
        """A new delayed event that fires after so many seconds."""
        leave = Leave(f"syd_{secrets.token_hex(8)}", delay, time.monotonic())
        self.leaves[leave.id] = leave
        return leave

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, doors, ready):
        asyncio.set_event_loop(self._loop)
        self._ports = []
        for door in range(doors):
            listening = self._loop.create_server(
                lambda door=door: _Connection(self, door), "127.0.0.1", 0, backlog=1024
            )
            server = self._loop.run_until_complete(listening)
            self._ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        self._loop.run_forever()

    def answer(self, door, method, target, body):
        """Status and body."""
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
                    leave.calls.append(Call(time.monotonic(), door, action, status))
            else:
                status = leave.manage(action, door, time.monotonic()) if leave else 404
            return status, b"{}" if status == 200 else b'{"errcode":"M_NOT_FOUND"}'
        return 404, b'{"errcode":"M_UNRECOGNIZED"}'


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as a client of ours speaks it: one request after the other, lengths declared."""

    def __init__(self, homeserver, door):
        self._homeserver, self._door, self._buffer = homeserver, door, b""

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
            status, payload = self._homeserver.answer(self._door, method, target, body)
            head = f"HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
            if self._homeserver.latency:
                self._homeserver._loop.call_later(self._homeserver.latency, self._write, head.encode() + payload)
            else:
                self._write(head.encode() + payload)

    def _write(self, data):
        if not self._transport.is_closing():
            self._transport.write(data)
