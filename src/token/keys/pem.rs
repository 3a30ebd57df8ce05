//! A public key in PEM form (RFC 7468, 13; RFC 5280, 4.1), as login servers offer it beside their JWKS.

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;

use super::{Error, VerificationKey};

/// The algorithm identifiers (RFC 3279, RFC 5480, RFC 8410), each with what it says of its key.
const RSA_ALGORITHM_ID: &[u8] = &[
    0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0,
];
const P256_ALGORITHM_ID: &[u8] = &[
    0x30, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7,
];
const ED25519_ALGORITHM_ID: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;

/// The one public key of a PEM file. Several would have no names to tell them apart: that is what a JWKS is for.
pub(super) fn parse_public_key(text: &[u8]) -> Result<VerificationKey, Error> {
    if text.windows(16).any(|window| window == b"PRIVATE KEY-----") {
        return Err(Error::PrivateKey);
    }
    let found: Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(text).collect();
    match found.as_deref() {
        Ok([der]) => parse_spki(der).ok_or(Error::NoUsableKey),
        _ => Err(Error::UnknownFormat),
    }
}

pub(super) fn parse_spki(der: &[u8]) -> Option<VerificationKey> {
    let (info, []) = read_der_element(SEQUENCE, der)? else {
        return None;
    };
    let bits = |algorithm| match read_der_element(BIT_STRING, info.strip_prefix(algorithm)?)? {
        ([0, bits @ ..], []) => Some(bits),
        _ => None,
    };
    if let Some(point) = bits(P256_ALGORITHM_ID) {
        return VerificationKey::p256(point);
    }
    if let Some(key) = bits(ED25519_ALGORITHM_ID) {
        return VerificationKey::ed25519(key);
    }
    let (numbers, _) = read_der_element(SEQUENCE, bits(RSA_ALGORITHM_ID)?)?;
    let (modulus, rest) = read_der_element(INTEGER, numbers)?;
    let (exponent, _) = read_der_element(INTEGER, rest)?;
    VerificationKey::rsa_material(modulus, exponent)
}

/// The content of the element that stands first, if it is of this kind, and what follows it (X.690, 8.1).
fn read_der_element(kind: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match der {
        [tag, length @ 0..=0x7f, rest @ ..] if *tag == kind => (usize::from(*length), rest),
        [tag, 0x81, length, rest @ ..] if *tag == kind => (usize::from(*length), rest),
        [tag, 0x82, high, low, rest @ ..] if *tag == kind => {
            (usize::from(*high) << 8 | usize::from(*low), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}
