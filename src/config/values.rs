//! Parsers of values. Each returns the part that it does not accept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use log::LevelFilter;

use crate::exchange::access::FullAccessHomeservers;
use crate::matrix::id::ServerName;
use crate::net::address::Network;
use crate::net::base_url::BaseUrl;
use crate::util::logging::LogFormat;

pub(super) const API_KEY_EXPECTED: &str = "an API key: at most 256 bytes without spaces or colons";
pub(super) const BIND_EXPECTED: &str = ":8080, host:8080, [::1]:8080 or unix:/path";
pub(super) const BOOLEAN_EXPECTED: &str = "true, false, yes, no, 1 or 0";
pub(super) const CALLER_KEYS_EXPECTED: &str =
    "NAME:SHA256 as keygen prints it, separated by commas or line breaks";
pub(super) const HOMESERVERS_EXPECTED: &str =
    "server names like example.com or example.com:8448, separated by commas or spaces, or * alone";
pub(super) const HTTP_URL_EXPECTED: &str =
    "an http or https URL like http://synapse:8008 without user, query or fragment";
pub(super) const NETWORKS_EXPECTED: &str =
    "addresses or networks like 10.0.0.0/8 or fd00::/8, separated by commas or spaces";
pub(super) const ORIGINS_EXPECTED: &str = "origins like https://app.example.com without a path, separated by commas or spaces, or * alone";
pub(super) const SERVER_NAME_EXPECTED: &str = "a server name like example.com or example.com:8448";
pub(super) const SFU_URL_EXPECTED: &str =
    "a ws, wss, http or https URL like wss://sfu.example.com without user, query or fragment";
pub(super) const URL_OVERRIDES_EXPECTED: &str = "example.com=https://host:port with http or https, separated by commas or spaces, each server once";

pub(super) fn parse_boolean(text: &str) -> Result<bool, &str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err(text),
    }
}

pub(super) fn parse_log_level(text: &str) -> Result<LevelFilter, &str> {
    match text.parse() {
        Ok(LevelFilter::Off) | Err(_) => Err(text),
        Ok(level) => Ok(level),
    }
}

pub(super) fn parse_log_format(text: &str) -> Result<LogFormat, &str> {
    match text {
        "logfmt" => Ok(LogFormat::Logfmt),
        "json" => Ok(LogFormat::Json),
        _ => Err(text),
    }
}

/// Parses decimal digits without a sign.
pub(super) fn parse_digits<T: std::str::FromStr>(text: &str) -> Result<T, &str> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(text)
}

pub(super) fn parse_base_url(text: &str) -> Result<BaseUrl, &str> {
    BaseUrl::parse(text).map_err(|_| text)
}

/// Parses a URL with http or https.
pub(super) fn parse_http_url(text: &str) -> Result<BaseUrl, &str> {
    let scheme = text.split("://").next().unwrap_or_default();
    let is_http = ["http", "https"]
        .iter()
        .any(|http| scheme.eq_ignore_ascii_case(http));
    parse_base_url(text).and_then(|url| is_http.then_some(url).ok_or(text))
}

pub(super) fn parse_server_name(text: &str) -> Result<ServerName, &str> {
    ServerName::parse(text).map_err(|_| text)
}

pub(super) fn parse_full_access(text: &str) -> Result<FullAccessHomeservers, &str> {
    if text == "*" {
        return Ok(FullAccessHomeservers::All);
    }
    let names: Result<_, _> = split_list(text)
        .map(|name| ServerName::parse(name).map_err(|_| name))
        .collect();
    names.map(FullAccessHomeservers::Listed)
}

pub(super) fn parse_networks(text: &str) -> Result<Vec<Network>, &str> {
    split_list(text)
        .map(|item| item.parse().map_err(|_| item))
        .collect()
}

/// Parses `server=url`. A repeated server is refused, since one of its URLs would be lost without notice.
pub(super) fn parse_url_overrides(text: &str) -> Result<BTreeMap<ServerName, BaseUrl>, &str> {
    let mut overrides = BTreeMap::new();
    for item in split_list(text) {
        let (server, url) = item.split_once('=').ok_or(item)?;
        let server = parse_server_name(server).map_err(|_| item)?;
        let url = parse_http_url(url).map_err(|_| item)?;
        if overrides.insert(server, url).is_some() {
            return Err(item);
        }
    }
    Ok(overrides)
}

/// Splits directories at colons, as OpenSSL does.
pub(super) fn split_directories(text: &str) -> Vec<PathBuf> {
    text.split(':')
        .map(str::trim)
        .filter(|directory| !directory.is_empty())
        .map(PathBuf::from)
        .collect()
}

fn split_list(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_and_levels_are_parsed_in_any_case() {
        for text in ["true", "TRUE", "Yes", "1"] {
            assert_eq!(parse_boolean(text), Ok(true));
        }
        for text in ["false", "no", "0"] {
            assert_eq!(parse_boolean(text), Ok(false));
        }
        for text in ["on", "", "2", "truee"] {
            assert_eq!(parse_boolean(text), Err(text));
        }
        assert_eq!(parse_log_level("WARN"), Ok(LevelFilter::Warn));
        for text in ["off", "warning", "", "3"] {
            assert_eq!(parse_log_level(text), Err(text));
        }
    }

    #[test]
    fn numbers_are_decimal_digits() {
        assert_eq!(parse_digits("60"), Ok(60_u64));
        for text in ["+60", "-1", "1h", "60.0", " 60", "", "99999999999999999999"] {
            assert_eq!(parse_digits::<u64>(text), Err(text));
        }
    }

    #[test]
    fn homeservers_are_separated_by_commas_or_white_space() {
        let access = parse_full_access("b.org:8448, a.org\n[::1]:80,,").unwrap();
        let names: Vec<_> = access.names().map(ServerName::as_str).collect();
        assert_eq!(names, ["[::1]:80", "a.org", "b.org:8448"]);
        assert!(parse_full_access("*").unwrap().is_all());
        assert!(parse_full_access("").unwrap().is_empty());
        assert_eq!(parse_full_access("a.org *"), Err("*"));
        assert_eq!(parse_full_access("https://a.org"), Err("https://a.org"));
        assert_eq!(parse_full_access("*.a.org"), Err("*.a.org"));
    }

    #[test]
    fn overrides_name_each_server_once_with_an_http_url() {
        let all =
            parse_url_overrides("a.org=http://10.0.0.1:8008/x/, b.org:8448=HTTPS://hs.internal")
                .unwrap();
        let shown: Vec<_> = all.iter().map(|(s, u)| format!("{s} {u}")).collect();
        assert_eq!(
            shown,
            [
                "a.org http://10.0.0.1:8008/x",
                "b.org:8448 https://hs.internal"
            ]
        );
        for wrong in [
            "a.org",
            "a.org=",
            "=http://h",
            "a.org=ws://h",
            "a.org=hs.internal",
            "a.org=http://h?q=1",
            "a_b=http://h",
        ] {
            assert_eq!(parse_url_overrides(wrong), Err(wrong));
        }
        assert_eq!(
            parse_url_overrides("a.org=http://h,a.org=http://i"),
            Err("a.org=http://i")
        );
    }

    #[test]
    fn networks_are_separated_by_commas_or_white_space() {
        let all = parse_networks("10.0.0.0/8 192.0.2.1, fd00::/8").unwrap();
        let shown: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]);
        assert_eq!(parse_networks("10.0.0.0/8,10.0.0.0/33"), Err("10.0.0.0/33"));
    }
}
