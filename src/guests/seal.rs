//! What a token says of a guest to ourselves, so that they are known after a restart, and to others of us: the Matrix room and the
//! user, sealed, for the names in LiveKit are hashes on purpose.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;

use super::table::Guest;
use crate::journal::Key;
use crate::livekit::sealed::Sealed;
use crate::livekit::token::ApiKey;
use crate::matrix::id::{RoomId, UserId};
use crate::matrix::registration::SharedToken;
use crate::random;

/// What the keys are derived for. No token begins like this, so that no signature of one is such a key.
const LABEL: &str = "livekit-token-service sealed guest 1";
/// What is sealed is a multiple of this many bytes: how long somebody's name is tells who they are.
const BLOCK: usize = 128;

/// Seals, and opens what is sealed here or by others of us.
///
/// The keys come from the API secret and the `as_token` together: the SFU knows the first, our homeserver the second, and neither
/// can read what it carries. With a new `as_token` older seals are sealed for good.
pub struct Seals {
    seals: LessSafeKey,
    open: Vec<LessSafeKey>,
}

impl Seals {
    /// Seals with what comes from `signs`, and opens with what comes from any of `keys`.
    pub fn new(signs: &ApiKey, keys: &[ApiKey], as_token: &SharedToken) -> Self {
        let label = format!("{LABEL}\n{}", as_token.bearer());
        let derived = |key: &ApiKey| {
            // the algorithm takes keys of 32 bytes, and these are
            let key = UnboundKey::new(&AES_256_GCM, &key.derive(&label));
            LessSafeKey::new(key.unwrap_or_else(|_| unreachable!()))
        };
        Self {
            seals: derived(signs),
            open: keys.iter().map(derived).collect(),
        }
    }

    /// Seals who `guest` is, for those who are `key` in LiveKit and for nobody else.
    pub fn seal(&self, key: &Key, guest: &Guest) -> Sealed {
        // random nonces do for some 2^32 seals of one key (NIST SP 800-38D, 8.3)
        let nonce: [u8; NONCE_LEN] = random::bytes();
        let mut text = plain(guest);
        let once = Nonce::assume_unique_for_key(nonce);
        let sealed = self
            .seals
            .seal_in_place_append_tag(once, names(key), &mut text);
        // only gigabytes are too long, and base64url of 540 bytes at most is what fits
        sealed.unwrap_or_else(|_| unreachable!());
        let text = URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat());
        Sealed::parse(&text).unwrap_or_else(|| unreachable!())
    }

    /// Who they are that are `key` in LiveKit, if it is one of us who says so.
    pub fn open(&self, key: &Key, sealed: &Sealed) -> Option<Guest> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed.as_str()).ok()?;
        let (nonce, text) = bytes.split_first_chunk::<NONCE_LEN>()?;
        self.open.iter().find_map(|opening| {
            let mut text = text.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let opened: Result<&mut [u8], Unspecified> =
                opening.open_in_place(nonce, names(key), &mut text);
            read(opened.ok()?)
        })
    }
}

impl fmt::Debug for Seals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seals({} keys hidden)", self.open.len())
    }
}

/// What a seal cannot be taken away from.
fn names(key: &Key) -> Aad<String> {
    Aad::from(key.to_json())
}

/// The lengths of both ids in a byte each, the ids, and zeros.
fn plain(guest: &Guest) -> Vec<u8> {
    let ids = [guest.room.as_str(), guest.user.as_str()];
    // ids have 255 bytes at most
    let lengths = ids.map(|id| u8::try_from(id.len()).unwrap_or_else(|_| unreachable!()));
    let mut text = [&lengths, ids[0].as_bytes(), ids[1].as_bytes()].concat();
    text.resize(text.len().next_multiple_of(BLOCK), 0);
    text
}

fn read(text: &[u8]) -> Option<Guest> {
    let ([room, user], ids) = text.split_first_chunk()?;
    let (room, rest) = ids.split_at_checked(usize::from(*room))?;
    let (user, _) = rest.split_at_checked(usize::from(*user))?;
    Some(Guest {
        room: RoomId::parse_for_path(std::str::from_utf8(room).ok()?).ok()?,
        user: UserId::parse(std::str::from_utf8(user).ok()?).ok()?,
    })
}

#[cfg(test)]
mod tests;
