"""Proxies between the service and a homeserver or Redis: they record calls, and fail on demand."""

import contextlib
import http.client
import http.server
import re
import select
import socket
import threading
import time
from dataclasses import dataclass

ACTION = re.compile(r"/delayed_events/([^/]+)/(restart|send|cancel)$")


@dataclass(frozen=True)
class Call:
    """A request about a delayed event, and the status of the homeserver's answer; `time` is time.time()."""

    time: float
    delay_id: str
    action: str
    status: int


class HomeserverProxy:
    """A reverse proxy before a real homeserver. Its fault is None, "refused" (connection refused), "silent" or "502"."""

    def __init__(self, upstream):
        self.calls = []
        self._upstream = upstream.removeprefix("http://")
        self._fault, self._repaired, self._server = None, threading.Event(), None
        self._repaired.set()
        self._bind(0)
        self._listen()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _bind(self, port):
        """Reserves a port. Until `_listen` it refuses connections."""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))

    def _listen(self):
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                proxy._forward(self, None)

            def do_POST(self):
                proxy._forward(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, *_):
                pass

        self._server = _Server(self._socket.getsockname(), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = self._socket
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @contextlib.contextmanager
    def broken(self, fault):
        """Within this context the homeserver fails in the given way."""
        self._fault = fault
        self._repaired.clear()
        if fault == "refused":
            port = self._socket.getsockname()[1]
            self.stop()
            self._bind(port)
        try:
            yield
        finally:
            if fault == "refused":
                self._listen()
            self._fault = None
            self._repaired.set()

    def _forward(self, client, body):
        client.close_connection = True
        if self._fault == "silent":
            # after a restart the homeserver's machine does not know the connection
            self._repaired.wait(120)
            return
        if self._fault:
            return self._reply(client, 502, b"<html>Bad Gateway</html>", "text/html")
        connection = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            headers = {name: client.headers[name] for name in ("Content-Type", "Authorization") if client.headers[name]}
            connection.request(client.command, client.path, body, headers)
            reply = connection.getresponse()
            payload = reply.read()
        except (OSError, http.client.HTTPException):
            return self._reply(client, 502, b"", "text/plain")
        finally:
            connection.close()
        if found := ACTION.search(client.path):
            self.calls.append(Call(time.time(), *found.groups(), reply.status))
        reply_headers = {name: reply.headers[name] for name in ("Retry-After",) if reply.headers[name]}
        self._reply(client, reply.status, payload, reply.headers["Content-Type"], reply_headers)

    @staticmethod
    def _reply(client, status, body, kind, headers=None):
        client.send_response(status)
        for name, value in (
            {"Content-Type": kind, "Content-Length": len(body), "Connection": "close"} | (headers or {})
        ).items():
            client.send_header(name, str(value))
        client.end_headers()
        client.wfile.write(body)

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class StallingProxy:
    """Forwards a TCP port to a Unix socket. While it is stalled, bytes and new connections are held back; all of them arrive, late."""

    def __init__(self, path):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target, self._flowing = str(path), threading.Event()
        self._flowing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def stalled(self):
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client):
        with client, contextlib.suppress(OSError):
            self._flowing.wait()
            with socket.socket(socket.AF_UNIX) as server:
                server.connect(self._target)
                ends = {client: server, server: client}
                while True:
                    readable, _, _ = select.select(list(ends), [], [])
                    for end in readable:
                        data = end.recv(65536)
                        self._flowing.wait()
                        if not data:
                            return
                        ends[end].sendall(data)

    def close(self):
        self._flowing.set()
        self._listener.close()
