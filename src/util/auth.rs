//! Credentials in requests.

/// The token of an `Authorization` header field with the scheme `Bearer`, in any case (RFC 6750, 2.1; RFC 9110, 11.1).
pub(crate) fn parse_bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares in a time that depends on the lengths only.
pub(crate) fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |bits, (a, b)| bits | (a ^ b));
    // the optimizer must not turn the loop into one that ends at the first difference
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_follows_its_scheme() {
        for (field, token) in [
            ("Bearer abc", Some("abc")),
            (" bearer   a.b-c ", Some("a.b-c")),
            ("BEARER a b", Some("a b")),
            ("Bearer", None),
            ("Basic abc", None),
            ("abc", None),
            ("", None),
        ] {
            assert_eq!(parse_bearer(field), token, "{field:?}");
        }
    }

    #[test]
    fn every_byte_and_the_length_are_compared() {
        assert!(constant_time_eq(b"", b"") && constant_time_eq(b"abc", b"abc"));
        for other in [&b"abd"[..], b"bbc", b"ab", b"abcd", b""] {
            assert!(!constant_time_eq(b"abc", other), "{other:?}");
        }
    }
}
