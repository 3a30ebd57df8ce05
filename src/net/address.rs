//! Addresses of other servers, and the policy that keeps callers from reaching the local network through this service (SSRF).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A host: an address, or a name to look up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Host {
    /// An IP literal.
    Ip(IpAddr),
    /// A DNS name.
    Dns(Box<str>),
}

impl Host {
    /// Parses the host of a URL or of a server name, an IPv6 literal with or without brackets.
    pub(crate) fn parse(text: &str) -> Self {
        let inside = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .unwrap_or(text);
        inside
            .parse()
            .map_or_else(|_| Self::Dns(text.into()), Self::Ip)
    }
}

impl fmt::Display for Host {
    /// As in a URL: an IPv6 literal in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Dns(name) => f.write_str(name),
        }
    }
}

/// A range of addresses in CIDR notation, or a single one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

impl Network {
    const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self {
            base: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            prefix,
        }
    }

    const fn v6(segments: [u16; 8], prefix: u8) -> Self {
        let [a, b, c, d, e, f, g, h] = segments;
        Self {
            base: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)),
            prefix,
        }
    }

    /// The subnet that one party is likely to own: the /24 or /64 of an address. An address with an embedded IPv4 address belongs to
    /// the /24 of that one: with DNS64, every IPv4 server has an address in the same /64.
    pub(crate) fn subnet_of(ip: IpAddr) -> Self {
        match embedded_ipv4(ip).unwrap_or(ip) {
            IpAddr::V4(v4) => Self {
                base: Ipv4Addr::from(u32::from(v4) & !0xff).into(),
                prefix: 24,
            },
            IpAddr::V6(v6) => Self {
                base: prefix_64(v6).into(),
                prefix: 64,
            },
        }
    }

    /// Whether the address is in the range. IPv4 and IPv6 never match each other.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let (base, ip, width) = match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                (u32::from(base).into(), u32::from(ip).into(), 32)
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => (u128::from(base), u128::from(ip), 128),
            _ => return false,
        };
        let differs: u128 = base ^ ip;
        differs
            .checked_shr(width - u32::from(self.prefix))
            .unwrap_or(0)
            == 0
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (base, prefix) = text
            .split_once('/')
            .map_or((text, None), |(base, prefix)| (base, Some(prefix)));
        let base: IpAddr = base.parse().map_err(|_| InvalidNetwork)?;
        let longest = if base.is_ipv4() { 32 } else { 128 };
        let prefix = prefix
            .map_or(Ok(longest), str::parse)
            .map_err(|_| InvalidNetwork)?;
        if prefix <= longest {
            Ok(Self { base, prefix })
        } else {
            Err(InvalidNetwork)
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidNetwork;

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected an address or a range like 10.0.0.0/8 or fd00::/8")
    }
}

impl std::error::Error for InvalidNetwork {}

/// Ranges that are not public (IANA's special-purpose registries): allowed for listed servers only.
const PRIVATE_RANGES: [Network; 20] = [
    Network::v4(10, 0, 0, 0, 8),
    Network::v4(100, 64, 0, 0, 10),
    Network::v4(127, 0, 0, 0, 8),
    Network::v4(172, 16, 0, 0, 12),
    Network::v4(192, 0, 0, 0, 24),
    Network::v4(192, 0, 2, 0, 24),
    Network::v4(192, 88, 99, 0, 24),
    Network::v4(192, 168, 0, 0, 16),
    Network::v4(198, 18, 0, 0, 15),
    Network::v4(198, 51, 100, 0, 24),
    Network::v4(203, 0, 113, 0, 24),
    Network::v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    Network::v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    Network::v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    Network::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    Network::v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    Network::v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    Network::v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
    Network::v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    Network::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
];

/// Ranges without homeservers, but perhaps with a cloud's metadata service: allowed only by `LIVEKIT_ALLOWED_NETWORKS`.
const BLOCKED_RANGES: [Network; 11] = [
    Network::v4(0, 0, 0, 0, 8),
    Network::v4(169, 254, 0, 0, 16),
    Network::v4(224, 0, 0, 0, 4),
    Network::v4(240, 0, 0, 0, 4),
    Network::v6([0, 0, 0, 0, 0, 0, 0, 0], 128),
    Network::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    Network::v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    // metadata services: AWS, Google, Oracle, Alibaba
    Network::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    Network::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    Network::v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128),
    Network::v4(100, 100, 100, 200, 32),
];

/// The part of IPv6 that IANA has allocated so far; nothing else is routed.
const GLOBAL_UNICAST_V6: Network = Network::v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// The IPv4 address embedded in an IPv6 address: mapped, translated (RFC 2765), compatible, NAT64 (RFC 6052) or 6to4 (RFC 3056).
fn embedded_ipv4(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = ip else { return None };
    let v4 =
        |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)).into());
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

/// Whether one of the networks contains the address, or its embedded IPv4 address.
fn any_contains(networks: &[Network], ip: IpAddr) -> bool {
    let embedded = embedded_ipv4(ip);
    networks
        .iter()
        .any(|n| n.contains(ip) || embedded.is_some_and(|v4| n.contains(v4)))
}

