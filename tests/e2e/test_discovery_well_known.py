"""Well-known documents that are unusable, and redirects."""

import json

import pytest

from fake_internet import USERINFO, WELL_KNOWN, ReceivedRequest

WEB, HOME = "10.77.0.10", "10.77.0.20"
DELEGATES = json.dumps({"m.server": "other.test:7000"}).encode()


def redirect(location, status=302):
    return status, {"Location": location}, b""


UNUSABLE = {
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
    "a_name_too_long": json.dumps({"m.server": "x" * 60 + (".x" * 120) + ":7000"}).encode(),
    "a_number_that_getaddrinfo_reads": b'{"m.server": "2130706433:7000"}',
    "more_than_50_KiB": b'{"m.server": "other.test:7000", "x": "' + b"x" * 51 * 1024 + b'"}',
    "cut_short": (200, {"Content-Length": "1000", "Connection": "close"}, DELEGATES),
    "a_redirect_without_location": (302, {}, DELEGATES),
    "a_redirect_to_http": redirect("http://other.test/.well-known/matrix/server"),
    "a_redirect_to_a_file": redirect("file:///etc/passwd"),
    "a_redirect_to_itself": redirect(WELL_KNOWN),
}


@pytest.fixture
def internet(internet):
    """With hs.test at the target of its SRV record, and a server to which the well-known may delegate."""
    internet.names.address("hs.test", WEB)
    internet.names.address("other.test", HOME)
    internet.names.address("target.test", HOME)
    internet.names.srv("_matrix-fed._tcp.hs.test", 7001, "target.test")
    internet.homeserver(HOME, 7001, "hs.test", "hs.test")
    internet.homeserver(HOME, 7000, "other.test", "hs.test")
    return internet


def expect_srv(internet):
    assert internet.request_token("hs.test").status == 200
    assert [request for request in internet.received if request.path == USERINFO] == [
        ReceivedRequest(HOME, 7001, "hs.test", "hs.test", USERINFO)
    ]


@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_well_known_is_followed_by_SRV(internet, answer):
    internet.listen(WEB, 443, "hs.test", {WELL_KNOWN: answer})
    internet.start_service_with_private_networks()
    expect_srv(internet)
    assert internet.received[0].path == WELL_KNOWN


def test_a_well_known_with_a_wrong_certificate_is_ignored(internet):
    internet.well_known(WEB, ("other.test", "target.test", WEB), "other.test:7000")
    internet.start_service_with_private_networks()
    expect_srv(internet)


def test_a_refused_connection_is_followed_by_SRV(internet):
    internet.start_service_with_private_networks()
    expect_srv(internet)
    assert (WEB, 443) in internet.connection_attempts()


def test_a_silent_well_known_is_followed_by_SRV(internet):
    internet.silent(WEB, 443)
    internet.start_service_with_private_networks()
    expect_srv(internet)


def test_a_delegation_needs_no_content_type(internet):
    internet.listen(WEB, 443, "hs.test", {WELL_KNOWN: (200, {"Content-Type": "text/html"}, DELEGATES)})
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert internet.received[-1] == ReceivedRequest(HOME, 7000, "other.test", "other.test:7000", USERINFO)


def chain(hops):
    """Answers of a well-known behind `hops` redirects."""
    answers = {f"/hop/{n}": redirect(f"/hop/{n + 1}") for n in range(1, hops)}
    answers[WELL_KNOWN] = redirect("/hop/1", 301)
    answers[f"/hop/{hops}"] = DELEGATES
    return answers


def test_five_redirects_are_followed(internet):
    internet.listen(WEB, 443, "hs.test", chain(5))
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    paths = [WELL_KNOWN] + [f"/hop/{n}" for n in range(1, 6)]
    assert internet.received == [ReceivedRequest(WEB, 443, "hs.test", "hs.test", path) for path in paths] + [
        ReceivedRequest(HOME, 7000, "other.test", "other.test:7000", USERINFO)
    ]


def test_the_sixth_redirect_is_not_followed(internet):
    internet.listen(WEB, 443, "hs.test", chain(6))
    internet.start_service_with_private_networks()
    expect_srv(internet)
    assert "/hop/6" not in [request.path for request in internet.received]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_name_requires_a_certificate_of_that_name(internet, status):
    internet.names.address("www.test", "10.77.0.11")
    internet.listen(WEB, 443, "hs.test", {WELL_KNOWN: redirect("https://www.test:8443/moved?x=1", status)})
    internet.listen("10.77.0.11", 8443, "www.test", {"/moved": DELEGATES})
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert internet.received[1] == ReceivedRequest("10.77.0.11", 8443, "www.test", "www.test:8443", "/moved")


def test_a_redirect_to_another_name_with_the_certificate_of_the_first_is_ignored(internet):
    internet.names.address("www.test", "10.77.0.11")
    internet.listen(WEB, 443, "hs.test", {WELL_KNOWN: redirect("https://www.test/moved")})
    internet.listen("10.77.0.11", 443, "hs.test", {"/moved": DELEGATES})
    internet.start_service_with_private_networks()
    expect_srv(internet)
