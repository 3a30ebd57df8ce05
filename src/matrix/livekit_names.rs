//! Names of LiveKit rooms and participants, derived from Matrix identifiers (MSC4195).

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

use crate::livekit::id::{InvalidLiveKitName, ParticipantIdentity, RoomName};
use crate::matrix::appservice::JoinedUser;
use crate::matrix::id::{DeviceId, MemberId, RoomId, SlotId, UserId};
use crate::matrix::openid::VerifiedUser;

/// The slot of clients that name none: the one call of a room.
pub(crate) const DEFAULT_SLOT: &str = "m.call#ROOM";

/// A user who is proven to send the request.
pub(crate) trait AuthenticatedUser {
    fn user_id(&self) -> &UserId;
}

impl AuthenticatedUser for VerifiedUser {
    fn user_id(&self) -> &UserId {
        self.id()
    }
}

impl AuthenticatedUser for JoinedUser {
    fn user_id(&self) -> &UserId {
        self.id()
    }
}

/// The LiveKit room of a slot in a Matrix room.
pub(crate) fn derive_room_name(room: &RoomId, slot: &SlotId) -> RoomName {
    // 43 characters of base64 are a valid name
    RoomName::new(hash_names(&[room.as_str(), slot.as_str()])).unwrap_or_else(|_| unreachable!())
}

/// Whether [`derive_room_name`] may have made this name. An SFU may serve other applications' rooms as well.
pub(crate) fn has_derived_format(room: &RoomName) -> bool {
    let hash = STANDARD_NO_PAD.decode(room.as_str());
    hash.is_ok_and(|hash| hash.len() == Sha256::output_size())
}

/// The identity of a member with a device.
pub(crate) fn derive_device_identity(
    user: &impl AuthenticatedUser,
    device: &DeviceId,
    member: &MemberId,
) -> ParticipantIdentity {
    let hash = hash_names(&[user.user_id().as_str(), device.as_str(), member.as_str()]);
    ParticipantIdentity::new(hash).unwrap_or_else(|_| unreachable!())
}

/// The identity of a member in the latest MSC4195, which has no device.
pub(crate) fn derive_member_identity(user: &JoinedUser, member: &MemberId) -> ParticipantIdentity {
    let hash = hash_names(&[user.id().as_str(), member.as_str()]);
    ParticipantIdentity::new(hash).unwrap_or_else(|_| unreachable!())
}

/// The identity that clients of `/sfu/get` expect: `@user:server:DEVICE`, unhashed.
///
/// The client chooses the device id, so one that looks like a port is refused: `@user:server` with it would read as a user of
/// `server:port`.
pub(crate) fn legacy_identity(
    user: &VerifiedUser,
    device: &DeviceId,
) -> Result<ParticipantIdentity, InvalidLiveKitName> {
    let is_port =
        |text: &str| (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let prefix = device.as_str().split_once(':').map(|(prefix, _)| prefix);
    if user.id().server().port().is_none() && prefix.is_some_and(is_port) {
        return Err(InvalidLiveKitName);
    }
    ParticipantIdentity::new(format!("{}:{}", user.id(), device.as_str()))
}

/// Unpadded base64 of the SHA-256 of the canonical JSON array of the names.
///
/// serde_json's compact form is canonical JSON (Matrix spec v1.16, appendix) for arrays of strings: no spaces, UTF-8 unescaped except
/// for quotes, backslashes and control characters.
fn hash_names(names: &[&str]) -> String {
    let json = serde_json::to_vec(names).unwrap_or_else(|_| unreachable!());
    STANDARD_NO_PAD.encode(Sha256::digest(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_the_vectors_of_msc4195() {
        let room = derive_room_name(
            &RoomId::parse("!roomid:example.com").unwrap(),
            &SlotId::parse("slot1234").unwrap(),
        );
        assert_eq!(room.as_str(), "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc");
        assert!(has_derived_format(&room));
        for other in ["standup", &"a".repeat(64), &room.as_str()[1..]] {
            assert!(!has_derived_format(&RoomName::new(other.into()).unwrap()));
        }
        let alice = VerifiedUser::for_test("@alice:example.com");
        let member = MemberId::parse("memberABC").unwrap();
        let identity =
            derive_device_identity(&alice, &DeviceId::parse("DEVICE123").unwrap(), &member);
        assert_eq!(
            identity.as_str(),
            "J+T45tGruxc+HrUOqJJlyQSV33m728Cme4+vt8/SWrU"
        );
        let alice = JoinedUser::for_test("@alice:example.com");
        let same = derive_device_identity(&alice, &DeviceId::parse("DEVICE123").unwrap(), &member);
        assert_eq!(same, identity);
        assert_eq!(
            derive_member_identity(&alice, &member).as_str(),
            "M3VnsLXrkbxIDINXO64u8PZzFyD9ZYFiQULR2dshWYs"
        );
    }

    #[test]
    fn compact_json_is_canonical_json() {
        let json = |names: &[&str]| serde_json::to_string(names).unwrap();
        assert_eq!(
            json(&["<&>/é\u{2028}", "a\"\\\n\u{1}\u{7f}"]),
            "[\"<&>/é\u{2028}\",\"a\\\"\\\\\\n\\u0001\u{7f}\"]"
        );
    }

    #[test]
    fn a_device_id_like_a_port_is_refused_after_a_server_without_port() {
        let identity = |user, device| {
            legacy_identity(
                &VerifiedUser::for_test(user),
                &DeviceId::parse(device).unwrap(),
            )
        };
        assert_eq!(
            identity("@alice:example.com", "DEVICE123")
                .unwrap()
                .as_str(),
            "@alice:example.com:DEVICE123"
        );
        assert_eq!(
            identity("@alice:example.com", "a:b").unwrap().as_str(),
            "@alice:example.com:a:b"
        );
        assert!(identity("@alice:example.com", "8448:DEVICE123").is_err());
        assert!(identity("@alice:example.com:8448", "1:DEVICE123").is_ok());
        assert!(identity("@alice:example.com", &"d".repeat(250)).is_err());
    }
}
