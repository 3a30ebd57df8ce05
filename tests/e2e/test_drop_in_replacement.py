"""The service in place of lk-jwt-service, with the unchanged environment, command and health check of known deployments.

Each runs in the network namespace of the tests, as in a container, as its ports may be in use on the test machine."""

import contextlib
import os
import re
import subprocess
import threading
from dataclasses import dataclass, field

import pytest

from service import call, sfu_get_body

SECRET = "a-secret-of-at-least-thirty-two-characters"
START_SECONDS = 20
# what Kubernetes adds to the environment if the namespace has services with these names
SERVICE_LINKS = {
    "LIVEKIT_JWT_PORT": "tcp://10.96.12.7:8080",
    "LIVEKIT_JWT_PORT_8080_TCP": "tcp://10.96.12.7:8080",
    "LIVEKIT_JWT_PORT_8080_TCP_ADDR": "10.96.12.7",
    "LIVEKIT_JWT_SERVICE_HOST": "10.96.12.7",
    "LIVEKIT_JWT_SERVICE_PORT": "8080",
    "LIVEKIT_JWT_SERVICE_PORT_HTTP": "8080",
    "LIVEKIT_SFU_SERVICE_HOST": "10.96.12.8",
    "LIVEKIT_SFU_PORT": "tcp://10.96.12.8:7880",
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
}


@dataclass(frozen=True)
class Deployment:
    """`{files}` in a value is replaced by the folder with `files`. `key`, `full_access` and `warned_of` must be logged at the start."""

    name: str
    environment: dict
    port: int = 8080
    files: dict = field(default_factory=dict)
    key: str = "devkey"
    full_access: str = "none"
    warned_of: tuple = ()


def compose(version, **more):
    """Name and environment of the compose file of a version of lk-jwt-service, with the SFU `livekit`."""
    base = {"LIVEKIT_URL": "ws://livekit:7880", "LIVEKIT_KEY": "devkey", "LIVEKIT_SECRET": "secret"}
    return f"compose_v{version}", base | more


