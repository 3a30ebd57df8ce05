"""An internet in a network namespace: names, certificates, homeservers, and the service in the midst of it.

The homeservers are fakes, because a test must choose every certificate, redirect and wrong answer of theirs."""

import http.server
import ipaddress
import json
import re
import socket
import ssl
import tempfile
import threading
from dataclasses import dataclass

import trustme

from name_server import NameServer
from network import NAME_SERVER, Namespace, Witness

__all__ = ["CertificateAuthority", "Namespace", "World", "Visit", "NETWORKS", "bracketed"]

# the private networks that tests of the resolution table live in
NETWORKS = "10.77.0.0/16,fd77::/64"
WELL_KNOWN = "/.well-known/matrix/server"
USERINFO = "/_matrix/federation/v1/openid/userinfo"


@dataclass(frozen=True)
class Visit:
    """One request that reached a homeserver: where, with which SNI and Host header, for what."""

    address: str
    port: int
    sni: str | None
    host: str
    path: str


class CertificateAuthority:
    """Certificates for exactly the names asked for, made once each."""

    def __init__(self):
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self._contexts = {}
        self._file = tempfile.NamedTemporaryFile(suffix=".pem")
        self._ca.cert_pem.write_to_path(self._file.name)
        self.file = self._file.name

    def context(self, names):
        if names not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._ca.issue_cert(*names).configure_cert(context)
            self._contexts[names] = context
        return self._contexts[names]


class World:
    """What one test sets up; everything in it ends with the test."""

    def __init__(self, namespace, authority, start):
        self.visits = []
        self.names = NameServer(namespace)
        self._namespace, self._authority, self._start = namespace, authority, start
        self._servers = []
        self._witness = Witness(namespace)
        self.service = None

    def listen(self, address, port, certificate, answers):
        """A TLS server. `answers` maps a path to (status, headers, body), to bytes, or to a function of the visit
        that returns either; any other path is 404. `certificate` is a name or a tuple of names."""
        names = (certificate,) if isinstance(certificate, str) else tuple(certificate)
        with self._namespace.inside():
            server = _TlsServer(address, port, self._authority.context(names), answers, self.visits)
        self._servers.append(server)
        return server

    def homeserver(self, address, port, certificate, vouches_for):
        """Knows every token, as one of @alice of the server name `vouches_for`."""
        userinfo = json.dumps({"sub": f"@alice:{vouches_for}"}).encode()
        return self.listen(address, port, certificate, {USERINFO: userinfo})

    def well_known(self, address, certificate, m_server):
        """Delegates to `m_server`, on port 443."""
        return self.listen(address, 443, certificate, {WELL_KNOWN: json.dumps({"m.server": m_server}).encode()})

    def silent(self, address, port):
        """Takes connections, and never says a word."""
        with self._namespace.inside():
            self._servers.append(socket.create_server((address, port)))

    def name_servers(self, *addresses):
        """What resolv.conf says from the next start on; a name server that nobody else runs here is a silent one."""
        for address in set(addresses) - {NAME_SERVER}:
            with self._namespace.inside():
                silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                silent.bind((address, 53))
                self._servers.append(silent)
        self._namespace.resolve_by(*addresses)

    def serve(self, **settings):
        """Starts the service; without settings only the address policy's defaults hold."""
        trusted = {"LIVEKIT_CA_FILE": self._authority.file, "LIVEKIT_OPENID_CACHE_SECONDS": 0}
        self.service = self._start(self._namespace, **trusted, **settings)
        return self.service

    def serve_in_the_lab(self, **settings):
        """Starts the service with the lab's private networks allowed."""
        return self.serve(LIVEKIT_ALLOWED_NETWORKS=NETWORKS, **settings)

    def ask(self, server, user=None):
        """@alice of `server` asks for a token."""
        return self.service.get_token(user or f"@alice:{server}", server)

    def dialled(self):
        """Every connection that was tried towards a homeserver, as (address, port), in order."""
        ours = {("127.0.0.1", self.service.port)}
        return [attempt for attempt in self._witness.attempts() if attempt not in ours and attempt[1] != 53]

    def close(self):
        for server in self._servers:
            server.close()
        self.names.close()
        self._namespace.resolve_by(NAME_SERVER)
        self._witness.close()


class _TlsServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address, port, context, answers, visits):
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.answers, self.visits, self.context = answers, visits, context
        super().__init__((address, port), _Handler)
        self.told = address, port
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def server_bind(self):
        # the stock one asks the name server of the test machine for our name
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def handle_error(self, request, client_address):
        pass  # refusing our certificate is what many tests are about

    def close(self):
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        self.sni = None
        context = self.server.context
        # the callback learns the socket, which knows no SNI by itself
        context.sni_callback = lambda tls, name, _: setattr(tls, "asked_name", name)
        self.request.settimeout(30)
        self.request = context.wrap_socket(self.request, server_side=True)
        self.sni = getattr(self.request, "asked_name", None)
        super().setup()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        visit = Visit(*self.server.told, self.sni, self.headers["Host"], path)
        self.server.visits.append(visit)
        answer = self.server.answers.get(path, (404, {}, b"{}"))
        answer = answer(visit) if callable(answer) else answer
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def bracketed(address):
    """An address as a server name has it."""
    return f"[{ipaddress.IPv6Address(address)}]" if re.search(":", address) else address
