//! One key of an application's login, and what it has signed (RFC 7518, RFC 8037).

use std::fmt;
use std::ops::RangeInclusive;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;

/// Bits of an RSA modulus: shorter ones are forbidden (RFC 7518, 3.3), longer ones cost more time than they are worth.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;
/// Longest public exponent in bytes; nearly all are 65537.
const MAX_EXPONENT: usize = 4;
/// Longest key id in bytes; the longest in use are hashes in hexadecimal.
const MAX_ID: usize = 256;
/// Bytes of a coordinate on P-256, and of an Ed25519 key.
const COORDINATE: usize = 32;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA, PKCS #1 v1.5, SHA-256.
    Rs256,
    /// ECDSA on P-256, SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
    /// HMAC with SHA-256, by whoever can verify it.
    Hs256,
}

impl Algorithm {
    /// Reads the name of an algorithm (RFC 7518, 3.1; RFC 8037, 3.1; RFC 9864, 2.2). `none` is not one.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" | "Ed25519" => Some(Self::EdDsa),
            "HS256" => Some(Self::Hs256),
            _ => None,
        }
    }
}

/// A key that may have signed a token. It knows its one algorithm, whatever the token says.
#[derive(Clone)]
pub struct Key {
    id: Option<Box<str>>,
    material: Material,
}

#[derive(Clone)]
enum Material {
    /// Modulus and exponent, big-endian.
    Rsa(Box<[u8]>, Box<[u8]>),
    /// The uncompressed point.
    P256(Box<[u8]>),
    Ed25519(Box<[u8]>),
    Secret(Box<Hmac<Sha256>>),
}

impl Key {
    pub(super) fn secret(secret: &[u8]) -> Self {
        // HMAC takes keys of any length
        let mac = Hmac::new_from_slice(secret).unwrap_or_else(|_| unreachable!());
        Self::unnamed(Material::Secret(Box::new(mac)))
    }

    pub(super) fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        rsa(modulus, exponent).map(Self::unnamed)
    }

    pub(super) fn p256(point: &[u8]) -> Option<Self> {
        let uncompressed = point.len() == 1 + 2 * COORDINATE && point[0] == 4;
        uncompressed.then(|| Self::unnamed(Material::P256(point.into())))
    }

    pub(super) fn ed25519(key: &[u8]) -> Option<Self> {
        (key.len() == COORDINATE).then(|| Self::unnamed(Material::Ed25519(key.into())))
    }

    fn unnamed(material: Material) -> Self {
        Self { id: None, material }
    }

    /// Reads a public JWK for signatures; nothing if it is of another kind or for another purpose.
    pub(super) fn read(jwk: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let coordinate = |text: &Option<String>| {
            let bytes = decoded(text)?;
            (bytes.len() == COORDINATE).then_some(bytes)
        };
        let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => Self::rsa(&decoded(&jwk.n)?, &decoded(&jwk.e)?)?,
            ("EC", Some("P-256")) => {
                Self::p256(&[vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat())?
            }
            ("OKP", Some("Ed25519")) => Self::ed25519(&coordinate(&jwk.x)?)?,
            _ => return None,
        };
        let alg = jwk.alg.as_deref().map(Algorithm::named);
        let purposes = jwk.key_ops.unwrap_or_else(|| vec!["verify".to_owned()]);
        let fits = alg.is_none_or(|alg| alg == Some(key.algorithm()))
            && jwk.usage.is_none_or(|usage| usage == "sig")
            && purposes.iter().any(|purpose| purpose == "verify")
            && jwk.kid.as_ref().is_none_or(|id| id.len() <= MAX_ID);
        fits.then(|| Self {
            id: jwk.kid.map(String::into_boxed_str),
            ..key
        })
    }

    /// Its name, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The only algorithm that it is for.
    pub fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Rsa(..) => Algorithm::Rs256,
            Material::P256(_) => Algorithm::Es256,
            Material::Ed25519(_) => Algorithm::EdDsa,
            Material::Secret(_) => Algorithm::Hs256,
        }
    }

    /// Whether it has signed the message; a secret tells so in constant time.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Rsa(n, e) => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            Material::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
            Material::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key)
                .verify(message, signature)
                .is_ok(),
            Material::Secret(mac) => {
                let mac = Hmac::<Sha256>::clone(mac).chain_update(message);
                mac.verify_slice(signature).is_ok()
            }
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?}, id {:?})", self.algorithm(), self.id)
    }
}

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

/// Whether a JWK has a part that only its owner should have (RFC 7518, 6.2.2, 6.3.2, 6.4.1).
pub(super) fn is_private(jwk: &Value) -> bool {
    jwk.get("d").is_some() || jwk.get("k").is_some()
}

fn decoded(text: &Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.as_ref()?).ok()
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Material> {
    let (n, e) = (trimmed(modulus), trimmed(exponent));
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    let odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    let sound = RSA_BITS.contains(&bits) && e.len() <= MAX_EXPONENT && odd(n) && odd(e) && e != [1];
    sound.then(|| Material::Rsa(n.into(), e.into()))
}

/// Without the zero that some put before a number whose first bit is set.
fn trimmed(number: &[u8]) -> &[u8] {
    match number {
        [0, rest @ ..] => rest,
        _ => number,
    }
}
