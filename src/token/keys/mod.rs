//! Keys that verify JWTs: JWK sets (RFC 7517), public keys in PEM form, and HS256 secrets (RFC 7518, RFC 8037).

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;

use crate::util::file::read_bounded;
use crate::util::json;

/// Largest key file or JWKS response in bytes, the head of the response included: 64 keys of 4096 bits with their certificates
/// have about 200 KiB.
pub(crate) const MAX_JWKS_BYTES: usize = 256 * 1024;
/// Most keys in a set; issuers publish two to ten.
pub(crate) const MAX_JWKS_KEYS: usize = 64;
/// Shortest HS256 secret in bytes, the length of the hash (RFC 7518, 3.2): a shorter one can be guessed offline from any token.
pub(crate) const MIN_HS256_SECRET: usize = 32;
/// Bits of an RSA modulus: RFC 7518, 3.3 forbids shorter ones, longer ones take too much time.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;
/// Longest public exponent in bytes; nearly all are 65537.
const MAX_EXPONENT_BYTES: usize = 4;
/// Longest key id in bytes; the longest in use are hexadecimal hashes.
const MAX_KEY_ID: usize = 256;
/// Bytes of a P-256 coordinate and of an Ed25519 key.
const COORDINATE_BYTES: usize = 32;

/// Error for key material that cannot be used.
#[derive(Debug)]
pub enum Error {
    Unreadable(io::Error),
    /// More than [`MAX_JWKS_BYTES`] bytes.
    TooLarge,
    /// Neither a JWKS nor one public key in PEM form.
    UnknownFormat,
    /// More than [`MAX_JWKS_KEYS`] keys.
    TooManyKeys,
    /// No key for RS256, ES256 or EdDSA signatures.
    NoUsableKey,
    /// A private or secret key, with which every reader of the file could sign.
    PrivateKey,
    /// A secret of less than [`MIN_HS256_SECRET`] bytes.
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
                "no usable key: expected RSA of 2048 to 8192 bits, P-256 or Ed25519, for signatures with RS256, ES256 or EdDSA",
            ),
            Self::PrivateKey => f.write_str(
                "contains a private or secret key, with which anyone who reads it could sign",
            ),
            Self::SecretTooShort => write!(f, "shorter than {MIN_HS256_SECRET} bytes"),
        }
    }
}

impl std::error::Error for Error {}

/// Reason why a key set has no key for a JWT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLookupError {
    /// No key has the id or the algorithm.
    UnknownKey,
    /// The key with the id is for another algorithm, or no key of the set can ever have the algorithm.
    AlgorithmMismatch,
    /// Several keys match, and the JWT names none of them.
    Ambiguous,
}

/// The keys of one JWT issuer.
#[derive(Debug, Clone)]
pub struct KeySet(Vec<VerificationKey>);

