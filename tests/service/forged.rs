//! Text that a caller or a homeserver chooses adds no fields to the log.

use serde_json::json;

use crate::client;
use crate::fields::{field, fields};
use crate::setup::TestSetup;

/// Text that would be additional fields if it were not quoted.
const FORGERIES: [&str; 6] = [
    "x user=@admin:good.example access=full status=200",
    "x\" user=\"@admin:good.example\" access=full status=\"200",
    "x\\\" user=@admin:good.example access=full status=200 y=\\",
    "\" access=full",
    "=",
    "x\u{a0}user=@admin:good.example\u{2028}access=full\u{85}status=200",
];

#[test]
fn device_room_and_localpart_stay_within_their_fields() {
    let setup = TestSetup::restricted();
    for (number, forgery) in FORGERIES.iter().enumerate() {
        // control characters are refused
        let forgery = forgery.replace('\u{85}', "");
        let mark = format!("mark{number}");
        // a historical localpart; a colon would end the localpart
        let user = setup.homeserver.user(&forgery.replace(':', "/"));
        let room = format!("!{mark} {forgery}");
        let mut get_token = user.get_token();
        get_token["room_id"] = json!(room);
        get_token["member"]["claimed_device_id"] = json!(forgery);
        get_token["member"]["id"] = json!(forgery);
        get_token["slot_id"] = json!(forgery);
        let mut sfu_get = user.sfu_get();
        sfu_get["room"] = json!(room);
        sfu_get["device_id"] = json!(forgery);
        for (path, body) in [("get_token", get_token), ("sfu/get", sfu_get)] {
            let reply = setup.service.post(&format!("/{path}"), &body);
            assert_eq!(reply.status, 200, "{forgery:?} {reply:?}");
            let line = setup.service.wait_for_line_with(&[
                "token issued",
                &mark,
                &format!("endpoint={path} "),
            ]);
            let names: Vec<_> = fields(&line).into_iter().map(|(name, _)| name).collect();
            let expected = "time level target msg request client endpoint user access matrix_room room identity ms";
            assert_eq!(names.join(" "), expected, "{line}");
            assert_eq!(field(&line, "access").unwrap(), "restricted", "{line}");
            assert_field_is(&line, "user", &user.id);
            assert_field_is(&line, "matrix_room", &room);
        }
    }
}

#[test]
fn text_of_a_homeserver_and_of_a_caller_stays_within_the_cause() {
    let setup = TestSetup::restricted();
    for (number, forgery) in FORGERIES.iter().enumerate() {
        let localpart = forgery.replace('\u{85}', "").replace(':', "/");
        let mark = format!("mark{number}");
        // the userinfo names a user of another server; the request claims another user id
        let foreign = setup.homeserver.user_with_unknown_token("alice");
        let id = format!("@{mark}-foreign-{localpart}:elsewhere.example");
        setup.homeserver.set_userinfo(&foreign.token, &id);
        let mut claimed = setup.homeserver.user("alice");
        claimed.id = format!("@{mark}-claimed-{forgery}");
        for user in [foreign, claimed] {
            let reply = setup.get_token(&user);
            assert_eq!(reply.status, 401, "{forgery:?} {reply:?}");
        }
        for kind in ["foreign", "claimed"] {
            let line = setup.service.wait_for_line_with(&["refused", &mark, kind]);
            assert_refusal(&line, "401");
        }
        let server_name = format!("{mark} {forgery}");
        let mut user = setup.homeserver.user_with_unknown_token("alice");
        user.server_name.clone_from(&server_name);
        assert_eq!(setup.get_token(&user).status, 401, "{server_name:?}");
        let line = setup
            .service
            .wait_for_line_with(&["refused", "server=\"mark", &mark]);
        assert_refusal(&line, "401");
        assert_field_is(&line, "server", &server_name);
    }
}

#[test]
fn path_and_forwarded_address_stay_within_their_fields() {
    let setup = TestSetup::restricted();
    let path = "/mark\"status=200\"client=8.8.8.8?x";
    assert_eq!(setup.service.request("GET", path).status, 404);
    let line = setup.service.wait_for_line_with(&["refused", "mark"]);
    assert_refusal(&line, "404");
    assert_eq!(field(&line, "client").unwrap(), "127.0.0.1", "{line}");

    let alice = setup.homeserver.user("alice");
    for client in ["8.8.8.8 access=full", "\"8.8.8.8\" user=@admin:x", "x=y"] {
        let body = alice.get_token();
        let reply = setup
            .service
            .raw(&client::forwarded(client, "/get_token", &body));
        assert!(matches!(reply.status, 200 | 400), "{reply:?}");
    }
    assert_eq!(setup.get_token(&alice).status, 200);
    setup
        .service
        .wait_for_line_with(&["token issued", "client=127.0.0.1"]);
    for line in setup.service.log().lines() {
        if let Some(client) = field(line, "client") {
            let ip = client.parse::<std::net::IpAddr>();
            assert!(ip.is_ok(), "{line}");
        }
        let access = field(line, "access");
        assert!(access.is_none_or(|access| access == "restricted"), "{line}");
    }
}

fn assert_refusal(line: &str, status: &str) {
    assert_eq!(field(line, "status").unwrap(), status, "{line}");
    for name in ["user", "access", "identity"] {
        assert_eq!(field(line, name), None, "{name} in {line}");
    }
}

/// Asserts the field's value; of a value with non-ASCII characters, which the log escapes, only the length.
fn assert_field_is(line: &str, name: &str, expected: &str) {
    let plain = |text: &str| {
        let parts = text.split(|c: char| !c.is_ascii() || c == '{' || c == '}');
        parts.collect::<String>()
    };
    let found = field(line, name).unwrap_or_else(|| panic!("no {name} in {line}"));
    if expected.is_ascii() {
        assert_eq!(found, expected, "{line}");
    } else {
        assert!(plain(&found).len() >= plain(expected).len(), "{line}");
    }
}
