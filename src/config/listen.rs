//! Where the service listens, and what clients may take of it. A reload changes none of it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use super::reader::{Reported, SettingValue, SettingsReader, quote_redacted};
use super::suggest::is_kubernetes_service_link;
use super::table::{
    LIVEKIT_JWT_BIND, LIVEKIT_JWT_PORT, LIVEKIT_MAX_CONNECTIONS,
    LIVEKIT_MAX_CONNECTIONS_PER_ADDRESS, LIVEKIT_METRICS_BIND, LIVEKIT_RATE_PER_ADDRESS,
    LIVEKIT_TRUSTED_PROXIES, LK_JWT_PORT, Setting, TOKEN_SERVER_PORT,
};
use super::values::{parse_digits, parse_networks};
use crate::net::address::{Host, Network};

/// Longest path of a unix socket, in bytes: what `sun_path` holds on Linux without its final zero (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest host name, in bytes (RFC 1035).
const MAX_HOST_BYTES: usize = 253;

/// Listening addresses and limits of clients.
#[derive(Debug, Clone)]
pub(crate) struct ListenConfig {
    /// Address for clients.
    pub bind: BindAddress,
    /// The variable that sets `bind`.
    pub(super) bind_setting: &'static Setting,
    /// Address for `/metrics`.
    pub metrics_bind: Option<BindAddress>,
    /// Proxies, in addition to loopback, whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<Network>,
    /// Connections of all clients.
    pub max_connections: usize,
    /// Connections of one public address.
    pub max_connections_per_address: usize,
    /// Token requests of one public address a minute; zero is no limit.
    pub rate_per_address: u32,
}

pub(super) fn read(reader: &mut SettingsReader<'_>) -> Result<ListenConfig, Reported> {
    let bind = read_bind(reader);
    let metrics_bind = reader.parse_optional(&LIVEKIT_METRICS_BIND, parse_bind);
    let trusted_proxies = reader.parse(&LIVEKIT_TRUSTED_PROXIES, parse_networks);
    let max_connections = reader.integer(&LIVEKIT_MAX_CONNECTIONS);
    let max_connections_per_address = reader.integer(&LIVEKIT_MAX_CONNECTIONS_PER_ADDRESS);
    let rate_per_address = reader.integer(&LIVEKIT_RATE_PER_ADDRESS);
    let (bind, bind_setting) = bind?;
    Ok(ListenConfig {
        bind,
        bind_setting,
        metrics_bind: metrics_bind?,
        trusted_proxies: trusted_proxies?,
        max_connections: max_connections?,
        max_connections_per_address: max_connections_per_address?,
        rate_per_address: rate_per_address?,
    })
}

/// Reads `LIVEKIT_JWT_BIND` or one of its older names. Returns the variable too.
pub(super) fn read_bind(
    reader: &mut SettingsReader<'_>,
) -> Result<(BindAddress, &'static Setting), Reported> {
    let mut values = vec![reader.value(&LIVEKIT_JWT_BIND)];
    for older in [&LIVEKIT_JWT_PORT, &LK_JWT_PORT, &TOKEN_SERVER_PORT] {
        values.push(read_older_port(reader, older));
    }
    let values: Result<Vec<_>, Reported> = values.into_iter().collect();
    let mut values = values?.into_iter().flatten();
    let first = values.next();
    let first = first.unwrap_or_else(|| reader.default_value(&LIVEKIT_JWT_BIND));
    let mut result = Ok(());
    for other in values {
        let expected = format!("nothing beside {}", first.setting.name);
        result = Err(reader.invalid(other.setting, expected, quote_redacted(&other.text)));
    }
    result?;
    let setting = first.setting;
    if setting.is_current() {
        return Ok((reader.parse_value(first, parse_bind)?, setting));
    }
    let bind = reader.parse_value(first, |text| {
        parse_port(text).map(BindAddress::AllInterfaces).ok_or(text)
    })?;
    let (older, current) = (setting.name, LIVEKIT_JWT_BIND.name);
    reader.warn(format!(
        "{older} is an older name; write {current}={bind} instead"
    ));
    Ok((bind, setting))
}

fn read_older_port(
    reader: &mut SettingsReader<'_>,
    setting: &'static Setting,
) -> Result<Option<SettingValue>, Reported> {
    let value = reader.value(setting)?;
    let name = setting.name;
    if value
        .as_ref()
        .is_some_and(|value| is_kubernetes_service_link(&value.text))
    {
        reader.warn(format!(
            "{name} is ignored: Kubernetes sets it for a service of that name, unless enableServiceLinks is false"
        ));
        return Ok(None);
    }
    Ok(value)
}

/// An address to listen on. Port 0 is any free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BindAddress {
    /// `:8080`: every address, IPv6 and IPv4.
    AllInterfaces(u16),
    /// An address, or a name that is resolved at start.
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
    /// Parses `:8080`, `host:8080`, `192.0.2.1:8080`, `[::1]:8080` or `unix:/path`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
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
    pub(crate) fn is_local(&self) -> bool {
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

    /// The socket addresses of a host and port; a name is resolved.
    pub(crate) fn resolve(host: &Host, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(match host {
            Host::Ip(ip) => vec![SocketAddr::new(*ip, port)],
            Host::Dns(name) => (&**name, port).to_socket_addrs()?.collect(),
        })
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllInterfaces(port) => write!(f, ":{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn parse_bind(text: &str) -> Result<BindAddress, &str> {
    BindAddress::parse(text).ok_or(text)
}

fn parse_port(text: &str) -> Option<u16> {
    parse_digits(text).ok().filter(|_| text.len() <= 5)
}

fn is_host_name(host: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    host.len() <= MAX_HOST_BYTES && host.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Mode};

    fn read_from(variables: &[(&str, &str)]) -> (Option<BindAddress>, Vec<String>, Vec<String>) {
        let env: Environment = variables.iter().copied().collect();
        let mut reader = SettingsReader::new(&env, Mode::Serve);
        let bind = read_bind(&mut reader).ok().map(|(bind, _)| bind);
        let errors = reader.errors.iter().map(ToString::to_string).collect();
        (bind, errors, reader.report.warnings)
    }

    #[test]
    fn every_form_of_address_is_parsed_and_displayed_unchanged() {
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
    fn other_texts_are_refused() {
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
    fn older_names_of_the_port_work_with_a_warning() {
        for name in ["LIVEKIT_JWT_PORT", "LK_JWT_PORT", "TOKEN_SERVER_PORT"] {
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
    fn several_variables_for_the_port_are_refused() {
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
    fn a_port_injected_by_kubernetes_is_ignored() {
        let (bind, errors, warnings) = read_from(&[
            ("LIVEKIT_JWT_PORT", "tcp://10.0.0.1:8080"),
            ("LIVEKIT_JWT_BIND", ":9000"),
        ]);
        assert_eq!(bind, Some(BindAddress::AllInterfaces(9000)));
        assert_eq!(errors, [""; 0]);
        assert!(warnings[0].starts_with("LIVEKIT_JWT_PORT is ignored: Kubernetes"));
    }
}