impl KeySet {
    /// Reads a file with a JWKS or one public key in PEM form.
    ///
    /// # Errors
    /// All but [`Error::SecretTooShort`].
    pub fn read_file(path: &Path) -> Result<Self, Error> {
        let content = read_bounded(path, MAX_JWKS_BYTES).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => Error::TooLarge,
            _ => Error::Unreadable(error),
        })?;
        Self::parse(&content)
    }

    /// Parses a JWKS or one public key in PEM form.
    ///
    /// # Errors
    /// All but [`Error::Unreadable`] and [`Error::SecretTooShort`].
    pub fn parse(content: &[u8]) -> Result<Self, Error> {
        match content.trim_ascii_start().first() {
            _ if content.len() > MAX_JWKS_BYTES => Err(Error::TooLarge),
            Some(b'{') => Self::parse_jwks(content),
            _ => Ok(Self(vec![parse_pem(content)?])),
        }
    }

    /// A set with one HS256 secret; HS256 is accepted with such sets only.
    ///
    /// # Errors
    /// [`Error::SecretTooShort`].
    pub fn from_secret(text: &str) -> Result<Self, Error> {
        if text.len() < MIN_HS256_SECRET {
            return Err(Error::SecretTooShort);
        }
        // HMAC accepts keys of any length
        let mac = Hmac::new_from_slice(text.as_bytes()).unwrap_or_else(|_| unreachable!());
        let material = KeyMaterial::Secret(Box::new(mac));
        Ok(Self(vec![VerificationKey { id: None, material }]))
    }

    /// Parses a JWKS (RFC 7517, 5). Keys of unknown types and for other purposes are ignored; a private key invalidates the set.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_jwks(document: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct JwkSetDocument {
            keys: Vec<Value>,
        }
        if document.len() > MAX_JWKS_BYTES {
            return Err(Error::TooLarge);
        }
        let JwkSetDocument { keys } = json::parse_object(document).ok_or(Error::UnknownFormat)?;
        if keys.len() > MAX_JWKS_KEYS {
            return Err(Error::TooManyKeys);
        }
        // parameters that are private or secret (RFC 7518, 6.2.2, 6.3.2, 6.4.1), whatever else the key has
        let is_private = |key: &Value| key.get("d").is_some() || key.get("k").is_some();
        if keys.iter().any(is_private) {
            return Err(Error::PrivateKey);
        }
        let keys: Vec<_> = keys
            .into_iter()
            .filter_map(VerificationKey::from_jwk)
            .collect();
        if keys.is_empty() {
            return Err(Error::NoUsableKey);
        }
        Ok(Self(keys))
    }

    /// The number of keys.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The key for a JWT with this algorithm and key id. A key without an id matches every id, and a JWT without an id matches
    /// every key, provided that exactly one key has the algorithm.
    ///
    /// # Errors
    /// No key matches, or several do.
    pub fn select(
        &self,
        algorithm: JwsAlgorithm,
        id: Option<&str>,
    ) -> Result<&VerificationKey, KeyLookupError> {
        let has_id = id.is_some() && self.0.iter().any(|key| key.id() == id);
        let matches_id = |key: &&VerificationKey| match id {
            None => true,
            Some(_) if has_id => key.id() == id,
            Some(_) => key.id().is_none(),
        };
        let mut matching = self
            .0
            .iter()
            .filter(matches_id)
            .filter(|key| key.algorithm() == algorithm);
        match (matching.next(), matching.next()) {
            (Some(key), None) => Ok(key),
            (Some(_), Some(_)) => Err(KeyLookupError::Ambiguous),
            // issuers publish no secrets: fetching the set again would not help
            (None, _) if has_id || algorithm == JwsAlgorithm::Hs256 => {
                Err(KeyLookupError::AlgorithmMismatch)
            }
            (None, _) => Err(KeyLookupError::UnknownKey),
        }
    }
}

/// A JWS signature algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwsAlgorithm {
    /// RSA, PKCS #1 v1.5, SHA-256.
    Rs256,
    /// ECDSA on P-256, SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
    /// HMAC with SHA-256.
    Hs256,
}

impl JwsAlgorithm {
    /// Parses the name of an algorithm (RFC 7518, 3.1; RFC 8037, 3.1; RFC 9864, 2.2). `none` is not accepted.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" | "Ed25519" => Some(Self::EdDsa),
            "HS256" => Some(Self::Hs256),
            _ => None,
        }
    }
}

/// A key that verifies signatures of one algorithm. The key determines the algorithm, never the JWT (RFC 8725, 3.1).
#[derive(Clone)]
pub struct VerificationKey {
    id: Option<Box<str>>,
    material: KeyMaterial,
}

#[derive(Clone)]
enum KeyMaterial {
    /// Modulus and exponent, big-endian.
    Rsa(Box<[u8]>, Box<[u8]>),
    /// The uncompressed point.
    P256(Box<[u8]>),
    Ed25519(Box<[u8]>),
    Secret(Box<Hmac<Sha256>>),
}

impl KeyMaterial {
    fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let (n, e) = (strip_leading_zero(modulus), strip_leading_zero(exponent));
        let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
        let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
        let is_sound = RSA_BITS.contains(&bits)
            && e.len() <= MAX_EXPONENT_BYTES
            && is_odd(n)
            && is_odd(e)
            && e != [1];
        is_sound.then(|| Self::Rsa(n.into(), e.into()))
    }

    fn p256(point: &[u8]) -> Option<Self> {
        let is_uncompressed = point.len() == 1 + 2 * COORDINATE_BYTES && point[0] == 4;
        is_uncompressed.then(|| Self::P256(point.into()))
    }

    fn ed25519(key: &[u8]) -> Option<Self> {
        (key.len() == COORDINATE_BYTES).then(|| Self::Ed25519(key.into()))
    }
}

