"""SIGTERM under a real load generator: whoever was let in is answered."""

import re
import shutil
import signal
import subprocess
import time

import pytest

from service import call

CONNECTIONS = 32
SECONDS = 4
# by then wrk has all its connections, and is far from done
UNTIL_SIGTERM = 1.5


def errors_of(wrk):
    found = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", wrk)
    return dict(zip(("connect", "read", "write", "timeout"), map(int, found.groups()))) if found else {}


@pytest.mark.parametrize("as_init", [False, True], ids=["as_a_service", "as_pid_1"])
def test_no_request_that_was_let_in_is_lost(start, as_init):
    service = start(LIVEKIT_LOG_LEVEL="info", as_init=as_init)
    url = f"http://127.0.0.1:{service.port}/healthz"
    assert call(f"127.0.0.1:{service.port}", "GET", "/healthz").status == 200
    wrk = subprocess.Popen(
        [shutil.which("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", url], stdout=subprocess.PIPE, text=True
    )
    time.sleep(UNTIL_SIGTERM)
    service.signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    said = wrk.communicate(timeout=30)[0]
    errors = errors_of(said)
    # a request whose answer does not come is a read error; wrk counts as write errors that nobody listens any more
    assert errors["write"] > 0, f"it ended before the service did:\n{said}"
    assert errors["read"] == errors["timeout"] == 0, said
    assert "Non-2xx" not in said, said
    assert int(re.search(r"(\d+) requests in", said)[1]) > 1000, said
