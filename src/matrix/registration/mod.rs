//! The registration of an application service (Matrix spec v1.16, application service API, "Registration"; MSC4502, MSC4512): the file
//! that the homeserver and this service share.

#[cfg(test)]
mod tests;

use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;
use crate::util::random;

/// What the homeserver is to pass on to us, below `/_matrix/client/{version}/` and `/_matrix/federation/{version}/` (MSC4195).
pub(crate) const PROXY_PREFIX: &str = "rtc/livekit";
/// Its scope that lets us ask who is in a room (MSC4502), and the key of the list that it is in.
const IS_JOINED_SCOPES: [(&str, &str); 2] = [
    (
        "io.element.msc4502.scopes",
        "urn:matrix:client:io.element.msc4502:rooms:is_joined",
    ),
    ("scopes", "urn:matrix:client:rooms:is_joined"),
];
const PROXY_PREFIX_KEYS: [&str; 2] = ["io.element.msc4512.proxy_prefix", "proxy_prefix"];
const PROXY_URL_KEYS: [&str; 2] = ["io.element.msc4512.proxy_url", "proxy_url"];
/// Longest token in bytes: it has to fit a header with room to spare.
const MAX_SHARED_TOKEN_BYTES: usize = 512;
/// Longest id that is asked by, in bytes: it has to fit a path.
const MAX_ID_BYTES: usize = 255;
/// Bytes of a fresh token: what nobody guesses.
const TOKEN_RANDOM_BYTES: usize = 32;
/// Most keys of the file and most scopes of its list; there are some 20 of the former.
const MAX_ITEMS: usize = 256;

/// A token that the homeserver and this service share. Whoever has it is taken for one of them.
#[derive(Clone, PartialEq, Eq)]
pub struct AppServiceSecret(Box<str>);

impl AppServiceSecret {
    /// Accepts 1 to 512 visible ASCII characters, as it has to fit a header.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MAX_SHARED_TOKEN_BYTES).contains(&text.len());
        (fits && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(text.into()))
    }

    /// A token that nobody had before.
    pub fn generate_registration() -> Self {
        let hex = random::bytes::<TOKEN_RANDOM_BYTES>().map(|byte| format!("{byte:02x}"));
        Self(hex.concat().into())
    }

    /// Whether `shown` is this token; takes as long whichever of its characters are wrong.
    pub fn matches(&self, shown: &str) -> bool {
        let (own, shown) = (self.0.as_bytes(), shown.as_bytes());
        let differences = own.iter().zip(shown).fold(0, |bits, (a, b)| bits | (a ^ b));
        own.len() == shown.len() && std::hint::black_box(differences) == 0
    }

    /// Its length in characters.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// The header that shows it.
    pub fn authorization_header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for AppServiceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedToken(hidden)")
    }
}

/// Both tokens of an application service, which differ, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppServiceRegistration {
    /// `as_token`: shown by us to the homeserver.
    pub as_token: AppServiceSecret,
    /// `hs_token`: shown by the homeserver to us.
    pub hs_token: AppServiceSecret,
    /// `id`: what the homeserver calls it; only the file tells.
    pub id: Option<Box<str>>,
}

/// What a registration lacks, with what was expected. Holds nothing of what was found, which may be a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRegistration(String);

impl fmt::Display for InvalidRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidRegistration {}

impl AppServiceRegistration {
    /// Takes both tokens.
    pub fn new(as_token: AppServiceSecret, hs_token: AppServiceSecret) -> Option<Self> {
        let differ = as_token != hs_token;
        differ.then_some(Self {
            as_token,
            hs_token,
            id: None,
        })
    }

    /// Reads a registration file, and refuses one with which a homeserver would not do what we need.
    ///
    /// # Errors
    /// It is not YAML, has a key twice, or something is missing: either token, the prefix, the URL, or the scope.
    pub fn parse(text: &str) -> Result<Self, InvalidRegistration> {
        let keys = parse_top_level(text)?;
        let text = |name: &str| match keys.iter().find(|(key, _)| key == name) {
            Some((_, YamlValue::Text(text))) => Some(text.as_str()),
            _ => None,
        };
        let wanted = |what: &str| InvalidRegistration(what.to_owned());
        let token = |name| text(name).and_then(AppServiceSecret::parse);
        let as_token = token("as_token")
            .ok_or_else(|| wanted("as_token of 1 to 512 visible ASCII characters"))?;
        let hs_token = token("hs_token")
            .ok_or_else(|| wanted("hs_token of 1 to 512 visible ASCII characters"))?;
        let mut prefixes = PROXY_PREFIX_KEYS
            .iter()
            .filter_map(|key| text(key))
            .peekable();
        if prefixes.peek().is_none()
            || prefixes.any(|prefix| prefix.trim_matches('/') != PROXY_PREFIX)
        {
            let expected = format!(
                "{}: {PROXY_PREFIX} or {}: {PROXY_PREFIX}",
                PROXY_PREFIX_KEYS[0], PROXY_PREFIX_KEYS[1]
            );
            return Err(InvalidRegistration(expected));
        }
        let mut urls = PROXY_URL_KEYS.iter().filter_map(|key| text(key)).peekable();
        if urls.peek().is_none() || urls.any(|url| BaseUrl::parse(url).is_err()) {
            let expected = format!(
                "{} or {} with the URL of this service",
                PROXY_URL_KEYS[0], PROXY_URL_KEYS[1]
            );
            return Err(InvalidRegistration(expected));
        }
        let granted = |(name, scope): &(&str, &str)| {
            let lists = |(key, value): &(String, YamlValue)| {
                key == name
                    && matches!(value, YamlValue::List(list) if list.iter().any(|s| s == scope))
            };
            keys.iter().any(lists)
        };
        if !IS_JOINED_SCOPES.iter().any(granted) {
            let [(key, scope), _] = IS_JOINED_SCOPES;
            return Err(InvalidRegistration(format!("{key} with {scope}")));
        }
        let registration = Self::new(as_token, hs_token)
            .ok_or_else(|| wanted("an hs_token that differs from the as_token"))?;
        let id = text("id").filter(|id| (1..=MAX_ID_BYTES).contains(&id.len()));
        Ok(Self {
            id: id.map(Into::into),
            ..registration
        })
    }
}

