"""A real livekit-server on loopback, built by `tests/e2e/run` from the Go module proxy (LIVEKIT_SERVER names the binary)."""

import os
import pathlib
import subprocess
import tempfile
import time

import requests
import yaml

from service import KEY, SECRET

START_SECONDS = 30
STOP_SECONDS = 15


class LiveKitServer:
    """Runs from `start` to `stop`. `webhook` is a URL, or None for an SFU that sends none; `webhook_key` is the key that signs them."""

    def __init__(self, port=17880, auto_create=False, webhook=None, webhook_key=KEY):
        self.port, self.url, self.api_url = port, f"ws://127.0.0.1:{port}", f"http://127.0.0.1:{port}"
        self._folder = tempfile.TemporaryDirectory(prefix="livekit-")
        self._process = None
        config = {
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "keys": {KEY: SECRET, "other-key": "another-secret-of-more-than-32-characters"},
            "room": {"auto_create": auto_create},
            "rtc": {
                "tcp_port": port + 1,
                "port_range_start": port + 100,
                "port_range_end": port + 140,
                "use_external_ip": False,
                "node_ip": "127.0.0.1",
                "enable_loopback_candidate": True,
                "interfaces": {"includes": ["lo"]},
            },
            "logging": {"level": "info"},
        }
        if webhook:
            config["webhook"] = {"api_key": webhook_key, "urls": [webhook]}
        self._config = pathlib.Path(self._folder.name) / "livekit.yaml"
        self._config.write_text(yaml.safe_dump(config))
        self._log = pathlib.Path(self._folder.name) / "log"
        self.start()

    @property
    def text(self):
        return self._log.read_text(errors="replace")

    def start(self):
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [os.environ["LIVEKIT_SERVER"], "--config", self._config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if requests.get(self.api_url, timeout=1).ok:
                    return
            except requests.RequestException:
                pass
            if self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            self.crash()
            raise AssertionError(f"livekit-server did not start:\n{self.text[-3000:]}")

    def crash(self):
        """Ends it at once; every room is lost."""
        self._process.kill()
        self._process.wait()

    def stop(self):
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.crash()
