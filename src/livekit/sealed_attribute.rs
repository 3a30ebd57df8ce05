//! A note to ourselves that travels with a participant: a token carries it into the SFU, which shows it to us again, and to everybody
//! in the room, who cannot read it.

use std::collections::BTreeMap;
use std::fmt;

/// The participant attribute that holds it.
pub(crate) const SEALED_ATTRIBUTE_NAME: &str = "livekit-token-service.sealed";
/// Longest text in bytes: two Matrix ids of 255 bytes, rounded up, with nonce and tag in base64.
pub(crate) const MAX_SEALED_ATTRIBUTE_BYTES: usize = 720;

/// What looks like one: whether it is, only the key tells.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedAttribute(Box<str>);

impl SealedAttribute {
    /// Accepts 1 to [`MAX_SEALED`] characters of base64url.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MAX_SEALED_ATTRIBUTE_BYTES).contains(&text.len());
        let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (fits && text.bytes().all(base64url)).then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The attributes that hold it.
    pub(super) fn to_attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(SEALED_ATTRIBUTE_NAME.to_owned(), self.0.to_string())])
    }
}

/// It is of no use to a reader, and long.
impl fmt::Debug for SealedAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_short_and_of_one_alphabet() {
        let longest = "a".repeat(MAX_SEALED_ATTRIBUTE_BYTES);
        for good in ["a", "AZaz09-_", &longest] {
            assert_eq!(SealedAttribute::parse(good).unwrap().as_str(), good);
        }
        let longer = "a".repeat(MAX_SEALED_ATTRIBUTE_BYTES + 1);
        for bad in ["", "a=", "a+", "a/", "a b", "\u{e9}", "a\n", &longer] {
            assert_eq!(SealedAttribute::parse(bad), None, "{bad:?}");
        }
    }
}
