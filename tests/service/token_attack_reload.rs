//! Reloads of the policy file: a valid file takes effect, an invalid one leaves the previous policy in force.

use std::fs;

use serde_json::json;

use crate::fake_issuer::{FakeIssuer, IssuerBehaviour, SigningKey};
use crate::process::Service;
use crate::settings::Settings;
use crate::token_client::{
    APP_KEY, app_entry, key_hash, policy_settings, request_token, users_entry,
};

const FILE: &str = "TOKEN_SERVER_POLICY_FILE";

struct ReloadSetup {
    settings: Settings,
    service: Service,
}

impl ReloadSetup {
    fn start(policy: &str) -> Self {
        let settings = policy_settings(policy);
        let service = Service::start(&settings);
        Self { settings, service }
    }

    /// Replaces the file, reloads, and waits for a log line with these words.
    fn change(&self, policy: &[u8], words: &[&str]) {
        fs::write(self.settings.path(FILE), policy).unwrap();
        self.service.reload();
        self.service.wait_for_line_with(words);
    }

    fn status(&self, bearer: &str, room: &str) -> u16 {
        let body = json!({"room_name": room, "participant_identity": "alice"});
        request_token(self.service.address(), bearer, &body).status
    }
}

#[test]
fn an_invalid_policy_leaves_the_previous_one_in_force() {
    let setup = ReloadSetup::start(&app_entry("rooms = [\"old-*\"]"));
    let assert_unchanged = |what: &str| {
        assert_eq!(setup.status(APP_KEY, "old-1"), 201, "after {what}");
        assert_eq!(setup.status(APP_KEY, "new-1"), 403, "after {what}");
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
        // each error is on another line, by which its log line is found
        let above = "#\n".repeat(100 * (number + 1));
        let text = format!("{above}[callers.new]\n{wrong}[callers.app]\n{open}");
        let line = format!("line {}", 100 * (number + 1) + 2);
        setup.change(text.as_bytes(), &[FILE, &line]);
        assert_unchanged(wrong);
    }
    setup.change(b"\xff\xfe", &[FILE, "UTF-8"]);
    assert_unchanged("bytes that are not UTF-8");
    setup.change(&vec![b'#'; 4 * 1024 * 1024], &[FILE, "larger"]);
    assert_unchanged("4 MB");
    fs::remove_file(setup.settings.path(FILE)).unwrap();
    setup.service.reload();
    setup.service.wait_for_line_with(&[FILE, "No such file"]);
    assert_unchanged("its removal");
}

#[test]
fn a_removed_key_is_no_longer_accepted() {
    let leaked = format!("lts_ffffffff_{}", "5".repeat(64));
    let with_leaked =
        app_entry("") + &format!("[callers.leaked]\nkeys = [\"{}\"]\n", key_hash(&leaked));
    let setup = ReloadSetup::start(&with_leaked);
    assert_eq!(setup.status(&leaked, "room"), 201);
    setup.change(
        app_entry("rooms = [\"new-*\"]").as_bytes(),
        &["settings section reloaded", "section=policy"],
    );
    assert_eq!(setup.status(&leaked, "room"), 401);
    assert_eq!(setup.status(APP_KEY, "new-1"), 201);
    assert_eq!(setup.status(APP_KEY, "old-1"), 403);
}

#[test]
fn a_reload_keeps_the_cached_keys_of_an_issuer_that_is_down() {
    let key = SigningKey::rsa("one");
    let issuer = FakeIssuer::with_keys(&[&key]);
    let setup = ReloadSetup::start(&users_entry(&issuer.url(), "rooms = [\"old-*\"]"));
    assert_eq!(setup.status(&key.token_for("alice"), "old-1"), 201);
    issuer.set_behaviour(IssuerBehaviour::Hangs);
    let changed = users_entry(&issuer.url(), "rooms = [\"new-*\"]");
    setup.change(
        changed.as_bytes(),
        &["settings section reloaded", "section=policy"],
    );
    assert_eq!(setup.status(&key.token_for("alice"), "new-1"), 201);
    assert_eq!(setup.status(&key.token_for("alice"), "old-1"), 403);
    assert_eq!(issuer.fetch_count(), 1);
}
