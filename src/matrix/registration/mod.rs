//! The registration file of an application service, which homeserver and service share (Matrix spec v1.16, application service API,
//! "Registration"; MSC4502, MSC4512).

#[cfg(test)]
mod tests;

use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;
use crate::util::auth::constant_time_eq;
use crate::util::random;
use crate::util::text::hex;

/// Prefix of the paths below `/_matrix/client/{version}/` and `/_matrix/federation/{version}/` that the homeserver forwards (MSC4195).
pub(crate) const PROXY_PREFIX: &str = "rtc/livekit";
/// Key of the list of scopes, and the scope for membership lookups (MSC4502): unstable and stable.
const IS_JOINED_SCOPES: [(&str, &str); 2] = [
    (
        "io.element.msc4502.scopes",
        "urn:matrix:client:io.element.msc4502:rooms:is_joined",
    ),
    ("scopes", "urn:matrix:client:rooms:is_joined"),
];
const PROXY_PREFIX_KEYS: [&str; 2] = ["io.element.msc4512.proxy_prefix", "proxy_prefix"];
const PROXY_URL_KEYS: [&str; 2] = ["io.element.msc4512.proxy_url", "proxy_url"];
/// Longest token in bytes: it has to fit a request head.
const MAX_SHARED_TOKEN_BYTES: usize = 512;
/// Longest id in bytes: it has to fit a path. A longer id is ignored.
const MAX_ID_BYTES: usize = 255;
/// Length of a generated token in random bytes.
const TOKEN_RANDOM_BYTES: usize = 32;
/// Most keys of the file, and most entries of a list. A registration has about 20 keys.
const MAX_ITEMS: usize = 256;
const BEARER: &str = "Bearer ";

/// An `as_token` or `hs_token`: a secret by which homeserver and application service authenticate each other.
#[derive(Clone, PartialEq, Eq)]
pub struct AppServiceSecret {
    authorization_header: Box<str>,
}

impl AppServiceSecret {
    /// Accepts 1 to 512 visible ASCII characters.
    pub(crate) fn parse(token: &str) -> Option<Self> {
        let fits = (1..=MAX_SHARED_TOKEN_BYTES).contains(&token.len());
        (fits && token.bytes().all(|b| b.is_ascii_graphic())).then(|| Self {
            authorization_header: format!("{BEARER}{token}").into(),
        })
    }

    fn token(&self) -> &str {
        &self.authorization_header[BEARER.len()..]
    }

    /// Compares in a time that depends on the lengths only.
    pub fn matches(&self, token: &str) -> bool {
        constant_time_eq(self.token().as_bytes(), token.as_bytes())
    }

    /// Length of the token in characters.
    pub(crate) fn length(&self) -> usize {
        self.token().len()
    }

    /// The value of an `Authorization` header with the token.
    pub fn authorization_header(&self) -> &str {
        &self.authorization_header
    }
}

impl fmt::Debug for AppServiceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppServiceSecret(hidden)")
    }
}

/// The parts of a registration that this service uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppServiceRegistration {
    /// Authenticates this service to the homeserver.
    pub as_token: AppServiceSecret,
    /// Authenticates the homeserver to this service; differs from `as_token`.
    pub hs_token: AppServiceSecret,
    /// The application service's id; `None` if the tokens come from settings.
    pub id: Option<Box<str>>,
}

/// What a registration file should contain. Has nothing of the file's content, which may be a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRegistration(String);

impl fmt::Display for InvalidRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidRegistration {}

fn expected(what: impl Into<String>) -> InvalidRegistration {
    InvalidRegistration(what.into())
}

impl AppServiceRegistration {
    /// A registration without id; `None` if the tokens are equal.
    pub(crate) fn new(as_token: AppServiceSecret, hs_token: AppServiceSecret) -> Option<Self> {
        let differ = as_token != hs_token;
        differ.then_some(Self {
            as_token,
            hs_token,
            id: None,
        })
    }

    /// Parses a registration file.
    ///
    /// # Errors
    /// The file is not YAML, has a key twice, or lacks a token, the prefix, the URL or the scope that this service needs.
    pub fn parse(file: &str) -> Result<Self, InvalidRegistration> {
        let keys = parse_top_level(file)?;
        let text = |name: &str| match keys.iter().find(|(key, _)| key == name) {
            Some((_, YamlValue::Text(text))) => Some(text.as_str()),
            _ => None,
        };
        let token = |name: &str| {
            text(name)
                .and_then(AppServiceSecret::parse)
                .ok_or_else(|| expected(format!("{name} of 1 to 512 visible ASCII characters")))
        };
        let (as_token, hs_token) = (token("as_token")?, token("hs_token")?);
        // at least one of the stable and the unstable key, and all of them valid
        let all_valid = |names: &[&str], is_valid: fn(&str) -> bool| {
            let mut values = names.iter().filter_map(|name| text(name)).peekable();
            values.peek().is_some() && values.all(is_valid)
        };
        let is_prefix = |prefix: &str| prefix.trim_matches('/') == PROXY_PREFIX;
        if !all_valid(&PROXY_PREFIX_KEYS, is_prefix) {
            let [unstable, stable] = PROXY_PREFIX_KEYS;
            return Err(expected(format!(
                "{unstable}: {PROXY_PREFIX} or {stable}: {PROXY_PREFIX}"
            )));
        }
        if !all_valid(&PROXY_URL_KEYS, |url| BaseUrl::parse(url).is_ok()) {
            let [unstable, stable] = PROXY_URL_KEYS;
            return Err(expected(format!(
                "{unstable} or {stable} with the URL of this service"
            )));
        }
        let has_scope = |(name, scope): &(&str, &str)| {
            keys.iter().any(|(key, value)| {
                key == name
                    && matches!(value, YamlValue::List(list) if list.iter().any(|s| s == scope))
            })
        };
        if !IS_JOINED_SCOPES.iter().any(has_scope) {
            let [(key, scope), _] = IS_JOINED_SCOPES;
            return Err(expected(format!("{key} with {scope}")));
        }
        let registration = Self::new(as_token, hs_token)
            .ok_or_else(|| expected("an hs_token that differs from the as_token"))?;
        let id = text("id").filter(|id| (1..=MAX_ID_BYTES).contains(&id.len()));
        Ok(Self {
            id: id.map(Into::into),
            ..registration
        })
    }
}

