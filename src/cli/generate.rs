//! `keygen` and `generate-registration`.

use std::io::{self, Write};

use crate::matrix::id::ServerName;
use crate::matrix::registration;
use crate::net::base_url::BaseUrl;
use crate::token::CallerName;
use crate::token::api_key;

/// Generates an API key. Prints it to `out`, with the line to store below it, and to `err` what to do with both.
pub(crate) fn keygen(
    name: &CallerName,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    let (key, hash) = api_key::generate_api_key();
    writeln!(out, "{key}\n{name}:{hash}")?;
    writeln!(
        err,
        "The first line is the API key, which is not stored: give it to {name}. The second line is for TOKEN_SERVER_API_KEYS, or for \
         the policy file: [callers.{name:?}] keys = [\"sha256:{hash}\"]",
        name = name.as_str()
    )
}

/// Generates a registration. Prints the file to `out`, and to `err` what to do with it.
pub(crate) fn generate_registration(
    server: &ServerName,
    url: &BaseUrl,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    out.write_all(registration::generate(server, url).as_bytes())?;
    writeln!(
        err,
        "Store it where only the homeserver and this service can read it. Synapse: app_service_config_files, with msc4502_enabled and \
         msc4512_enabled among the experimental_features. Here: LIVEKIT_AS_REGISTRATION_FILE, with LIVEKIT_HS_SERVER_NAME={server} \
         and LIVEKIT_HS_URL"
    )
}
