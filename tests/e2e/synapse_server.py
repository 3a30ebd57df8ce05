"""Starts a real Synapse on loopback: certificate authority, configuration, process, and `.well-known` where a variant needs it.

`tests/e2e/run` installs Synapse into a virtual environment of its own (SYNAPSE_PYTHON); data and certificates live in SYNAPSE_HOME and
survive a run, so that a later start takes seconds. At the end of the run all servers are stopped."""

import atexit
import base64
import http.server
import json
import os
import pathlib
import secrets
import shutil
import ssl
import subprocess
import threading
import time

import requests
import yaml

HOME = pathlib.Path(os.environ["SYNAPSE_HOME"])
CERTIFICATES = HOME / "certificates"
START_SECONDS = 180  # for a start on a loaded machine, database schema included
STOP_SECONDS = 10
HOSTS = pathlib.Path("/etc/hosts")
HOSTS_LINE = "127.0.0.1 hs.test # livekit-token-service tests/e2e\n"

# server name (None: host and federation port), host, port without TLS, port with TLS
VARIANTS = {
    "localhost": (None, "localhost", 18008, 18448),
    "ip": (None, "127.0.0.1", 18009, 18449),
    "hs.test": ("hs.test", "hs.test", 18010, 18450),
}
# rates that no test reaches: requests per second, and as many at once
UNLIMITED = {"per_second": 10000, "burst_count": 10000}
RATE_LIMITS = {
    "rc_message": UNLIMITED,
    "rc_registration": UNLIMITED,
    "rc_login": {"address": UNLIMITED, "account": UNLIMITED, "failed_attempts": UNLIMITED},
    "rc_joins": {"local": UNLIMITED, "remote": UNLIMITED},
    "rc_room_creation": UNLIMITED,
    "rc_invites": {"per_room": UNLIMITED, "per_user": UNLIMITED, "per_issuer": UNLIMITED},
    "rc_delayed_event_mgmt": UNLIMITED,
}


