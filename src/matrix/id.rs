//! Matrix identifiers (Matrix spec v1.16, appendix "Identifier Grammar"; MSC4143, MSC4195).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::address::Host;

/// Longest server name in bytes, as the spec advises: with a DNS name of 253 bytes a user id would exceed 255 bytes.
const MAX_SERVER_NAME: usize = 230;
/// Longest DNS label in bytes (RFC 1035).
const MAX_LABEL: usize = 63;
/// Longest identifier in bytes. The spec's limit for user and room ids, used for all kinds.
const MAX_ID: usize = 255;

/// Parse error: what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidIdentifier(&'static str);

impl fmt::Display for InvalidIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidIdentifier {}

/// The name of a homeserver: `hostname[:port]`. Compared byte for byte, case included.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName {
    raw: Box<str>,
    ip: Option<IpAddr>,
    port: Option<u16>,
}

impl ServerName {
    /// Parses a server name of at most 230 bytes. Stricter than the grammar: refuses DNS names that a resolver may read as an IP
    /// address, such as `127.1`.
    pub fn parse(text: &str) -> Result<Self, InvalidIdentifier> {
        if text.len() > MAX_SERVER_NAME {
            return Err(InvalidIdentifier("a server name of at most 230 bytes"));
        }
        let (host, port) = split_port(text)?;
        let ip = if let Some(rest) = host.strip_prefix('[') {
            let literal = rest.strip_suffix(']').ok_or(NOT_A_SERVER_NAME)?;
            let v6 = literal.parse::<Ipv6Addr>();
            Some(IpAddr::V6(v6.map_err(|_| NOT_A_SERVER_NAME)?))
        } else if let Ok(v4) = host.parse::<Ipv4Addr>() {
            Some(IpAddr::V4(v4))
        } else {
            check_dns_name(host)?;
            None
        };
        Ok(Self {
            raw: text.into(),
            ip,
            port,
        })
    }

    /// The name as parsed.
    pub fn as_str(&self) -> &str {
        &self.raw
    }

    /// The part before the port, an IPv6 literal with its brackets.
    pub fn host(&self) -> &str {
        let host = self.port.and_then(|_| self.raw.rsplit_once(':'));
        host.map_or(&self.raw, |(host, _)| host)
    }

    /// The address, if the host is an IP literal.
    pub fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// The port, if the name has one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// [`Self::host`] as a host to connect to.
    pub(super) fn network_host(&self) -> Host {
        match self.ip {
            Some(ip) => Host::Ip(ip),
            None => Host::Dns(self.host().into()),
        }
    }
}

const NOT_A_SERVER_NAME: InvalidIdentifier = InvalidIdentifier(
    "a server name like example.com, example.com:8448, 192.0.2.1 or [2001:db8::1]:8448",
);

fn split_port(text: &str) -> Result<(&str, Option<u16>), InvalidIdentifier> {
    let colon = match text.rfind(']') {
        Some(bracket) if bracket + 1 == text.len() => None,
        Some(bracket) => Some(bracket + 1),
        None => text.find(':'),
    };
    let Some(colon) = colon else {
        return Ok((text, None));
    };
    let (host, rest) = text.split_at(colon);
    let digits = rest.strip_prefix(':').ok_or(NOT_A_SERVER_NAME)?;
    if !(1..=5).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NOT_A_SERVER_NAME);
    }
    match digits.parse() {
        Ok(port) if port != 0 => Ok((host, Some(port))),
        _ => Err(NOT_A_SERVER_NAME),
    }
}

/// Accepts a DNS name; refuses `127.1`, `2130706433` and `0x7f.1`, which match the grammar but are addresses to getaddrinfo.
fn check_dns_name(host: &str) -> Result<(), InvalidIdentifier> {
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let last = host.rsplit('.').next().unwrap_or(host).as_bytes();
    let decimal = last.iter().all(u8::is_ascii_digit);
    let hexadecimal =
        matches!(last, [b'0', b'x' | b'X', rest @ ..] if rest.iter().all(u8::is_ascii_hexdigit));
    if host.split('.').all(is_label) && !decimal && !hexadecimal {
        Ok(())
    } else {
        Err(NOT_A_SERVER_NAME)
    }
}