/// A registration file with new tokens for the homeserver `server`, which reaches this service at `url`. Has both the unstable keys,
/// which Synapse knows, and the stable ones.
pub(crate) fn generate(server: &ServerName, url: &BaseUrl) -> String {
    let new_token = || hex(&random::bytes::<TOKEN_RANDOM_BYTES>());
    let (as_token, hs_token) = (new_token(), new_token());
    let users = server
        .as_str()
        .replace('.', "\\.")
        .replace('[', "\\[")
        .replace(']', "\\]");
    let [(scopes, unstable), (_, stable)] = IS_JOINED_SCOPES;
    format!(
        "\
# Registration of livekit-token-service as an application service of {server}. For the homeserver and the service only: it has secrets.
id: livekit-token-service
# The homeserver pushes events here, and a user who leaves a room is removed from its call at once. With null, at the next check.
url: {url}
as_token: {as_token}
hs_token: {hs_token}
sender_localpart: livekit-token-service
rate_limited: false
namespaces:
  # For the delayed leave events that these users delegate
  users:
    - exclusive: false
      regex: '@.*:{users}$'
  aliases: []
  rooms: []
proxy_prefix: {PROXY_PREFIX}
proxy_url: {url}
scopes:
  - {stable}
# The same under the unstable names of the MSCs
io.element.msc4512.proxy_prefix: {PROXY_PREFIX}
io.element.msc4512.proxy_url: {url}
{scopes}:
  - {unstable}
"
    )
}

/// A value of the top-level mapping.
enum YamlValue {
    Text(String),
    List(Vec<String>),
    /// Null, or a value that no key of a registration needs here.
    Other,
}

/// Parses the top-level mapping of the file.
fn parse_top_level(file: &str) -> Result<Vec<(String, YamlValue)>, InvalidRegistration> {
    let mut events = YamlEvents(Parser::new_from_str(file));
    let no_mapping = || expected("a YAML file with one mapping");
    loop {
        match events.next_event()? {
            Event::StreamStart | Event::DocumentStart(_) => {}
            Event::MappingStart(..) => break,
            _ => return Err(no_mapping()),
        }
    }
    let mut keys: Vec<(String, YamlValue)> = Vec::new();
    loop {
        let key = match events.next_event()? {
            Event::Scalar(key, ..) => key.into_owned(),
            Event::MappingEnd => break,
            _ => return Err(expected("keys that are strings")),
        };
        if keys.len() >= MAX_ITEMS || keys.iter().any(|(known, _)| *known == key) {
            return Err(expected("at most 256 keys, each key once"));
        }
        let value = match events.next_event()? {
            Event::Scalar(text, ScalarStyle::Plain, ..) if is_null(&text) => YamlValue::Other,
            Event::Scalar(text, ..) => YamlValue::Text(text.into_owned()),
            Event::SequenceStart(..) => events.read_string_list()?,
            Event::MappingStart(..) => {
                events.skip_collection()?;
                YamlValue::Other
            }
            _ => return Err(no_mapping()),
        };
        keys.push((key, value));
    }
    match (events.next_event()?, events.next_event()?) {
        (Event::DocumentEnd, Event::StreamEnd) => Ok(keys),
        _ => Err(no_mapping()),
    }
}

/// Whether a plain scalar is null (YAML 1.2, 10.3.2).
fn is_null(plain: &str) -> bool {
    matches!(plain, "" | "~" | "null" | "Null" | "NULL")
}

/// Parser events of a file without aliases, which no registration needs.
struct YamlEvents<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> YamlEvents<'a> {
    fn next_event(&mut self) -> Result<Event<'a>, InvalidRegistration> {
        match self.0.next_event() {
            Some(Ok((Event::Alias(_), _))) => Err(expected("YAML without aliases")),
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => {
                // the parser's message may have a token
                let (line, column) = (error.marker().line(), error.marker().col() + 1);
                Err(expected(format!("YAML in line {line}, column {column}")))
            }
            None => Err(expected("a complete YAML file")),
        }
    }

    /// Reads a list after its start; [`YamlValue::Other`] if it has anything but scalars.
    fn read_string_list(&mut self) -> Result<YamlValue, InvalidRegistration> {
        let mut list = Vec::new();
        loop {
            match self.next_event()? {
                Event::Scalar(text, ..) if list.len() < MAX_ITEMS => list.push(text.into_owned()),
                Event::SequenceEnd => return Ok(YamlValue::List(list)),
                Event::SequenceStart(..) | Event::MappingStart(..) => {
                    self.skip_collection()?;
                    // the rest of the list itself
                    self.skip_collection()?;
                    return Ok(YamlValue::Other);
                }
                _ => return Err(expected("lists of at most 256 strings")),
            }
        }
    }

    /// Skips the rest of a list or mapping.
    fn skip_collection(&mut self) -> Result<(), InvalidRegistration> {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.next_event()? {
                Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
                Event::SequenceEnd | Event::MappingEnd => depth -= 1,
                Event::StreamEnd => {
                    return Err(expected("a complete YAML file"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
