//! The participant attribute in which this service recognises its participants: the access token carries it to the SFU, which returns
//! it in webhooks and lists. Other participants of the room receive it too, but cannot decrypt it.

use std::collections::BTreeMap;
use std::fmt;

/// Name of the participant attribute.
pub(crate) const SEALED_ATTRIBUTE_NAME: &str = "livekit-token-service.sealed";
/// Longest value in bytes: two Matrix ids of 255 bytes, padded, with nonce and tag in base64.
pub(crate) const MAX_SEALED_ATTRIBUTE_BYTES: usize = 720;

/// A well-formed value of the attribute. Only decryption shows whether it is authentic.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedAttribute(Box<str>);

impl SealedAttribute {
    /// Accepts 1 to [`MAX_SEALED_ATTRIBUTE_BYTES`] characters of base64url.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MAX_SEALED_ATTRIBUTE_BYTES).contains(&text.len());
        let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (fits && text.bytes().all(base64url)).then(|| Self(text.into()))
    }

    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Participant attributes with this one alone.
    pub(super) fn to_attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(SEALED_ATTRIBUTE_NAME.to_owned(), self.0.to_string())])
    }
}

impl fmt::Debug for SealedAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedAttribute({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_base64url_is_accepted() {
        let longest = "a".repeat(MAX_SEALED_ATTRIBUTE_BYTES);
        for valid in ["a", "AZaz09-_", &longest] {
            assert_eq!(SealedAttribute::parse(valid).unwrap().as_str(), valid);
        }
        let too_long = "a".repeat(MAX_SEALED_ATTRIBUTE_BYTES + 1);
        for invalid in ["", "a=", "a+", "a/", "a b", "\u{e9}", "a\n", &too_long] {
            assert_eq!(SealedAttribute::parse(invalid), None, "{invalid:?}");
        }
    }
}
