//! Parts and encodings of text.

use std::fmt::{Display, Write as _};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters that a path segment or the value of a query parameter may not hold: all but the unreserved ones (RFC 3986, 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The text as a path segment or the value of a query parameter.
pub(crate) fn percent_encode(text: &str) -> impl Display + '_ {
    utf8_percent_encode(text, RESERVED)
}

/// The first `max` characters, for logs and error texts.
pub(crate) fn truncate_chars(text: &str, max: usize) -> &str {
    match text.char_indices().nth(max) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// The longest prefix of whole characters that has at most `max` bytes.
pub(crate) fn truncate_bytes(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Two lower-case hexadecimal digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // writing to a String cannot fail
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_characters_are_percent_encoded() {
        let encoded = percent_encode("!a-b.c_d~:ü/?%").to_string();
        assert_eq!(encoded, "%21a-b.c_d~%3A%C3%BC%2F%3F%25");
    }

    #[test]
    fn text_is_truncated_between_characters() {
        for (max, chars, bytes) in [
            (0, "", ""),
            (2, "aü", "a"),
            (3, "aüb", "aü"),
            (9, "aüb", "aüb"),
        ] {
            assert_eq!(truncate_chars("aüb", max), chars);
            assert_eq!(truncate_bytes("aüb", max), bytes);
        }
    }

    #[test]
    fn bytes_become_two_digits_each() {
        assert_eq!(hex(&[0, 15, 255]), "000fff");
    }
}
