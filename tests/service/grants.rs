//! What settings change in a token.

use serde_json::Value;

use crate::jwt;
use crate::settings::{SECRET, Settings};
use crate::sfu::Conduct;
use crate::stage::Stage;

#[test]
fn the_lifetime_is_a_setting() {
    let stage =
        Stage::restricted_with(|settings| settings.set("LIVEKIT_TOKEN_LIFETIME_SECONDS", "60"));
    for claims in both(&stage) {
        let left = claims["exp"].as_i64().unwrap() - jwt::now();
        assert!((30..=70).contains(&left), "{claims}");
    }
}

#[test]
fn users_may_change_their_metadata_only_if_the_administrator_says_so() {
    for (value, may) in [
        ("true", true),
        ("yes", true),
        ("1", true),
        ("false", false),
        ("", false),
    ] {
        let stage = Stage::restricted_with(|settings| {
            settings.set("LIVEKIT_CAN_UPDATE_OWN_METADATA", value)
        });
        for claims in both(&stage) {
            let granted = claims["video"]["canUpdateOwnMetadata"] == true;
            assert_eq!(granted, may, "{value:?} {claims}");
        }
    }
}

#[test]
fn remote_users_may_be_kept_from_publishing() {
    let silence = |settings: Settings| settings.set("LIVEKIT_REMOTE_USERS_MAY_PUBLISH", "false");
    for claims in both(&Stage::restricted_with(silence)) {
        assert_eq!(claims["video"]["canPublish"], false, "{claims}");
        assert_ne!(claims["video"]["canPublishData"], true, "{claims}");
        assert_eq!(claims["video"]["canSubscribe"], true, "{claims}");
    }
    for claims in both(&Stage::full_access_with(Conduct::Serves, silence)) {
        assert_eq!(claims["video"]["canPublish"], true, "{claims}");
    }
}

/// The claims of the tokens of both endpoints.
fn both(stage: &Stage) -> [Value; 2] {
    let user = stage.homeserver.user("alice");
    [stage.get_token(&user), stage.sfu_get(&user)].map(|reply| jwt::claims(&reply.jwt(), SECRET))
}
