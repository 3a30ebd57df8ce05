"""A real Redis that has written what it acknowledges, and can be killed and started again."""

import pathlib
import shutil
import subprocess
import tempfile
import time

START_SECONDS = 30


class Redis:
    """Listens on a Unix socket from the constructor on; a TCP port could be taken by another process while Redis is down."""

    def __init__(self, password=None):
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="redis-"))
        self.path = self._folder / "socket"
        self.url = f"unix://{self.path}"
        self._password = password
        self.start()

    def start(self):
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.path), "--dir", str(self._folder)]
        # leaves survive a restart of Redis only with these settings
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        if self._password:
            command += ["--requirepass", self._password]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + START_SECONDS
        for line in self.process.stdout:
            if "eady to accept connections" in line:
                break
            assert time.monotonic() < deadline, line
        assert self.process.poll() is None, "redis-server did not start"

    def kill(self):
        """Kills Redis as a power cut does: only what is on the disk survives."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def cli(self, *command):
        password = ["-a", self._password, "--no-auth-warning"] if self._password else []
        done = subprocess.run(
            ["redis-cli", "-s", str(self.path), *password, *command], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self):
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