/// A registration with fresh tokens, for the homeserver `server` that reaches this service at `url`: what is in the MSCs today under
/// the names that Synapse knows, and under those that it will have.
pub(crate) fn generate(server: &ServerName, url: &BaseUrl) -> String {
    let tokens = [
        AppServiceSecret::generate_registration(),
        AppServiceSecret::generate_registration(),
    ];
    let [as_token, hs_token] = tokens.map(|token| token.0);
    let users = server
        .as_str()
        .replace('.', "\\.")
        .replace('[', "\\[")
        .replace(']', "\\]");
    let [(scopes, unstable), (_, stable)] = IS_JOINED_SCOPES;
    format!(
        "\
# livekit-token-service as an application service of {server}. The homeserver and the service read this file, and nobody else may.
id: livekit-token-service
# events are pushed here, so that whoever leaves a room is put out at once; with null there are none, and it takes until the next look
url: {url}
as_token: {as_token}
hs_token: {hs_token}
sender_localpart: livekit-token-service
rate_limited: false
namespaces:
  # lets it see to the delayed leaves that these users hand to it
  users:
    - exclusive: false
      regex: '@.*:{users}$'
  aliases: []
  rooms: []
proxy_prefix: {PROXY_PREFIX}
proxy_url: {url}
scopes:
  - {stable}
# the same by the names of today
io.element.msc4512.proxy_prefix: {PROXY_PREFIX}
io.element.msc4512.proxy_url: {url}
{scopes}:
  - {unstable}
"
    )
}

/// What stands behind a key of the file.
enum YamlValue {
    Text(String),
    List(Vec<String>),
    /// What nobody here looks into.
    Other,
}

/// The keys of the one mapping that the file is.
fn parse_top_level(text: &str) -> Result<Vec<(String, YamlValue)>, InvalidRegistration> {
    let mut events = YamlEvents(Parser::new_from_str(text));
    let no_mapping = || InvalidRegistration("a YAML file with one mapping".to_owned());
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
            _ => return Err(InvalidRegistration("keys that are texts".to_owned())),
        };
        if keys.len() >= MAX_ITEMS || keys.iter().any(|(known, _)| *known == key) {
            return Err(InvalidRegistration(
                "each key once, and at most 256 of them".to_owned(),
            ));
        }
        let value = match events.next_event()? {
            // nothing, in YAML's words: not a text
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

/// YAML 1.2, 10.3.2.
fn is_null(plain: &str) -> bool {
    matches!(plain, "" | "~" | "null" | "Null" | "NULL")
}

/// The events of a file without aliases, which no registration needs.
struct YamlEvents<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> YamlEvents<'a> {
    fn next_event(&mut self) -> Result<Event<'a>, InvalidRegistration> {
        match self.0.next_event() {
            Some(Ok((Event::Alias(_), _))) => {
                Err(InvalidRegistration("YAML without aliases".to_owned()))
            }
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => {
                // its own words may repeat a token
                let (line, column) = (error.marker().line(), error.marker().col() + 1);
                Err(InvalidRegistration(format!(
                    "YAML, also in line {line}, column {column}"
                )))
            }
            None => Err(InvalidRegistration("a whole YAML file".to_owned())),
        }
    }

    /// A list that has begun: its texts, if it has nothing else.
    fn read_string_list(&mut self) -> Result<YamlValue, InvalidRegistration> {
        let mut list = Vec::new();
        loop {
            match self.next_event()? {
                Event::Scalar(text, ..) if list.len() < MAX_ITEMS => list.push(text.into_owned()),
                Event::SequenceEnd => return Ok(YamlValue::List(list)),
                Event::SequenceStart(..) | Event::MappingStart(..) => {
                    self.skip_collection()?;
                    // and what is left of the list itself
                    self.skip_collection()?;
                    return Ok(YamlValue::Other);
                }
                _ => return Err(InvalidRegistration("lists of at most 256 texts".to_owned())),
            }
        }
    }

    /// The rest of a list or mapping that has begun.
    fn skip_collection(&mut self) -> Result<(), InvalidRegistration> {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.next_event()? {
                Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
                Event::SequenceEnd | Event::MappingEnd => depth -= 1,
                Event::StreamEnd => {
                    return Err(InvalidRegistration("a whole YAML file".to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
