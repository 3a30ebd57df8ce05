//! URLs of servers in the settings.

use std::fmt;

use http::Uri;

use crate::net::address::Host;

/// Longest URL that a setting may hold, in bytes: far above any real one.
const MAX_URL: usize = 2048;

/// A URL `http[s]://host[:port][/path]`, without a trailing slash.
#[allow(unreachable_pub, reason = "a fuzz target uses it")]
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl {
    tls: bool,
    host: Host,
    port: Option<u16>,
    path: Box<str>,
}

/// Not a base URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidBaseUrl;

impl fmt::Display for InvalidBaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a URL like https://host:port/path without user, query or fragment")
    }
}

impl std::error::Error for InvalidBaseUrl {}

#[allow(unreachable_pub, reason = "a fuzz target uses it")]
impl BaseUrl {
    /// Parses a URL of one of the schemes `http`, `https`, `ws` and `wss`; the last two mean the first two, as they do for an SFU.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidBaseUrl> {
        if text.len() > MAX_URL || text.contains('#') {
            return Err(InvalidBaseUrl);
        }
        let uri: Uri = text.parse().map_err(|_| InvalidBaseUrl)?;
        let tls = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(InvalidBaseUrl),
        };
        let authority = uri.authority().ok_or(InvalidBaseUrl)?;
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => None,
            Some(port) => {
                // str::parse accepts a sign as well, and any number of zeros
                let is_short = |p: &&str| p.len() <= 5 && !p.starts_with('+');
                let digits = port.strip_prefix(':').filter(is_short);
                let port = digits.and_then(|p| p.parse().ok());
                Some(port.filter(|p| *p != 0).ok_or(InvalidBaseUrl)?)
            }
            // a user before the host
            None => return Err(InvalidBaseUrl),
        };
        if authority.as_str().contains('@') || authority.host().is_empty() || uri.query().is_some()
        {
            return Err(InvalidBaseUrl);
        }
        let path = uri.path().trim_end_matches('/').into();
        Ok(Self {
            tls,
            host: Host::parse(authority.host()),
            port,
            path,
        })
    }

    /// Whether both URLs name the same resource: host names in any case, the scheme's port given or not.
    pub(crate) fn is_equivalent_to(&self, other: &Self) -> bool {
        let name = |url: &Self| url.host.to_string().to_ascii_lowercase();
        let rest = |url: &Self| (url.tls, url.port(), url.path.clone());
        rest(self) == rest(other) && name(self) == name(other)
    }

    /// Whether the scheme is `https` or `wss`.
    pub fn tls(&self) -> bool {
        self.tls
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The port, if the URL has one.
    pub(crate) fn explicit_port(&self) -> Option<u16> {
        self.port
    }

    /// The port, by default the scheme's.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.tls { 443 } else { 80 })
    }

    /// The prefix of all request paths: empty or with a leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Value of the `Host` header field; with the port only if the URL has one.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_keeps_its_path_and_loses_its_slash() {
        for (text, displayed, port, authority, path) in [
            (
                "wss://sfu.example.com",
                "https://sfu.example.com",
                443,
                "sfu.example.com",
                "",
            ),
            (
                "ws://localhost:7880/",
                "http://localhost:7880",
                7880,
                "localhost:7880",
                "",
            ),
            (
                "https://h/livekit/sfu/",
                "https://h/livekit/sfu",
                443,
                "h",
                "/livekit/sfu",
            ),
            (
                "http://[::1]:80/a",
                "http://[::1]:80/a",
                80,
                "[::1]:80",
                "/a",
            ),
        ] {
            let url = BaseUrl::parse(text).unwrap();
            assert_eq!((url.to_string().as_str(), url.port()), (displayed, port));
            assert_eq!((url.authority().as_str(), url.path()), (authority, path));
        }
    }

    #[test]
    fn equivalent_urls_have_several_spellings() {
        let is_equivalent = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| BaseUrl::parse(text).unwrap());
            assert_eq!(one.is_equivalent_to(&other), other.is_equivalent_to(&one));
            one.is_equivalent_to(&other)
        };
        for same in [
            "wss://sfu.example.com",
            "wss://sfu.example.com:443/",
            "WSS://SFU.Example.COM",
            "https://sfu.example.com",
        ] {
            assert!(is_equivalent("wss://sfu.example.com/", same), "{same}");
        }
        for other in [
            "ws://sfu.example.com",
            "wss://sfu.example.com:80",
            "wss://sfu.example.com/livekit",
            "wss://sfu.example.com.",
            "wss://sfu2.example.com",
        ] {
            assert!(!is_equivalent("wss://sfu.example.com", other), "{other}");
        }
        assert!(
            !is_equivalent("wss://h/a", "wss://h/A"),
            "paths are compared with their case"
        );
        assert!(is_equivalent("ws://[::1]:80", "ws://[0:0::1]"));
    }

    #[test]
    fn other_text_is_no_base_url() {
        for text in [
            "",
            "sfu.example.com",
            "ftp://h",
            "https://",
            "https://u:p@h",
            "https://h?q",
            "https://h/#f",
            "https://h:0",
            "https://h:+443",
            "https://h:000443",
            "https://h:99999",
            "https://h:",
            "https://a b",
            "https://h\n",
        ] {
            assert!(BaseUrl::parse(text).is_err(), "{text:?}");
        }
        assert!(BaseUrl::parse(&format!("https://h/{}", "a".repeat(MAX_URL))).is_err());
    }
}
