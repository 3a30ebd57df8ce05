//! The keys of an application's own login: fixed ones of a file or a secret, and those that its server publishes (RFC 7517).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::json;

mod key;
mod pem;
mod remote;

pub use key::{Algorithm, Key};
pub use remote::{InvalidUrl, Jwks, Url};

/// Largest key file or answer of a key server, in bytes: 64 keys of 4096 bits with their certificates have some 200 KiB. An answer's
/// head is counted with it.
pub const MAX_DOCUMENT: usize = 256 * 1024;
/// Keys of one set: login servers publish two to ten.
pub const MAX_KEYS: usize = 64;
/// Shortest HS256 secret in bytes: as long as the hash (RFC 7518, 3.2), as a shorter one could be guessed from any token.
pub const SHORTEST_SECRET: usize = 32;

/// Keys of no use, or none at all.
#[derive(Debug)]
pub enum Error {
    /// The file cannot be read.
    Unreadable(std::io::Error),
    /// More than [`MAX_DOCUMENT`] bytes.
    TooLarge,
    /// Neither a JWKS nor a public key in PEM form.
    NotKeys,
    /// More than [`MAX_KEYS`] keys.
    TooMany,
    /// Not one key for RS256, ES256 or EdDSA signatures.
    NoKey,
    /// A private or secret key: whoever may read it could sign.
    Private,
    /// A secret of less than [`SHORTEST_SECRET`] bytes.
    ShortSecret,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::TooLarge => write!(f, "larger than {MAX_DOCUMENT} bytes"),
            Self::NotKeys => f.write_str("neither a JWKS nor one public key in PEM form"),
            Self::TooMany => write!(f, "more than {MAX_KEYS} keys"),
            Self::NoKey => f.write_str(
                "no key that can be used: RSA of 2048 to 8192 bits, P-256 or Ed25519, for signatures with RS256, ES256 or EdDSA",
            ),
            Self::Private => f.write_str("holds a private or secret key, with which anyone who reads it could sign"),
            Self::ShortSecret => write!(f, "shorter than {SHORTEST_SECRET} bytes"),
        }
    }
}

impl std::error::Error for Error {}

/// Why no key of a set is for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// There is none of this id, or of this algorithm.
    Unknown,
    /// The key of this id is for another algorithm, or the algorithm is for none of this kind of key.
    Algorithm,
    /// Several fit, and the token does not say which one it means.
    Ambiguous,
}

/// Keys that may have signed a token.
#[derive(Debug, Clone)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// Reads a file: a JWKS, or one public key in PEM form.
    ///
    /// # Errors
    /// Every one but [`Error::ShortSecret`].
    pub fn read_file(path: &Path) -> Result<Self, Error> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(Error::Unreadable)?;
        file.take(MAX_DOCUMENT as u64 + 1)
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
            _ if content.len() > MAX_DOCUMENT => Err(Error::TooLarge),
            Some(b'{') => Self::read(content),
            _ => Ok(Self(vec![pem::public_key(content)?])),
        }
    }

    /// The one secret that HS256 tokens are signed with: the only way to have them accepted.
    pub fn secret(text: &str) -> Result<Self, Error> {
        if text.len() < SHORTEST_SECRET {
            return Err(Error::ShortSecret);
        }
        Ok(Self(vec![Key::secret(text.as_bytes())]))
    }

    /// Reads a JWKS (RFC 7517, 5). Keys of unknown kinds and for other purposes are passed over; a private one spoils them all.
    pub fn read(document: &[u8]) -> Result<Self, Error> {
        if document.len() > MAX_DOCUMENT {
            return Err(Error::TooLarge);
        }
        let Document { keys } = json::object(document).ok_or(Error::NotKeys)?;
        if keys.len() > MAX_KEYS {
            return Err(Error::TooMany);
        }
        if keys.iter().any(key::is_private) {
            return Err(Error::Private);
        }
        let keys: Vec<Key> = keys.into_iter().filter_map(Key::read).collect();
        if keys.is_empty() {
            return Err(Error::NoKey);
        }
        Ok(Self(keys))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The one key that a token means which says this algorithm and this id. The key decides whether they are right: only a key
    /// without an id bears any, and only a token without one may leave the choice to us, where there is none to make.
    pub fn pick(&self, algorithm: Algorithm, id: Option<&str>) -> Result<&Key, Miss> {
        let has_it = id.is_some() && self.0.iter().any(|key| key.id() == id);
        let meant = |key: &&Key| match id {
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
            (Some(_), Some(_)) => Err(Miss::Ambiguous),
            // no key server publishes secrets, so asking again would not help
            (None, _) if has_it || algorithm == Algorithm::Hs256 => Err(Miss::Algorithm),
            (None, _) => Err(Miss::Unknown),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[cfg(test)]
mod tests;
