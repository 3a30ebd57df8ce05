//! A client of the general token endpoint: API key, policy file entries and requests.

use std::fmt::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::{Address, Connection, Reply, raw};
use crate::fake_issuer::{AUDIENCE, ISSUER};
use crate::settings::Settings;
use crate::setup::LOOPBACK;

/// The API key of the caller `app`; see [`app_entry`].
pub(crate) const APP_KEY: &str =
    "lts_a0b1c2d3_00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Settings with this policy file.
pub(crate) fn policy_settings(policy: &str) -> Settings {
    Settings::complete()
        .set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
        .set_file("TOKEN_SERVER_POLICY_FILE", policy)
}

/// The entry of `app` in a policy file, with [`APP_KEY`] and these further lines.
pub(crate) fn app_entry(lines: &str) -> String {
    format!(
        "[callers.app]\nkeys = [\"{}\"]\n{lines}\n",
        key_hash(APP_KEY)
    )
}

/// The entry of `users` in a policy file, whose JWT issuer has its keys at `keys`, with these further lines.
pub(crate) fn users_entry(keys: &str, lines: &str) -> String {
    let jwt = format!("issuer = \"{ISSUER}\", audience = \"{AUDIENCE}\", keys = \"{keys}\"");
    format!("[callers.users]\njwt = {{ {jwt} }}\n{lines}\n")
}

/// The hash of an API key as a policy file has it.
pub(crate) fn key_hash(key: &str) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(key.as_bytes()) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// A valid request body, where the details do not matter.
pub(crate) fn any_request() -> Value {
    json!({"room_name": "room", "participant_identity": "alice"})
}

/// Requests a token with this bearer token.
pub(crate) fn request_token(address: &Address, bearer: &str, body: &Value) -> Reply {
    raw(
        address,
        &raw_token_request(&bearer_header(bearer), body.to_string().as_bytes()),
    )
}

/// As [`request_token`], on an open connection.
pub(crate) fn request_token_on(connection: &mut Connection, bearer: &str, body: &Value) -> Reply {
    connection.send(&raw_token_request(
        &bearer_header(bearer),
        body.to_string().as_bytes(),
    ));
    connection.receive(false).unwrap()
}

/// The bytes of a request with these additional header lines.
pub(crate) fn raw_token_request(header_lines: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /token HTTP/1.1\r\nHost: tokens.example.com\r\n{header_lines}Content-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The header line with a bearer token.
pub(crate) fn bearer_header(bearer: &str) -> String {
    format!("Authorization: Bearer {bearer}\r\n")
}
