"""Fixtures of all tests. The log of every service is printed, so that pytest shows it for a failed test."""

import pytest

import fake_internet
import token_endpoint_service
from fake_sfu import FakeSfu
from network_namespace import NetworkNamespace
from service import KEY, SECRET, Service


@pytest.fixture
def start():
    """Starts services with the given settings, and stops them after the test."""
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
    namespace = NetworkNamespace()
    yield namespace
    namespace.close()


@pytest.fixture(scope="session")
def authority():
    return fake_internet.CertificateAuthority()


@pytest.fixture
def internet(namespace, authority, start):
    """A network namespace with a name server, certificates and homeservers."""
    internet = fake_internet.FakeInternet(namespace, authority, start)
    yield internet
    internet.close()


@pytest.fixture
def policy_file(tmp_path):
    """Writes a policy file with the given rules for the caller `e2e`."""

    def policy_file(**rules):
        file = tmp_path / "policy.toml"
        file.write_text(token_endpoint_service.policy(**rules))
        return file

    return policy_file
