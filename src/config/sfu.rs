//! The SFU: its URLs, and its API keys in every form in which deployments give them.

use std::collections::HashMap;

use super::Mode;
use super::reader::{
    Reported, SettingOrigin, SettingValue, SettingsReader, describe_length, mask_secret,
    quote_redacted,
};
use super::table::{
    LIVEKIT_API_KEY, LIVEKIT_API_SECRET, LIVEKIT_API_URL, LIVEKIT_KEY, LIVEKIT_KEY_FILE,
    LIVEKIT_KEY_FROM_FILE, LIVEKIT_KEYS, LIVEKIT_SECRET, LIVEKIT_SECRET_FILE,
    LIVEKIT_SECRET_FROM_FILE, LIVEKIT_URL, Setting,
};
use super::values::parse_base_url;
use crate::livekit::access_token::{ApiKey, ApiKeys, RECOMMENDED_SECRET_BYTES};
use crate::net::base_url::BaseUrl;

/// Most keys: two are needed while one replaces another.
pub(super) const MAX_API_KEYS: usize = 64;
/// Longest API key in bytes: the SFU's own limit for names; it generates keys of 15 bytes.
const MAX_API_KEY_BYTES: usize = 256;
/// The pair of an SFU that runs with `--dev`.
const DEV_KEY_PAIR: (&str, &str) = ("devkey", "secret");

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SfuConfig {
    /// `LIVEKIT_URL` as it is set: clients get exactly this.
    pub url: String,
    /// Where this service calls the SFU.
    pub api_url: BaseUrl,
}

pub(super) fn read_urls(reader: &mut SettingsReader<'_>) -> Result<SfuConfig, Reported> {
    let url = reader.parse(&LIVEKIT_URL, |text| {
        Ok((text.to_owned(), parse_base_url(text)?))
    });
    let api_url = reader.parse_optional(&LIVEKIT_API_URL, parse_base_url);
    let ((url, base_url), api_url) = (url?, api_url?);
    let api_url = api_url.unwrap_or_else(|| {
        let origin = SettingOrigin::DerivedFrom(LIVEKIT_URL.name);
        reader.report_as(&LIVEKIT_API_URL, base_url.to_string(), origin);
        base_url
    });
    Ok(SfuConfig { url, api_url })
}

/// The API keys of the SFU.
#[derive(Debug, Clone, PartialEq)]
pub struct SfuKeysConfig {
    /// The keys.
    pub keys: ApiKeys,
    /// One of them is the pair of an SFU with `--dev`, which is public.
    pub(super) includes_dev_key_pair: bool,
}

struct ApiKeyPair {
    key: String,
    secret: String,
    /// The variable with the secret.
    setting: &'static Setting,
    origin: SettingOrigin,
}

pub(super) fn read_keys(reader: &mut SettingsReader<'_>) -> Result<SfuKeysConfig, Reported> {
    let file = reader.file(&LIVEKIT_KEY_FILE);
    let file = file.and_then(|file| parse_pairs(reader, file, "line"));
    let list = reader.value(&LIVEKIT_KEYS);
    let list = list.and_then(|list| parse_pairs(reader, list, "entry"));
    let key = reader.any_of(&[&LIVEKIT_KEY, &LIVEKIT_API_KEY, &LIVEKIT_KEY_FROM_FILE]);
    let secret = reader.any_of(&[
        &LIVEKIT_SECRET,
        &LIVEKIT_API_SECRET,
        &LIVEKIT_SECRET_FROM_FILE,
        &LIVEKIT_SECRET_FILE,
    ]);
    let (file, list) = (file?, list?);
    let keys = key.map(|key| key.into_iter().chain(file.bare_key).collect());
    let key = keys.and_then(|keys| reader.agreed(keys));
    let key = key.and_then(|key| check_half(reader, key, is_valid_api_key));
    let secret = secret.and_then(|secret| {
        check_half(reader, secret, |secret| {
            !secret.chars().any(char::is_control)
        })
    });
    let pairs = file.pairs.into_iter().chain(list.pairs).collect();
    let pairs = combine_pairs(reader, key?, secret?, pairs)?;
    build_api_keys(reader, pairs)
}

