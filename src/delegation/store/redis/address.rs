//! Address of Redis: the setting `LIVEKIT_REDIS_URL`.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::net::address::Host;

const DEFAULT_PORT: u16 = 6379;
const EXPECTED_URL: &str = "expected redis://[user[:password]@]host[:port][/database], rediss://… for TLS, or unix:///path/to/socket";

/// Address, credentials and database of a Redis.
#[derive(Clone)]
pub struct RedisAddress {
    pub(super) endpoint: RedisEndpoint,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RedisEndpoint {
    Tcp { host: Host, port: u16, tls: bool },
    Unix(PathBuf),
}

impl RedisAddress {
    /// Parses a URL.
    ///
    /// # Errors
    /// The URL is invalid. The error text contains no part of it, as the URL can have a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or(EXPECTED_URL)?;
        let tls = match &*scheme.to_ascii_lowercase() {
            "redis" => false,
            "rediss" => true,
            "unix" | "redis+unix" if rest.starts_with('/') => return Ok(Self::unix(rest)),
            _ => return Err(EXPECTED_URL.into()),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, authority),
        };
        let credentials = credentials.map(|text| text.split_once(':').unwrap_or((text, "")));
        let (user, password) = match credentials {
            Some((user, password)) => (decode_credential(user)?, decode_credential(password)?),
            None => (None, None),
        };
        let database = match path {
            "" => 0,
            number => number
                .parse()
                .map_err(|_| "expected a number as the database, the URL's path")?,
        };
        let (host, port) = match host.rsplit_once(':') {
            // the colons of an IPv6 literal are within brackets
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (host, port.ok_or("expected a port from 1 to 65535")?)
            }
            _ => (host, DEFAULT_PORT),
        };
        let is_invalid = |c: char| c.is_whitespace() || c.is_control() || "/?#@\\".contains(c);
        if host.is_empty() || host.contains(is_invalid) {
            return Err(EXPECTED_URL.into());
        }
        let host = Host::parse(host);
        Ok(Self {
            endpoint: RedisEndpoint::Tcp { host, port, tls },
            user,
            password,
            database,
        })
    }

    fn unix(path: &str) -> Self {
        Self {
            endpoint: RedisEndpoint::Unix(path.into()),
            user: None,
            password: None,
            database: 0,
        }
    }

    /// Uses this password, if there is one, instead of the URL's.
    pub fn with_password(mut self, password: Option<String>) -> Self {
        self.password = password.or(self.password);
        self
    }
}

/// Decodes the user or the password of a URL; `None` if it is empty.
fn decode_credential(text: &str) -> Result<Option<String>, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| "expected UTF-8 in the URL's user and password")?;
    Ok(Some(decoded.into_owned()).filter(|text| !text.is_empty()))
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            RedisEndpoint::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                write!(f, "{scheme}://{host}:{port}/{}", self.database)
            }
            RedisEndpoint::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisAddress({self}, credentials hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_redis_are_parsed() {
        for (url, formatted, credentials) in [
            ("redis://cache", "redis://cache:6379/0", (None, None)),
            (
                "REDISS://10.0.0.1:7000/3",
                "rediss://10.0.0.1:7000/3",
                (None, None),
            ),
            ("redis://[::1]", "redis://[::1]:6379/0", (None, None)),
            ("redis://[::1]:1/", "redis://[::1]:1/0", (None, None)),
            (
                "redis://:p%40ss@h",
                "redis://h:6379/0",
                (None, Some("p@ss")),
            ),
            (
                "redis://u:a@b:c@h:2",
                "redis://h:2/0",
                (Some("u"), Some("a@b:c")),
            ),
            ("redis://u@h", "redis://h:6379/0", (Some("u"), None)),
            ("unix:///run/r.sock", "unix:///run/r.sock", (None, None)),
            ("redis+unix:///r", "unix:///r", (None, None)),
        ] {
            let address = RedisAddress::parse(url).unwrap();
            assert_eq!(address.to_string(), formatted);
            assert_eq!(
                (address.user.as_deref(), address.password.as_deref()),
                credentials
            );
        }
    }

    #[test]
    fn errors_for_other_urls_do_not_contain_the_url() {
        for url in [
            "",
            "cache",
            "cache:6379",
            "http://secret@h",
            "redis://",
            "redis://:secret@",
            "redis://secret@h:0",
            "redis://secret@h:70000",
            "redis://secret@h/x",
            "redis://secret@h/-1",
            "redis://secret@h i",
            "unix://secret",
            "redis://%ff:secret@h",
            "redis://secret@h?x",
            "redis://h/0?secret",
        ] {
            let reason = RedisAddress::parse(url).unwrap_err();
            assert!(
                reason.contains("expected") && !reason.contains("secret"),
                "{url}"
            );
        }
    }

    #[test]
    fn formatting_hides_the_password() {
        let address = RedisAddress::parse("redis://user:hidden@h").unwrap();
        assert!(!format!("{address} {address:?}").contains("hidden "));
        assert!(!format!("{address} {address:?}").contains("user"));
        let address = address.with_password(Some("other".into()));
        assert_eq!(address.password.as_deref(), Some("other"));
        assert!(!format!("{address} {address:?}").contains("other"));
        let address = address.with_password(None);
        assert_eq!(address.password.as_deref(), Some("other"));
    }
}
