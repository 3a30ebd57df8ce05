//! Who asks for a token at the general endpoint.

use std::fmt;

use serde_json::{Map, Value};

/// Longest name of a caller in bytes: it appears in every line of the log.
pub(crate) const MAX_CALLER_NAME: usize = 64;

/// What an administrator calls a caller: 1 to 64 of `A-Z a-z 0-9 _ . -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerName(String);

impl CallerName {
    /// Reads a name; nothing if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MAX_CALLER_NAME).contains(&text.len());
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        (fits && text.bytes().all(known)).then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Somebody who was authenticated, or whom nobody had to.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// The entry in the settings.
    pub name: CallerName,
    /// What the application's own login says of its user, if a JWT was shown.
    pub claims: Option<Map<String, Value>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_needs_no_quotes_in_the_log() {
        for name in ["a", "booking-app", "a.b_C-9", &"n".repeat(MAX_CALLER_NAME)] {
            assert_eq!(CallerName::parse(name).unwrap().as_str(), name);
        }
        for name in [
            "",
            "a b",
            "é",
            "a=b",
            "a\n",
            &"n".repeat(MAX_CALLER_NAME + 1),
        ] {
            assert_eq!(CallerName::parse(name), None);
        }
    }
}
