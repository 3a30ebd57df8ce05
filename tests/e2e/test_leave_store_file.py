"""The leave store in a file on a disk that is full or read-only, or that is damaged: new delegations are refused, earlier ones are still
served, `/readyz` reports it, and the store recovers with the disk."""

import errno
import pathlib
import signal
import subprocess
import tempfile
import time

import pytest

from concurrent_scenarios import SOON, wait_until
from fake_delayed_events import SERVER, DelayedEventHomeserver
from livekit_sdks import hashed_name
from service import DEVICE, SLOT, get_token_body
from webhooks import Webhooks

# seconds: longer than a test, so that a leave is restarted only when its participant joins
DELAY = 600
ROOM = hashed_name("!room:example.org", SLOT)


class Disk:
    """A file system of a few megabytes."""

    def __init__(self, path):
        self.path = path
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(path)], check=True)

    def remount(self, how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)

    def fill(self):
        with open(self.path / "filler", "ab", buffering=0) as filler:
            for size in (65536, 512, 1):
                try:
                    while True:
                        filler.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def free(self):
        (self.path / "filler").unlink()

    def close(self):
        subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def disk():
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(pathlib.Path(folder))
        yield disk
        disk.close()


class Setup:
    """A service with its leave store on the disk."""

    def __init__(self, start, sfu, disk):
        self.homeserver, self.number = DelayedEventHomeserver(), 0
        self.settings = self.homeserver.settings() | {"LIVEKIT_API_URL": sfu.url, "LIVEKIT_STATE_DIR": disk.path}
        self._start = start
        self.start()
        self.webhooks = Webhooks(sfu, lambda: [f"127.0.0.1:{self.service.port}"])

    def start(self):
        self.service = self._start(**self.settings)

    def delegate(self):
        """Delegates a new leave. Returns it and the status of the reply."""
        self.number += 1
        leave = self.homeserver.schedule(DELAY)
        body = get_token_body(f"@user-{self.number}:{SERVER}", SERVER, f"token-user-{self.number}")
        body |= {"delay_id": leave.id, "delay_timeout": DELAY * 1000}
        leave.identity = hashed_name(f"@user-{self.number}:{SERVER}", DEVICE, "member-1")
        return leave, self.service.call("POST", "/delegate_delayed_leave", body).status

    def acknowledged_leave(self):
        leave, status = self.delegate()
        assert status == 200, status
        return leave

    def ready(self):
        return self.service.call("GET", "/readyz").status

    def refuses_delegations(self):
        """Whether a new delegation is refused and the service is not ready. Asserts that everything else is served, in time."""
        began = time.monotonic()
        _, status = self.delegate()
        ready = self.ready()
        assert time.monotonic() - began < SOON
        assert self.service.call("GET", "/healthz").status == 200
        assert self.service.get_token(f"@user-1:{SERVER}", SERVER, "token-user-1").status == 200
        return status in (400, 503) and ready == 503

    def expect_ready(self):
        wait_until(lambda: self.ready() == 200, SOON, "the service is ready")

    def expect_sent(self, leave):
        """The participant joins and leaves, and the leave is sent."""
        sid = self.webhooks.joined(ROOM, leave.identity)
        wait_until(lambda: leave.of("restart"), SOON, "the leave is restarted")
        self.webhooks.left(ROOM, leave.identity, sid)
        wait_until(lambda: leave.sent, SOON, "the leave is sent")

    def stop(self):
        self.homeserver.stop()


@pytest.fixture
def setup(start, sfu, disk):
    setups = []

    def begin():
        setups.append(Setup(start, sfu, disk))
        return setups[0]

    yield begin
    for setup in setups:
        setup.stop()


def fill_until_refused(setup, disk):
    def refused():
        # the database may have free pages, and give some back
        disk.fill()
        return setup.refuses_delegations()

    wait_until(refused, 60, "a delegation is refused")


def test_a_full_disk_refuses_new_delegations_and_keeps_earlier_ones(setup, disk):
    setup = setup()
    leaves = [setup.acknowledged_leave() for _ in range(3)]
    setup.expect_ready()
    fill_until_refused(setup, disk)
    assert "No space left on device" in setup.service.text
    disk.free()
    setup.expect_ready()
    leaves.append(setup.acknowledged_leave())
    for leave in leaves:
        setup.expect_sent(leave)


def test_a_leave_is_sent_while_the_disk_is_full(setup, disk):
    setup = setup()
    leave = setup.acknowledged_leave()
    sid = setup.webhooks.joined(ROOM, leave.identity)
    wait_until(lambda: leave.of("restart"), SOON, "the leave is restarted")
    fill_until_refused(setup, disk)
    try:
        setup.webhooks.left(ROOM, leave.identity, sid)
    except AssertionError:
        # the webhook may fail, as it cannot be stored; the leave is sent all the same
        pass
    wait_until(lambda: leave.sent, SOON, "the leave is sent")


def test_delegations_acknowledged_on_a_disk_that_fills_up_survive_a_crash(setup, disk):
    setup = setup()
    acknowledged = [setup.acknowledged_leave()]
    disk.fill()
    while True:
        leave, status = setup.delegate()
        if status != 200:
            break
        acknowledged.append(leave)
    setup.service.signal(signal.SIGKILL)
    setup.service.process.wait()
    # the disk is still full
    setup.start()
    disk.free()
    setup.expect_ready()
    for leave in acknowledged[:1] + acknowledged[-1:]:
        setup.expect_sent(leave)


def test_a_disk_that_is_read_only_at_the_start_is_used_once_it_is_writable(setup, disk):
    disk.remount("ro")
    setup = setup()
    assert "Read-only file system" in setup.service.text
    assert setup.refuses_delegations()
    disk.remount("rw")
    setup.expect_ready()
    setup.expect_sent(setup.acknowledged_leave())


def test_a_damaged_file_is_moved_aside_and_a_new_one_is_created(setup, disk):
    (disk.path / "leaves.redb").write_bytes(b"not a database" * 100)
    setup = setup()
    setup.expect_ready()
    assert "leave store damaged" in setup.service.text
    assert (disk.path / "leaves.broken.1").read_bytes().startswith(b"not a database")
    setup.expect_sent(setup.acknowledged_leave())
