//! The HTTP proxy that the administrator has what leaves for the public Internet go through: `LIVEKIT_HTTPS_PROXY`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use crate::net::base_url::BaseUrl;

/// Longest URL of a proxy, in bytes: its user and password have to fit into one field of a request.
const MAX_URL: usize = 2048;

/// A proxy that is asked for tunnels (CONNECT, RFC 9110, 9.3.6), and who we are there.
#[derive(Clone)]
pub struct Proxy {
    url: BaseUrl,
    /// The value of `Proxy-Authorization`.
    credentials: Option<Box<str>>,
}

/// A URL that is no proxy's. Says nothing of it, as there may be a password in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidProxy;

impl InvalidProxy {
    /// What a proxy's URL looks like.
    pub const EXPECTED: &'static str =
        "http://[user:password@]host:port, with %40 and the like for what is no letter or digit";
}

impl fmt::Display for InvalidProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", Self::EXPECTED)
    }
}

impl std::error::Error for InvalidProxy {}

impl Proxy {
    /// Reads `http://[user:password@]host:port`, at most 2048 bytes of it. The port has to be there: proxies have no common one.
    pub fn parse(text: &str) -> Result<Self, InvalidProxy> {
        if text.len() > MAX_URL {
            return Err(InvalidProxy);
        }
        let (scheme, rest) = text.split_once("://").ok_or(InvalidProxy)?;
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let url = BaseUrl::parse(&format!("{scheme}://{place}")).map_err(|_| InvalidProxy)?;
        let http = scheme.eq_ignore_ascii_case("http");
        let has_port = url.authority() == format!("{}:{}", url.host(), url.port());
        if !http || !has_port || !url.path().is_empty() {
            return Err(InvalidProxy);
        }
        let credentials = login.map(credentials).transpose()?;
        Ok(Self { url, credentials })
    }

    /// Where it is, without its user and password.
    pub fn url(&self) -> &BaseUrl {
        &self.url
    }

    /// The value of `Proxy-Authorization`: a secret.
    pub(crate) fn basic_auth(&self) -> Option<&str> {
        self.credentials.as_deref()
    }
}

/// `user:password` as Basic authentication has it (RFC 7617), which has no user with a colon.
fn credentials(login: &str) -> Result<Box<str>, InvalidProxy> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let decoded = |text| {
        let text = percent_decode_str(text).decode_utf8();
        let text = text.map_err(|_| InvalidProxy)?;
        let plain = !text.contains(char::is_control);
        plain.then_some(text).ok_or(InvalidProxy)
    };
    let (user, password) = (decoded(user)?, decoded(password)?);
    if user.is_empty() || user.contains(':') {
        return Err(InvalidProxy);
    }
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    Ok(format!("Basic {encoded}").into())
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self}, login hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_has_a_place_and_perhaps_a_login() {
        for (text, shown, login) in [
            ("http://proxy:3128", "http://proxy:3128", None),
            ("HTTP://proxy:80/", "http://proxy:80", None),
            ("http://[::1]:80", "http://[::1]:80", None),
            (
                "http://u:p@10.0.0.1:1",
                "http://10.0.0.1:1",
                Some("Basic dTpw"),
            ),
            ("http://u@h:1", "http://h:1", Some("Basic dTo=")),
            // u:p@/:
            (
                "http://u:p%40%2f:@h:1",
                "http://h:1",
                Some("Basic dTpwQC86"),
            ),
            ("http://u:p@/:@h:1", "http://h:1", Some("Basic dTpwQC86")),
        ] {
            let proxy = Proxy::parse(text).unwrap();
            assert_eq!(proxy.to_string(), shown);
            assert_eq!(proxy.basic_auth(), login);
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_repeating_it() {
        let long = format!("http://u:{}@h:1", "p".repeat(MAX_URL));
        for text in [
            "",
            "proxy",
            "proxy:3128",
            "http://",
            "http://proxy",
            "http://[::1]",
            "http://::1",
            "http://secret@",
            "http://:secret@proxy:1",
            "http://u%3a:secret@proxy:1",
            "http://u:secret%0d%0aX-Y:z@proxy:1",
            "http://u:%ff@proxy:1",
            "https://u:secret@proxy:3128",
            "socks5://u:secret@proxy:1080",
            "ws://proxy:80",
            "http://proxy:0",
            "http://proxy:70000",
            "http://proxy:1/path",
            "http://proxy:1?secret",
            "http://proxy:1#secret",
            "http://pro xy:1",
            "http://secret\r\n@proxy:1",
            &long,
        ] {
            let refused = Proxy::parse(text).unwrap_err().to_string();
            assert!(!refused.contains("secret"), "{text:?}");
        }
        let fits = format!("http://u:{}@h:1", "p".repeat(MAX_URL - 13));
        assert_eq!(fits.len(), MAX_URL);
        assert!(Proxy::parse(&fits).is_ok());
    }

    #[test]
    fn a_login_is_never_shown() {
        let proxy = Proxy::parse("http://user:hunter2@h:1").unwrap();
        let shown = format!("{proxy} {proxy:?}");
        let encoded = proxy.basic_auth().unwrap().trim_start_matches("Basic ");
        for secret in ["user", "hunter2", encoded] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
