//! Where the service listens.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::reader::{SettingValue, SettingsReader, quote_redacted};
use super::report::SettingOrigin;
use super::table;
use crate::net::address::Host;

/// Longest path of a unix socket, in bytes: what `sun_path` holds on Linux without its final zero (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest host name, in bytes (RFC 1035).
const MAX_HOST_BYTES: usize = 253;
/// Names that forerunners of this service had for the port.
const DEPRECATED_NAMES: [&str; 3] = ["LIVEKIT_JWT_PORT", "LK_JWT_PORT", "TOKEN_SERVER_PORT"];
const BIND: &str = "LIVEKIT_JWT_BIND";
const BIND_EXPECTED: &str = ":8080, host:8080, [::1]:8080 or unix:/path";

/// Where the service listens. Port 0 is any free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindAddress {
    /// `:8080`: every address, IPv6 and IPv4.
    AllInterfaces(u16),
    /// An address, or a name to be looked up at start.
    Tcp {
        /// The address or name.
        host: Host,
        /// The port.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

impl BindAddress {
    /// Parses `:8080`, `host:8080`, `192.0.2.1:8080`, `[::1]:8080` or `unix:/path`; none if it is nothing of these.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = path.starts_with('/')
                && !path.ends_with('/')
                && path.len() <= MAX_SOCKET_PATH_BYTES
                && !path.contains('\0');
            return fits.then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = parse_port(port)?;
        if host.is_empty() {
            return Some(Self::AllInterfaces(port));
        }
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let literal: Ipv6Addr = rest.strip_suffix(']')?.parse().ok()?;
                Host::Ip(literal.into())
            }
            None if is_host_name(host) => Host::parse(host),
            None => return None,
        };
        Some(Self::Tcp { host, port })
    }

    /// Whether only this host can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Self::AllInterfaces(_) => false,
            Self::Tcp { host, .. } => match host {
                Host::Ip(IpAddr::V4(ip)) => ip.is_loopback(),
                Host::Ip(IpAddr::V6(ip)) => ip.is_loopback(),
                Host::Dns(name) => name.eq_ignore_ascii_case("localhost"),
            },
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for BindAddress {
    /// As it stands in `LIVEKIT_JWT_BIND`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllInterfaces(port) => write!(f, ":{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", Path::display(path)),
        }
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn is_host_name(host: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    host.len() <= MAX_HOST_BYTES && host.bytes().all(fits)
}

/// Reads `LIVEKIT_JWT_BIND` or one of its older names; gives the name of the variable too.
pub(super) fn read(
    reader: &mut SettingsReader<'_>,
    default: &str,
    origin: SettingOrigin,
) -> Option<(BindAddress, &'static str)> {
    let before = reader.errors.len();
    let current = reader.read_value(BIND);
    let older: Vec<SettingValue> = DEPRECATED_NAMES
        .into_iter()
        .filter_map(|name| read_deprecated_port(reader, name))
        .collect();
    let mut set = current.iter().chain(&older);
    let first = set.next().map(|value| value.name);
    for value in set {
        let expected = format!("nothing beside {}", first.unwrap_or(BIND));
        reader.push_invalid(value.name, expected, quote_redacted(&value.text));
    }
    if reader.errors.len() > before {
        return None;
    }
    if let Some(port) = older.into_iter().next() {
        let name = port.name;
        let bind = reader.parse_value(port, "a port from 0 to 65535", |text| {
            parse_port(text).map(BindAddress::AllInterfaces).ok_or(text)
        })?;
        reader.report.add_warning(format!(
            "{name} is an older name; write LIVEKIT_JWT_BIND={bind} instead"
        ));
        return Some((bind, name));
    }
    let value = current.unwrap_or_else(|| SettingValue {
        name: BIND,
        text: default.into(),
        origin,
    });
    let bind = reader.parse_value(value, BIND_EXPECTED, |text| {
        BindAddress::parse(text).ok_or(text)
    })?;
    Some((bind, BIND))
}

/// Reads `LIVEKIT_METRICS_BIND`: nowhere, if it is not set.
pub(super) fn read_metrics_bind(reader: &mut SettingsReader<'_>) -> Option<Option<BindAddress>> {
    let before = reader.errors.len();
    match reader.read_value("LIVEKIT_METRICS_BIND") {
        None if reader.errors.len() > before => None,
        None => Some(None),
        Some(value) => reader
            .parse_value(value, BIND_EXPECTED, |text| {
                BindAddress::parse(text).ok_or(text)
            })
            .map(Some),
    }
}

