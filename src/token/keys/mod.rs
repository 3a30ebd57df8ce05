//! The keys of an application's own login: fixed ones of a file or a secret, and those that its server publishes (RFC 7517).

mod jwks;
mod key;
mod pem;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::util::json;

pub(crate) use self::jwks::{JwksUrl, RemoteJwks};
pub use key::JwsAlgorithm;
pub(crate) use key::VerificationKey;

/// Largest key file or answer of a key server, in bytes: 64 keys of 4096 bits with their certificates have some 200 KiB. An answer's
/// head is counted with it.
pub(crate) const MAX_JWKS_BYTES: usize = 256 * 1024;
/// Keys of one set: login servers publish two to ten.
pub(crate) const MAX_JWKS_KEYS: usize = 64;
/// Shortest HS256 secret in bytes: as long as the hash (RFC 7518, 3.2), as a shorter one could be guessed from any token.
pub(crate) const MIN_HS256_SECRET: usize = 32;

/// Keys of no use, or none at all.
#[derive(Debug)]
pub enum Error {
    /// The file cannot be read.
    Unreadable(std::io::Error),
    /// More than [`MAX_DOCUMENT`] bytes.
    TooLarge,
    /// Neither a JWKS nor a public key in PEM form.
    UnknownFormat,
    /// More than [`MAX_KEYS`] keys.
    TooManyKeys,
    /// Not one key for RS256, ES256 or EdDSA signatures.
    NoUsableKey,
    /// A private or secret key: whoever may read it could sign.
    PrivateKey,
    /// A secret of less than [`SHORTEST_SECRET`] bytes.
    SecretTooShort,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::TooLarge => write!(f, "larger than {MAX_JWKS_BYTES} bytes"),
            Self::UnknownFormat => f.write_str("neither a JWKS nor one public key in PEM form"),
            Self::TooManyKeys => write!(f, "more than {MAX_JWKS_KEYS} keys"),
            Self::NoUsableKey => f.write_str(
                "no key that can be used: RSA of 2048 to 8192 bits, P-256 or Ed25519, for signatures with RS256, ES256 or EdDSA",
            ),
            Self::PrivateKey => f.write_str("holds a private or secret key, with which anyone who reads it could sign"),
            Self::SecretTooShort => write!(f, "shorter than {MIN_HS256_SECRET} bytes"),
        }
    }
}

impl std::error::Error for Error {}

/// Why no key of a set is for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLookupError {
    /// There is none of this id, or of this algorithm.
    UnknownKey,
    /// The key of this id is for another algorithm, or the algorithm is for none of this kind of key.
    AlgorithmMismatch,
    /// Several fit, and the token does not say which one it means.
    Ambiguous,
}

/// Keys that may have signed a token.
#[derive(Debug, Clone)]
pub struct KeySet(Vec<VerificationKey>);

impl KeySet {
    /// Reads a file: a JWKS, or one public key in PEM form.
    ///
    /// # Errors
    /// Every one but [`Error::ShortSecret`].
    pub fn read_file(path: &Path) -> Result<Self, Error> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(Error::Unreadable)?;
        file.take(MAX_JWKS_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::Unreadable)?;
        Self::parse(&bytes)
    }

    /// Reads what such a file holds.
    ///
    /// # Errors
    /// As [`Keys::read_file`], but it is not unreadable.
    pub fn parse(content: &[u8]) -> Result<Self, Error> {
        match content.trim_ascii_start().first() {
            _ if content.len() > MAX_JWKS_BYTES => Err(Error::TooLarge),
            Some(b'{') => Self::parse_jwks(content),
            _ => Ok(Self(vec![pem::parse_public_key(content)?])),
        }
    }

    /// The one secret that HS256 tokens are signed with: the only way to have them accepted.
    pub fn from_secret(text: &str) -> Result<Self, Error> {
        if text.len() < MIN_HS256_SECRET {
            return Err(Error::SecretTooShort);
        }
        Ok(Self(vec![VerificationKey::from_secret(text.as_bytes())]))
    }

    /// Reads a JWKS (RFC 7517, 5). Keys of unknown kinds and for other purposes are passed over; a private one spoils them all.
    pub fn parse_jwks(document: &[u8]) -> Result<Self, Error> {
        if document.len() > MAX_JWKS_BYTES {
            return Err(Error::TooLarge);
        }
        let JwkSetDocument { keys } = json::parse_object(document).ok_or(Error::UnknownFormat)?;
        if keys.len() > MAX_JWKS_KEYS {
            return Err(Error::TooManyKeys);
        }
        if keys.iter().any(key::is_private) {
            return Err(Error::PrivateKey);
        }
        let keys: Vec<VerificationKey> = keys
            .into_iter()
            .filter_map(VerificationKey::from_jwk)
            .collect();
        if keys.is_empty() {
            return Err(Error::NoUsableKey);
        }
        Ok(Self(keys))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The one key that a token means which says this algorithm and this id. The key decides whether they are right: only a key
    /// without an id bears any, and only a token without one may leave the choice to us, where there is none to make.
    pub fn select(
        &self,
        algorithm: JwsAlgorithm,
        id: Option<&str>,
    ) -> Result<&VerificationKey, KeyLookupError> {
        let has_it = id.is_some() && self.0.iter().any(|key| key.id() == id);
        let meant = |key: &&VerificationKey| match id {
            None => true,
            Some(_) if has_it => key.id() == id,
            Some(_) => key.id().is_none(),
        };
        let mut fitting = self
            .0
            .iter()
            .filter(meant)
            .filter(|key| key.algorithm() == algorithm);
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (Some(_), Some(_)) => Err(KeyLookupError::Ambiguous),
            // no key server publishes secrets, so asking again would not help
            (None, _) if has_it || algorithm == JwsAlgorithm::Hs256 => {
                Err(KeyLookupError::AlgorithmMismatch)
            }
            (None, _) => Err(KeyLookupError::UnknownKey),
        }
    }
}

#[derive(Deserialize)]
struct JwkSetDocument {
    keys: Vec<Value>,
}