/// A fully qualified user id, `@localpart:server`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UserId {
    raw: Box<str>,
    server: ServerName,
}

impl UserId {
    /// Parses a user id of at most 255 bytes. The server name follows the first `:`. The localpart may be a historical one: any
    /// characters but control characters.
    pub fn parse(text: &str) -> Result<Self, InvalidIdentifier> {
        const NOT_A_USER_ID: InvalidIdentifier =
            InvalidIdentifier("a user id like @alice:example.com");
        if text.len() > MAX_ID || text.chars().any(char::is_control) {
            return Err(NOT_A_USER_ID);
        }
        let (localpart, server) = text
            .strip_prefix('@')
            .and_then(|rest| rest.split_once(':'))
            .ok_or(NOT_A_USER_ID)?;
        if localpart.is_empty() {
            return Err(NOT_A_USER_ID);
        }
        let server = ServerName::parse(server).map_err(|_| NOT_A_USER_ID)?;
        Ok(Self {
            raw: text.into(),
            server,
        })
    }

    /// The id as parsed.
    pub fn as_str(&self) -> &str {
        &self.raw
    }

    /// The user's homeserver.
    pub fn server(&self) -> &ServerName {
        &self.server
    }
}

macro_rules! impl_fmt {
    ($($trait:ident for $name:ident),*) => {
        $(impl fmt::$trait for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.raw)
            }
        })*
    };
}

impl_fmt!(Display for ServerName, Debug for ServerName, Display for UserId, Debug for UserId);

