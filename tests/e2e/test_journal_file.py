"""The journal in a file on a disk that is full, read-only or damaged: new leaves are refused, those that are kept go on, readiness
says so, and all is well again as soon as the disk is."""

import errno
import pathlib
import signal
import subprocess
import tempfile
import time

import pytest

from delayed_homeserver import SERVER, DelayedHomeserver
from fake_sfu import FakeSfu
from livekit_sdks import name_of
from scenes import SOON, until
from service import DEVICE, KEY, SECRET, SLOT, call, get_token_body
from webhooks import Webhooks

# seconds: longer than a test; a leave is only restarted when its participant comes
DELAY = 600
ROOM = name_of("!room:example.org", SLOT)


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


class Stage:
    """A service with its journal on the disk."""

    def __init__(self, start, sfu, disk):
        self.homeserver, self.number = DelayedHomeserver(), 0
        self.settings = self.homeserver.settings() | {"LIVEKIT_API_URL": sfu.url, "LIVEKIT_STATE_DIR": disk.path}
        self._start = start
        self.again()
        self.webhooks = Webhooks(sfu, lambda: [f"127.0.0.1:{self.service.port}"])

    def again(self):
        self.service = self._start(**self.settings)

    def delegate(self):
        """The leave and the status of the answer."""
        self.number += 1
        leave = self.homeserver.schedule(DELAY)
        body = get_token_body(f"@user-{self.number}:{SERVER}", SERVER, f"token-user-{self.number}")
        body |= {"delay_id": leave.id, "delay_timeout": DELAY * 1000}
        leave.identity = name_of(f"@user-{self.number}:{SERVER}", DEVICE, "member-1")
        return leave, self.service.call("POST", "/delegate_delayed_leave", body).status

    def delegated(self):
        leave, status = self.delegate()
        assert status == 200, status
        return leave

    def ready(self):
        return self.service.call("GET", "/readyz").status

    def is_refused(self):
        """Whether a new leave is, in time, and readiness says so; it is of nothing else."""
        began = time.monotonic()
        _, status = self.delegate()
        ready = self.ready()
        assert time.monotonic() - began < SOON
        assert self.service.call("GET", "/healthz").status == 200
        assert self.service.get_token(f"@user-1:{SERVER}", SERVER, "token-user-1").status == 200
        return status in (400, 503) and ready == 503

    def expect_ready(self):
        until(lambda: self.ready() == 200, SOON, "the service is ready")

    def expect_sent(self, leave):
        """Somebody comes and leaves again."""
        sid = self.webhooks.joined(ROOM, leave.identity)
        until(lambda: leave.of("restart"), SOON, "the leave is restarted")
        self.webhooks.left(ROOM, leave.identity, sid)
        until(lambda: leave.sent, SOON, "the leave is sent")

    def stop(self):
        self.homeserver.stop()


@pytest.fixture
def stage(start, sfu, disk):
    stages = []

    def begin():
        stages.append(Stage(start, sfu, disk))
        return stages[0]

    yield begin
    for stage in stages:
        stage.stop()


def fill_until_refused(stage, disk):
    def refused():
        # the file may have room for some more, and give some back
        disk.fill()
        return stage.is_refused()

    until(refused, 60, "a leave is refused")


def test_a_full_disk_refuses_new_leaves_and_keeps_the_old_ones(stage, disk):
    stage = stage()
    kept = [stage.delegated() for _ in range(3)]
    stage.expect_ready()
    fill_until_refused(stage, disk)
    assert "No space left on device" in stage.service.text
    disk.free()
    stage.expect_ready()
    kept.append(stage.delegated())
    for leave in kept:
        stage.expect_sent(leave)


def test_who_leaves_while_the_disk_is_full_has_left(stage, disk):
    stage = stage()
    leave = stage.delegated()
    sid = stage.webhooks.joined(ROOM, leave.identity)
    until(lambda: leave.of("restart"), SOON, "the leave is restarted")
    fill_until_refused(stage, disk)
    try:
        stage.webhooks.left(ROOM, leave.identity, sid)
    except AssertionError:
        # the SFU may be told to repeat what can't be written down; that is no reason to wait with it
        pass
    until(lambda: leave.sent, SOON, "the leave is sent")


def test_what_was_acknowledged_on_a_disk_that_fills_up_outlasts_a_crash(stage, disk):
    stage = stage()
    acknowledged = [stage.delegated()]
    disk.fill()
    while True:
        leave, status = stage.delegate()
        if status != 200:
            break
        acknowledged.append(leave)
    stage.service.signal(signal.SIGKILL)
    stage.service.process.wait()
    # with the disk still full
    stage.again()
    disk.free()
    stage.expect_ready()
    for leave in acknowledged[:1] + acknowledged[-1:]:
        stage.expect_sent(leave)


def test_a_disk_that_cannot_be_written_at_the_start_is_used_when_it_can(stage, disk):
    disk.remount("ro")
    stage = stage()
    assert "Read-only file system" in stage.service.text
    assert stage.is_refused()
    disk.remount("rw")
    stage.expect_ready()
    stage.expect_sent(stage.delegated())


def test_a_damaged_file_is_kept_aside_and_a_new_one_begun(stage, disk):
    (disk.path / "leaves.redb").write_bytes(b"by mistake, somebody's letter" * 100)
    stage = stage()
    stage.expect_ready()
    assert "is damaged and begins anew" in stage.service.text
    assert (disk.path / "leaves.broken.1").read_bytes().startswith(b"by mistake")
    stage.expect_sent(stage.delegated())