class SynapseServer:
    """One Synapse process. `default_limits` keeps Synapse's own rate limits; `extra` is a second configuration file, whose top-level
    keys win; `fresh` starts with an empty database; `well_known_port` is where the variant `hs.test` publishes `.well-known`;
    `service_url` is what Synapse tells clients as the URL of the service."""

    def __init__(self, variant, default_limits=False, extra=None, fresh=False, well_known_port=443, service_url="http://unused.test"):
        name, self.host, self.port, self.tls_port = VARIANTS[variant]
        self.server_name = name or f"{self.host}:{self.tls_port}"
        self.client_url = f"http://127.0.0.1:{self.port}"
        self.variant, self.extra, self.well_known_port = variant, extra, well_known_port
        self._service_url = service_url
        self.folder = HOME / variant.replace(".", "-")
        self._process = self._well_known = None
        if fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        make_certificates()
        self.ca_file = str(CERTIFICATES / "ca.pem")
        self.registration_secret = self._secret("registration-secret", secrets.token_hex(24))
        self._configure({} if default_limits else RATE_LIMITS)
        atexit.register(self.stop)

    def _secret(self, name, value):
        file = self.folder / name
        if not file.exists():
            file.write_text(value)
        return file.read_text().strip()

    def _configure(self, rate_limits):
        self._secret("signing.key", f"ed25519 a_1 {base64.b64encode(secrets.token_bytes(32)).decode().rstrip('=')}\n")
        transport = {"type": "livekit", "livekit_service_url": self._service_url}
        listener = {"bind_addresses": ["127.0.0.1"], "type": "http", "resources": [{"names": ["client", "federation"]}]}
        config = {
            "server_name": self.server_name,
            "public_baseurl": f"{self.client_url}/",
            "pid_file": str(self.folder / "synapse.pid"),
            "listeners": [listener | {"port": self.port}, listener | {"port": self.tls_port, "tls": True}],
            "tls_certificate_path": str(CERTIFICATES / "server.pem"),
            "tls_private_key_path": str(CERTIFICATES / "server.key"),
            "federation_custom_ca_list": [self.ca_file],
            # homeservers of these tests are on loopback
            "federation_ip_range_blacklist": [],
            "ip_range_blacklist": [],
            "database": {"name": "sqlite3", "args": {"database": str(self.folder / "homeserver.db")}},
            "log_config": str(self.folder / "log.yaml"),
            "media_store_path": str(self.folder / "media"),
            "signing_key_path": str(self.folder / "signing.key"),
            "registration_shared_secret": self.registration_secret,
            "macaroon_secret_key": self._secret("macaroon-secret", secrets.token_hex(24)),
            "trusted_key_servers": [],
            "report_stats": False,
            "bcrypt_rounds": 4,
            "presence": {"enabled": False},
            "max_event_delay_duration": "24h",
            "experimental_features": {"msc4143_enabled": True, "msc4354_enabled": True},
            "matrix_rtc": {"transports": [transport]},
            "extra_well_known_client_content": {"org.matrix.msc4143.rtc_foci": [transport]},
        } | rate_limits
        (self.folder / "homeserver.yaml").write_text(yaml.safe_dump(config))
        log = {
            "version": 1,
            "formatters": {"line": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
            "handlers": {
                "file": {
                    "class": "logging.FileHandler",
                    "formatter": "line",
                    "filename": str(self.folder / "homeserver.log"),
                }
            },
            "root": {"level": "INFO", "handlers": ["file"]},
            "disable_existing_loggers": False,
        }
        (self.folder / "log.yaml").write_text(yaml.safe_dump(log))

    def start(self):
        """Starts the server unless it runs, with the data of its last run, and waits until both listeners answer."""
        if self._process:
            return
        if self.variant == "hs.test":
            self._publish()
        command = [os.environ["SYNAPSE_PYTHON"], "-m", "synapse.app.homeserver", "-c", self.folder / "homeserver.yaml"]
        if self.extra:
            command += ["-c", self.extra]
        # with this set, no module would be compiled to a file: a start would cost tens of CPU seconds
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with open(self.folder / "output.log", "wb") as output:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = "".join(
                    (self.folder / name).read_text(errors="replace")[-4000:]
                    for name in ("output.log", "homeserver.log")
                    if (self.folder / name).exists()
                )
                self.stop()
                raise AssertionError(f"Synapse ({self.variant}) did not start within {START_SECONDS} s:\n{log}")
            time.sleep(0.1)

    def _answers(self):
        try:
            tls = f"https://{self.host}:{self.tls_port}/_matrix/federation/v1/version"
            return requests.get(f"{self.client_url}/health", timeout=2).ok and requests.get(tls, verify=self.ca_file, timeout=2).ok
        except requests.RequestException:
            return False

    def _publish(self):
        if HOSTS_LINE not in HOSTS.read_text():
            with HOSTS.open("a") as hosts:
                hosts.write(HOSTS_LINE)
        documents = {
            "server": {"m.server": f"hs.test:{self.tls_port}"},
            "client": {"m.homeserver": {"base_url": self.client_url}},
        }
        self._well_known = WellKnownServer(self.well_known_port, documents)

    def stop(self):
        """Ends the process; the data stays."""
        if self._well_known:
            self._well_known.stop()
            HOSTS.write_text(HOSTS.read_text().replace(HOSTS_LINE, ""))
            self._well_known = None
        process, self._process = self._process, None
        if process:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class WellKnownServer:
    """`https://hs.test:PORT/.well-known/matrix/NAME` for the given documents by name; other paths are 404."""

    def __init__(self, port, documents):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                document = documents.get(self.path.removeprefix("/.well-known/matrix/"))
                self.send_response(200 if document else 404)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def log_message(self, *_):
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


def make_certificates():
    """A certificate authority, and a certificate of all variants' names signed by it."""
    if (CERTIFICATES / "server.pem").exists():
        return
    CERTIFICATES.mkdir(parents=True, exist_ok=True)
    (CERTIFICATES / "server.ext").write_text(
        "subjectAltName=DNS:localhost,DNS:hs.test,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
    )
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    _openssl(f"req -x509 {key} -days 3650 -subj /CN=tests -keyout ca.key -out ca.pem -addext keyUsage=critical,keyCertSign")
    _openssl(f"req {key} -subj /CN=hs.test -keyout server.key -out server.csr")
    _openssl("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile server.ext -out server.crt")
    chain = (CERTIFICATES / "server.crt").read_text() + (CERTIFICATES / "ca.pem").read_text()
    (CERTIFICATES / "server.pem").write_text(chain)


def _openssl(arguments):
    subprocess.run(["openssl", *arguments.split()], cwd=CERTIFICATES, check=True, capture_output=True)
