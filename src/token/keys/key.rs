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
const MAX_EXPONENT_BYTES: usize = 4;
/// Longest key id in bytes; the longest in use are hashes in hexadecimal.
const MAX_KEY_ID: usize = 256;
/// Bytes of a coordinate on P-256, and of an Ed25519 key.
const COORDINATE_BYTES: usize = 32;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwsAlgorithm {
    /// RSA, PKCS #1 v1.5, SHA-256.
    Rs256,
    /// ECDSA on P-256, SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
    /// HMAC with SHA-256, by whoever can verify it.
    Hs256,
}

impl JwsAlgorithm {
    /// Reads the name of an algorithm (RFC 7518, 3.1; RFC 8037, 3.1; RFC 9864, 2.2). `none` is not one.
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

/// A key that may have signed a token. It knows its one algorithm, whatever the token says.
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

impl VerificationKey {
    pub(super) fn from_secret(secret: &[u8]) -> Self {
        // HMAC takes keys of any length
        let mac = Hmac::new_from_slice(secret).unwrap_or_else(|_| unreachable!());
        Self::without_id(KeyMaterial::Secret(Box::new(mac)))
    }

    pub(super) fn rsa_material(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        rsa(modulus, exponent).map(Self::without_id)
    }

    pub(super) fn p256(point: &[u8]) -> Option<Self> {
        let uncompressed = point.len() == 1 + 2 * COORDINATE_BYTES && point[0] == 4;
        uncompressed.then(|| Self::without_id(KeyMaterial::P256(point.into())))
    }

    pub(super) fn ed25519(key: &[u8]) -> Option<Self> {
        (key.len() == COORDINATE_BYTES).then(|| Self::without_id(KeyMaterial::Ed25519(key.into())))
    }

    fn without_id(material: KeyMaterial) -> Self {
        Self { id: None, material }
    }

    /// Reads a public JWK for signatures; nothing if it is of another kind or for another purpose.
    pub(super) fn from_jwk(jwk: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let coordinate = |text: &Option<String>| {
            let bytes = decode_base64url(text)?;
            (bytes.len() == COORDINATE_BYTES).then_some(bytes)
        };
        let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => {
                Self::rsa_material(&decode_base64url(&jwk.n)?, &decode_base64url(&jwk.e)?)?
            }
            ("EC", Some("P-256")) => {
                Self::p256(&[vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat())?
            }
            ("OKP", Some("Ed25519")) => Self::ed25519(&coordinate(&jwk.x)?)?,
            _ => return None,
        };
        let alg = jwk.alg.as_deref().map(JwsAlgorithm::parse);
        let purposes = jwk.key_ops.unwrap_or_else(|| vec!["verify".to_owned()]);
        let fits = alg.is_none_or(|alg| alg == Some(key.algorithm()))
            && jwk.usage.is_none_or(|usage| usage == "sig")
            && purposes.iter().any(|purpose| purpose == "verify")
            && jwk.kid.as_ref().is_none_or(|id| id.len() <= MAX_KEY_ID);
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
    pub fn algorithm(&self) -> JwsAlgorithm {
        match self.material {
            KeyMaterial::Rsa(..) => JwsAlgorithm::Rs256,
            KeyMaterial::P256(_) => JwsAlgorithm::Es256,
            KeyMaterial::Ed25519(_) => JwsAlgorithm::EdDsa,
            KeyMaterial::Secret(_) => JwsAlgorithm::Hs256,
        }
    }

    /// Whether it has signed the message; a secret tells so in constant time.
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

fn decode_base64url(text: &Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.as_ref()?).ok()
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<KeyMaterial> {
    let (n, e) = (strip_leading_zero(modulus), strip_leading_zero(exponent));
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    let odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    let sound =
        RSA_BITS.contains(&bits) && e.len() <= MAX_EXPONENT_BYTES && odd(n) && odd(e) && e != [1];
    sound.then(|| KeyMaterial::Rsa(n.into(), e.into()))
}

/// Without the zero that some put before a number whose first bit is set.
fn strip_leading_zero(number: &[u8]) -> &[u8] {
    match number {
        [0, rest @ ..] => rest,
        _ => number,
    }
}
