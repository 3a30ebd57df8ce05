//! How requests leave for the public Internet: `LIVEKIT_HTTPS_PROXY`.

use super::reader::{SettingsReader, describe_length};
use crate::net::http_client::proxy::{InvalidProxy, Proxy};

const PROXY: &str = "LIVEKIT_HTTPS_PROXY";

/// How other servers are reached.
#[derive(Debug, Clone, Default)]
pub struct EgressConfig {
    /// The proxy for TLS to public addresses, the SFU and Redis apart; without one they are dialled.
    pub(crate) proxy: Option<Proxy>,
}

pub(super) fn read(reader: &mut SettingsReader<'_>) -> Option<EgressConfig> {
    let before = reader.errors.len();
    let value = reader.read_value(PROXY);
    if reader.errors.len() > before {
        return None;
    }
    let Some(value) = value else {
        return Some(EgressConfig::default());
    };
    match Proxy::parse(&value.text) {
        Ok(proxy) => {
            let shown = match value.text.contains('@') {
                true => format!("{proxy} (login set)"),
                false => proxy.to_string(),
            };
            reader.report.add_setting(value.name, shown, value.origin);
            Some(EgressConfig { proxy: Some(proxy) })
        }
        Err(InvalidProxy) => {
            // there may be a password in it, wherever it went wrong
            let found = describe_length(&value.text);
            reader.push_invalid(value.name, InvalidProxy::EXPECTED, found);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::{environment, errors, row};
    use super::*;

    #[test]
    fn a_proxy_is_shown_without_its_login() {
        for (value, shown) in [
            ("http://proxy:3128", "http://proxy:3128 | environment"),
            (
                "http://somebody:hunter2@proxy:3128/",
                "http://proxy:3128 (login set) | environment",
            ),
            ("", "(no row)"),
        ] {
            let (config, report) = Config::read_with_defaults(&environment(&[(PROXY, value)]));
            let config = config.unwrap();
            assert_eq!(config.egress.proxy.is_some(), !value.is_empty());
            assert_eq!(row(&report, PROXY), shown);
            let said = format!("{config:?} {report:?}");
            assert!(
                !said.contains("hunter2") && !said.contains("somebody"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_wrong_proxy_stops_the_start_and_is_not_repeated() {
        for value in [
            "hunter2",
            "proxy:3128",
            "https://somebody:hunter2@proxy:3128",
            "socks5://proxy:1080",
            "http://somebody:hunter2",
            "http://somebody:hunter2@proxy",
            "http://proxy:3128/hunter2",
        ] {
            let errors = errors(&environment(&[(PROXY, value)]));
            let start = format!("{PROXY}: expected http://[user:password@]host:port");
            assert_eq!(errors.len(), 1);
            assert!(errors[0].starts_with(&start), "{errors:?}");
            assert!(errors[0].ends_with(" characters") && !errors[0].contains("hunter2"));
        }
    }
}
