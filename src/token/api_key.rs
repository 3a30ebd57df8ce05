//! API keys of applications: made here, and known here only by their hashes.

use std::collections::BTreeSet;
use std::fmt;

use sha2::{Digest, Sha256};

use super::caller::CallerName;
use crate::util::random;

/// What every key begins with, so that scanners of source code can find those that were committed by mistake.
pub(crate) const API_KEY_PREFIX: &str = "lts_";
/// Hexadecimal digits of a key's id.
const KEY_ID_DIGITS: usize = 8;
/// Hexadecimal digits of a key's secret: 256 bits, so that a plain hash is as good as a slow one.
const SECRET_DIGITS: usize = 64;
/// Most keys: each of them is compared with each that is shown.
pub(crate) const MAX_API_KEYS: usize = 1000;

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApiKeyHash([u8; 32]);

impl ApiKeyHash {
    /// Reads 64 hexadecimal digits, with or without `sha256:` before them.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
        }
        Some(Self(hash))
    }

    fn digest(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Looks at every byte whatever the others are.
    fn eq_constant_time(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        let difference = pairs.fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
        difference == 0
    }
}

impl fmt::Display for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes a key: `lts_ID_SECRET`. Whoever holds it is the caller; nothing here can find it again.
pub(crate) fn generate_api_key() -> (String, ApiKeyHash) {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let id = hex(&random::bytes::<{ KEY_ID_DIGITS / 2 }>());
    let secret = hex(&random::bytes::<{ SECRET_DIGITS / 2 }>());
    let key = format!("{API_KEY_PREFIX}{id}_{secret}");
    let hash = ApiKeyHash::digest(&key);
    (key, hash)
}

/// The keys that are known, and whose they are.
#[derive(Debug, Clone, Default)]
pub struct CallerApiKeys(Vec<(ApiKeyHash, CallerName)>);

impl CallerApiKeys {
    /// Knows these, at most [`MAX_KEYS`]; a caller may have several, as while one is replaced by another.
    pub fn new(keys: Vec<(ApiKeyHash, CallerName)>) -> Self {
        Self(keys)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose they are.
    pub fn caller_names(&self) -> BTreeSet<&CallerName> {
        self.0.iter().map(|(_, name)| name).collect()
    }

    /// Whose a key is, and its id. Takes as long for a wrong key as for a right one: all are hashed, and compared with all.
    pub fn find<'a>(&self, shown: &'a str) -> Option<(&CallerName, &'a str)> {
        let hash = ApiKeyHash::digest(shown);
        let mut found = None;
        for (known, name) in &self.0 {
            if known.eq_constant_time(&hash) {
                found = Some(name);
            }
        }
        Some((found?, key_id(shown)?))
    }
}

/// The id of a key, if it has the form of one of ours: nobody can choose a weak one.
fn key_id(key: &str) -> Option<&str> {
    let (id, secret) = key.strip_prefix(API_KEY_PREFIX)?.split_once('_')?;
    let hex =
        |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    (hex(id, KEY_ID_DIGITS) && hex(secret, SECRET_DIGITS)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CallerName {
        CallerName::parse(text).unwrap()
    }

    #[test]
    fn a_key_is_known_by_its_hash_alone() {
        let (a, hash_of_a) = generate_api_key();
        let (b, hash_of_b) = generate_api_key();
        assert_ne!(a, b);
        let stored = ApiKeyHash::parse(&format!("sha256:{hash_of_a}")).unwrap();
        let keys = CallerApiKeys::new(vec![(stored, name("a")), (hash_of_b, name("b"))]);
        assert_eq!(keys.find(&a), Some((&name("a"), &a[4..12])));
        assert_eq!(keys.find(&b).unwrap().0.as_str(), "b");
        let last = if a.ends_with('0') { "1" } else { "0" };
        let other = format!("{}{last}", &a[..a.len() - 1]);
        for wrong in [
            "",
            API_KEY_PREFIX,
            &a[..12],
            &a[..a.len() - 1],
            &other,
            &a.to_uppercase(),
        ] {
            assert_eq!(keys.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn nobody_can_choose_a_weak_key() {
        let weak = "hunter2";
        let keys = CallerApiKeys::new(vec![(ApiKeyHash::digest(weak), name("a"))]);
        assert_eq!(keys.find(weak), None);
    }

    #[test]
    fn a_hash_is_64_hexadecimal_digits() {
        let digits = "0a".repeat(32);
        assert_eq!(ApiKeyHash::parse(&digits).unwrap().to_string(), digits);
        for wrong in [
            "",
            "sha256:",
            &digits[1..],
            &format!("{digits}0"),
            &"é".repeat(32),
        ] {
            assert_eq!(ApiKeyHash::parse(wrong), None, "{wrong}");
        }
    }
}
