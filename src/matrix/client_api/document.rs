//! What a homeserver's documents say: where its client-server API is, and what it supports.

use serde_json::{Map, Value};

use super::{DelayedEventPath, DelayedEventSupport};
use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;
use crate::util::json;

/// `m.homeserver.base_url`, if it is one that may be followed.
pub(super) fn parse_client_well_known(body: &[u8]) -> Result<BaseUrl, String> {
    let document = json::parse_object::<Map<String, Value>>(body).ok_or("not a JSON object")?;
    let url = document
        .get("m.homeserver")
        .and_then(|homeserver| homeserver.as_object()?.get("base_url")?.as_str())
        .ok_or("no m.homeserver with a base_url")?;
    let base = BaseUrl::parse(url).map_err(|expected| format!("base_url: {expected}"))?;
    let https = url
        .get(..8)
        .is_some_and(|s| s.eq_ignore_ascii_case("https://"));
    // plain HTTP is the administrator's to allow, and a host that a resolver might read as an address is nobody's
    if !https || ServerName::parse(&base.authority()).is_err() {
        return Err("base_url: expected https:// and a server name".into());
    }
    Ok(base)
}

/// What `/versions` says about delayed events; nothing is neither yes nor no.
pub(super) fn parse_versions(body: &[u8]) -> Option<DelayedEventSupport> {
    let document = json::parse_object::<Map<String, Value>>(body)?;
    let features = document.get("unstable_features")?.as_object()?;
    let feature = |name| features.get(name).and_then(Value::as_bool);
    match (
        feature("org.matrix.msc4140.stable"),
        feature("org.matrix.msc4140"),
    ) {
        (Some(true), _) => Some(DelayedEventSupport::Supported(DelayedEventPath::Stable)),
        (_, Some(true)) => Some(DelayedEventSupport::Supported(DelayedEventPath::Unstable)),
        (_, Some(false)) => Some(DelayedEventSupport::Unsupported),
        _ => None,
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(super) mod fuzzing {
    use super::{BaseUrl, DelayedEventSupport};

    /// Where a well-known document says that the client-server API is.
    pub fn client_base(body: &[u8]) -> Option<BaseUrl> {
        super::parse_client_well_known(body).ok()
    }

    /// What a list of versions says about delayed events.
    pub fn support(body: &[u8]) -> Option<DelayedEventSupport> {
        super::parse_versions(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_is_at_an_https_url_of_a_named_host() {
        let read = |url: &str| {
            parse_client_well_known(
                format!(r#"{{"m.homeserver":{{"base_url":"{url}"}}}}"#).as_bytes(),
            )
        };
        for (url, shown) in [
            ("https://m.a.org", "https://m.a.org"),
            ("https://m.a.org/", "https://m.a.org"),
            ("HTTPS://m.a.org:8448/x/", "https://m.a.org:8448/x"),
            ("https://[2001:db8::1]:1", "https://[2001:db8::1]:1"),
            ("https://192.0.2.1", "https://192.0.2.1"),
        ] {
            assert_eq!(read(url).map(|base| base.to_string()), Ok(shown.into()));
        }
        for url in [
            "",
            "m.a.org",
            "http://m.a.org",
            "ws://m.a.org",
            "wss://m.a.org",
            "ftp://m.a.org",
            "file:///etc/passwd",
            "https://",
            "https://u:p@m.a.org",
            "https://m.a.org?q",
            "https://m.a.org#f",
            "https://127.1",
            "https://0x7f000001",
            "https://2130706433",
            "https://m.a.org:0",
            "https://m a.org",
            "https://m.a.org\\r\\nX: y",
            &format!("https://m.a.org/{}", "a".repeat(3000)),
        ] {
            assert!(read(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_document_without_a_base_url_is_no_answer() {
        for body in [
            "",
            "{}",
            "[]",
            "null",
            "<html>",
            r#"{"m.homeserver":"https://a.org"}"#,
            r#"{"m.homeserver":["https://a.org"]}"#,
            r#"{"m.homeserver":{}}"#,
            r#"{"m.homeserver":{"base_url":1}}"#,
            r#"{"m.homeserver":{"base_url":null}}"#,
            r#"{"base_url":"https://a.org"}"#,
        ] {
            assert!(parse_client_well_known(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn only_a_clear_no_is_one() {
        use DelayedEventPath::{Stable, Unstable};
        for (features, said) in [
            (
                r#"{"org.matrix.msc4140":true}"#,
                Some(DelayedEventSupport::Supported(Unstable)),
            ),
            (
                r#"{"org.matrix.msc4140":false}"#,
                Some(DelayedEventSupport::Unsupported),
            ),
            (
                r#"{"org.matrix.msc4140":false,"org.matrix.msc4140.stable":true}"#,
                Some(DelayedEventSupport::Supported(Stable)),
            ),
            (
                r#"{"org.matrix.msc4140":true,"org.matrix.msc4140.stable":false}"#,
                Some(DelayedEventSupport::Supported(Unstable)),
            ),
            (r#"{"org.matrix.msc4140":"false"}"#, None),
            (r#"{"org.matrix.msc4140":0}"#, None),
            (r#"{"org.matrix.msc4140":null}"#, None),
            (r#"{"org.matrix.msc4143":false}"#, None),
            ("{}", None),
            ("[]", None),
            ("null", None),
        ] {
            let body = format!(r#"{{"versions":[],"unstable_features":{features}}}"#);
            assert_eq!(parse_versions(body.as_bytes()), said, "{features}");
        }
        for body in ["", "{}", "[]", "<html>", r#"{"org.matrix.msc4140":false}"#] {
            assert_eq!(parse_versions(body.as_bytes()), None, "{body}");
        }
    }
}