DEPLOYMENTS = [
    Deployment(*compose("0.1", LK_JWT_PORT="8080"), warned_of=("LK_JWT_PORT",)),
    Deployment(*compose("0.2", LIVEKIT_JWT_PORT="8081"), port=8081, warned_of=("LIVEKIT_JWT_PORT",)),
    Deployment(
        *compose("0.2.1", LIVEKIT_JWT_PORT="8080", LIVEKIT_LOCAL_HOMESERVERS="example.com"),
        full_access="example.com",
        warned_of=("LIVEKIT_LOCAL_HOMESERVERS",),
    ),
    Deployment(
        *compose("0.3", LIVEKIT_JWT_PORT="8080", LIVEKIT_FULL_ACCESS_HOMESERVERS="example.com,matrix.example.org"),
        full_access="example.com,matrix.example.org",
    ),
    Deployment(
        "compose_v0.3_with_one_file_for_each",
        {
            "LIVEKIT_URL": "wss://livekit.example.com",
            "LIVEKIT_KEY_FROM_FILE": "{files}/key",
            "LIVEKIT_SECRET_FROM_FILE": "{files}/secret",
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": "*",
        },
        files={"key": "APIfromfile\n", "secret": f"{SECRET}\n"},
        key="APIfromfile",
        full_access="all",
    ),
    Deployment(*compose("0.4", LIVEKIT_JWT_BIND=":8080", LIVEKIT_FULL_ACCESS_HOMESERVERS="*"), full_access="all"),
    Deployment(
        *compose(
            "0.5",
            LIVEKIT_JWT_BIND="0.0.0.0:8080",
            LIVEKIT_FULL_ACCESS_HOMESERVERS="example.com",
            LIVEKIT_CS_API_URL_OVERRIDES="example.com=http://synapse:8008",
            LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS="60",
        ),
        full_access="example.com",
    ),
    Deployment(
        *compose(
            "0.6",
            LIVEKIT_JWT_BIND=":8080",
            LIVEKIT_FULL_ACCESS_HOMESERVERS="example.com",
            LIVEKIT_LOG_LEVEL="debug",
            LIVEKIT_REDIS_URL="redis://redis:6379",
            LIVEKIT_REDIS_PASSWORD="",
        ),
        full_access="example.com",
    ),
    Deployment(
        *compose(
            "0.7",
            LIVEKIT_JWT_BIND="[::]:8080",
            LIVEKIT_FULL_ACCESS_HOMESERVERS="example.com",
            LIVEKIT_CAN_UPDATE_OWN_METADATA="true",
            LIVEKIT_INSECURE_SKIP_VERIFY_TLS="YES_I_KNOW_WHAT_I_AM_DOING",
        ),
        full_access="example.com",
        warned_of=("LIVEKIT_INSECURE_SKIP_VERIFY_TLS",),
    ),
    Deployment(
        "nixpkgs",
        {
            "LIVEKIT_URL": "wss://example.com/livekit/sfu",
            "LIVEKIT_JWT_PORT": "8080",
            # a systemd credential with the SFU's key file
            "LIVEKIT_KEY_FILE": "{files}/livekit-secrets",
            "CREDENTIALS_DIRECTORY": "{files}",
        },
        files={"livekit-secrets": f"lk-jwt-service: {SECRET}\n"},
        key="lk-jwt-service",
        warned_of=("LIVEKIT_JWT_PORT",),
    ),
    Deployment(
        "nixpkgs_bind",
        {
            "LIVEKIT_URL": "wss://example.com/livekit/sfu",
            "LIVEKIT_JWT_BIND": ":8080",
            "LIVEKIT_KEY_FILE": "{files}/livekit-secrets",
            "CREDENTIALS_DIRECTORY": "{files}",
        },
        files={"livekit-secrets": f"lk-jwt-service: {SECRET}\nolder: {SECRET}\n"},
        key="lk-jwt-service",
    ),
    Deployment(
        "ansible",
        {
            "LIVEKIT_JWT_BIND": ":8080",
            "LIVEKIT_URL": "wss://matrix.example.com/livekit-server",
            "LIVEKIT_KEY": "APIansible",
            "LIVEKIT_SECRET": SECRET,
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": "example.com",
        },
        key="APIansible",
        full_access="example.com",
    ),
    Deployment(
        "ansible_before_bind",
        {
            "LIVEKIT_JWT_PORT": "8080",
            "LIVEKIT_URL": "wss://matrix.example.com/livekit-server",
            "LIVEKIT_KEY": "APIansible",
            "LIVEKIT_SECRET": SECRET,
            "LIVEKIT_LOCAL_HOMESERVERS": "",
        },
        key="APIansible",
        warned_of=("LIVEKIT_JWT_PORT",),
    ),
    Deployment(
        "ess_chart",
        {
            "LIVEKIT_URL": "wss://mrtc.example.com",
            "LIVEKIT_KEY": "matrix-rtc",
            "LIVEKIT_SECRET_FROM_FILE": "{files}/ELEMENT_CALL_LIVEKIT_SECRET",
            "LIVEKIT_JWT_BIND": "0.0.0.0:8080",
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": "example.com",
            **{name: value for name, value in SERVICE_LINKS.items() if name != "LIVEKIT_JWT_PORT"},
        },
        files={"ELEMENT_CALL_LIVEKIT_SECRET": SECRET},
        key="matrix-rtc",
        full_access="example.com",
    ),
    Deployment(
        "kubernetes_service_links",
        {
            "LIVEKIT_URL": "wss://mrtc.example.com",
            "LIVEKIT_KEY_FROM_FILE": "{files}/key",
            "LIVEKIT_SECRET_FROM_FILE": "{files}/secret",
            **SERVICE_LINKS,
        },
        files={"key": "matrix-rtc", "secret": SECRET},
        key="matrix-rtc",
        warned_of=("LIVEKIT_JWT_PORT",),
    ),
    Deployment(
        "element_call_guide",
        {
            "LIVEKIT_JWT_PORT": "6080",
            "LIVEKIT_URL": "wss://matrix-rtc.m.localhost/livekit/sfu",
            "LIVEKIT_KEY": "devkey",
            "LIVEKIT_SECRET": "secret",
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": "*",
            # only one value has ever had an effect, and this is another
            "LIVEKIT_INSECURE_SKIP_VERIFY_TLS": "true",
        },
        port=6080,
        full_access="all",
        warned_of=("LIVEKIT_INSECURE_SKIP_VERIFY_TLS",),
    ),
    Deployment(
        "continuwuity_docs",
        {
            "LIVEKIT_JWT_BIND": ":8081",
            "LIVEKIT_URL": "wss://livekit.example.com",
            "LIVEKIT_KEY": "LK_MATRIX_KEY",
            "LIVEKIT_SECRET": SECRET,
            "LIVEKIT_FULL_ACCESS_HOMESERVERS": "example.com",
        },
        port=8081,
        key="LK_MATRIX_KEY",
        full_access="example.com",
    ),
    Deployment(
        "first_meaning_of_key_file",
        {
            "LIVEKIT_URL": "wss://livekit.example.com",
            "LIVEKIT_KEY_FILE": "{files}/key",
            "LIVEKIT_SECRET_FILE": "{files}/secret",
        },
        files={"key": "APIbare\n", "secret": SECRET},
        key="APIbare",
    ),
]