/// Checks a key or a secret. A wrong one is not shown: it may be a whole `key: secret`.
fn check_half(
    reader: &mut SettingsReader<'_>,
    value: Option<SettingValue>,
    is_valid: impl Fn(&str) -> bool,
) -> Result<Option<SettingValue>, Reported> {
    match value {
        Some(value) if !is_valid(&value.text) => {
            let expected = value.setting.main().expected_form();
            Err(reader.invalid(value.setting, expected, describe_length(&value.text)))
        }
        value => Ok(value),
    }
}

fn is_valid_api_key(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == ':';
    (1..=MAX_API_KEY_BYTES).contains(&text.len()) && !text.contains(odd)
}

/// Adds the separate key and secret to the listed pairs. A key alone chooses which of the listed pairs signs.
fn combine_pairs(
    reader: &mut SettingsReader<'_>,
    key: Option<SettingValue>,
    secret: Option<SettingValue>,
    mut pairs: Vec<ApiKeyPair>,
) -> Result<Vec<ApiKeyPair>, Reported> {
    match (key, secret) {
        (Some(key), Some(secret)) => {
            reader.report_value(&key);
            let pair = ApiKeyPair {
                key: key.text,
                secret: secret.text,
                setting: secret.setting,
                origin: secret.origin,
            };
            pairs.insert(0, pair);
        }
        (Some(key), None) => match pairs.iter().position(|pair| pair.key == key.text) {
            Some(chosen) => pairs[..=chosen].rotate_right(1),
            None => {
                let (key, file) = (key.setting.name, LIVEKIT_SECRET_FROM_FILE.name);
                let expected =
                    format!("the secret of {key}, here or in the file that {file} names");
                return Err(reader.missing(&LIVEKIT_SECRET, expected));
            }
        },
        (None, Some(secret)) if pairs.iter().all(|pair| pair.secret != secret.text) => {
            let (secret, file) = (secret.setting.name, LIVEKIT_KEY_FROM_FILE.name);
            let expected =
                format!("the API key of {secret}, here or in the file that {file} names");
            return Err(reader.missing(&LIVEKIT_KEY, expected));
        }
        (None, None) if pairs.is_empty() && reader.mode == Mode::Dev => pairs.push(ApiKeyPair {
            key: DEV_KEY_PAIR.0.into(),
            secret: DEV_KEY_PAIR.1.into(),
            setting: &LIVEKIT_SECRET,
            origin: SettingOrigin::DevDefault,
        }),
        (None, None) if pairs.is_empty() => {
            let expected = "the SFU's API key, with its secret in LIVEKIT_SECRET; or files with them in LIVEKIT_KEY_FROM_FILE and LIVEKIT_SECRET_FROM_FILE; or a file with lines `key: secret` in LIVEKIT_KEY_FILE";
            return Err(reader.missing(&LIVEKIT_KEY, expected));
        }
        (None, _) => {}
    }
    Ok(pairs)
}

