//! The vocabulary of Matrix.

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
mod well_known;

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What a path segment or a query's value may hold unescaped (RFC 3986, 2.3).
const PERCENT_ENCODE_SET: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn percent_encoded(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, PERCENT_ENCODE_SET)
}
