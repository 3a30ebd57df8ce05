"""Cached results of discovery, and rediscovery of homeservers that moved."""

import json

import pytest

from fake_internet import USERINFO, WELL_KNOWN, ReceivedRequest

WEB, HOME, NEW_HOME = "10.77.0.10", "10.77.0.20", "10.77.0.21"


@pytest.fixture
def internet(internet):
    internet.names.address("hs.test", WEB)
    internet.names.address("other.test", HOME)
    return internet


def count(internet, path):
    return len([request for request in internet.received if request.path == path])


def test_the_second_call_queries_neither_the_well_known_nor_SRV(internet):
    internet.well_known(WEB, "hs.test", "other.test")
    internet.names.srv("_matrix-fed._tcp.other.test", 7001, "target.test")
    internet.names.address("target.test", HOME)
    internet.homeserver(HOME, 7001, "other.test", "hs.test")
    internet.start_service_with_private_networks()
    for _ in range(3):
        assert internet.request_token("hs.test").status == 200
    assert (count(internet, WELL_KNOWN), count(internet, USERINFO)) == (1, 3)
    assert internet.names.queried_names("SRV") == ["_matrix-fed._tcp.other.test"]


def test_absent_well_known_and_SRV_are_cached(internet):
    internet.listen(WEB, 443, "hs.test", {})
    internet.homeserver(WEB, 8448, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    for _ in range(3):
        assert internet.request_token("hs.test").status == 200
    assert (count(internet, WELL_KNOWN), count(internet, USERINFO)) == (1, 3)
    assert internet.names.queried_names("SRV") == ["_matrix-fed._tcp.hs.test", "_matrix._tcp.hs.test"]


def test_the_connection_to_a_homeserver_is_reused(internet):
    internet.well_known(WEB, "hs.test", "other.test:7000")
    internet.homeserver(HOME, 7000, "other.test", "hs.test")
    internet.start_service_with_private_networks()
    for _ in range(5):
        assert internet.request_token("hs.test").status == 200
    assert internet.connection_attempts() == [(WEB, 443), (HOME, 7000)]


def test_a_well_known_that_forbids_caching_is_cached_for_the_minimum_time(internet):
    """Five minutes, as an unlisted homeserver must not cause more requests."""
    body = json.dumps({"m.server": "other.test:7000"}).encode()
    internet.listen(WEB, 443, "hs.test", {WELL_KNOWN: (200, {"Cache-Control": "no-store, max-age=0"}, body)})
    internet.homeserver(HOME, 7000, "other.test", "hs.test")
    internet.start_service_with_private_networks()
    for _ in range(2):
        assert internet.request_token("hs.test").status == 200
    assert count(internet, WELL_KNOWN) == 1


def test_a_homeserver_that_moved_is_discovered_again(internet):
    answers = {WELL_KNOWN: json.dumps({"m.server": "other.test:7000"}).encode()}
    internet.listen(WEB, 443, "hs.test", answers)
    old = internet.homeserver(HOME, 7000, "other.test", "hs.test")
    old.answers[USERINFO] = (200, {"Connection": "close"}, old.answers[USERINFO])
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200

    old.close()
    answers[WELL_KNOWN] = json.dumps({"m.server": "new.test:7000"}).encode()
    internet.names.address("new.test", NEW_HOME)
    internet.homeserver(NEW_HOME, 7000, "new.test", "hs.test")
    assert internet.request_token("hs.test").status == 200
    assert internet.received[-1] == ReceivedRequest(NEW_HOME, 7000, "new.test", "new.test:7000", USERINFO)
    assert count(internet, WELL_KNOWN) == 2


def test_a_dead_homeserver_gets_only_a_few_connection_attempts(internet):
    """Connections are refused: the first failures cost a connection each, later calls none."""
    internet.start_service_with_private_networks()
    for _ in range(20):
        assert internet.request_token("hs.test:7000").status in (401, 503)
    assert set(internet.connection_attempts()) == {(WEB, 7000)}
    assert len(internet.connection_attempts()) <= 4
