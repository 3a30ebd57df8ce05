//! How the values of settings are read. Each gives back the part that it does not understand.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::exchange::access::FullAccessHomeservers;
use crate::matrix::id::ServerName;
use crate::net::address::Network;
use crate::net::base_url::BaseUrl;
use crate::util::logging::LogFormat;

pub(super) const BOOLEAN_EXPECTED: &str = "true, false, yes, no, 1 or 0";
pub(super) const LOG_LEVEL_EXPECTED: &str = "error, warn, info, debug or trace";
pub(super) const LOG_FORMAT_EXPECTED: &str = "logfmt or json";
pub(super) const HOMESERVERS_EXPECTED: &str =
    "server names like example.com or example.com:8448, separated by commas or spaces, or * alone";
pub(super) const URL_OVERRIDES_EXPECTED: &str =
    "example.com=https://host:port with http or https, separated by commas, each server once";
pub(super) const NETWORKS_EXPECTED: &str =
    "addresses or networks like 10.0.0.0/8 or fd00::/8, separated by commas or spaces";
pub(super) const SFU_URL_EXPECTED: &str =
    "a ws, wss, http or https URL like wss://sfu.example.com without user, query or fragment";

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

/// Whole seconds within a range.
pub(super) fn parse_seconds(text: &str, range: RangeInclusive<u64>) -> Result<Duration, &str> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(seconds) if digits && range.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(text),
    }
}

/// A whole number within a range.
pub(super) fn parse_number(text: &str, range: RangeInclusive<usize>) -> Result<usize, &str> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && range.contains(&number) => Ok(number),
        _ => Err(text),
    }
}

pub(super) fn parse_base_url(text: &str) -> Result<BaseUrl, &str> {
    BaseUrl::parse(text).map_err(|_| text)
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

/// `server=url`; the same server twice is refused, as one of the two would silently lose.
pub(super) fn parse_url_overrides(text: &str) -> Result<BTreeMap<ServerName, BaseUrl>, &str> {
    let mut all = BTreeMap::new();
    for item in split_list(text) {
        let (server, url) = item.split_once('=').ok_or(item)?;
        let server = ServerName::parse(server).map_err(|_| item)?;
        let scheme = url.split("://").next().unwrap_or_default();
        let http = ["http", "https"]
            .iter()
            .any(|s| scheme.eq_ignore_ascii_case(s));
        let url = BaseUrl::parse(url).ok().filter(|_| http).ok_or(item)?;
        if all.insert(server, url).is_some() {
            return Err(item);
        }
    }
    Ok(all)
}

/// Directories, colon separated as OpenSSL has them.
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
    fn booleans_and_levels_are_read_in_any_case() {
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
    fn seconds_are_whole_and_within_their_range() {
        assert_eq!(parse_seconds("60", 60..=100), Ok(Duration::from_secs(60)));
        for text in ["59", "101", "+60", "1h", "60.0", "", "99999999999999999999"] {
            assert_eq!(parse_seconds(text, 60..=100), Err(text));
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
    fn overrides_name_each_server_once_and_speak_http() {
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
