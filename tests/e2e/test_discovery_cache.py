"""What was found out is kept, and what moved is found again."""

import json

import pytest

from lab import USERINFO, WELL_KNOWN, Visit

WEB, HOME, NEW_HOME = "10.77.0.10", "10.77.0.20", "10.77.0.21"


@pytest.fixture
def hs(world):
    world.names.address("hs.test", WEB)
    world.names.address("other.test", HOME)
    return world


def count(world, path):
    return len([visit for visit in world.visits if visit.path == path])


def test_the_second_call_asks_neither_the_well_known_nor_SRV_again(hs):
    hs.well_known(WEB, "hs.test", "other.test")
    hs.names.srv("_matrix-fed._tcp.other.test", 7001, "target.test")
    hs.names.address("target.test", HOME)
    hs.homeserver(HOME, 7001, "other.test", "hs.test")
    hs.serve_in_the_lab()
    for _ in range(3):
        assert hs.ask("hs.test").status == 200
    assert (count(hs, WELL_KNOWN), count(hs, USERINFO)) == (1, 3)
    assert hs.names.asked("SRV") == ["_matrix-fed._tcp.other.test"]


def test_the_second_call_does_not_look_again_for_what_is_missing(hs):
    hs.listen(WEB, 443, "hs.test", {})
    hs.homeserver(WEB, 8448, "hs.test", "hs.test")
    hs.serve_in_the_lab()
    for _ in range(3):
        assert hs.ask("hs.test").status == 200
    assert (count(hs, WELL_KNOWN), count(hs, USERINFO)) == (1, 3)
    assert hs.names.asked("SRV") == ["_matrix-fed._tcp.hs.test", "_matrix._tcp.hs.test"]


def test_the_connection_to_a_homeserver_is_used_again(hs):
    hs.well_known(WEB, "hs.test", "other.test:7000")
    hs.homeserver(HOME, 7000, "other.test", "hs.test")
    hs.serve_in_the_lab()
    for _ in range(5):
        assert hs.ask("hs.test").status == 200
    assert hs.dialled() == [(WEB, 443), (HOME, 7000)]


def test_even_a_well_known_that_forbids_it_is_kept_for_a_while(hs):
    """At least five minutes: the homeserver's word is a stranger's."""
    body = json.dumps({"m.server": "other.test:7000"}).encode()
    hs.listen(WEB, 443, "hs.test", {WELL_KNOWN: (200, {"Cache-Control": "no-store, max-age=0"}, body)})
    hs.homeserver(HOME, 7000, "other.test", "hs.test")
    hs.serve_in_the_lab()
    for _ in range(2):
        assert hs.ask("hs.test").status == 200
    assert count(hs, WELL_KNOWN) == 1


def test_a_homeserver_that_moved_is_found_again(hs):
    answers = {WELL_KNOWN: json.dumps({"m.server": "other.test:7000"}).encode()}
    hs.listen(WEB, 443, "hs.test", answers)
    old = hs.homeserver(HOME, 7000, "other.test", "hs.test")
    old.answers[USERINFO] = (200, {"Connection": "close"}, old.answers[USERINFO])
    hs.serve_in_the_lab()
    assert hs.ask("hs.test").status == 200

    old.close()
    answers[WELL_KNOWN] = json.dumps({"m.server": "new.test:7000"}).encode()
    hs.names.address("new.test", NEW_HOME)
    hs.homeserver(NEW_HOME, 7000, "new.test", "hs.test")
    assert hs.ask("hs.test").status == 200
    assert hs.visits[-1] == Visit(NEW_HOME, 7000, "new.test", "new.test:7000", USERINFO)
    assert count(hs, WELL_KNOWN) == 2


def test_a_dead_homeserver_is_left_alone_after_a_few_attempts(hs):
    """Nobody listens: the first failures cost a connection each, the calls after them none."""
    hs.serve_in_the_lab()
    for _ in range(20):
        assert hs.ask("hs.test:7000").status in (401, 503)
    assert set(hs.dialled()) == {(WEB, 7000)}
    assert len(hs.dialled()) <= 4
