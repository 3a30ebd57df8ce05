"""Every row of the specification's "Resolving server names", over IPv4 and IPv6."""

from dataclasses import dataclass, field

import pytest

from lab import USERINFO, WELL_KNOWN, Visit, bracketed

WEB = {"v4": "10.77.0.10", "v6": "fd77::10"}  # hs.test, where its well-known is
HOME = {"v4": "10.77.0.20", "v6": "fd77::20"}  # where userinfo is answered
FED, OLD = "_matrix-fed._tcp.", "_matrix._tcp."


@dataclass
class Row:
    """`IP` in a value stands for the homeserver's address, in brackets where it is one of IPv6."""

    title: str
    asked: str  # the server name of the user
    port: int  # where the homeserver must be asked
    certificate: str  # the only name or address that it can prove
    host: str  # the Host header it must see
    m_server: str | None = None  # what the well-known says; None: nobody listens there
    srv: dict = field(default_factory=dict)  # name -> port, at target.test


ROWS = [
    Row("1 an IP", "IP", 8448, "IP", "IP"),
    Row("1 an IP with a port", "IP:7000", 7000, "IP", "IP:7000"),
    Row("2 a name with a port", "hs.test:7000", 7000, "hs.test", "hs.test:7000"),
    Row("2 a name with the port of the web", "hs.test:443", 443, "hs.test", "hs.test:443"),
    Row("2 a name with the default port", "hs.test:8448", 8448, "hs.test", "hs.test:8448"),
    Row("3.1 delegated to an IP", "hs.test", 8448, "IP", "IP", "IP"),
    Row("3.1 delegated to an IP with a port", "hs.test", 7000, "IP", "IP:7000", "IP:7000"),
    Row("3.2 delegated to a name with a port", "hs.test", 7000, "other.test", "other.test:7000", "other.test:7000"),
    Row("3.2 delegated to the port of the web", "hs.test", 443, "other.test", "other.test:443", "other.test:443"),
    Row("3.3 delegated, matrix-fed", "hs.test", 7001, "other.test", "other.test", "other.test", {FED + "other.test": 7001, OLD + "other.test": 7002}),
    Row("3.4 delegated, matrix alone", "hs.test", 7002, "other.test", "other.test", "other.test", {OLD + "other.test": 7002}),
    Row("3.5 delegated, no SRV", "hs.test", 8448, "other.test", "other.test", "other.test"),
    Row("4 matrix-fed", "hs.test", 7001, "hs.test", "hs.test", None, {FED + "hs.test": 7001, OLD + "hs.test": 7002}),
    Row("5 matrix alone", "hs.test", 7002, "hs.test", "hs.test", None, {OLD + "hs.test": 7002}),
    Row("6 no SRV", "hs.test", 8448, "hs.test", "hs.test"),
]  # fmt: skip


@pytest.fixture(params=["v4", "v6"])
def family(request):
    return request.param


@pytest.fixture(params=ROWS, ids=lambda row: row.title.replace(" ", "-"))
def row(request, family):
    """The row with its addresses filled in."""
    row, address = request.param, bracketed(HOME[family])
    fill = lambda text: text and text.replace("IP", address)
    return Row(row.title, fill(row.asked), row.port, row.certificate.replace("IP", HOME[family]), fill(row.host), fill(row.m_server), row.srv)  # fmt: skip


def set_up(world, row, family, certificate):
    # hs.test is the web server where it delegates, and the homeserver itself where it does not
    world.names.address("hs.test", WEB[family] if row.m_server else HOME[family])
    for name in "other.test", "target.test":
        world.names.address(name, HOME[family])
    for name, port in row.srv.items():
        world.names.srv(name, port, "target.test")
    if row.m_server:
        world.well_known(WEB[family], "hs.test", row.m_server)
        # where a delegation is, the name's own records count no more
        world.names.srv(FED + "hs.test", 7009, "target.test")
    for port in {row.port, 7000, 7001, 7002, 7009, 8448}:
        world.homeserver(HOME[family], port, certificate, row.asked)
    world.serve_in_the_lab()


def test_the_row_is_followed(world, row, family):
    set_up(world, row, family, row.certificate)
    assert world.ask(row.asked).status == 200

    sni = None if row.certificate == HOME[family] else row.certificate
    expected = [Visit(HOME[family], row.port, sni, row.host, USERINFO)]
    if row.m_server:
        expected.insert(0, Visit(WEB[family], 443, "hs.test", "hs.test", WELL_KNOWN))
    assert world.visits == expected


def test_no_other_certificate_will_do(world, row, family):
    """A homeserver that can prove every other name in sight, but not the one that the row demands."""
    in_sight = {"hs.test", "other.test", "target.test", HOME[family], WEB[family]}
    set_up(world, row, family, tuple(sorted(in_sight - {row.certificate})))
    reply = world.ask(row.asked)
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")
    assert (HOME[family], row.port) in world.dialled()
    assert [visit for visit in world.visits if visit.path == USERINFO] == []


def test_only_what_the_row_needs_is_looked_up(world, row, family):
    set_up(world, row, family, row.certificate)
    assert world.ask(row.asked).status == 200
    delegated = row.m_server or row.asked
    by_srv = delegated in ("hs.test", "other.test")
    expected = [prefix + delegated for prefix in (FED, OLD)] if by_srv else []
    if FED + delegated in row.srv:
        expected.pop()
    assert world.names.asked("SRV") == expected
    web = [(WEB[family], 443)] if row.m_server else [(HOME[family], 443)] if row.asked == "hs.test" else []
    assert world.dialled() == web + [(HOME[family], row.port)]


def test_an_IPv6_address_is_sent_back_as_it_was_written(world):
    asked = "[FD77:0:0::20]:7000"
    world.homeserver(HOME["v6"], 7000, HOME["v6"], asked)
    world.serve_in_the_lab()
    assert world.ask(asked).status == 200
    assert world.visits == [Visit(HOME["v6"], 7000, None, asked, USERINFO)]


def test_a_connection_is_not_used_for_another_server_of_the_same_name_and_port(world):
    """The web server of hs.test, and the target of its SRV record, both on port 443."""
    world.names.address("hs.test", WEB["v4"])
    world.names.address("target.test", HOME["v4"])
    world.names.srv(FED + "hs.test", 443, "target.test")
    world.listen(WEB["v4"], 443, "hs.test", {})
    world.homeserver(HOME["v4"], 443, "hs.test", "hs.test")
    world.homeserver(HOME["v4"], 8448, "hs.test", "hs.test")
    world.serve_in_the_lab()
    assert world.ask("hs.test").status == 200
    assert world.visits[-1] == Visit(HOME["v4"], 443, "hs.test", "hs.test", USERINFO)


def test_a_name_and_the_same_name_with_a_port_are_two_homeservers(world):
    world.names.address("hs.test", WEB["v4"])
    world.names.address("target.test", HOME["v4"])
    world.names.srv(FED + "hs.test", 7001, "target.test")
    world.homeserver(HOME["v4"], 7001, "hs.test", "hs.test")
    world.homeserver(WEB["v4"], 7001, "hs.test", "hs.test:7001")
    world.serve_in_the_lab()
    for asked, home in [("hs.test", HOME), ("hs.test:7001", WEB)] * 2:
        assert world.ask(asked).status == 200
        assert world.visits[-1] == Visit(home["v4"], 7001, "hs.test", asked, USERINFO)
