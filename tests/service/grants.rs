//! Settings that change the grants and the lifetime of access tokens.

use serde_json::Value;

use crate::jwt;
use crate::settings::{SECRET, Settings};
use crate::setup::TestSetup;
use crate::sfu::SfuBehaviour;

#[test]
fn the_token_lifetime_is_configurable() {
    let setup =
        TestSetup::restricted_with(|settings| settings.set("LIVEKIT_TOKEN_LIFETIME_SECONDS", "60"));
    for claims in claims_of_both_endpoints(&setup) {
        let remaining = claims["exp"].as_i64().unwrap() - jwt::now();
        assert!((30..=70).contains(&remaining), "{claims}");
    }
}

#[test]
fn the_grant_to_update_own_metadata_is_configurable() {
    for (value, expected) in [
        ("true", true),
        ("yes", true),
        ("1", true),
        ("false", false),
        ("", false),
    ] {
        let setup = TestSetup::restricted_with(|settings| {
            settings.set("LIVEKIT_CAN_UPDATE_OWN_METADATA", value)
        });
        for claims in claims_of_both_endpoints(&setup) {
            let granted = claims["video"]["canUpdateOwnMetadata"] == true;
            assert_eq!(granted, expected, "{value:?} {claims}");
        }
    }
}

#[test]
fn remote_users_can_be_denied_to_publish() {
    let deny_publishing =
        |settings: Settings| settings.set("LIVEKIT_REMOTE_USERS_MAY_PUBLISH", "false");
    for claims in claims_of_both_endpoints(&TestSetup::restricted_with(deny_publishing)) {
        assert_eq!(claims["video"]["canPublish"], false, "{claims}");
        assert_ne!(claims["video"]["canPublishData"], true, "{claims}");
        assert_eq!(claims["video"]["canSubscribe"], true, "{claims}");
    }
    for claims in claims_of_both_endpoints(&TestSetup::full_access_with(
        SfuBehaviour::Serves,
        deny_publishing,
    )) {
        assert_eq!(claims["video"]["canPublish"], true, "{claims}");
    }
}

/// The claims of a token of each endpoint.
fn claims_of_both_endpoints(setup: &TestSetup) -> [Value; 2] {
    let user = setup.homeserver.user("alice");
    [setup.get_token(&user), setup.sfu_get(&user)].map(|reply| jwt::claims(&reply.jwt(), SECRET))
}
