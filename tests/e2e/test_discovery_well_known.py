"""A well-known that says nothing usable, and one that sends the service elsewhere."""

import json

import pytest

from lab import USERINFO, WELL_KNOWN, Visit

WEB, HOME = "10.77.0.10", "10.77.0.20"
DELEGATES = json.dumps({"m.server": "other.test:7000"}).encode()


def redirect(location, status=302):
    return status, {"Location": location}, b""


USELESS = {
    "404": (404, {}, b"{}"),
    "500": (500, {}, DELEGATES),
    "204": (204, {}, b""),
    "not_JSON": b"m.server: other.test:7000",
    "an_empty_body": b"",
    "no_object": json.dumps("other.test:7000").encode(),
    "no_m_server": b"{}",
    "a_number": b'{"m.server": 7000}',
    "an_empty_name": b'{"m.server": ""}',
    "a_URL": b'{"m.server": "https://other.test:7000"}',
    "a_port_of_0": b'{"m.server": "other.test:0"}',
    "a_port_too_large": b'{"m.server": "other.test:65536"}',
    "a_path": b'{"m.server": "other.test:7000/x"}',
    "a_trailing_dot": b'{"m.server": "other.test.:7000"}',
    "an_endless_name": json.dumps({"m.server": "x" * 60 + (".x" * 120) + ":7000"}).encode(),
    "a_number_that_getaddrinfo_reads": b'{"m.server": "2130706433:7000"}',
    "more_than_50_KiB": b'{"m.server": "other.test:7000", "x": "' + b"x" * 51 * 1024 + b'"}',
    "cut_off": (200, {"Content-Length": "1000", "Connection": "close"}, DELEGATES),
    "a_redirect_without_location": (302, {}, DELEGATES),
    "a_redirect_to_http": redirect("http://other.test/.well-known/matrix/server"),
    "a_redirect_to_a_file": redirect("file:///etc/passwd"),
    "a_redirect_to_itself": redirect(WELL_KNOWN),
}


@pytest.fixture
def homeserver(world):
    """hs.test by its SRV record, and the server that an accepted well-known would lead to."""
    world.names.address("hs.test", WEB)
    world.names.address("other.test", HOME)
    world.names.address("target.test", HOME)
    world.names.srv("_matrix-fed._tcp.hs.test", 7001, "target.test")
    world.homeserver(HOME, 7001, "hs.test", "hs.test")
    world.homeserver(HOME, 7000, "other.test", "hs.test")
    return world


def expect_srv(world):
    assert world.ask("hs.test").status == 200
    assert [visit for visit in world.visits if visit.path == USERINFO] == [
        Visit(HOME, 7001, "hs.test", "hs.test", USERINFO)
    ]


@pytest.mark.parametrize("answer", USELESS.values(), ids=USELESS.keys())
def test_a_useless_well_known_leads_on_to_SRV(homeserver, answer):
    homeserver.listen(WEB, 443, "hs.test", {WELL_KNOWN: answer})
    homeserver.serve_in_the_lab()
    expect_srv(homeserver)
    assert homeserver.visits[0].path == WELL_KNOWN


def test_a_well_known_of_another_certificate_is_not_believed(homeserver):
    homeserver.well_known(WEB, ("other.test", "target.test", WEB), "other.test:7000")
    homeserver.serve_in_the_lab()
    expect_srv(homeserver)


def test_a_refused_connection_leads_on_to_SRV(homeserver):
    homeserver.serve_in_the_lab()
    expect_srv(homeserver)
    assert (WEB, 443) in homeserver.dialled()


def test_a_silent_well_known_leads_on_to_SRV_in_time(homeserver):
    homeserver.silent(WEB, 443)
    homeserver.serve_in_the_lab()
    expect_srv(homeserver)


def test_a_delegation_needs_no_content_type(homeserver):
    homeserver.listen(WEB, 443, "hs.test", {WELL_KNOWN: (200, {"Content-Type": "text/html"}, DELEGATES)})
    homeserver.serve_in_the_lab()
    assert homeserver.ask("hs.test").status == 200
    assert homeserver.visits[-1] == Visit(HOME, 7000, "other.test", "other.test:7000", USERINFO)


def chain(hops):
    """A well-known behind so many redirects."""
    answers = {f"/hop/{n}": redirect(f"/hop/{n + 1}") for n in range(1, hops)}
    answers[WELL_KNOWN] = redirect("/hop/1", 301)
    answers[f"/hop/{hops}"] = DELEGATES
    return answers


def test_five_redirects_are_followed(homeserver):
    homeserver.listen(WEB, 443, "hs.test", chain(5))
    homeserver.serve_in_the_lab()
    assert homeserver.ask("hs.test").status == 200
    paths = [WELL_KNOWN] + [f"/hop/{n}" for n in range(1, 6)]
    assert homeserver.visits == [Visit(WEB, 443, "hs.test", "hs.test", path) for path in paths] + [
        Visit(HOME, 7000, "other.test", "other.test:7000", USERINFO)
    ]


def test_the_sixth_redirect_is_not_followed(homeserver):
    homeserver.listen(WEB, 443, "hs.test", chain(6))
    homeserver.serve_in_the_lab()
    expect_srv(homeserver)
    assert "/hop/6" not in [visit.path for visit in homeserver.visits]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_name_proves_that_name(homeserver, status):
    homeserver.names.address("www.test", "10.77.0.11")
    homeserver.listen(WEB, 443, "hs.test", {WELL_KNOWN: redirect("https://www.test:8443/moved?x=1", status)})
    homeserver.listen("10.77.0.11", 8443, "www.test", {"/moved": DELEGATES})
    homeserver.serve_in_the_lab()
    assert homeserver.ask("hs.test").status == 200
    assert homeserver.visits[1] == Visit("10.77.0.11", 8443, "www.test", "www.test:8443", "/moved")


def test_a_redirect_to_another_name_with_the_old_certificate_is_not_believed(homeserver):
    homeserver.names.address("www.test", "10.77.0.11")
    homeserver.listen(WEB, 443, "hs.test", {WELL_KNOWN: redirect("https://www.test/moved")})
    homeserver.listen("10.77.0.11", 443, "hs.test", {"/moved": DELEGATES})
    homeserver.serve_in_the_lab()
    expect_srv(homeserver)
