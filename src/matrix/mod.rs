//! Clients and types of Matrix.
//!
//! - `id`: identifiers. `livekit_names`: LiveKit room names and identities of Matrix users (MSC4195).
//! - `openid`: verification of OpenID tokens, by `federation`: calls to homeservers, by `discovery`: server name resolution.
//! - `delayed_event`: restarts and sends delayed events (MSC4140), by `client_api`: discovery of client-server APIs.
//! - `server_directory`: configured homeservers. `server_cache`: facts about homeservers. `well_known`: well-known documents.
//! - `appservice`: the homeserver's APIs for application services. `registration`: the registration file.

pub(crate) mod appservice;
pub(crate) mod client_api;
pub(crate) mod delayed_event;
pub(crate) mod discovery;
pub(crate) mod federation;
pub(crate) mod id;
pub(crate) mod livekit_names;
pub(crate) mod openid;
pub(crate) mod registration;
mod server_cache;
pub(crate) mod server_directory;
mod well_known;

use std::borrow::Cow;

use serde::Deserialize;

use crate::net::address::{Host, Trust};
use crate::net::http_client::HttpRoute;
use crate::util::json;

/// The errcode of an error response's body, if the body has one.
fn parse_errcode(body: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct ErrcodeBody<'a> {
        #[serde(borrow)]
        errcode: Cow<'a, str>,
    }
    json::parse_object::<ErrcodeBody<'_>>(body).map(|error| error.errcode)
}

/// A route by TLS with a certificate for `host`.
fn https_route(host: Host, port: u16, authority: &str, trust: Trust) -> HttpRoute {
    HttpRoute {
        tls: Some(host.clone()),
        host,
        port,
        authority: authority.into(),
        trust,
    }
}
