"""Correct and wrong configurations of a real Synapse and the service: findings of `doctor`, and transactions that the homeserver pushes."""

import contextlib
import os
import subprocess

import pytest

from appservice_site import Site, User
from concurrent_scenarios import SOON, wait_until
from service import KEY, SECRET, Service

# seconds between membership checks: none happens in these tests
NEVER = 3600
CHECKS = ["homeserver", "homeserver is_joined", "homeserver fed_proxy", "homeserver delayed events"]
CHECKS += ["homeserver to service", "homeserver pushes"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wiring")
    site = Site(folder, "localhost", "localhost:18448", LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS=NEVER)
    yield site
    site.stop()


def doctor(site, without=(), **changes):
    """Runs `doctor`. Returns its exit code, and (status, text) of each check by name."""
    settings = {name: str(value) for name, value in (site.settings | changes).items() if name not in without}
    env = {"PATH": os.environ["PATH"], "LIVEKIT_KEY": KEY, "LIVEKIT_SECRET": SECRET} | settings
    done = subprocess.run([os.environ["BIN"], "doctor"], env=env, capture_output=True, text=True, timeout=120)
    print(done.stdout, done.stderr)
    assert site.as_token not in done.stdout and site.hs_token not in done.stdout
    lines = (line[5:].split(": ", 1) + [line[:4].strip()] for line in done.stdout.splitlines())
    return done.returncode, {check: (status, text) for check, text, status in lines}


def expect(findings, check, status, text):
    assert findings[check][0] == status and text in findings[check][1], findings[check]


@contextlib.contextmanager
def other_service(site, without=(), **changes):
    """Within this context a service with other settings runs in place of the site's."""
    with site.without_service():
        settings = {name: value for name, value in (site.settings | changes).items() if name not in without}
        service = Service(settings)
        try:
            yield
        finally:
            service.stop()


def test_a_correct_configuration_passes_every_check(site):
    code, findings = doctor(site)
    assert code == 0
    assert [findings[check][0] for check in CHECKS] == ["ok"] * len(CHECKS)
    expect(findings, "homeserver", "ok", site.name)


def test_a_wrong_as_token_is_reported(site):
    tokens = {"LIVEKIT_AS_TOKEN": "x" * 40, "LIVEKIT_HS_TOKEN": site.hs_token}
    code, findings = doctor(site, without=["LIVEKIT_AS_REGISTRATION_FILE"], **tokens)
    assert code == 1
    expect(findings, "homeserver", "FAIL", "as_token")


def test_a_wrong_hs_token_is_reported(site):
    file = ["LIVEKIT_AS_REGISTRATION_FILE"]
    with other_service(site, file, LIVEKIT_AS_TOKEN=site.as_token, LIVEKIT_HS_TOKEN="y" * 40):
        code, findings = doctor(site)
        assert code == 1
        expect(findings, "homeserver", "ok", "as_token")
        expect(findings, "homeserver to service", "FAIL", "hs_token")
        expect(findings, "homeserver pushes", "FAIL", "hs_token")
        # only the registration file has the id of the registration
        tokens = {"LIVEKIT_AS_TOKEN": site.as_token, "LIVEKIT_HS_TOKEN": site.hs_token}
        expect(doctor(site, file, **tokens)[1], "homeserver pushes", "warn", "LIVEKIT_AS_REGISTRATION_FILE")


def test_a_service_that_is_down_or_not_in_application_service_mode_is_reported(site):
    with site.without_service():
        code, findings = doctor(site)
        assert code == 1
        expect(findings, "homeserver to service", "FAIL", "proxy_url")
        expect(findings, "homeserver pushes", "FAIL", "does the service run?")
    appservice_settings = [name for name in site.settings if "_AS_" in name or "_HS_" in name]
    with other_service(site, appservice_settings):
        findings = doctor(site)[1]
        expect(findings, "homeserver to service", "FAIL", "LIVEKIT_AS_")
        expect(findings, "homeserver pushes", "FAIL", "is it this service?")


def test_a_homeserver_with_another_name_or_none_is_reported(site):
    code, findings = doctor(site, LIVEKIT_HS_SERVER_NAME="other.example")
    assert code == 1
    expect(findings, "homeserver", "FAIL", f"LIVEKIT_HS_SERVER_NAME={site.name}")
    expect(doctor(site, LIVEKIT_HS_URL=site.sfu.url)[1], "homeserver", "FAIL", "LIVEKIT_HS_URL")
    expect(doctor(site, LIVEKIT_HS_URL="http://127.0.0.1:1")[1], "homeserver", "FAIL", "LIVEKIT_HS_URL")


def test_a_pushed_ban_removes_the_user_before_the_next_membership_check(site):
    alice, carol = User(site), User(site)
    room = alice.create_room()
    carol.join(room, site.name)
    wait_until(lambda: carol.get_token(room).status_code == 200, SOON, "a joined user gets an access token")
    names = carol.names(room)
    site.webhooks.joined(*names)
    alice.matrix_request("PUT", f"rooms/{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "x" * 60_000})
    alice.matrix_request("POST", f"rooms/{room}/ban", {"user_id": carol.id})
    wait_until(lambda: "departures=1 participants=1" in site.text, SOON, "the homeserver pushes the ban")
    wait_until(lambda: names in site.sfu.removed, SOON, "the banned user is removed")


def test_disabled_features_of_the_homeserver_are_reported(site):
    """The last test of the module: it restarts the homeserver with a registration without `url`."""
    site.synapse.stop()
    config, registration = site.folder / "localhost-homeserver.yaml", site.folder / "localhost.yaml"
    config.write_text(config.read_text().replace("true", "false"))
    lines = registration.read_text().splitlines()
    registration.write_text("\n".join("url: null" if line.startswith("url:") else line for line in lines))
    site.synapse.start()
    code, findings = doctor(site)
    assert code == 1
    expect(findings, "homeserver", "ok", "as_token")
    expect(findings, "homeserver is_joined", "FAIL", "MSC4502")
    expect(findings, "homeserver fed_proxy", "FAIL", "MSC4512")
    expect(findings, "homeserver to service", "FAIL", "msc4512_enabled")
    expect(findings, "homeserver pushes", "warn", "LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS")
