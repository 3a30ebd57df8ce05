"""A real Synapse and the service, wired rightly and wrongly: what `doctor` says of it, and what the homeserver pushes."""

import contextlib
import os
import subprocess

import pytest

from appservice_scene import Site, User
from scenes import SOON, until
from service import KEY, SECRET, Service

# nobody is looked at only because time has passed
NEVER = 3600
LINES = ["homeserver", "homeserver is_joined", "homeserver fed_proxy", "homeserver delayed events"]
LINES += ["homeserver to service", "homeserver pushes"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wiring")
    site = Site(folder, "localhost", "localhost:18448", LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS=NEVER)
    yield site
    site.stop()


def doctor(site, without=(), **changes):
    """What it finds: exit code, and for each thing the verdict and the words."""
    settings = {name: str(value) for name, value in (site.settings | changes).items() if name not in without}
    env = {"PATH": os.environ["PATH"], "LIVEKIT_KEY": KEY, "LIVEKIT_SECRET": SECRET} | settings
    done = subprocess.run([os.environ["BIN"], "doctor"], env=env, capture_output=True, text=True, timeout=120)
    print(done.stdout, done.stderr)
    assert site.as_token not in done.stdout and site.hs_token not in done.stdout
    lines = (line[5:].split(": ", 1) + [line[:4].strip()] for line in done.stdout.splitlines())
    return done.returncode, {what: (verdict, words) for what, words, verdict in lines}


def expect(findings, what, verdict, words):
    assert findings[what][0] == verdict and words in findings[what][1], findings[what]


@contextlib.contextmanager
def other_service(site, without=(), **changes):
    """In place of the right one."""
    with site.without_service():
        settings = {name: value for name, value in (site.settings | changes).items() if name not in without}
        service = Service(settings)
        try:
            yield
        finally:
            service.stop()


def test_where_all_is_wired_rightly_nothing_fails(site):
    code, findings = doctor(site)
    assert code == 0
    assert [findings[what][0] for what in LINES] == ["ok"] * len(LINES)
    expect(findings, "homeserver", "ok", site.name)


def test_an_as_token_that_the_homeserver_does_not_know_is_named(site):
    tokens = {"LIVEKIT_AS_TOKEN": "x" * 40, "LIVEKIT_HS_TOKEN": site.hs_token}
    code, findings = doctor(site, without=["LIVEKIT_AS_REGISTRATION_FILE"], **tokens)
    assert code == 1
    expect(findings, "homeserver", "FAIL", "as_token")


def test_an_hs_token_that_the_service_does_not_know_is_named(site):
    file = ["LIVEKIT_AS_REGISTRATION_FILE"]
    with other_service(site, file, LIVEKIT_AS_TOKEN=site.as_token, LIVEKIT_HS_TOKEN="y" * 40):
        code, findings = doctor(site)
        assert code == 1
        expect(findings, "homeserver", "ok", "as_token")
        expect(findings, "homeserver to service", "FAIL", "hs_token")
        expect(findings, "homeserver pushes", "FAIL", "hs_token")
        # the id of the registration is in the file alone
        tokens = {"LIVEKIT_AS_TOKEN": site.as_token, "LIVEKIT_HS_TOKEN": site.hs_token}
        expect(doctor(site, file, **tokens)[1], "homeserver pushes", "warn", "LIVEKIT_AS_REGISTRATION_FILE")


def test_a_service_that_does_not_run_or_has_no_such_door_is_named(site):
    with site.without_service():
        code, findings = doctor(site)
        assert code == 1
        expect(findings, "homeserver to service", "FAIL", "proxy_url")
        expect(findings, "homeserver pushes", "FAIL", "does the service run?")
    door = [name for name in site.settings if "_AS_" in name or "_HS_" in name]
    with other_service(site, door):
        findings = doctor(site)[1]
        expect(findings, "homeserver to service", "FAIL", "LIVEKIT_AS_")
        expect(findings, "homeserver pushes", "FAIL", "is it this service?")


def test_a_homeserver_of_another_name_or_none_is_named(site):
    code, findings = doctor(site, LIVEKIT_HS_SERVER_NAME="other.example")
    assert code == 1
    expect(findings, "homeserver", "FAIL", f"LIVEKIT_HS_SERVER_NAME={site.name}")
    expect(doctor(site, LIVEKIT_HS_URL=site.sfu.url)[1], "homeserver", "FAIL", "LIVEKIT_HS_URL")
    expect(doctor(site, LIVEKIT_HS_URL="http://127.0.0.1:1")[1], "homeserver", "FAIL", "LIVEKIT_HS_URL")


def test_whoever_is_banned_is_put_out_before_the_next_look(site):
    alice, carol = User(site), User(site)
    room = alice.create_room()
    carol.join(room, site.name)
    until(lambda: carol.get_token(room).status_code == 200, SOON, "who joins is let in")
    names = carol.names(room)
    site.webhooks.joined(*names)
    alice.do("PUT", f"rooms/{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "x" * 60_000})
    alice.do("POST", f"rooms/{room}/ban", {"user_id": carol.id})
    until(lambda: "departures=1 participants=1" in site.text, SOON, "the homeserver tells of the ban")
    until(lambda: names in site.sfu.removed, SOON, "the banned user is removed")


def test_features_that_are_off_are_named(site):
    """The last one: it restarts the homeserver, with a registration that has no url."""
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
