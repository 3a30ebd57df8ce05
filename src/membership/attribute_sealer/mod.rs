//! What a token says of a guest to ourselves, so that they are known after a restart, and to others of us: the Matrix room and the
//! user, sealed, for the names in LiveKit are hashes on purpose.

#[cfg(test)]
mod tests;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;

use super::table::TrackedParticipant;
use crate::livekit::access_token::ApiKey;
use crate::livekit::id::ParticipantKey;
use crate::livekit::sealed_attribute::SealedAttribute;
use crate::matrix::id::{RoomId, UserId};
use crate::matrix::registration::AppServiceSecret;
use crate::util::random;

/// What the keys are derived for. No token begins like this, so that no signature of one is such a key.
const KEY_DERIVATION_LABEL: &str = "livekit-token-service sealed guest 1";
/// What is sealed is a multiple of this many bytes: how long somebody's name is tells who they are.
const PADDING_BLOCK: usize = 128;

/// Seals, and opens what is sealed here or by others of us.
///
/// The keys come from the API secret and the `as_token` together: the SFU knows the first, our homeserver the second, and neither
/// can read what it carries. With a new `as_token` older seals are sealed for good.
pub(crate) struct AttributeSealer {
    sealing_key: LessSafeKey,
    opening_keys: Vec<LessSafeKey>,
}

impl AttributeSealer {
    /// Seals with what comes from `signs`, and opens with what comes from any of `keys`.
    pub(crate) fn new(signs: &ApiKey, keys: &[ApiKey], as_token: &AppServiceSecret) -> Self {
        let label = format!(
            "{KEY_DERIVATION_LABEL}\n{}",
            as_token.authorization_header()
        );
        let derived = |key: &ApiKey| {
            // the algorithm takes keys of 32 bytes, and these are
            let key = UnboundKey::new(&AES_256_GCM, &key.derive_key(&label));
            LessSafeKey::new(key.unwrap_or_else(|_| unreachable!()))
        };
        Self {
            sealing_key: derived(signs),
            opening_keys: keys.iter().map(derived).collect(),
        }
    }

    /// Seals who `guest` is, for those who are `key` in LiveKit and for nobody else.
    pub(crate) fn seal(&self, key: &ParticipantKey, guest: &TrackedParticipant) -> SealedAttribute {
        // random nonces do for some 2^32 seals of one key (NIST SP 800-38D, 8.3)
        let nonce: [u8; NONCE_LEN] = random::bytes();
        let mut text = encode_plaintext(guest);
        let once = Nonce::assume_unique_for_key(nonce);
        let sealed =
            self.sealing_key
                .seal_in_place_append_tag(once, associated_data(key), &mut text);
        // only gigabytes are too long, and base64url of 540 bytes at most is what fits
        sealed.unwrap_or_else(|_| unreachable!());
        let text = URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat());
        SealedAttribute::parse(&text).unwrap_or_else(|| unreachable!())
    }

    /// Who they are that are `key` in LiveKit, if it is one of us who says so.
    pub(crate) fn open(
        &self,
        key: &ParticipantKey,
        sealed: &SealedAttribute,
    ) -> Option<TrackedParticipant> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed.as_str()).ok()?;
        let (nonce, text) = bytes.split_first_chunk::<NONCE_LEN>()?;
        self.opening_keys.iter().find_map(|opening| {
            let mut text = text.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let opened: Result<&mut [u8], Unspecified> =
                opening.open_in_place(nonce, associated_data(key), &mut text);
            decode_plaintext(opened.ok()?)
        })
    }
}

impl fmt::Debug for AttributeSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seals({} keys hidden)", self.opening_keys.len())
    }
}

/// What a seal cannot be taken away from.
fn associated_data(key: &ParticipantKey) -> Aad<String> {
    Aad::from(key.to_json())
}

/// The lengths of both ids in a byte each, the ids, and zeros.
fn encode_plaintext(guest: &TrackedParticipant) -> Vec<u8> {
    let ids = [guest.room_id.as_str(), guest.user_id.as_str()];
    // ids have 255 bytes at most
    let lengths = ids.map(|id| u8::try_from(id.len()).unwrap_or_else(|_| unreachable!()));
    let mut text = [&lengths, ids[0].as_bytes(), ids[1].as_bytes()].concat();
    text.resize(text.len().next_multiple_of(PADDING_BLOCK), 0);
    text
}

fn decode_plaintext(text: &[u8]) -> Option<TrackedParticipant> {
    let ([room, user], ids) = text.split_first_chunk()?;
    let (room, rest) = ids.split_at_checked(usize::from(*room))?;
    let (user, _) = rest.split_at_checked(usize::from(*user))?;
    Some(TrackedParticipant {
        room_id: RoomId::parse_for_path(std::str::from_utf8(room).ok()?).ok()?,
        user_id: UserId::parse(std::str::from_utf8(user).ok()?).ok()?,
    })
}
