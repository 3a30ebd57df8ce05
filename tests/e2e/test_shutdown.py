"""SIGTERM under a real load generator: every accepted request is answered."""

import re
import shutil
import signal
import subprocess
import time

import pytest

from service import call

CONNECTIONS = 32
SECONDS = 4
# seconds after which wrk has all its connections, and is not finished
SECONDS_BEFORE_SIGTERM = 1.5


def errors_of(wrk):
    found = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", wrk)
    return dict(zip(("connect", "read", "write", "timeout"), map(int, found.groups()))) if found else {}


@pytest.mark.parametrize("as_init", [False, True], ids=["as_a_service", "as_pid_1"])
def test_no_accepted_request_is_lost(start, as_init):
    service = start(LIVEKIT_LOG_LEVEL="info", as_init=as_init)
    url = f"http://127.0.0.1:{service.port}/healthz"
    assert call(f"127.0.0.1:{service.port}", "GET", "/healthz").status == 200
    wrk = subprocess.Popen(
        [shutil.which("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", url], stdout=subprocess.PIPE, text=True
    )
    time.sleep(SECONDS_BEFORE_SIGTERM)
    service.signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    output = wrk.communicate(timeout=30)[0]
    errors = errors_of(output)
    # wrk counts a request without an answer as a read error, and a refused connection as a write error
    assert errors["write"] > 0, f"wrk ended before the service:\n{output}"
    assert errors["read"] == errors["timeout"] == 0, output
    assert "Non-2xx" not in output, output
    assert int(re.search(r"(\d+) requests in", output)[1]) > 1000, output
