"""tinyproxy as the forward proxy of a network."""

import re
import subprocess
import time

ADDRESS, PORT = "10.77.0.3", 3128
USER, PASSWORD = "the-service", "e2e-password-of-the-proxy"
START_SECONDS = 20
CONFIG = f"""
Port {PORT}
Listen {ADDRESS}
Timeout 60
LogLevel Info
BasicAuth {USER} {PASSWORD}
"""


class ForwardProxy:
    """Runs in the namespace until `stop`. Without `connect_ports` CONNECT is allowed to every port."""

    def __init__(self, namespace, folder, connect_ports=()):
        config, self._log = folder / "tinyproxy.conf", folder / "tinyproxy.log"
        config.write_text(CONFIG + "".join(f"ConnectPort {port}\n" for port in connect_ports))
        command = ["ip", "netns", "exec", namespace.name, "tinyproxy", "-d", "-c", config]
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while "Accepting connections" not in self.text:
            assert time.monotonic() < deadline and self._process.poll() is None, f"tinyproxy did not start:\n{self.text}"
            time.sleep(0.02)

    @staticmethod
    def url(password=PASSWORD, host=ADDRESS):
        return f"http://{USER}:{password}@{host}:{PORT}"

    @property
    def text(self):
        return self._log.read_text()

    @property
    def connect_targets(self):
        """The targets of all CONNECT requests, in order."""
        return re.findall(r"CONNECT (\S+) HTTP/1\.1", self.text)

    def stop(self):
        self._process.terminate()
        self._process.wait(20)
