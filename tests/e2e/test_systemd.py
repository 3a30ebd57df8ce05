"""The Debian package on a machine with systemd, from installation to removal.

The machine is a Debian 12, or the tree in the folder that TREE names."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

from service import call
from systemd_machine import Machine

SHIP = pathlib.Path(__file__).parents[1] / "ship"
NAME = "livekit-token-service"
ENV, KEYS = f"etc/{NAME}/env", f"etc/{NAME}/keys"
SETTINGS = "LIVEKIT_URL=wss://sfu.example.org\nLIVEKIT_FULL_ACCESS_HOMESERVERS=example.org\n"
KEY, SECRET = "APIsystemd", "never-logged-secret-of-the-machine-with-systemd"
WAIT_SECONDS = 60
# seconds of load, during which the service is restarted as often as possible
LOAD_SECONDS, CONNECTIONS = 8, 16

# the first run makes the Debian tree and the package
pytestmark = pytest.mark.timeout(1800)


def run_script(script):
    """Runs a script of tests/ship, and returns the last line of its output."""
    done = subprocess.run([SHIP / script], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"tests/ship/{script} failed"
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def package():
    run_script("package")
    return SHIP.parents[1] / "dist" / f"{NAME}_amd64.deb"


@pytest.fixture
def machine(package):
    """With the package installed, and the settings of the package."""
    machine = Machine(os.environ.get("TREE") or run_script("debian-tree"))
    try:
        shutil.copy(package, machine.root / "package.deb")
        machine.run("dpkg", "--install", "/package.deb")
        yield machine
        assert SECRET not in machine.journal(), "a secret in the journal"
    finally:
        print(machine.journal("--lines=100"))
        machine.close()


@pytest.fixture
def configured(machine):
    (machine.root / ENV).write_text(SETTINGS)
    (machine.root / KEYS).write_text(f"{KEY}: {SECRET}\n")
    return machine


def override(machine, *lines):
    folder = machine.root / f"etc/systemd/system/{NAME}.service.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text("[Service]\n" + "".join(f"{line}\n" for line in lines))
    machine.run("systemctl", "daemon-reload")


def main_pid(machine):
    """The service's process id on the test machine, not in the systemd machine."""
    inside = machine.show(NAME, "MainPID")
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            pids = re.search(r"NSpid:\s+(.*)", status.read_text())[1].split()
            if len(pids) > 1 and pids[-1] == inside and (status.parent / "comm").read_text().strip() == NAME[:15]:
                return int(pids[0])
        except (OSError, TypeError):
            continue
    raise AssertionError(f"{NAME} does not run")


def healthz(machine, authority="127.0.0.1:8080"):
    with machine.inside():
        return call(authority, "GET", "/healthz").status


def wait_until(condition, what):
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_the_package_starts_nothing_and_a_start_without_settings_names_the_missing_one(machine):
    for unit in "service", "socket":
        assert machine.run("systemctl", "is-enabled", f"{NAME}.{unit}", check=False).strip() == "disabled"
        assert machine.show(f"{NAME}.{unit}", "ActiveState") == "inactive"
    machine.run("systemctl", "start", NAME, check=False)
    assert machine.show(NAME, "ActiveState") == "failed"
    assert machine.show(NAME, "ExecMainStatus") == "78"
    # systemd must not retry a start that fails for its settings
    assert machine.show(NAME, "NRestarts") == "0"
    assert "LIVEKIT_URL: expected" in machine.journal(f"--unit={NAME}")
    for path in ENV, KEYS:
        assert (machine.root / path).stat().st_mode & 0o777 == 0o600


