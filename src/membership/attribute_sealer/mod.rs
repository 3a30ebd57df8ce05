//! Encryption of the participant attribute with the Matrix room and user of a participant, from which participants are recognised
//! after a restart and by other replicas. It is encrypted because the names in LiveKit are hashes on purpose.

#[cfg(test)]
mod tests;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::livekit::access_token::ApiKey;
use crate::livekit::id::ParticipantKey;
use crate::livekit::sealed_attribute::SealedAttribute;
use crate::matrix::id::{RoomId, RoomMember, UserId};
use crate::matrix::registration::AppServiceSecret;
use crate::util::random;

/// Label of the key derivation; it does not begin like a token (`eyJ`). A change makes the attributes of connected participants unreadable.
const KEY_DERIVATION_LABEL: &str = "livekit-token-service sealed participant 1";
/// The plaintext is padded to a multiple of this many bytes, so that its length does not identify the user.
const PADDING_BLOCK: usize = 128;

/// Encrypts and decrypts sealed attributes with AES-256-GCM.
///
/// The keys are derived from the API secret and the `as_token`: the SFU knows the former and the homeserver the latter, and neither can
/// decrypt. A new `as_token` makes older attributes unreadable.
pub(crate) struct AttributeSealer {
    sealing_key: LessSafeKey,
    opening_keys: Vec<LessSafeKey>,
}

impl AttributeSealer {
    /// Seals with a key derived from `signing_key`, and opens with those derived from any of `all_keys`.
    pub(crate) fn new(
        signing_key: &ApiKey,
        all_keys: &[ApiKey],
        as_token: &AppServiceSecret,
    ) -> Self {
        // the Authorization header, not the bare token, is part of the label in use
        let label = format!(
            "{KEY_DERIVATION_LABEL}\n{}",
            as_token.authorization_header()
        );
        let derive = |key: &ApiKey| {
            // AES-256 takes the 32 bytes of the derived key
            let key = UnboundKey::new(&AES_256_GCM, &key.derive_key(&label));
            LessSafeKey::new(key.unwrap_or_else(|_| unreachable!()))
        };
        Self {
            sealing_key: derive(signing_key),
            opening_keys: all_keys.iter().map(derive).collect(),
        }
    }

    /// Seals the Matrix room and user of a participant. The result can be opened for the same `key` only.
    pub(crate) fn seal(&self, key: &ParticipantKey, member: &RoomMember) -> SealedAttribute {
        // random nonces suffice for 2^32 messages of one key (NIST SP 800-38D, 8.3)
        let nonce: [u8; NONCE_LEN] = random::bytes();
        let mut text = encode_plaintext(member);
        self.sealing_key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                associated_data(key),
                &mut text,
            )
            // fails for gigabytes only
            .unwrap_or_else(|_| unreachable!());
        let text = URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat());
        // at most 540 bytes, which fit in base64url
        SealedAttribute::parse(&text).unwrap_or_else(|| unreachable!())
    }

    /// The Matrix room and user, if the attribute was sealed for `key` with any of the keys.
    pub(crate) fn open(
        &self,
        key: &ParticipantKey,
        attribute: &SealedAttribute,
    ) -> Option<RoomMember> {
        let bytes = URL_SAFE_NO_PAD.decode(attribute.as_str()).ok()?;
        let (nonce, ciphertext) = bytes.split_first_chunk::<NONCE_LEN>()?;
        self.opening_keys.iter().find_map(|opening_key| {
            let mut text = ciphertext.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let opened = opening_key.open_in_place(nonce, associated_data(key), &mut text);
            decode_plaintext(opened.ok()?)
        })
    }
}

impl fmt::Debug for AttributeSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "AttributeSealer({} keys hidden)",
            self.opening_keys.len()
        )
    }
}

/// Binds a sealed attribute to its participant.
fn associated_data(key: &ParticipantKey) -> Aad<String> {
    Aad::from(key.to_json())
}

/// The lengths of room id and user id in one byte each, both ids, and zeros.
fn encode_plaintext(member: &RoomMember) -> Vec<u8> {
    let ids = [member.room_id.as_str(), member.user_id.as_str()];
    // an id has at most 255 bytes
    let lengths = ids.map(|id| u8::try_from(id.len()).unwrap_or_else(|_| unreachable!()));
    let mut text = [&lengths, ids[0].as_bytes(), ids[1].as_bytes()].concat();
    text.resize(text.len().next_multiple_of(PADDING_BLOCK), 0);
    text
}

fn decode_plaintext(text: &[u8]) -> Option<RoomMember> {
    let ([room, user], ids) = text.split_first_chunk()?;
    let (room, rest) = ids.split_at_checked(usize::from(*room))?;
    let (user, _padding) = rest.split_at_checked(usize::from(*user))?;
    Some(RoomMember {
        room_id: RoomId::parse_for_path(std::str::from_utf8(room).ok()?).ok()?,
        user_id: UserId::parse(std::str::from_utf8(user).ok()?).ok()?,
    })
}
