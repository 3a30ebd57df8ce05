"""Server-side request forgery: no client or unlisted server makes the service connect to a denied address. Default settings, unless stated."""

import json

import pytest

from fake_internet import USERINFO, WELL_KNOWN, bracketed

# public addresses; nothing leaves the namespace
EVIL, GOOD = "11.1.1.10", "11.1.1.20"
PORT = 7000
TRAP, SFU = f"trap.test:{PORT}", ("11.1.1.40", 7880)

PLAIN = ["127.0.0.1", "127.9.9.9", "10.9.9.9", "172.31.9.9", "192.168.9.9", "169.254.169.254", "100.64.9.9"]
PLAIN += ["198.18.9.9", "::1", "fd00::9", "fd00:ec2::254", "2001:db8::9"]
# other ways to write 127.0.0.1 and 10.9.9.9
EMBEDDED = ["::ffff:127.0.0.1", "::ffff:10.9.9.9", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "0.0.0.0", "::"]


def url_of(host):
    return 302, {"Location": f"https://{host}{WELL_KNOWN}"}, b""


# answers of the attacker's well-known, given the denied address
WELL_KNOWNS = {
    "delegates_to_the_address": lambda ip: json.dumps({"m.server": bracketed(ip)}).encode(),
    "delegates_to_the_address_and_port": lambda ip: json.dumps({"m.server": f"{bracketed(ip)}:{PORT}"}).encode(),
    "delegates_to_a_name_and_port": lambda ip: json.dumps({"m.server": f"trap.test:{PORT}"}).encode(),
    "delegates_to_a_name": lambda ip: b'{"m.server": "trap.test"}',
    "delegates_to_a_name_with_SRV": lambda ip: b'{"m.server": "srv.test"}',
    "delegates_to_an_alias": lambda ip: json.dumps({"m.server": f"alias.test:{PORT}"}).encode(),
    "redirects_to_the_address": lambda ip: url_of(bracketed(ip)),
    "redirects_to_the_address_and_port": lambda ip: url_of(f"{bracketed(ip)}:{PORT}"),
    "redirects_to_a_name": lambda ip: url_of("trap.test"),
    "leaves_it_to_SRV": lambda ip: (404, {}, b""),
}
# server names that the attacker uses without a well-known
NAMES = {
    "the_address": lambda ip: bracketed(ip),
    "the_address_and_port": lambda ip: f"{bracketed(ip)}:{PORT}",
    "a_name": lambda ip: "trap.test",
    "a_name_and_port": lambda ip: f"trap.test:{PORT}",
    "an_alias_and_port": lambda ip: f"alias.test:{PORT}",
}
by_well_known = pytest.mark.parametrize("well_known", WELL_KNOWNS.values(), ids=WELL_KNOWNS.keys())
by_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
plain = pytest.mark.parametrize("ip", PLAIN)
every = pytest.mark.parametrize("ip", PLAIN + EMBEDDED)


def add_trap(internet, ip, server_name):
    """Starts a homeserver at `ip` with valid certificates and answers for `server_name`."""
    names = internet.names
    names.address("trap.test", ip)
    names.alias("alias.test", "trap.test")
    names.srv("_matrix-fed._tcp.srv.test", PORT, "trap.test")
    names.srv("_matrix-fed._tcp.evil.test", PORT, "trap.test")
    names.address("evil.test", EVIL)
    if ip in EMBEDDED:
        return  # no server can listen on a mapped address; the monitor sees attempts to connect
    answers = {
        WELL_KNOWN: json.dumps({"m.server": f"{bracketed(ip)}:{PORT}"}).encode(),
        USERINFO: json.dumps({"sub": f"@alice:{server_name}"}).encode(),
    }
    for port in 443, PORT, 8448:
        internet.listen(ip, port, (ip, "trap.test", "alias.test", "srv.test", "evil.test"), answers)


def expect_refusal(internet, server_name):
    reply = internet.request_token(server_name)
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")


@every
@by_well_known
def test_a_well_known_leads_to_no_denied_address(internet, well_known, ip):
    add_trap(internet, ip, "evil.test")
    internet.listen(EVIL, 443, "evil.test", {WELL_KNOWN: well_known(ip)})
    internet.start_service()
    expect_refusal(internet, "evil.test")
    assert internet.connection_attempts()[0] == (EVIL, 443)
    assert {address for address, _ in internet.connection_attempts()} == {EVIL}


@every
@by_name
def test_a_server_name_leads_to_no_denied_address(internet, name, ip):
    add_trap(internet, ip, name(ip))
    internet.start_service()
    expect_refusal(internet, name(ip))
    assert internet.connection_attempts() == []


@plain
@by_well_known
def test_the_servers_of_the_well_known_tests_work(internet, well_known, ip):
    """With the address allowed the same servers lead to an access token, so the tests above can fail."""
    add_trap(internet, ip, "evil.test")
    internet.listen(EVIL, 443, "evil.test", {WELL_KNOWN: well_known(ip)})
    internet.start_service(LIVEKIT_ALLOWED_NETWORKS=ip)
    assert internet.request_token("evil.test").status == 200


@plain
@by_name
def test_the_servers_of_the_server_name_tests_work(internet, name, ip):
    add_trap(internet, ip, name(ip))
    internet.start_service(LIVEKIT_ALLOWED_NETWORKS=ip)
    assert internet.request_token(name(ip)).status == 200


