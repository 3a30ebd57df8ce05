//! Reload with a changed registration: homeserver and service authenticate each other with its new tokens.

use std::fs;

use serde_json::json;

use crate::appservice_setup::{
    AS_TOKEN, AppServiceSetup, HS_TOKEN, USER_PATH, bearer_header, user_header,
};
use crate::reload::reload;

const NEW_AS_TOKEN: &str = "never-logged-as-token-of-the-black-box-suite-new";
const FILE: &str = "LIVEKIT_AS_REGISTRATION_FILE";

/// A registration file whose tokens have this suffix.
pub(crate) fn registration(end: &str) -> String {
    format!(
        "id: doctor's\nas_token: {AS_TOKEN}{end}\nhs_token: {HS_TOKEN}{end}\nproxy_prefix: rtc/livekit\nproxy_url: http://x\n\
         scopes: ['urn:matrix:client:rooms:is_joined']\n"
    )
}

/// Starts a service with its registration in a file.
pub(crate) fn start() -> AppServiceSetup {
    AppServiceSetup::start_with(|settings| {
        let settings = settings.unset("LIVEKIT_AS_TOKEN").unset("LIVEKIT_HS_TOKEN");
        settings.set_file(FILE, &registration(""))
    })
}

#[test]
fn new_tokens_replace_the_old_ones() {
    let setup = start();
    let ask = |token: &str| {
        let fields = [bearer_header(token), user_header("@alice:own.example")];
        setup
            .post(USER_PATH, &fields, &setup.token_request())
            .status
    };
    let new = format!("{HS_TOKEN}-new");
    assert_eq!((ask(HS_TOKEN), ask(&new)), (200, 403));

    let file = setup.settings.path(FILE);
    fs::write(&file, registration("-new")).unwrap();
    setup.set_as_token(NEW_AS_TOKEN);
    reload(&setup.service);
    let before = setup.requests().len();
    assert_eq!((ask(HS_TOKEN), ask(&new)), (403, 200));
    let seen = setup.requests();
    let shown = seen[before..].iter().map(|r| r.header("authorization"));
    let as_token = format!("Bearer {NEW_AS_TOKEN}");
    assert!(shown.eq([Some(as_token.as_str())]), "{seen:?}");

    fs::write(&file, "id: x\n").unwrap();
    reload(&setup.service);
    let line = setup
        .service
        .wait_for_line_with(&["settings section rejected", FILE]);
    assert!(
        line.contains("level=error") && line.contains("section=\"application service\""),
        "{line}"
    );
    assert_eq!((ask(HS_TOKEN), ask(&new)), (403, 200));
    assert!(!setup.service.log().contains("never-logged"));
    let push = json!({ "events": [] });
    let reply = setup.request(
        "PUT",
        "/_matrix/app/v1/transactions/1",
        &[bearer_header(&new)],
        &push,
    );
    assert_eq!(reply.status, 200);
}
