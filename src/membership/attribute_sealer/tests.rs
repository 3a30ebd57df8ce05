use super::*;
use crate::livekit::id::{ParticipantIdentity, RoomName};
use crate::livekit::sealed_attribute::MAX_SEALED_ATTRIBUTE_BYTES;

fn api_key(secret: &str) -> ApiKey {
    ApiKey::new("key", secret)
}

fn as_token(text: &str) -> AppServiceSecret {
    AppServiceSecret::parse(text).unwrap()
}

fn sealer(api_secret: &str) -> AttributeSealer {
    let key = api_key(api_secret);
    AttributeSealer::new(&key, std::slice::from_ref(&key), &as_token("an-as-token"))
}

fn key(room: &str, identity: &str) -> ParticipantKey {
    ParticipantKey {
        room: RoomName::new(room.into()).unwrap(),
        identity: ParticipantIdentity::new(identity.into()).unwrap(),
    }
}

fn member(room: &str, user: &str) -> RoomMember {
    RoomMember {
        room_id: RoomId::parse(room).unwrap(),
        user_id: UserId::parse(user).unwrap(),
    }
}

fn alice() -> RoomMember {
    member("!room:example.com", "@alice:example.com")
}

#[test]
fn another_replica_with_the_same_secrets_opens_a_sealed_attribute() {
    let key = key("r", "me");
    let sealed = sealer("secret").seal(&key, &alice());
    assert_eq!(sealer("secret").open(&key, &sealed), Some(alice()));
    let received = SealedAttribute::parse(sealed.as_str()).unwrap();
    assert_eq!(sealer("secret").open(&key, &received), Some(alice()));
    assert_ne!(
        sealer("secret").seal(&key, &alice()),
        sealed,
        "equal plaintexts must not be recognisable"
    );
}

/// The plaintext's format, the label and the use of the `as_token`: a release must open what the one before it has sealed.
#[test]
fn attributes_of_earlier_releases_are_opened() {
    let sealed = "AAECAwQFBgcICQoLftNXhv5yOt6aWchkA3K9nJ_Yhl1XSX7q8NO3b4NT1_7UOfHG-utfeDhlRb8CCW_HjPye-40MQ-1brxhwNNXLSyQFmhps5gt5HVIGP3XQHr4QblAEiIekTmZbGr1-Fzdmuv0BB-W8jN6Z-vfpeqQ1xMq3y1totrwmxbsPJpLskarSUyo7DUZOOYhUaDrF21_r";
    let sealed = SealedAttribute::parse(sealed).unwrap();
    let opened = sealer("secret").open(&key("r", "me"), &sealed);
    assert_eq!(opened, Some(alice()));
}

#[test]
fn a_sealed_attribute_is_bound_to_its_participant() {
    let sealer = sealer("secret");
    let sealed = sealer.seal(&key("r", "me"), &alice());
    for other in [
        key("s", "me"),
        key("r", "you"),
        key("rm", "e"),
        key("me", "r"),
    ] {
        assert_eq!(sealer.open(&other, &sealed), None, "{other:?}");
    }
}

#[test]
fn any_configured_key_opens_and_no_other() {
    let (old, new) = (api_key("old"), api_key("new"));
    let key = key("r", "me");
    let sealed = sealer("old").seal(&key, &alice());
    let token = as_token("an-as-token");
    let rotated = AttributeSealer::new(&new, &[new.clone(), old.clone()], &token);
    assert_eq!(rotated.open(&key, &sealed), Some(alice()));
    let resealed = rotated.seal(&key, &alice());
    assert_eq!(sealer("new").open(&key, &resealed), Some(alice()));
    assert_eq!(sealer("new").open(&key, &sealed), None, "without old key");
    let other = AttributeSealer::new(&old, std::slice::from_ref(&old), &as_token("another"));
    assert_eq!(
        other.open(&key, &sealed),
        None,
        "the API secret alone, which the SFU has, must not suffice"
    );
}

#[test]
fn a_changed_attribute_is_not_opened() {
    let (sealer, key) = (sealer("secret"), key("r", "me"));
    let sealed = sealer.seal(&key, &alice());
    let bytes = URL_SAFE_NO_PAD.decode(sealed.as_str()).unwrap();
    let open = |bytes: &[u8]| {
        let sealed = SealedAttribute::parse(&URL_SAFE_NO_PAD.encode(bytes)).unwrap();
        sealer.open(&key, &sealed)
    };
    assert_eq!(open(&bytes), Some(alice()));
    for index in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[index] ^= 1;
        assert_eq!(open(&changed), None, "{index}");
    }
    for length in 1..bytes.len() {
        assert_eq!(open(&bytes[..length]), None, "{length}");
    }
    assert_eq!(open(&[&bytes[..], &[0]].concat()), None);
    for forged in [
        "a",
        "AAAA",
        &"A".repeat(MAX_SEALED_ATTRIBUTE_BYTES),
        "abcde",
    ] {
        let forged = SealedAttribute::parse(forged).unwrap();
        assert_eq!(sealer.open(&key, &forged), None);
    }
}

#[test]
fn the_longest_ids_fit_and_short_ids_have_one_length() {
    let (sealer, key) = (sealer("secret"), key("r", "me"));
    let user = format!("@{}:b.org", "u".repeat(255 - 7));
    let longest = member(&format!("!{}", "r".repeat(254)), &user);
    let sealed = sealer.seal(&key, &longest);
    assert_eq!(sealed.as_str().len(), MAX_SEALED_ATTRIBUTE_BYTES);
    assert_eq!(sealer.open(&key, &sealed), Some(longest));
    let length = |member| sealer.seal(&key, &member).as_str().len();
    let other = member("!abcdefghijklmnopqr:b.org", "@a.long.name:matrix.b.org");
    assert_eq!(length(alice()), length(other));
}

#[test]
fn keys_and_attributes_are_absent_from_debug_output() {
    let debug = format!("{:?}", sealer("hidden secret"));
    assert_eq!(debug, "AttributeSealer(1 keys hidden)");
    let sealed = sealer("x").seal(&key("r", "me"), &alice());
    assert!(!format!("{sealed:?}").contains(sealed.as_str()));
}
