"""Strangers cannot make the service dial an address that only it can reach. Default settings, unless a test says so."""

import json

import pytest

from lab import USERINFO, WELL_KNOWN, bracketed

# addresses of the internet proper; nothing leaves the namespace
EVIL, GOOD = "11.1.1.10", "11.1.1.20"
PORT = 7000
TRAP, SFU = f"trap.test:{PORT}", ("11.1.1.40", 7880)

PLAIN = ["127.0.0.1", "127.9.9.9", "10.9.9.9", "172.31.9.9", "192.168.9.9", "169.254.169.254", "100.64.9.9"]
PLAIN += ["198.18.9.9", "::1", "fd00::9", "fd00:ec2::254", "2001:db8::9"]
# other ways to write 127.0.0.1 and 10.9.9.9
EMBEDDED = ["::ffff:127.0.0.1", "::ffff:10.9.9.9", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "0.0.0.0", "::"]


def url_of(host):
    return 302, {"Location": f"https://{host}{WELL_KNOWN}"}, b""


# what the attacker's well-known answers, given the address behind the trap
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
# what the attacker asks for without a well-known of his own
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


def lay_trap(world, ip, asked):
    """On `ip` waits a homeserver whose certificate and answers would satisfy any request for `asked`."""
    names = world.names
    names.address("trap.test", ip)
    names.alias("alias.test", "trap.test")
    names.srv("_matrix-fed._tcp.srv.test", PORT, "trap.test")
    names.srv("_matrix-fed._tcp.evil.test", PORT, "trap.test")
    names.address("evil.test", EVIL)
    if ip in EMBEDDED:
        return  # the witness suffices: a mapped address cannot be listened on as such
    answers = {
        WELL_KNOWN: json.dumps({"m.server": f"{bracketed(ip)}:{PORT}"}).encode(),
        USERINFO: json.dumps({"sub": f"@alice:{asked}"}).encode(),
    }
    for port in 443, PORT, 8448:
        world.listen(ip, port, (ip, "trap.test", "alias.test", "srv.test", "evil.test"), answers)


def expect_refusal(world, asked):
    reply = world.ask(asked)
    assert (reply.status, reply.errcode) == (401, "M_UNAUTHORIZED")


@every
@by_well_known
def test_a_well_known_leads_to_no_denied_address(world, well_known, ip):
    lay_trap(world, ip, "evil.test")
    world.listen(EVIL, 443, "evil.test", {WELL_KNOWN: well_known(ip)})
    world.serve()
    expect_refusal(world, "evil.test")
    assert world.dialled()[0] == (EVIL, 443)
    assert {address for address, _ in world.dialled()} == {EVIL}


@every
@by_name
def test_a_server_name_leads_to_no_denied_address(world, name, ip):
    lay_trap(world, ip, name(ip))
    world.serve()
    expect_refusal(world, name(ip))
    assert world.dialled() == []


@plain
@by_well_known
def test_the_trap_of_a_well_known_would_have_worked(world, well_known, ip):
    """Without the policy the same world hands out a token: the tests above can fail."""
    lay_trap(world, ip, "evil.test")
    world.listen(EVIL, 443, "evil.test", {WELL_KNOWN: well_known(ip)})
    world.serve(LIVEKIT_ALLOWED_NETWORKS=ip)
    assert world.ask("evil.test").status == 200


@plain
@by_name
def test_the_trap_of_a_server_name_would_have_worked(world, name, ip):
    lay_trap(world, ip, name(ip))
    world.serve(LIVEKIT_ALLOWED_NETWORKS=ip)
    assert world.ask(name(ip)).status == 200


@pytest.mark.parametrize("name", ["localhost:7000", "localhost", "127.1:7000", "2130706433:7000", "0x7f.1:7000", "0177.0.0.1:7000"])  # fmt: skip
def test_no_spelling_of_this_host_is_dialled(world, name):
    lay_trap(world, "127.0.0.1", name)
    world.serve()
    reply = world.ask(name)
    assert reply.status in (400, 401)
    assert world.dialled() == []


def test_a_name_that_changes_its_address_is_judged_each_time(world):
    """A rebinding name server: the well-known's look-up gets a good address, the next one loopback."""
    lay_trap(world, "127.0.0.1", "evil.test")
    world.names.in_turn("evil.test", EVIL, "127.0.0.1")
    world.names.srv("_matrix-fed._tcp.evil.test", PORT, "evil.test", priority=1)
    world.listen(EVIL, 443, "evil.test", {})
    world.serve()
    expect_refusal(world, "evil.test")
    assert world.dialled() == [(EVIL, 443)]
    assert world.names.asked("A").count("evil.test") >= 2


