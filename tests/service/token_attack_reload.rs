//! A policy file that changes under a running service: a right one takes effect, a wrong one leaves everything as it was.

use std::fs;

use serde_json::json;

use crate::fake_issuer::{FakeIssuer, IssuerBehaviour, SigningKey};
use crate::process::Service;
use crate::settings::Settings;
use crate::token_client::{
    APP_KEY, app_entry, key_hash, policy_settings, request_token, users_entry,
};

const FILE: &str = "TOKEN_SERVER_POLICY_FILE";

struct Running {
    settings: Settings,
    service: Service,
}

impl Running {
    fn with(policy: &str) -> Self {
        let settings = policy_settings(policy);
        let service = Service::start(&settings);
        Self { settings, service }
    }

    /// Puts another file there, and waits until the service has said these words about it.
    fn change(&self, policy: &[u8], words: &[&str]) {
        fs::write(self.settings.path(FILE), policy).unwrap();
        self.service.hang_up();
        self.service.wait_for_words(words);
    }

    fn status(&self, bearer: &str, room: &str) -> u16 {
        let body = json!({"room_name": room, "participant_identity": "alice"});
        request_token(self.service.address(), bearer, &body).status
    }
}

#[test]
fn a_wrong_new_policy_keeps_the_old_one() {
    let running = Running::with(&app_entry("rooms = [\"old-*\"]"));
    let still = |what: &str| {
        assert_eq!(running.status(APP_KEY, "old-1"), 201, "after {what}");
        assert_eq!(running.status(APP_KEY, "new-1"), 403, "after {what}");
    };
    let open = "rooms = [\"*\"]\n";
    for (number, wrong) in [
        "rooms = [7]\n",
        "room = [\"*\"]\n",
        "rooms = []\n",
        "rooms = \"*\"\n",
        "grants = [\"roomAdmin\"]\n",
        "max_lifetime_seconds = 999999999999\n",
        "rooms = [\"{user}\"]\n",
        "keys = [\"never-logged-key-instead-of-its-hash\"]\n",
        "[callers.\"a b\"]\n",
    ]
    .iter()
    .enumerate()
    {
        // each stands on a line of its own, so that it is known which one the service speaks of
        let above = "#\n".repeat(100 * (number + 1));
        let text = format!("{above}[callers.new]\n{wrong}[callers.app]\n{open}");
        let line = format!("line {}", 100 * (number + 1) + 2);
        running.change(text.as_bytes(), &[FILE, &line]);
        still(wrong);
    }
    running.change(b"\xff\xfe", &[FILE, "UTF-8"]);
    still("bytes that are no text");
    running.change(&vec![b'#'; 4 * 1024 * 1024], &[FILE, "larger"]);
    still("4 MB");
    fs::remove_file(running.settings.path(FILE)).unwrap();
    running.service.hang_up();
    running.service.wait_for_words(&[FILE, "No such file"]);
    still("its removal");
}

#[test]
fn a_key_that_was_taken_away_opens_nothing_any_more() {
    let leaked = format!("lts_ffffffff_{}", "5".repeat(64));
    let with_leaked =
        app_entry("") + &format!("[callers.leaked]\nkeys = [\"{}\"]\n", key_hash(&leaked));
    let running = Running::with(&with_leaked);
    assert_eq!(running.status(&leaked, "room"), 201);
    running.change(
        app_entry("rooms = [\"new-*\"]").as_bytes(),
        &[FILE, "re-read"],
    );
    assert_eq!(running.status(&leaked, "room"), 401);
    assert_eq!(running.status(APP_KEY, "new-1"), 201);
    assert_eq!(running.status(APP_KEY, "old-1"), 403);
}

#[test]
fn a_new_policy_does_not_forget_the_keys_of_a_login_that_is_down() {
    let key = SigningKey::rsa("one");
    let login = FakeIssuer::with_keys(&[&key]);
    let running = Running::with(&users_entry(&login.url(), "rooms = [\"old-*\"]"));
    assert_eq!(running.status(&key.token_for("alice"), "old-1"), 201);
    login.set_behaviour(IssuerBehaviour::Hangs);
    let changed = users_entry(&login.url(), "rooms = [\"new-*\"]");
    running.change(changed.as_bytes(), &[FILE, "re-read"]);
    assert_eq!(running.status(&key.token_for("alice"), "new-1"), 201);
    assert_eq!(running.status(&key.token_for("alice"), "old-1"), 403);
    assert_eq!(login.fetch_count(), 1);
}
