//! Cross-origin resource sharing (Fetch standard) at the endpoints for applications: which web pages may use them.

use std::borrow::Cow;
use std::collections::BTreeSet;

/// Seconds for which browsers cache a preflight: as in the example server, and the maximum of some browsers.
const PREFLIGHT_MAX_AGE: &str = "600";
/// Header field names in a preflight. LiveKit's SDKs announce three at most.
const MAX_REQUEST_HEADERS: usize = 32;
/// Header fields of a response that web pages may read.
const EXPOSED_HEADERS: &str = "Retry-After";

/// Origins of the web pages that may use an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowedOrigins {
    /// Any origin, without the cookies of its users.
    Any,
    /// These origins, in lower case.
    Listed(BTreeSet<String>),
}

/// Header fields of a response.
pub(crate) type ResponseHeaders = Vec<(&'static str, Cow<'static, str>)>;

impl AllowedOrigins {
    /// Parses origins such as `https://app.example.com`, separated by commas or spaces, or `*` alone.
    ///
    /// # Errors
    /// The first item that is not an origin.
    pub(crate) fn parse(text: &str) -> Result<Self, &str> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let items = text.split(|c: char| c == ',' || c.is_whitespace());
        let parse = |item| match is_origin(item) {
            true => Ok(item.to_ascii_lowercase()),
            false => Err(item),
        };
        let listed: Result<_, _> = items.filter(|item| !item.is_empty()).map(parse).collect();
        listed.map(Self::Listed)
    }

    fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(origins) => origins.contains(&origin.to_ascii_lowercase()),
        }
    }

    /// CORS header fields of a response. For an origin that is not allowed there are none that a browser looks for.
    pub(crate) fn response_headers(&self, origin: Option<&str>) -> ResponseHeaders {
        let mut headers = vec![("Vary", "Origin".into())];
        if let Some(origin) = origin.filter(|origin| self.allows(origin)) {
            self.push_allow_origin(origin, &mut headers);
            headers.push(("Access-Control-Expose-Headers", EXPOSED_HEADERS.into()));
        }
        headers
    }

    /// Answers a preflight for an endpoint with `methods`: whether it is granted, and the CORS header fields.
    pub(crate) fn preflight(
        &self,
        origin: &str,
        method: &str,
        requested_headers: Option<&str>,
        methods: &'static str,
    ) -> (bool, ResponseHeaders) {
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        let mut headers = vec![("Vary", vary.into())];
        if !self.allows(origin) {
            return (false, headers);
        }
        self.push_allow_origin(origin, &mut headers);
        headers.push(("Access-Control-Allow-Methods", methods.into()));
        headers.push(("Access-Control-Max-Age", PREFLIGHT_MAX_AGE.into()));
        let is_known_method = methods.split(", ").any(|known| known == method);
        match requested_headers.map(parse_header_names) {
            None => (is_known_method, headers),
            // any names: the server drops header fields that no endpoint uses
            Some(Some(names)) => {
                headers.push(("Access-Control-Allow-Headers", names.into()));
                (is_known_method, headers)
            }
            Some(None) => (false, headers),
        }
    }

    fn push_allow_origin(&self, origin: &str, headers: &mut ResponseHeaders) {
        match self {
            Self::Any => headers.push(("Access-Control-Allow-Origin", "*".into())),
            Self::Listed(_) => {
                headers.push(("Access-Control-Allow-Origin", origin.to_owned().into()));
                headers.push(("Access-Control-Allow-Credentials", "true".into()));
            }
        }
    }
}

/// Whether the text is `scheme://host` or `scheme://host:port`, as browsers send it (RFC 6454): without a path, even `/`.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else {
        return false;
    };
    let is_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    let is_host = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    !scheme.is_empty()
        && scheme.bytes().all(is_scheme)
        && (1..=261).contains(&host.len())
        && host.bytes().all(is_host)
}

/// The field names of a preflight, if they are valid and not too many.
fn parse_header_names(list: &str) -> Option<String> {
    let names = list
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let names: Vec<&str> = names.collect();
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let valid = names.iter().all(|name| name.bytes().all(is_token));
    (names.len() <= MAX_REQUEST_HEADERS && valid).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(headers: &'a ResponseHeaders, name: &str) -> Option<&'a str> {
        let mut found = headers.iter().filter(|(header, _)| *header == name);
        found.next().map(|(_, value)| value.as_ref())
    }

    #[test]
    fn a_listed_origin_is_allowed_and_any_other_is_not() {
        let origins = AllowedOrigins::parse("http://localhost:3000, https://App.example").unwrap();
        let headers = origins.response_headers(Some("https://app.example"));
        assert_eq!(
            value(&headers, "Access-Control-Allow-Origin"),
            Some("https://app.example")
        );
        assert_eq!(
            value(&headers, "Access-Control-Allow-Credentials"),
            Some("true")
        );
        for origin in [
            None,
            Some("https://evil.example"),
            Some("null"),
            Some("https://app.example.evil"),
        ] {
            assert_eq!(
                origins.response_headers(origin),
                [("Vary", "Origin".into())]
            );
        }
    }

    #[test]
    fn any_origin_is_allowed_without_cookies() {
        let headers = AllowedOrigins::parse("*")
            .unwrap()
            .response_headers(Some("https://app.example"));
        assert_eq!(value(&headers, "Access-Control-Allow-Origin"), Some("*"));
        assert_eq!(value(&headers, "Access-Control-Allow-Credentials"), None);
    }

    #[test]
    fn a_preflight_is_granted_the_headers_that_it_requests() {
        let origins = AllowedOrigins::parse("https://app.example").unwrap();
        let preflight =
            |origin, method, headers| origins.preflight(origin, method, headers, "GET, POST");
        let (granted, headers) = preflight(
            "https://app.example",
            "POST",
            Some("content-type,x-application"),
        );
        assert!(granted);
        assert_eq!(
            value(&headers, "Access-Control-Allow-Headers"),
            Some("content-type, x-application")
        );
        assert!(!preflight("https://app.example", "DELETE", None).0);
        assert!(!preflight("https://app.example", "POST", Some("a b")).0);
        let many = "x,".repeat(MAX_REQUEST_HEADERS + 1);
        assert!(!preflight("https://app.example", "POST", Some(&many)).0);
        let (granted, headers) = preflight("https://evil.example", "POST", None);
        assert!(!granted && value(&headers, "Access-Control-Allow-Origin").is_none());
    }

    #[test]
    fn only_origins_as_browsers_send_them_are_accepted() {
        for text in [
            "app.example",
            "https://",
            "https://a/",
            "https://a/b",
            "https://*",
            "a.org *",
            "://a",
        ] {
            assert!(AllowedOrigins::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            AllowedOrigins::parse(""),
            Ok(AllowedOrigins::Listed(BTreeSet::new()))
        );
    }
}