/// An identifier of 1 to 255 bytes without control characters, for which `$check` holds too.
macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident, $check:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            #[doc = concat!("Accepts ", $expected, ".")]
            pub fn parse(text: &str) -> Result<Self, InvalidIdentifier> {
                let check: fn(&str) -> bool = $check;
                if (1..=MAX_ID).contains(&text.len())
                    && !text.chars().any(char::is_control)
                    && check(text)
                {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidIdentifier($expected))
                }
            }

            /// The id as parsed.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
    ($(#[$doc:meta])* $name:ident) => {
        opaque_id!($(#[$doc])* $name, |_| true, "1 to 255 bytes without control characters");
    };
}

opaque_id! {
    /// A room id. Opaque since room version 12.
    RoomId
}
opaque_id! {
    /// A MatrixRTC slot within a room (MSC4143), such as `m.call#ROOM`.
    SlotId
}
opaque_id! {
    /// One participation of a user in a slot (MSC4143).
    MemberId
}
opaque_id! {
    /// A device of a user.
    DeviceId
}
opaque_id! {
    /// The id of a delayed event (MSC4140), which is part of a request path.
    DelayId,
    |text| !has_dot_segment(text),
    "1 to 255 bytes without control characters, and without the segments . and .."
}

impl RoomId {
    /// Parses a room id that becomes part of a request path: it starts with `!` and has no dot segment.
    pub fn parse_for_path(text: &str) -> Result<Self, InvalidIdentifier> {
        const NOT_A_ROOM_ID: InvalidIdentifier =
            InvalidIdentifier("a room id like !abc:example.com");
        if text.starts_with('!') && !has_dot_segment(text) {
            Self::parse(text)
        } else {
            Err(NOT_A_ROOM_ID)
        }
    }
}

/// Whether a path segment is `.` or `..`. Escaping does not help: a proxy that decodes the path before it forwards the request
/// would resolve the segment and leave the endpoint.
fn has_dot_segment(text: &str) -> bool {
    text.split(['/', '\\'])
        .any(|segment| matches!(segment, "." | ".."))
}

/// A user in a room: who is, was or may be a member of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomMember {
    /// The room.
    pub room_id: RoomId,
    /// The user.
    pub user_id: UserId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_server_names_are_accepted() {
        for (name, host, port) in [
            ("matrix.org", "matrix.org", None),
            ("matrix.org:8888", "matrix.org", Some(8888)),
            ("1.2.3.4", "1.2.3.4", None),
            ("1.2.3.4:1234", "1.2.3.4", Some(1234)),
            ("[1234:5678::abcd]", "[1234:5678::abcd]", None),
            ("[::ffff:1.2.3.4]:5678", "[::ffff:1.2.3.4]", Some(5678)),
            ("MATRIX.org", "MATRIX.org", None),
            ("localhost:00443", "localhost", Some(443)),
            ("1e100.net", "1e100.net", None),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
        ] {
            let parsed = ServerName::parse(name).unwrap();
            assert_eq!(
                (parsed.as_str(), parsed.host(), parsed.port()),
                (name, host, port)
            );
        }
    }

    #[test]
    fn numeric_hosts_and_malformed_server_names_are_refused() {
        let long_label = format!("{}.org", "a".repeat(64));
        let long = format!("{}org", "a.".repeat(120));
        for name in [
            "",
            ":80",
            "a:",
            "a:b",
            "a:99999",
            "a:0",
            "a:+80",
            "a:80:80",
            "a:123456",
            "a b",
            "a/b",
            "a@b",
            "a#b",
            "a?b",
            "::1",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]:",
            "[fe80::1%eth0]",
            "[]",
            "[1.2.3.4]",
            "a_b.org",
            "1.2.3",
            "127.1",
            "0x7f.0.0.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "1.2.3.256",
            "a..b",
            ".a",
            "a.",
            "example.org.",
            "a.0x",
            "bücher.example",
            "a%2e.b",
            "http://a",
            "..",
            "a\r\nb",
            "a\0b",
            &long_label,
            &long,
        ] {
            assert!(ServerName::parse(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_server_name_of_a_user_id_follows_the_first_colon() {
        assert_eq!(
            UserId::parse("@a:b.org:8448").unwrap().server().as_str(),
            "b.org:8448"
        );
        assert_eq!(
            UserId::parse("@a/b=ü!:[::1]:1").unwrap().server().as_str(),
            "[::1]:1"
        );
        let long = format!("@{}:b.org", "a".repeat(255));
        for id in [
            "",
            "a:b",
            "@a",
            "@:b",
            "@a:",
            "@a:b:hs.org",
            "@a\n:b",
            "@a:b c",
            &long,
        ] {
            assert!(UserId::parse(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn opaque_ids_have_1_to_255_bytes_without_control_characters() {
        assert_eq!(
            SlotId::parse("m.call#ROOM").unwrap().as_str(),
            "m.call#ROOM"
        );
        assert!(RoomId::parse(&"a".repeat(255)).is_ok());
        for id in ["", "a\u{7}", "a\0", &"a".repeat(256)] {
            assert!(RoomId::parse(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn a_room_id_for_a_path_has_no_dot_segment() {
        for id in ["!r:hs", "!a/b:hs", "!..a", "!..", "!ü"] {
            assert_eq!(RoomId::parse_for_path(id).unwrap().as_str(), id);
        }
        let long = format!("!{}", "a".repeat(255));
        for id in [
            "..", ".", "r:hs", "!a/../b", "!a\\..", "!a/.", "#r:hs", "", "!\0", &long,
        ] {
            assert!(RoomId::parse_for_path(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_delay_id_has_no_dot_segment() {
        for id in ["syd_abc", "a/b", "a?b#c%2e", "..a", "...", "ü", "%2e%2e"] {
            assert_eq!(DelayId::parse(id).unwrap().as_str(), id);
        }
        for id in [
            "",
            ".",
            "..",
            "../x",
            "a/../b",
            "a/.",
            "..\\x",
            "a\0",
            "a\r\nb",
            &"a".repeat(256),
        ] {
            assert!(DelayId::parse(id).is_err(), "{id:?}");
        }
    }
}