def test_a_known_homeserver_that_moves_to_loopback_is_not_followed(world):
    asked = f"evil.test:{PORT}"
    lay_trap(world, "127.0.0.1", asked)
    world.names.in_turn("evil.test", EVIL, "127.0.0.1")
    userinfo = json.dumps({"sub": f"@alice:{asked}"}).encode()
    world.listen(EVIL, PORT, "evil.test", {USERINFO: (200, {"Connection": "close"}, userinfo)})
    world.serve()
    assert world.ask(asked).status == 200
    expect_refusal(world, asked)
    assert {address for address, _ in world.dialled()} == {EVIL}


def test_of_two_addresses_only_the_allowed_one_is_dialled(world):
    world.names.address("evil.test", "127.0.0.1", GOOD, "::1")
    world.homeserver(GOOD, PORT, "evil.test", f"evil.test:{PORT}")
    world.serve()
    assert world.ask(f"evil.test:{PORT}").status == 200
    assert world.dialled() == [(GOOD, PORT)]


def test_an_allowed_well_known_does_not_allow_its_neighbour(world):
    lay_trap(world, "10.77.0.20", "hs.test")
    world.names.address("hs.test", "10.77.0.10")
    world.well_known("10.77.0.10", "hs.test", TRAP)
    world.serve(LIVEKIT_ALLOWED_NETWORKS="10.77.0.10/32")
    expect_refusal(world, "hs.test")
    assert world.dialled() == [("10.77.0.10", 443)]


def test_a_denied_network_is_denied_although_it_is_public(world):
    world.homeserver(GOOD, PORT, GOOD, f"{GOOD}:{PORT}")
    world.serve(LIVEKIT_DENIED_NETWORKS="11.1.1.0/24")
    expect_refusal(world, f"{GOOD}:{PORT}")
    assert world.dialled() == []


def test_a_stranger_cannot_borrow_the_exemption_of_a_full_access_homeserver(world):
    lay_trap(world, "10.9.9.9", "evil.test")
    world.well_known(EVIL, "evil.test", TRAP)
    world.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS=f"{TRAP},trap.test")
    expect_refusal(world, "evil.test")
    assert {address for address, _ in world.dialled()} == {EVIL}


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.9.9.9", "fd00::9", "::1"])
def test_a_full_access_homeserver_may_be_on_this_host_or_network(world, ip):
    lay_trap(world, ip, TRAP)
    world.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS=TRAP, LIVEKIT_API_URL=f"http://{SFU[0]}:{SFU[1]}")
    assert world.ask(TRAP).status == 500  # no SFU is there, but the user was believed
    assert world.dialled() == [(ip, PORT), SFU]


@pytest.mark.parametrize(
    "ip", ["169.254.169.254", "fd00:ec2::254", "fe80::9", "0.0.0.0", "::", "224.0.0.9", "255.255.255.255"]
)
def test_a_full_access_homeserver_is_not_where_none_can_be(world, ip):
    world.names.address("trap.test", ip)
    world.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS=TRAP, LIVEKIT_API_URL=f"http://{SFU[0]}:{SFU[1]}")
    expect_refusal(world, TRAP)
    assert world.dialled() == []


def test_everyone_having_full_access_exempts_nobody(world):
    lay_trap(world, "10.9.9.9", TRAP)
    world.serve(LIVEKIT_FULL_ACCESS_HOMESERVERS="*")
    expect_refusal(world, TRAP)
    assert world.dialled() == []


def test_a_proxy_in_the_environment_is_not_used(world):
    """It would dial whatever it is told, past the policy."""
    world.homeserver(GOOD, PORT, GOOD, f"{GOOD}:{PORT}")
    proxy = "http://11.1.1.30:3128"
    world.serve(HTTPS_PROXY=proxy, HTTP_PROXY=proxy, ALL_PROXY=proxy, https_proxy=proxy, all_proxy=proxy)
    assert world.ask(f"{GOOD}:{PORT}").status == 200
    assert world.dialled() == [(GOOD, PORT)]


def test_a_refusal_tells_the_administrator_what_would_allow_it(world):
    lay_trap(world, "10.9.9.9", TRAP)
    world.serve()
    expect_refusal(world, TRAP)
    world.service.stop()
    refusals = [line for line in world.service.log if "10.9.9.9" in line and "trap.test" in line]
    assert any("LIVEKIT_ALLOWED_NETWORKS" in line for line in refusals), world.service.text