pub(crate) fn is_public(ip: IpAddr) -> bool {
    let routed = ip.is_ipv4() || GLOBAL_UNICAST_V6.contains(ip) || embedded_ipv4(ip).is_some();
    routed && !any_contains(&PRIVATE_RANGES, ip) && !any_contains(&BLOCKED_RANGES, ip)
}

/// The address by which a client is counted: an IPv4 address, or the /64 of an IPv6 address, which one party is likely to own.
pub(crate) fn client_key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => prefix_64(v6).into(),
        v4 => v4,
    }
}

fn prefix_64(ip: Ipv6Addr) -> Ipv6Addr {
    (ip.to_bits() & (u128::MAX << 64)).into()
}

/// Trust in a server, by who has named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Trust {
    /// Named by a caller.
    Unlisted,
    /// Named by a caller, and listed in `LIVEKIT_FULL_ACCESS_HOMESERVERS`.
    Listed,
    /// Named by the administrator: an override or the SFU.
    Administrator,
}

/// Addresses that may be dialled: `LIVEKIT_ALLOWED_NETWORKS`, then `LIVEKIT_DENIED_NETWORKS`, then the built-in ranges.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    allowed: Vec<Network>,
    denied: Vec<Network>,
}

impl AddressPolicy {
    /// Adds the administrator's ranges to the built-in ones.
    pub(crate) fn new(allowed: Vec<Network>, denied: Vec<Network>) -> Self {
        Self { allowed, denied }
    }

    pub(crate) fn allows(&self, ip: IpAddr, trust: Trust) -> bool {
        match trust {
            Trust::Administrator => true,
            _ if any_contains(&self.allowed, ip) => true,
            _ if any_contains(&self.denied, ip) || any_contains(&BLOCKED_RANGES, ip) => false,
            Trust::Listed => true,
            Trust::Unlisted => is_public(ip),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn unlisted_servers_have_public_addresses_only() {
        let policy = AddressPolicy::default();
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.9",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "fec0::1",
            "::2",
            "::ffff:0:127.0.0.1",
            "4000::1",
            "fd20:ce::254",
            "100::1",
        ] {
            assert!(!policy.allows(ip(address), Trust::Unlisted), "{address}");
        }
        for address in [
            "1.1.1.1",
            "93.184.216.34",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "64:ff9b::5db8:d822",
            "2002:5db8:d822::1",
            "::ffff:1.1.1.1",
        ] {
            assert!(policy.allows(ip(address), Trust::Unlisted), "{address}");
        }
    }

    #[test]
    fn listed_servers_may_have_private_addresses_but_not_that_of_a_metadata_service() {
        let policy = AddressPolicy::default();
        for address in [
            "10.0.0.5",
            "127.0.0.1",
            "::1",
            "fd12::1",
            "::ffff:192.168.1.1",
        ] {
            assert!(policy.allows(ip(address), Trust::Listed), "{address}");
        }
        for address in [
            "169.254.169.254",
            "0.0.0.0",
            "fd00:ec2::254",
            "fe80::1",
            "224.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert!(!policy.allows(ip(address), Trust::Listed), "{address}");
            assert!(
                policy.allows(ip(address), Trust::Administrator),
                "{address}"
            );
        }
    }

    #[test]
    fn the_ranges_of_the_settings_precede_the_built_in_ones() {
        let ranges = |text: &str| text.split(' ').map(|r| r.parse().unwrap()).collect();
        let policy = AddressPolicy::new(
            ranges("169.254.169.254 10.0.0.0/24"),
            ranges("1.1.1.0/24 10.0.0.0/8"),
        );
        assert!(policy.allows(ip("169.254.169.254"), Trust::Unlisted));
        assert!(policy.allows(ip("10.0.0.9"), Trust::Unlisted));
        assert!(policy.allows(ip("::ffff:10.0.0.9"), Trust::Unlisted));
        assert!(!policy.allows(ip("10.0.1.9"), Trust::Listed));
        assert!(!policy.allows(ip("1.1.1.1"), Trust::Listed));
    }

    #[test]
    fn ranges_are_parsed_strictly() {
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(ip("9.9.9.9")) && !all.contains(ip("::1")));
        let everything: Network = "::/0".parse().unwrap();
        assert!(everything.contains(ip("ffff::")));
        for text in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10/8",
            "example.com",
            "1.2.3.4/-1",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_subnet_is_a_24_or_a_64() {
        assert_eq!(
            Network::subnet_of(ip("192.0.2.7")),
            Network::subnet_of(ip("192.0.2.200"))
        );
        assert_ne!(
            Network::subnet_of(ip("192.0.2.7")),
            Network::subnet_of(ip("192.0.3.7"))
        );
        assert_eq!(
            Network::subnet_of(ip("2001:db8::1")),
            Network::subnet_of(ip("2001:db8::2:0:0:1"))
        );
    }

    #[test]
    fn an_embedded_ipv4_address_decides_the_subnet() {
        let v4 = Network::subnet_of(ip("93.184.216.34"));
        for same in [
            "64:ff9b::5db8:d801",
            "2002:5db8:d802::1",
            "::ffff:93.184.216.3",
        ] {
            assert_eq!(Network::subnet_of(ip(same)), v4, "{same}");
        }
        // another IPv4 server behind the same NAT64
        assert_ne!(Network::subnet_of(ip("64:ff9b::5db8:d922")), v4);
    }
}
