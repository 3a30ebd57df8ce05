"""What every test may ask for; the services that a failed test had started show their logs."""

import pytest

import lab
import token_door
from fake_sfu import FakeSfu
from service import KEY, SECRET, Service


@pytest.fixture
def start():
    """Starts the service with the given settings, and stops it after the test."""
    started = []

    def start(namespace=None, arguments=(), as_init=False, **settings):
        service = Service(settings, namespace, arguments, as_init)
        started.append(service)
        return service

    yield start
    for service in started:
        service.stop()
        print(service.text)


@pytest.fixture
def sfu():
    sfu = FakeSfu(KEY, SECRET)
    yield sfu
    sfu.stop()


@pytest.fixture(scope="session")
def namespace():
    namespace = lab.Namespace()
    yield namespace
    namespace.close()


@pytest.fixture(scope="session")
def authority():
    return lab.CertificateAuthority()


@pytest.fixture
def world(namespace, authority, start):
    """An internet of its own: names, certificates and homeservers, with the service in the midst of it."""
    world = lab.World(namespace, authority, start)
    yield world
    world.close()


@pytest.fixture
def policy_file(tmp_path):
    """Writes a policy file with these rules for the one caller."""

    def policy_file(**rules):
        file = tmp_path / "policy.toml"
        file.write_text(token_door.policy(**rules))
        return file

    return policy_file
