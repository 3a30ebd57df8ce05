"""A fake internet in a network namespace: name server, certificate authority and homeservers, and the service among them.

The homeservers are fakes, because a test chooses each of their certificates, redirects and wrong answers."""

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
from network_namespace import NAME_SERVER, ConnectionMonitor

__all__ = ["CertificateAuthority", "FakeInternet", "ReceivedRequest", "NETWORKS", "bracketed"]

# private networks of the tests of server name resolution
NETWORKS = "10.77.0.0/16,fd77::/64"
WELL_KNOWN = "/.well-known/matrix/server"
USERINFO = "/_matrix/federation/v1/openid/userinfo"


@dataclass(frozen=True)
class ReceivedRequest:
    """One request that reached a homeserver: address and port, SNI, Host header and path."""

    address: str
    port: int
    sni: str | None
    host: str
    path: str


class CertificateAuthority:
    """Issues certificates for exactly the given names, one for each set of names."""

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


class FakeInternet:
    """Servers and records of one test; `close` stops all of them."""

    def __init__(self, namespace, authority, start):
        self.received = []
        self.names = NameServer(namespace)
        self._namespace, self._authority, self._start = namespace, authority, start
        self._servers = []
        self._monitor = ConnectionMonitor(namespace)
        self.service = None

    def listen(self, address, port, certificate, answers):
        """Starts a TLS server. `answers` maps a path to (status, headers, body), to the body of a 200, or to a function
        of the request that returns either; any other path is 404. `certificate` is a name or a tuple of names."""
        names = (certificate,) if isinstance(certificate, str) else tuple(certificate)
        with self._namespace.inside():
            server = _TlsServer(address, port, self._authority.context(names), answers, self.received)
        self._servers.append(server)
        return server

    def homeserver(self, address, port, certificate, server_name):
        """Starts a homeserver that accepts every OpenID token as one of @alice:`server_name`."""
        userinfo = json.dumps({"sub": f"@alice:{server_name}"}).encode()
        return self.listen(address, port, certificate, {USERINFO: userinfo})

    def well_known(self, address, certificate, m_server):
        """Starts a server on port 443 whose well-known document delegates to `m_server`."""
        return self.listen(address, 443, certificate, {WELL_KNOWN: json.dumps({"m.server": m_server}).encode()})

    def silent(self, address, port):
        """Starts a server that accepts connections and never answers."""
        with self._namespace.inside():
            self._servers.append(socket.create_server((address, port)))

    def use_name_servers(self, *addresses):
        """Sets the name servers of the next service start. Addresses other than NAME_SERVER get a silent UDP socket."""
        for address in set(addresses) - {NAME_SERVER}:
            with self._namespace.inside():
                silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                silent.bind((address, 53))
                self._servers.append(silent)
        self._namespace.set_name_servers(*addresses)

    def start_service(self, **settings):
        """Starts the service with the default address policy, unless settings change it."""
        trusted = {"LIVEKIT_CA_FILE": self._authority.file, "LIVEKIT_OPENID_CACHE_SECONDS": 0}
        self.service = self._start(self._namespace, **trusted, **settings)
        return self.service

    def start_service_with_private_networks(self, **settings):
        """Starts the service with the private networks of the tests allowed."""
        return self.start_service(LIVEKIT_ALLOWED_NETWORKS=NETWORKS, **settings)

    def request_token(self, server, user=None):
        """Requests an access token for @alice:`server`, or for `user`, by an OpenID token of `server`."""
        return self.service.get_token(user or f"@alice:{server}", server)

    def connection_attempts(self):
        """All attempts to connect to a homeserver, as (address, port), in order."""
        own_requests = {("127.0.0.1", self.service.port)}
        return [attempt for attempt in self._monitor.attempts() if attempt not in own_requests and attempt[1] != 53]

    def close(self):
        for server in self._servers:
            server.close()
        self.names.close()
        self._namespace.set_name_servers(NAME_SERVER)
        self._monitor.close()


class _TlsServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address, port, context, answers, received):
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.answers, self.received, self.context = answers, received, context
        super().__init__((address, port), _Handler)
        self.listening_on = address, port
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def server_bind(self):
        # http.server looks up the name of the address at the name server of the test machine
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def handle_error(self, request, client_address):
        pass  # many tests expect that the service refuses the certificate

    def close(self):
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        self.sni = None
        context = self.server.context
        # an ssl socket does not keep the SNI; the callback stores it there
        context.sni_callback = lambda tls, name, _: setattr(tls, "server_name_indication", name)
        self.request.settimeout(30)
        self.request = context.wrap_socket(self.request, server_side=True)
        self.sni = getattr(self.request, "server_name_indication", None)
        super().setup()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        request = ReceivedRequest(*self.server.listening_on, self.sni, self.headers["Host"], path)
        self.server.received.append(request)
        answer = self.server.answers.get(path, (404, {}, b"{}"))
        answer = answer(request) if callable(answer) else answer
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def bracketed(address):
    """An IP address as it is written in a server name: IPv6 in brackets."""
    return f"[{ipaddress.IPv6Address(address)}]" if re.search(":", address) else address
