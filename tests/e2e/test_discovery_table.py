"""Every case of "Resolving server names" of the Matrix server-server API, over IPv4 and IPv6."""

from dataclasses import dataclass, field

import pytest

from fake_internet import USERINFO, WELL_KNOWN, ReceivedRequest, bracketed

WEB = {"v4": "10.77.0.10", "v6": "fd77::10"}  # hs.test, which serves the well-known
HOME = {"v4": "10.77.0.20", "v6": "fd77::20"}  # the homeserver
FED, OLD = "_matrix-fed._tcp.", "_matrix._tcp."


@dataclass
class Row:
    """`IP` in a value is replaced by the homeserver's address, an IPv6 address in brackets."""

    title: str
    server_name: str  # of the user
    port: int  # on which the homeserver must receive the request
    certificate: str  # the only name or address of the homeserver's certificate
    host: str  # the Host header of the request
    m_server: str | None = None  # of the well-known; None: no server listens there
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
    """The row with addresses in place of `IP`."""
    row, address = request.param, bracketed(HOME[family])
    fill = lambda text: text and text.replace("IP", address)
    return Row(row.title, fill(row.server_name), row.port, row.certificate.replace("IP", HOME[family]), fill(row.host), fill(row.m_server), row.srv)  # fmt: skip


def set_up(internet, row, family, certificate):
    # hs.test is the web server if it delegates, or else the homeserver
    internet.names.address("hs.test", WEB[family] if row.m_server else HOME[family])
    for name in "other.test", "target.test":
        internet.names.address(name, HOME[family])
    for name, port in row.srv.items():
        internet.names.srv(name, port, "target.test")
    if row.m_server:
        internet.well_known(WEB[family], "hs.test", row.m_server)
        # SRV records of a name that delegates must be ignored
        internet.names.srv(FED + "hs.test", 7009, "target.test")
    for port in {row.port, 7000, 7001, 7002, 7009, 8448}:
        internet.homeserver(HOME[family], port, certificate, row.server_name)
    internet.start_service_with_private_networks()


def test_the_homeserver_is_resolved(internet, row, family):
    set_up(internet, row, family, row.certificate)
    assert internet.request_token(row.server_name).status == 200

    sni = None if row.certificate == HOME[family] else row.certificate
    expected = [ReceivedRequest(HOME[family], row.port, sni, row.host, USERINFO)]
    if row.m_server:
        expected.insert(0, ReceivedRequest(WEB[family], 443, "hs.test", "hs.test", WELL_KNOWN))
    assert internet.received == expected


def test_every_other_certificate_is_refused(internet, row, family):
    """The homeserver's certificate has every other name and address of the test, but not the required one."""
    names = {"hs.test", "other.test", "target.test", HOME[family], WEB[family]}
    set_up(internet, row, family, tuple(sorted(names - {row.certificate})))
    reply = internet.request_token(row.server_name)
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")
    assert (HOME[family], row.port) in internet.connection_attempts()
    assert [request for request in internet.received if request.path == USERINFO] == []


def test_only_necessary_queries_are_sent(internet, row, family):
    set_up(internet, row, family, row.certificate)
    assert internet.request_token(row.server_name).status == 200
    delegated = row.m_server or row.server_name
    by_srv = delegated in ("hs.test", "other.test")
    expected = [prefix + delegated for prefix in (FED, OLD)] if by_srv else []
    if FED + delegated in row.srv:
        expected.pop()
    assert internet.names.queried_names("SRV") == expected
    web = [(WEB[family], 443)] if row.m_server else [(HOME[family], 443)] if row.server_name == "hs.test" else []
    assert internet.connection_attempts() == web + [(HOME[family], row.port)]


def test_the_Host_header_has_an_IPv6_address_as_the_client_wrote_it(internet):
    server_name = "[FD77:0:0::20]:7000"
    internet.homeserver(HOME["v6"], 7000, HOME["v6"], server_name)
    internet.start_service_with_private_networks()
    assert internet.request_token(server_name).status == 200
    assert internet.received == [ReceivedRequest(HOME["v6"], 7000, None, server_name, USERINFO)]


def test_a_connection_is_not_reused_for_another_server_with_the_same_name_and_port(internet):
    """The web server of hs.test, and the target of its SRV record, both on port 443."""
    internet.names.address("hs.test", WEB["v4"])
    internet.names.address("target.test", HOME["v4"])
    internet.names.srv(FED + "hs.test", 443, "target.test")
    internet.listen(WEB["v4"], 443, "hs.test", {})
    internet.homeserver(HOME["v4"], 443, "hs.test", "hs.test")
    internet.homeserver(HOME["v4"], 8448, "hs.test", "hs.test")
    internet.start_service_with_private_networks()
    assert internet.request_token("hs.test").status == 200
    assert internet.received[-1] == ReceivedRequest(HOME["v4"], 443, "hs.test", "hs.test", USERINFO)


def test_a_name_and_the_same_name_with_a_port_are_two_homeservers(internet):
    internet.names.address("hs.test", WEB["v4"])
    internet.names.address("target.test", HOME["v4"])
    internet.names.srv(FED + "hs.test", 7001, "target.test")
    internet.homeserver(HOME["v4"], 7001, "hs.test", "hs.test")
    internet.homeserver(WEB["v4"], 7001, "hs.test", "hs.test:7001")
    internet.start_service_with_private_networks()
    for server_name, home in [("hs.test", HOME), ("hs.test:7001", WEB)] * 2:
        assert internet.request_token(server_name).status == 200
        assert internet.received[-1] == ReceivedRequest(home["v4"], 7001, "hs.test", server_name, USERINFO)
