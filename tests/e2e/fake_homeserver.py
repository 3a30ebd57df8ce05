"""A homeserver without TLS and discovery, for tests of what is in front of the service.

A fake: tests with a real Synapse are elsewhere, and here a homeserver of one user and one OpenID token is enough."""

import http.server
import threading
import urllib.parse

USER, SERVER, TOKEN = "@alice:hs.test", "hs.test", "a-token"


class FakeHomeserver:
    """Listens on loopback; `override` is for LIVEKIT_FEDERATION_URL_OVERRIDES."""

    def __init__(self):
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Userinfo)
        self._server.daemon_threads = True
        self.override = f"{SERVER}=http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


class _Userinfo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        token = urllib.parse.parse_qs(url.query).get("access_token")
        known = url.path == "/_matrix/federation/v1/openid/userinfo" and token == [TOKEN]
        body = b'{"sub":"%s"}' % USER.encode() if known else b'{"errcode":"M_UNKNOWN_TOKEN"}'
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
