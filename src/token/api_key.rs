//! API keys of applications. The service generates them and stores only their hashes.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use sha2::{Digest, Sha256};

use super::CallerName;
use crate::util::random;
use crate::util::text::hex;

/// Prefix of every key, by which secret scanners find keys that were committed by mistake.
pub(crate) const API_KEY_PREFIX: &str = "lts_";
/// Hexadecimal digits of a key's id.
const KEY_ID_DIGITS: usize = 8;
/// Hexadecimal digits of a key's secret: with 256 bits a plain hash is as good as a slow one.
const SECRET_DIGITS: usize = 64;
/// Most keys in the settings and the policy file.
pub(crate) const MAX_API_KEYS: usize = 1000;

/// The SHA-256 of an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApiKeyHash([u8; 32]);

impl ApiKeyHash {
    /// Parses 64 hexadecimal digits, with or without the prefix `sha256:`.
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
}

impl fmt::Display for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Generates an API key, `lts_ID_SECRET`, and its hash.
pub(crate) fn generate_api_key() -> (String, ApiKeyHash) {
    let id = hex(&random::bytes::<{ KEY_ID_DIGITS / 2 }>());
    let secret = hex(&random::bytes::<{ SECRET_DIGITS / 2 }>());
    let key = format!("{API_KEY_PREFIX}{id}_{secret}");
    let hash = ApiKeyHash::digest(&key);
    (key, hash)
}

/// Callers by the hashes of their API keys. Lookups need not be constant-time: an attacker cannot choose the hash of a key.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallerApiKeys(HashMap<ApiKeyHash, CallerName>);

impl CallerApiKeys {
    /// A caller can have several keys, for example while one replaces another.
    pub(crate) fn new(keys: impl IntoIterator<Item = (ApiKeyHash, CallerName)>) -> Self {
        Self(keys.into_iter().collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn caller_names(&self) -> BTreeSet<&CallerName> {
        self.0.values().collect()
    }

    /// The caller of a key, and the id of the key.
    pub(crate) fn find<'a>(&self, key: &'a str) -> Option<(&CallerName, &'a str)> {
        let id = key_id(key)?;
        Some((self.0.get(&ApiKeyHash::digest(key))?, id))
    }
}

/// The id of a key in the generated form; others are refused, so that no administrator can choose a weak key.
fn key_id(key: &str) -> Option<&str> {
    let (id, secret) = key.strip_prefix(API_KEY_PREFIX)?.split_once('_')?;
    let is_hex =
        |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    (is_hex(id, KEY_ID_DIGITS) && is_hex(secret, SECRET_DIGITS)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CallerName {
        CallerName::parse(text).unwrap()
    }

    #[test]
    fn a_key_is_found_by_its_hash() {
        let (a, hash_of_a) = generate_api_key();
        let (b, hash_of_b) = generate_api_key();
        assert_ne!(a, b);
        let stored = ApiKeyHash::parse(&format!("sha256:{hash_of_a}")).unwrap();
        let keys = CallerApiKeys::new([(stored, name("a")), (hash_of_b, name("b"))]);
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
    fn a_self_chosen_key_is_refused_even_if_its_hash_is_stored() {
        let weak = "hunter2";
        let keys = CallerApiKeys::new([(ApiKeyHash::digest(weak), name("a"))]);
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
