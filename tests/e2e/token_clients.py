"""Clients of the general token endpoint, each a function of (endpoint, bearer, fields, headers).

They return the reply in the client's own form, and raise Refused with the client's error message."""

import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading


HERE = pathlib.Path(__file__).parent
CONTRIB = HERE.parents[1] / "contrib" / "clients"
NODE_MODULES = pathlib.Path(os.environ["NODE_PATH"])
LIVEKIT_CLIENT = NODE_MODULES / "livekit-client" / "dist" / "livekit-client.esm.mjs"
RUST_CLIENT = pathlib.Path(os.environ["RUST_CLIENT"])
# Deadline of a browser that starts on a loaded machine.
BROWSER_SECONDS = 120
SCRIPTS = [HERE / "node" / "request_token.mjs", CONTRIB / "livekit-client.mjs", CONTRIB / "fetch.mjs"]
PAGE = HERE / "node" / "request_token_in_page.html"


class Refused(Exception):
    """The client got no access token."""


def in_node(client):
    """Runs a client of contrib/clients in Node."""

    def request_token(endpoint, bearer, fields, headers):
        with tempfile.TemporaryDirectory() as folder:
            # ES modules are resolved beside the importing file, not by NODE_PATH
            os.symlink(NODE_MODULES, f"{folder}/node_modules")
            for script in [*SCRIPTS, HERE / "node" / "request_token_in_node.mjs"]:
                shutil.copy(script, folder)
            job = _job(client, endpoint, bearer, fields, headers)
            run = ["node", f"{folder}/request_token_in_node.mjs"]
            done = subprocess.run(run, input=json.dumps(job), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return _outcome(json.loads(done.stdout))

    return request_token


def in_python(endpoint, bearer, fields, headers):
    """Runs contrib/clients/get_token.py, which sends the form of the example server."""
    assert not headers
    fields = dict(fields)
    spec = importlib.util.spec_from_file_location("get_token", CONTRIB / "get_token.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_token(endpoint, bearer, fields.pop("room_name"), fields.pop("participant_name"), **fields)
    except RuntimeError as refusal:
        raise Refused(str(refusal)) from refusal


def in_rust(endpoint, bearer, fields, headers):
    """Runs LiveKit's crate."""
    assert not headers
    run = [RUST_CLIENT, endpoint, "Authorization", f"Bearer {bearer}"]
    done = subprocess.run(run, input=json.dumps(fields), capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return json.loads(done.stdout)


class Page:
    """A web application's page on its own origin, opened in Chromium."""

    def __init__(self):
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _PageHandler)
        self._server.daemon_threads = True
        self._server.done = threading.Event()
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def client(self, client):
        """Runs a client of contrib/clients in the page."""

        def request_token(endpoint, bearer, fields, headers):
            self._server.done.clear()
            self._server.job = _job(client, endpoint, bearer, fields, headers)
            self._open()
            return _outcome(json.loads(self._server.result))

        return request_token

    def _open(self):
        """Opens the page in Chromium, and waits until the page has posted its result."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, open(f"{folder}/log", "w+") as log:
            chromium = ["chromium", "--headless=new", f"--user-data-dir={folder}/profile", "--no-first-run"]
            # Chromium has no sandbox for root; the rest turns off requests to Google
            chromium += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-sync"]
            chromium += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
            env = os.environ | {"HOME": folder}
            process = subprocess.Popen([*chromium, f"{self.origin}/"], stdout=log, stderr=log, env=env)
            try:
                done = self._server.done.wait(BROWSER_SECONDS)
                log.seek(0)
                assert done, f"the page posted no result:\n{log.read()}"
            finally:
                process.kill()
                process.wait()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _PageHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files = {f"/{file.name}": file for file in [*SCRIPTS, LIVEKIT_CLIENT]} | {"/": PAGE}

    def do_GET(self):
        if self.path == "/job":
            return self._send(json.dumps(self.server.job).encode(), "application/json")
        kind = "text/html" if self.path == "/" else "text/javascript"
        self._send(self.files[self.path].read_bytes(), kind)

    def do_POST(self):
        self.server.result = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(b"{}", "application/json")
        self.server.done.set()

    def _send(self, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def _job(client, endpoint, bearer, fields, headers):
    return {"client": client, "endpoint": endpoint, "bearer": bearer, "fields": fields, "headers": headers}


def _outcome(reply):
    if "refused" in reply:
        raise Refused(reply["refused"])
    return reply