@pytest.mark.parametrize("name", ["localhost:7000", "localhost", "127.1:7000", "2130706433:7000", "0x7f.1:7000", "0177.0.0.1:7000"])  # fmt: skip
def test_no_spelling_of_localhost_is_connected_to(internet, name):
    add_trap(internet, "127.0.0.1", name)
    internet.start_service()
    reply = internet.request_token(name)
    assert reply.status in (400, 401)
    assert internet.connection_attempts() == []


def test_each_lookup_of_a_name_is_checked(internet):
    """DNS rebinding: the lookup for the well-known returns a public address, the next one loopback."""
    add_trap(internet, "127.0.0.1", "evil.test")
    internet.names.address_sequence("evil.test", EVIL, "127.0.0.1")
    internet.names.srv("_matrix-fed._tcp.evil.test", PORT, "evil.test", priority=1)
    internet.listen(EVIL, 443, "evil.test", {})
    internet.start_service()
    expect_refusal(internet, "evil.test")
    assert internet.connection_attempts() == [(EVIL, 443)]
    assert internet.names.queried_names("A").count("evil.test") >= 2


def test_a_known_homeserver_that_moves_to_loopback_is_not_followed(internet):
    server_name = f"evil.test:{PORT}"
    add_trap(internet, "127.0.0.1", server_name)
    internet.names.address_sequence("evil.test", EVIL, "127.0.0.1")
    userinfo = json.dumps({"sub": f"@alice:{server_name}"}).encode()
    internet.listen(EVIL, PORT, "evil.test", {USERINFO: (200, {"Connection": "close"}, userinfo)})
    internet.start_service()
    assert internet.request_token(server_name).status == 200
    expect_refusal(internet, server_name)
    assert {address for address, _ in internet.connection_attempts()} == {EVIL}


def test_of_several_addresses_only_the_allowed_one_is_connected_to(internet):
    internet.names.address("evil.test", "127.0.0.1", GOOD, "::1")
    internet.homeserver(GOOD, PORT, "evil.test", f"evil.test:{PORT}")
    internet.start_service()
    assert internet.request_token(f"evil.test:{PORT}").status == 200
    assert internet.connection_attempts() == [(GOOD, PORT)]


def test_an_allowed_well_known_allows_no_other_address(internet):
    add_trap(internet, "10.77.0.20", "hs.test")
    internet.names.address("hs.test", "10.77.0.10")
    internet.well_known("10.77.0.10", "hs.test", TRAP)
    internet.start_service(LIVEKIT_ALLOWED_NETWORKS="10.77.0.10/32")
    expect_refusal(internet, "hs.test")
    assert internet.connection_attempts() == [("10.77.0.10", 443)]


def test_a_denied_public_network_is_denied(internet):
    internet.homeserver(GOOD, PORT, GOOD, f"{GOOD}:{PORT}")
    internet.start_service(LIVEKIT_DENIED_NETWORKS="11.1.1.0/24")
    expect_refusal(internet, f"{GOOD}:{PORT}")
    assert internet.connection_attempts() == []


def test_an_unlisted_server_cannot_use_the_exemption_of_a_full_access_homeserver(internet):
    add_trap(internet, "10.9.9.9", "evil.test")
    internet.well_known(EVIL, "evil.test", TRAP)
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS=f"{TRAP},trap.test")
    expect_refusal(internet, "evil.test")
    assert {address for address, _ in internet.connection_attempts()} == {EVIL}


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.9.9.9", "fd00::9", "::1"])
def test_a_full_access_homeserver_may_have_a_private_address(internet, ip):
    add_trap(internet, ip, TRAP)
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS=TRAP, LIVEKIT_API_URL=f"http://{SFU[0]}:{SFU[1]}")
    assert internet.request_token(TRAP).status == 500  # the OpenID token was accepted, and there is no SFU
    assert internet.connection_attempts() == [(ip, PORT), SFU]


@pytest.mark.parametrize(
    "ip", ["169.254.169.254", "fd00:ec2::254", "fe80::9", "0.0.0.0", "::", "224.0.0.9", "255.255.255.255"]
)
def test_a_full_access_homeserver_has_no_link_local_or_unspecified_address(internet, ip):
    internet.names.address("trap.test", ip)
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS=TRAP, LIVEKIT_API_URL=f"http://{SFU[0]}:{SFU[1]}")
    expect_refusal(internet, TRAP)
    assert internet.connection_attempts() == []


def test_full_access_for_all_homeservers_exempts_none(internet):
    add_trap(internet, "10.9.9.9", TRAP)
    internet.start_service(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    expect_refusal(internet, TRAP)
    assert internet.connection_attempts() == []


def test_a_proxy_in_the_environment_is_not_used(internet):
    """A proxy would connect to any address, without the address policy."""
    internet.homeserver(GOOD, PORT, GOOD, f"{GOOD}:{PORT}")
    proxy = "http://11.1.1.30:3128"
    internet.start_service(HTTPS_PROXY=proxy, HTTP_PROXY=proxy, ALL_PROXY=proxy, https_proxy=proxy, all_proxy=proxy)
    assert internet.request_token(f"{GOOD}:{PORT}").status == 200
    assert internet.connection_attempts() == [(GOOD, PORT)]


def test_the_log_of_a_refusal_names_the_setting_that_allows_the_address(internet):
    add_trap(internet, "10.9.9.9", TRAP)
    internet.start_service()
    expect_refusal(internet, TRAP)
    internet.service.stop()
    refusals = [line for line in internet.service.log if "10.9.9.9" in line and "trap.test" in line]
    assert any("LIVEKIT_ALLOWED_NETWORKS" in line for line in refusals), internet.service.text