@contextlib.contextmanager
def running(deployment, namespace, folder):
    """Runs the service under the name lk-jwt-service. Yields the command prefix for its environment, and the lines of the log."""
    for name, content in deployment.files.items():
        (folder / name).write_text(content)
    environment = {name: value.format(files=folder) for name, value in deployment.environment.items()}
    variables = [f"{name}={value}" for name, value in environment.items()]
    inside = ["ip", "netns", "exec", namespace.name, "env", "-i", *variables]
    for name in "lk-jwt-service", "lk-jwt-service-healthcheck":
        os.symlink(os.environ["BIN"], folder / name)
    process = subprocess.Popen([*inside, folder / "lk-jwt-service"], stderr=subprocess.PIPE, text=True)
    log, listening = [], threading.Event()

    def read():
        for line in process.stderr:
            log.append(line)
            if "msg=listening" in line:
                listening.set()
        listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listening.wait(START_SECONDS) and process.poll() is None, f"{deployment.name}:\n{''.join(log)}"
        yield inside, log
    finally:
        process.terminate()
        code = process.wait(20)
        reader.join(20)
        print("".join(log))
    assert code == 0


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment.name)
def test_a_deployment_of_lk_jwt_service_works_unchanged(deployment, namespace, tmp_path):
    with running(deployment, namespace, tmp_path) as (inside, log):
        authority = f"127.0.0.1:{deployment.port}"
        with namespace.inside():
            assert call(authority, "GET", "/healthz").status == 200
            refused = call(authority, "POST", "/sfu/get", sfu_get_body("nowhere.invalid"))
            assert refused.status == 401 and refused.errcode == "M_UNAUTHORIZED", refused
        health = subprocess.run([*inside, tmp_path / "lk-jwt-service-healthcheck"], capture_output=True, text=True)
        assert health.returncode == 0, health.stderr

        started = next(line for line in log if "msg=listening" in line)
        assert re.search(rf'signing_key="?{re.escape(deployment.key)}"?\s', started), started
        assert re.search(rf'full_access="?{re.escape(deployment.full_access)}"?\s', started), started
        assert re.search(rf'sfu_url="?{re.escape(deployment.environment["LIVEKIT_URL"])}"?\s', started), started
        text = "".join(log)
        for name in deployment.warned_of:
            assert any("warn" in line.lower() and name in line for line in log), f"no warning of {name}:\n{text}"
        # every variable is known
        assert "is unknown" not in text and "did you mean" not in text, text
