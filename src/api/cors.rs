//! Which web pages may ask for tokens: cross-origin resource sharing (the Fetch standard) at the general endpoint.

use std::collections::BTreeSet;

/// Seconds for which a browser remembers a preflight: the example's, and what browsers allow at most.
const PREFLIGHT_MAX_AGE: &str = "600";
/// Most fields that a page may announce; the largest SDK sends three.
const MAX_REQUEST_HEADERS: usize = 32;
/// What pages may read of an answer beyond the body.
const EXPOSED_HEADERS: &str = "Retry-After";

/// The pages that may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// All of them, but without the cookies of their users.
    Any,
    /// Those of these origins.
    Listed(BTreeSet<String>),
}

/// Header fields of a reply.
pub(crate) type ResponseHeaders = Vec<(&'static str, String)>;

impl AllowedOrigins {
    /// Reads origins such as `https://app.example.com`, comma or space separated, or `*` alone; else the part that is none.
    pub fn parse(text: &str) -> Result<Self, &str> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let items = text.split(|c: char| c == ',' || c.is_whitespace());
        let origin = |item| {
            is_origin(item)
                .then(|| item.to_ascii_lowercase())
                .ok_or(item)
        };
        let listed: Result<_, _> = items.filter(|item| !item.is_empty()).map(origin).collect();
        listed.map(Self::Listed)
    }

    fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(origins) => origins.contains(&origin.to_ascii_lowercase()),
        }
    }

    /// The fields of an ordinary reply. A page that is not allowed gets none of those that a browser looks for.
    pub fn response_headers(&self, origin: Option<&str>) -> ResponseHeaders {
        let mut fields = vec![("Vary", "Origin".to_owned())];
        if let Some(origin) = origin.filter(|origin| self.allows(origin)) {
            self.push_allow_origin(origin, &mut fields);
            fields.push(("Access-Control-Expose-Headers", EXPOSED_HEADERS.to_owned()));
        }
        fields
    }

    /// Answers a preflight for `methods`: whether it is granted, and the fields.
    pub fn preflight(
        &self,
        origin: &str,
        method: &str,
        requested: Option<&str>,
        methods: &'static str,
    ) -> (bool, ResponseHeaders) {
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        let mut fields = vec![("Vary", vary.to_owned())];
        if !self.allows(origin) {
            return (false, fields);
        }
        self.push_allow_origin(origin, &mut fields);
        fields.push(("Access-Control-Allow-Methods", methods.to_owned()));
        fields.push(("Access-Control-Max-Age", PREFLIGHT_MAX_AGE.to_owned()));
        let known = methods.split(", ").any(|known| known == method);
        match requested.map(parse_header_names) {
            None => (known, fields),
            // a page names its fields as it likes: they end at the gate
            Some(Some(names)) => {
                fields.push(("Access-Control-Allow-Headers", names));
                (known, fields)
            }
            Some(None) => (false, fields),
        }
    }

    fn push_allow_origin(&self, origin: &str, fields: &mut ResponseHeaders) {
        let (shown, credentials) = match self {
            Self::Any => ("*", false),
            Self::Listed(_) => (origin, true),
        };
        fields.push(("Access-Control-Allow-Origin", shown.to_owned()));
        if credentials {
            fields.push(("Access-Control-Allow-Credentials", "true".to_owned()));
        }
    }
}

/// `scheme://host` or `scheme://host:port`, as browsers send it (RFC 6454): no path, not even `/`.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else {
        return false;
    };
    let scheme_fits = !scheme.is_empty()
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let host_fits = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    scheme_fits && (1..=261).contains(&host.len()) && host.bytes().all(host_fits)
}

/// The names as they were announced, if they are names and not too many.
fn parse_header_names(announced: &str) -> Option<String> {
    let names: Vec<&str> = announced
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let is_name = |name: &&str| {
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    (names.len() <= MAX_REQUEST_HEADERS && names.iter().all(is_name)).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(fields: &'a ResponseHeaders, name: &str) -> Option<&'a str> {
        let mut found = fields.iter().filter(|(field, _)| *field == name);
        found.next().map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_listed_origin_is_named_and_any_other_is_not() {
        let origins = AllowedOrigins::parse("http://localhost:3000, https://App.example").unwrap();
        let fields = origins.response_headers(Some("https://app.example"));
        assert_eq!(
            value(&fields, "Access-Control-Allow-Origin"),
            Some("https://app.example")
        );
        assert_eq!(
            value(&fields, "Access-Control-Allow-Credentials"),
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
                [("Vary", "Origin".to_owned())]
            );
        }
    }

    #[test]
    fn any_origin_may_ask_but_without_cookies() {
        let fields = AllowedOrigins::parse("*")
            .unwrap()
            .response_headers(Some("https://app.example"));
        assert_eq!(value(&fields, "Access-Control-Allow-Origin"), Some("*"));
        assert_eq!(value(&fields, "Access-Control-Allow-Credentials"), None);
    }

    #[test]
    fn a_preflight_gets_the_fields_that_it_announces() {
        let origins = AllowedOrigins::parse("https://app.example").unwrap();
        let ask = |origin, method, fields| origins.preflight(origin, method, fields, "GET, POST");
        let (granted, fields) = ask(
            "https://app.example",
            "POST",
            Some("content-type,x-application"),
        );
        assert!(granted);
        assert_eq!(
            value(&fields, "Access-Control-Allow-Headers"),
            Some("content-type, x-application")
        );
        assert!(!ask("https://app.example", "DELETE", None).0);
        assert!(!ask("https://app.example", "POST", Some("a b")).0);
        let many = "x,".repeat(MAX_REQUEST_HEADERS + 1);
        assert!(!ask("https://app.example", "POST", Some(&many)).0);
        let (granted, fields) = ask("https://evil.example", "POST", None);
        assert!(!granted && value(&fields, "Access-Control-Allow-Origin").is_none());
    }

    #[test]
    fn what_no_browser_would_send_is_no_origin() {
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