def test_the_service_starts_is_confined_and_stops(configured):
    machine = configured
    machine.run("systemctl", "enable", "--now", NAME)
    # Type=notify: the service listens when systemctl returns
    assert healthz(machine) == 200
    log = machine.journal(f"--unit={NAME}")
    assert f"key={KEY}" in log and "full_access=example.org" in log

    process = pathlib.Path(f"/proc/{main_pid(machine)}")
    status = dict(re.findall(r"(\w+):\s+(.*)", (process / "status").read_text()))
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert all(int(status[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"))
    assert "0" not in status["Uid"].split()
    environment = (process / "environ").read_bytes()
    assert SECRET.encode() not in environment
    assert b"STATE_DIRECTORY=/var/lib/livekit-token-service" in environment
    # the root folder has no other executable, and only the state folder is writable
    root = process / "root"
    assert [path.name for path in (root / "usr/bin").iterdir()] == [NAME]
    for absent in "bin", "lib", "usr/lib", "etc/passwd", "etc/shadow", "var/log":
        assert not (root / absent).exists(), absent
    mounts = [line.split()[4:6] for line in (process / "mountinfo").read_text().splitlines()]
    writable = {folder for folder, options in mounts if "ro" not in options.split(",")}
    assert not any(re.match(r"/(etc|usr|run/livekit-token-service-root)?(/|$)", folder) for folder in writable), writable
    assert "/var/lib/livekit-token-service" in writable

    stopped_at = time.monotonic()
    machine.run("systemctl", "stop", NAME)
    assert machine.show(NAME, "Result") == "success", machine.journal(f"--unit={NAME}")
    assert time.monotonic() - stopped_at < WAIT_SECONDS
    assert "stopping" in machine.journal(f"--unit={NAME}")


def test_warnings_have_their_priority_in_the_journal(configured):
    # without LIVEKIT_FULL_ACCESS_HOMESERVERS, which causes a warning
    (configured.root / ENV).write_text("LIVEKIT_URL=wss://sfu.example.org\n")
    configured.run("systemctl", "start", NAME)
    lines = configured.run("journalctl", f"--unit={NAME}", "--output=json", "--priority=warning").splitlines()
    messages = [json.loads(line)["MESSAGE"] for line in lines]
    assert any("restricted" in message for message in messages), messages
    assert not any("listening" in message for message in messages)
    assert not any(message.startswith("<") for message in messages)


def test_a_reload_keeps_the_process_and_serves(configured):
    machine = configured
    machine.run("systemctl", "start", NAME)
    before = machine.show(NAME, "MainPID")
    for _ in range(3):
        machine.run("systemctl", "reload", NAME)
        wait_until(lambda: machine.show(NAME, "ActiveState") == "active", "the service is not active after a reload")
        assert healthz(machine) == 200
    assert machine.show(NAME, "MainPID") == before
    assert machine.show(NAME, "NRestarts") == "0"


def test_a_credential_sets_a_setting(configured):
    machine = configured
    (machine.root / "etc/my-ca.pem").write_text("no certificate\n")
    (machine.root / "etc/my-ca.pem").chmod(0o600)
    override(machine, "LoadCredential=livekit-ca-file:/etc/my-ca.pem")
    machine.run("systemctl", "start", NAME, check=False)
    assert machine.show(NAME, "ExecMainStatus") == "78"
    assert "LIVEKIT_CA_FILE: expected" in machine.journal(f"--unit={NAME}")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", machine.root / "etc/my-ca.pem")
    machine.run("systemctl", "restart", NAME)
    assert healthz(machine) == 200


def test_a_service_that_hangs_is_restarted(configured):
    machine = configured
    override(machine, "WatchdogSec=2", "RestartSec=0")
    machine.run("systemctl", "start", NAME)
    before = machine.show(NAME, "MainPID")
    # a healthy idle service survives several watchdog intervals
    time.sleep(6)
    assert machine.show(NAME, "MainPID") == before
    os.kill(main_pid(machine), signal.SIGSTOP)
    wait_until(lambda: machine.show(NAME, "NRestarts") == "1", "systemd does not restart a service that hangs")
    wait_until(lambda: machine.show(NAME, "ActiveState") == "active", "the service is not active after a restart")
    assert machine.show(NAME, "MainPID") != before
    assert healthz(machine) == 200
    assert "Watchdog timeout" in machine.journal(f"--unit={NAME}")


def test_restarts_under_load_lose_no_request(configured):
    machine = configured
    machine.run("systemctl", "enable", "--now", f"{NAME}.socket")
    assert machine.show(NAME, "ActiveState") == "inactive"
    # the first connection starts the service
    assert healthz(machine) == 200
    assert machine.show(NAME, "ActiveState") == "active"
    wrk = subprocess.Popen(
        ["nsenter", f"--target={machine.init}", "--net", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{LOAD_SECONDS}s",
         "http://127.0.0.1:8080/healthz"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    restarts = 0
    while wrk.poll() is None:
        machine.run("systemctl", "restart", NAME)
        restarts += 1
        # systemd limits the number of starts
        machine.run("systemctl", "reset-failed", NAME)
    output = wrk.communicate()[0]
    assert restarts > 2, output
    assert "Socket errors" not in output and "Non-2xx" not in output, output
    assert int(re.search(r"(\d+) requests in", output)[1]) > 1000, output


def test_an_upgrade_keeps_the_settings_and_restarts_the_service_and_a_removal_stops_it(configured):
    machine = configured
    machine.run("systemctl", "enable", "--now", NAME)
    before = machine.show(NAME, "MainPID")
    machine.run("dpkg", "--install", "/package.deb")
    wait_until(lambda: machine.show(NAME, "ActiveState") == "active", "the service is not active after an upgrade")
    assert machine.show(NAME, "MainPID") != before
    assert (machine.root / ENV).read_text() == SETTINGS
    assert healthz(machine) == 200
    machine.run("dpkg", "--remove", NAME)
    assert machine.show(NAME, "ActiveState") in ("inactive", "failed")
    assert not (machine.root / f"usr/bin/{NAME}").exists()
    assert (machine.root / KEYS).exists()
    machine.run("dpkg", "--purge", NAME)
    assert not (machine.root / KEYS).exists()