impl VerificationKey {
    /// Reads a public JWK for signatures; none if the key has another type or purpose.
    fn from_jwk(jwk: Value) -> Option<Self> {
        #[derive(Deserialize)]
        struct Jwk {
            kty: String,
            kid: Option<String>,
            alg: Option<String>,
            #[serde(rename = "use")]
            usage: Option<String>,
            key_ops: Option<Vec<String>>,
            crv: Option<String>,
            n: Option<String>,
            e: Option<String>,
            x: Option<String>,
            y: Option<String>,
        }
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let decode = |parameter: &Option<String>| decode_base64url(parameter.as_ref()?);
        let coordinate = |parameter| decode(parameter).filter(|x| x.len() == COORDINATE_BYTES);
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => KeyMaterial::rsa(&decode(&jwk.n)?, &decode(&jwk.e)?)?,
            ("EC", Some("P-256")) => {
                KeyMaterial::p256(&[vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat())?
            }
            ("OKP", Some("Ed25519")) => KeyMaterial::ed25519(&coordinate(&jwk.x)?)?,
            _ => return None,
        };
        let key = Self {
            id: jwk.kid.map(String::into_boxed_str),
            material,
        };
        let alg = jwk.alg.as_deref().map(JwsAlgorithm::parse);
        let is_for_signatures = alg.is_none_or(|alg| alg == Some(key.algorithm()))
            && jwk.usage.is_none_or(|usage| usage == "sig")
            && jwk
                .key_ops
                .is_none_or(|operations| operations.iter().any(|name| name == "verify"))
            && key.id().is_none_or(|id| id.len() <= MAX_KEY_ID);
        is_for_signatures.then_some(key)
    }

    /// The key id (`kid`).
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The only algorithm of the key.
    pub fn algorithm(&self) -> JwsAlgorithm {
        match self.material {
            KeyMaterial::Rsa(..) => JwsAlgorithm::Rs256,
            KeyMaterial::P256(_) => JwsAlgorithm::Es256,
            KeyMaterial::Ed25519(_) => JwsAlgorithm::EdDsa,
            KeyMaterial::Secret(_) => JwsAlgorithm::Hs256,
        }
    }

    /// Whether the signature of the message is valid; constant-time for a secret.
    pub fn verify_signature(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            KeyMaterial::Rsa(n, e) => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            KeyMaterial::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
            KeyMaterial::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key)
                .verify(message, signature)
                .is_ok(),
            KeyMaterial::Secret(mac) => {
                let mac = Hmac::<Sha256>::clone(mac).chain_update(message);
                mac.verify_slice(signature).is_ok()
            }
        }
    }
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = self.algorithm();
        write!(f, "VerificationKey({algorithm:?}, id {:?})", self.id)
    }
}

/// Decodes unpadded base64url (RFC 7515, 2).
pub(super) fn decode_base64url(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Removes the zero byte that keeps the first bit of a DER integer unset.
fn strip_leading_zero(number: &[u8]) -> &[u8] {
    number.strip_prefix(&[0]).unwrap_or(number)
}

/// Algorithm identifiers in DER (RFC 3279, RFC 5480, RFC 8410).
const RSA_ALGORITHM_ID: &[u8] = &[
    0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0,
];
const P256_ALGORITHM_ID: &[u8] = &[
    0x30, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7,
];
const ED25519_ALGORITHM_ID: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];

/// DER tags (X.690, 8).
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;

/// Parses the one public key of a PEM file (RFC 7468, 13). Several keys need ids, hence a JWKS.
fn parse_pem(text: &[u8]) -> Result<VerificationKey, Error> {
    if text.windows(16).any(|window| window == b"PRIVATE KEY-----") {
        return Err(Error::PrivateKey);
    }
    let found: Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(text).collect();
    match found.as_deref() {
        Ok([der]) => parse_spki(der)
            .map(|material| VerificationKey { id: None, material })
            .ok_or(Error::NoUsableKey),
        _ => Err(Error::UnknownFormat),
    }
}

/// Parses a DER `SubjectPublicKeyInfo` (RFC 5280, 4.1).
fn parse_spki(der: &[u8]) -> Option<KeyMaterial> {
    let (info, []) = read_der_element(SEQUENCE, der)? else {
        return None;
    };
    let bits = |algorithm| match read_der_element(BIT_STRING, info.strip_prefix(algorithm)?)? {
        ([0, bits @ ..], []) => Some(bits),
        _ => None,
    };
    if let Some(point) = bits(P256_ALGORITHM_ID) {
        return KeyMaterial::p256(point);
    }
    if let Some(key) = bits(ED25519_ALGORITHM_ID) {
        return KeyMaterial::ed25519(key);
    }
    let (numbers, _) = read_der_element(SEQUENCE, bits(RSA_ALGORITHM_ID)?)?;
    let (modulus, rest) = read_der_element(INTEGER, numbers)?;
    let (exponent, _) = read_der_element(INTEGER, rest)?;
    KeyMaterial::rsa(modulus, exponent)
}

/// Splits off the first DER element: its content, if it has this tag, and the rest (X.690, 8.1).
fn read_der_element(expected_tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (length, rest) = match rest {
        [length @ 0..=0x7f, rest @ ..] | [0x81, length, rest @ ..] => (usize::from(*length), rest),
        [0x82, high, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
        _ => return None,
    };
    if *tag != expected_tag {
        return None;
    }
    rest.split_at_checked(length)
}
