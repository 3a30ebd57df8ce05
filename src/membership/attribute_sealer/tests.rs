use super::*;
use crate::livekit::id::{ParticipantIdentity, RoomName};
use crate::livekit::sealed_attribute::MAX_SEALED_ATTRIBUTE_BYTES;

fn api_key(secret: &str) -> ApiKey {
    ApiKey::new("key", secret)
}

fn as_token(text: &str) -> AppServiceSecret {
    AppServiceSecret::parse(text).unwrap()
}

fn seals(secret: &str) -> AttributeSealer {
    let key = api_key(secret);
    AttributeSealer::new(&key, std::slice::from_ref(&key), &as_token("an-as-token"))
}

fn key(room: &str, identity: &str) -> ParticipantKey {
    ParticipantKey {
        room: RoomName::new(room.into()).unwrap(),
        identity: ParticipantIdentity::new(identity.into()).unwrap(),
    }
}

fn guest(room: &str, user: &str) -> TrackedParticipant {
    TrackedParticipant {
        room_id: RoomId::parse(room).unwrap(),
        user_id: UserId::parse(user).unwrap(),
    }
}

fn alice() -> TrackedParticipant {
    guest("!room:example.com", "@alice:example.com")
}

#[test]
fn what_is_sealed_is_opened_by_others_with_the_same_keys() {
    let key = key("r", "me");
    let sealed = seals("secret").seal(&key, &alice());
    assert_eq!(seals("secret").open(&key, &sealed), Some(alice()));
    let again = SealedAttribute::parse(sealed.as_str()).unwrap();
    assert_eq!(seals("secret").open(&key, &again), Some(alice()));
    assert_ne!(
        seals("secret").seal(&key, &alice()),
        sealed,
        "nobody can tell that it is the same one"
    );
}

#[test]
fn a_seal_is_for_one_participant_of_one_room() {
    let seals = seals("secret");
    let sealed = seals.seal(&key("r", "me"), &alice());
    for other in [
        key("s", "me"),
        key("r", "you"),
        key("rm", "e"),
        key("me", "r"),
    ] {
        assert_eq!(seals.open(&other, &sealed), None, "{other:?}");
    }
}

#[test]
fn a_seal_opens_with_any_key_that_there_is_and_with_no_other() {
    let (old, new) = (api_key("old"), api_key("new"));
    let key = key("r", "me");
    let sealed = seals("old").seal(&key, &alice());
    let token = as_token("an-as-token");
    let rotated = AttributeSealer::new(&new, &[new.clone(), old.clone()], &token);
    assert_eq!(rotated.open(&key, &sealed), Some(alice()));
    assert_eq!(
        seals("new").open(&key, &rotated.seal(&key, &alice())),
        Some(alice())
    );
    assert_eq!(
        seals("new").open(&key, &sealed),
        None,
        "the old key is gone"
    );
    let other = AttributeSealer::new(&old, std::slice::from_ref(&old), &as_token("another"));
    assert_eq!(
        other.open(&key, &sealed),
        None,
        "the SFU has the API secret"
    );
}

#[test]
fn a_seal_of_which_a_bit_is_changed_is_broken() {
    let (seals, key) = (seals("secret"), key("r", "me"));
    let sealed = seals.seal(&key, &alice());
    let bytes = URL_SAFE_NO_PAD.decode(sealed.as_str()).unwrap();
    let open = |bytes: &[u8]| {
        let sealed = SealedAttribute::parse(&URL_SAFE_NO_PAD.encode(bytes)).unwrap();
        seals.open(&key, &sealed)
    };
    assert_eq!(open(&bytes), Some(alice()));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_eq!(open(&changed), None, "{at}");
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
        assert_eq!(
            seals.open(&key, &SealedAttribute::parse(forged).unwrap()),
            None
        );
    }
}

#[test]
fn the_longest_names_fit_and_short_ones_are_of_one_length() {
    let (seals, key) = (seals("secret"), key("r", "me"));
    let user = format!("@{}:b.org", "u".repeat(255 - 7));
    let longest = guest(&format!("!{}", "r".repeat(254)), &user);
    let sealed = seals.seal(&key, &longest);
    assert_eq!(sealed.as_str().len(), MAX_SEALED_ATTRIBUTE_BYTES);
    assert_eq!(seals.open(&key, &sealed), Some(longest));
    let length = |guest| seals.seal(&key, &guest).as_str().len();
    let other = guest("!abcdefghijklmnopqr:b.org", "@a.long.name:matrix.b.org");
    assert_eq!(length(alice()), length(other));
}

#[test]
fn seals_are_not_shown() {
    let shown = format!("{:?}", seals("hidden secret"));
    assert_eq!(shown, "Seals(1 keys hidden)");
    let sealed = seals("x").seal(&key("r", "me"), &alice());
    assert!(!format!("{sealed:?}").contains(sealed.as_str()));
}