fn read_deprecated_port(
    reader: &mut SettingsReader<'_>,
    name: &'static str,
) -> Option<SettingValue> {
    let value = reader.read_value(name)?;
    if table::is_kubernetes_service_link(&value.text) {
        reader.report.add_warning(format!(
            "{name} is ignored: Kubernetes set it for a service of that name (enableServiceLinks: false would spare it)"
        ));
        return None;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::environment::Environment;

    fn read_from(variables: &[(&str, &str)]) -> (Option<BindAddress>, Vec<String>, Vec<String>) {
        let env: Environment = variables.iter().copied().collect();
        let mut reader = SettingsReader::new(&env);
        let bind = read(&mut reader, ":8080", SettingOrigin::Default).map(|(bind, _)| bind);
        let errors = reader.errors.iter().map(ToString::to_string).collect();
        (bind, errors, reader.report.warnings().to_vec())
    }

    #[test]
    fn every_form_of_address_is_understood_and_shown_as_it_was_written() {
        for (text, local) in [
            (":8080", false),
            (":0", false),
            ("0.0.0.0:8080", false),
            ("[::]:8080", false),
            ("127.0.0.1:0", true),
            ("127.9.9.9:80", true),
            ("[::1]:8080", true),
            ("localhost:8080", true),
            ("token.example.com:443", false),
            ("unix:/run/livekit-token-service/socket", true),
        ] {
            let bind = BindAddress::parse(text).unwrap();
            assert_eq!(
                (bind.to_string().as_str(), bind.is_local()),
                (text, local),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long = format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH_BYTES));
        for text in [
            "",
            "8080",
            ":",
            ":+80",
            ":65536",
            ":080808",
            "host",
            "host:",
            "::1:8080",
            "[::1]",
            "[::1:8080",
            "[1.2.3.4]:80",
            "[fe80::1%eth0]:80",
            "a b:80",
            "http://h:80",
            "unix:",
            "unix:socket",
            "unix:/run/",
            "unix:@name",
            &long,
        ] {
            assert_eq!(BindAddress::parse(text), None, "{text:?}");
        }
        let (_, errors, _) = read_from(&[("LIVEKIT_JWT_BIND", "8080")]);
        assert_eq!(
            errors,
            [
                r#"LIVEKIT_JWT_BIND: expected :8080, host:8080, [::1]:8080 or unix:/path, found "8080""#
            ]
        );
    }

    #[test]
    fn the_older_names_of_the_port_still_work_and_warn() {
        for name in DEPRECATED_NAMES {
            let (bind, errors, warnings) = read_from(&[(name, "8090")]);
            assert_eq!(bind, Some(BindAddress::AllInterfaces(8090)));
            assert_eq!(errors, [""; 0]);
            assert_eq!(
                warnings,
                [format!(
                    "{name} is an older name; write LIVEKIT_JWT_BIND=:8090 instead"
                )]
            );
            let (_, errors, _) = read_from(&[(name, "65536")]);
            assert_eq!(
                errors,
                [format!(
                    r#"{name}: expected a port from 0 to 65535, found "65536""#
                )]
            );
        }
    }

    #[test]
    fn one_name_for_the_port_is_enough() {
        let (bind, errors, _) = read_from(&[
            ("LIVEKIT_JWT_BIND", ":8080"),
            ("LK_JWT_PORT", "8080"),
            ("TOKEN_SERVER_PORT", "1"),
        ]);
        assert_eq!(bind, None);
        assert_eq!(
            errors,
            [
                r#"LK_JWT_PORT: expected nothing beside LIVEKIT_JWT_BIND, found "8080""#,
                r#"TOKEN_SERVER_PORT: expected nothing beside LIVEKIT_JWT_BIND, found "1""#,
            ]
        );
        let (_, errors, _) = read_from(&[("LIVEKIT_JWT_PORT", "8080"), ("LK_JWT_PORT", "8081")]);
        assert_eq!(
            errors,
            [r#"LK_JWT_PORT: expected nothing beside LIVEKIT_JWT_PORT, found "8081""#]
        );
    }

    #[test]
    fn a_port_that_kubernetes_injects_is_ignored() {
        let (bind, errors, warnings) = read_from(&[
            ("LIVEKIT_JWT_PORT", "tcp://10.0.0.1:8080"),
            ("LIVEKIT_JWT_BIND", ":9000"),
        ]);
        assert_eq!(bind, Some(BindAddress::AllInterfaces(9000)));
        assert_eq!(errors, [""; 0]);
        assert!(warnings[0].starts_with("LIVEKIT_JWT_PORT is ignored: Kubernetes"));
    }
}