/// Refuses two secrets for one key and warns of short secrets.
fn build_api_keys(
    reader: &mut SettingsReader<'_>,
    pairs: Vec<ApiKeyPair>,
) -> Result<SfuKeysConfig, Reported> {
    let mut seen: HashMap<String, (String, &'static Setting)> = HashMap::new();
    let (mut keys, mut includes_dev_key_pair) = (Vec::new(), false);
    let mut result = Ok(());
    for pair in pairs {
        let quoted = quote_redacted(&pair.key);
        match seen.get(&pair.key) {
            Some((secret, _)) if *secret == pair.secret => continue,
            Some((_, other)) => {
                let expected = format!("one secret for API key {quoted}, as in {}", other.name);
                result = Err(reader.invalid(pair.setting, expected, "another one"));
                continue;
            }
            None => {}
        }
        let is_dev_pair = (pair.key.as_str(), pair.secret.as_str()) == DEV_KEY_PAIR;
        includes_dev_key_pair |= is_dev_pair;
        let bytes = pair.secret.len();
        if bytes < RECOMMENDED_SECRET_BYTES && !(reader.mode == Mode::Dev && is_dev_pair) {
            let name = pair.setting.name;
            reader.warn(format!(
                "{name}: the secret of API key {quoted} has {bytes} bytes; the SFU requires {RECOMMENDED_SECRET_BYTES} or more"
            ));
        }
        let display_text = format!("{} {}", pair.key, mask_secret(&pair.secret));
        reader.report_as(pair.setting, display_text, pair.origin);
        keys.push(ApiKey::new(&pair.key, &pair.secret));
        seen.insert(pair.key, (pair.secret, pair.setting));
    }
    if keys.len() > MAX_API_KEYS {
        let expected = format!("at most {MAX_API_KEYS} keys in all");
        result = Err(reader.invalid(&LIVEKIT_KEYS, expected, keys.len().to_string()));
    }
    result?;
    let mut keys = keys.into_iter();
    match keys.next() {
        Some(signing) => Ok(SfuKeysConfig {
            keys: ApiKeys::new(signing, keys),
            includes_dev_key_pair,
        }),
        None => Err(reader.missing(&LIVEKIT_KEY, LIVEKIT_KEY.expected_form())),
    }
}

/// What `LIVEKIT_KEY_FILE` or `LIVEKIT_KEYS` holds.
#[derive(Default)]
struct KeyList {
    /// The file's only word, a key without a secret.
    bare_key: Option<SettingValue>,
    pairs: Vec<ApiKeyPair>,
}

/// Parses lines of a YAML map of strings, which is what the SFU takes: with comments, and with quotes around either half. `unit` is
/// what errors count.
fn parse_pairs(
    reader: &mut SettingsReader<'_>,
    list: Option<SettingValue>,
    unit: &str,
) -> Result<KeyList, Reported> {
    let Some(list) = list else {
        return Ok(KeyList::default());
    };
    let is_file = list.setting.path;
    let separators: &[char] = if is_file { &['\n'] } else { &['\n', ','] };
    let (mut pairs, mut others) = (Vec::new(), Vec::new());
    for (line, number) in list.text.split(separators).zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line
            .split_once(':')
            .map(|(key, secret)| (unquote_yaml(key), unquote_yaml(secret)))
        {
            Some((Some(key), Some(secret)))
                if is_valid_api_key(key) && !secret.chars().any(char::is_control) =>
            {
                pairs.push(ApiKeyPair {
                    key: key.to_owned(),
                    secret: secret.to_owned(),
                    setting: list.setting,
                    origin: list.origin.clone(),
                });
            }
            Some(_) => return Err(refuse_line(reader, list.setting, unit, number)),
            None => others.push((number, unquote_yaml(line))),
        }
    }
    match others[..] {
        [] => Ok(KeyList {
            bare_key: None,
            pairs,
        }),
        [(_, Some(key))] if is_file && pairs.is_empty() => Ok(KeyList {
            bare_key: Some(SettingValue {
                text: key.to_owned(),
                ..list
            }),
            pairs,
        }),
        [(number, _), ..] => Err(refuse_line(reader, list.setting, unit, number)),
    }
}

fn refuse_line(
    reader: &mut SettingsReader<'_>,
    setting: &Setting,
    unit: &str,
    number: usize,
) -> Reported {
    let found = format!("something else in {unit} {number}");
    reader.invalid(setting, setting.expected_form(), found)
}

/// A value without its quotes or the comment after it; none if nothing is left.
fn unquote_yaml(text: &str) -> Option<&str> {
    let text = text.trim();
    let inside = match text.chars().next()? {
        quote @ ('"' | '\'') => {
            let (inside, rest) = text[1..].split_once(quote)?;
            let rest = rest.trim_start();
            (rest.is_empty() || rest.starts_with('#')).then_some(inside)?
        }
        _ => text.split(" #").next().unwrap_or(text).trim_end(),
    };
    (!inside.is_empty()).then_some(inside)
}
