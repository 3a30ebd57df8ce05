//! The API keys of the SFU, in every way in which deployments give them.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::Error;
use super::reader::{SettingValue, SettingsReader, describe_length, mask_secret, quote_redacted};
use super::report::SettingOrigin;
use crate::livekit::access_token::{ApiKey, RECOMMENDED_SECRET_BYTES};

/// Most keys: two are needed while one is replaced by another.
const MAX_API_KEYS: usize = 64;
/// Longest API key in bytes: the SFU's own limit for names, and far above the 15 that it generates.
const MAX_API_KEY_BYTES: usize = 256;
/// The pair that the SFU knows when it is started with `--dev`.
const DEV_KEY_PAIR: (&str, &str) = ("devkey", "secret");
const API_KEY_EXPECTED: &str = "an API key: at most 256 bytes without spaces or colons";

/// The keys, of which the first signs.
pub(super) struct SfuApiKeys {
    pub(super) keys: Vec<ApiKey>,
    /// Whether one of them is the pair of `--dev`, which everybody knows.
    pub(super) includes_dev_key_pair: bool,
}

struct ApiKeyPair {
    key: String,
    secret: String,
    /// The variable with the secret in it.
    variable: &'static str,
    origin: SettingOrigin,
}

/// Reads all keys; none, with errors remembered, if anything is wrong with one.
pub(super) fn read(reader: &mut SettingsReader<'_>, dev: bool) -> Option<SfuApiKeys> {
    let before = reader.errors.len();
    let mut keys = vec![
        reader.read_value("LIVEKIT_KEY"),
        reader.read_value("LIVEKIT_API_KEY"),
        reader.read_file("LIVEKIT_KEY_FROM_FILE"),
    ];
    let secrets = vec![
        reader.read_value("LIVEKIT_SECRET"),
        reader.read_value("LIVEKIT_API_SECRET"),
        reader.read_file("LIVEKIT_SECRET_FROM_FILE"),
        reader.read_file("LIVEKIT_SECRET_FILE"),
    ];
    let mut listed = Vec::new();
    if let Some(file) = reader.read_file("LIVEKIT_KEY_FILE") {
        match parse_key_list(&file.text, &['\n']) {
            KeyListContent::BareKey(key) => keys.push(Some(SettingValue { text: key, ..file })),
            other => listed.extend(collect_pairs(reader, other, "line", &file)),
        }
    }
    if let Some(list) = reader.read_value("LIVEKIT_KEYS") {
        let found = parse_key_list(&list.text, &['\n', ',']);
        listed.extend(collect_pairs(reader, found, "entry", &list));
    }
    let key = merge_aliases(reader, keys);
    let secret = merge_aliases(reader, secrets);
    for value in [&key, &secret].into_iter().flatten() {
        check_key_or_secret(reader, value, value.name.contains("SECRET"));
    }
    if reader.errors.len() > before {
        return None;
    }
    let all = combine_pairs(reader, key, secret, listed, dev)?;
    build_api_keys(reader, all, dev)
}

/// The one value of several variables that mean the same.
fn merge_aliases(
    reader: &mut SettingsReader<'_>,
    values: Vec<Option<SettingValue>>,
) -> Option<SettingValue> {
    let mut values = values.into_iter().flatten().map(|value| SettingValue {
        text: value.text.trim().into(),
        ..value
    });
    let first = values.next()?;
    for other in values.filter(|value| value.text != first.text) {
        reader.errors.push(Error::Conflict {
            name: other.name,
            other: first.name,
        });
    }
    Some(first)
}

fn check_key_or_secret(reader: &mut SettingsReader<'_>, value: &SettingValue, is_secret: bool) {
    let text = &value.text;
    if is_secret && text.chars().any(char::is_control) {
        let expected = "a secret in one line without control characters";
        reader.push_invalid(value.name, expected, describe_length(text));
    }
    if !is_secret && !is_valid_api_key(text) {
        // it may be a whole `key: secret`
        reader.push_invalid(value.name, API_KEY_EXPECTED, describe_length(text));
    }
}

fn is_valid_api_key(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == ':';
    (1..=MAX_API_KEY_BYTES).contains(&text.len()) && !text.contains(odd)
}

/// Puts halves and listed pairs together: a key alone chooses among those listed the one that signs.
fn combine_pairs(
    reader: &mut SettingsReader<'_>,
    key: Option<SettingValue>,
    secret: Option<SettingValue>,
    mut listed: Vec<ApiKeyPair>,
    dev: bool,
) -> Option<Vec<ApiKeyPair>> {
    match (key, secret) {
        (Some(key), Some(secret)) => {
            reader.report.add_setting(key.name, &*key.text, key.origin);
            let pair = ApiKeyPair {
                key: key.text,
                secret: secret.text,
                variable: secret.name,
                origin: secret.origin,
            };
            listed.insert(0, pair);
        }
        (Some(key), None) => match listed.iter().position(|pair| pair.key == key.text) {
            Some(chosen) => listed[..=chosen].rotate_right(1),
            None => {
                push_missing(
                    reader,
                    "LIVEKIT_SECRET",
                    format!(
                        "the secret of {}, here or in the file that LIVEKIT_SECRET_FROM_FILE names",
                        key.name
                    ),
                );
                return None;
            }
        },
        (None, Some(secret)) if listed.iter().all(|pair| pair.secret != secret.text) => {
            push_missing(
                reader,
                "LIVEKIT_KEY",
                format!(
                    "the API key of {}, here or in the file that LIVEKIT_KEY_FROM_FILE names",
                    secret.name
                ),
            );
            return None;
        }
        (None, None) if listed.is_empty() && dev => listed.push(ApiKeyPair {
            key: DEV_KEY_PAIR.0.into(),
            secret: DEV_KEY_PAIR.1.into(),
            variable: "LIVEKIT_SECRET",
            origin: SettingOrigin::DevDefault,
        }),
        (None, None) if listed.is_empty() => {
            push_missing(
                reader,
                "LIVEKIT_KEY",
                "the SFU's API key, with its secret in LIVEKIT_SECRET; or files with them in LIVEKIT_KEY_FROM_FILE and LIVEKIT_SECRET_FROM_FILE; or a file with lines `key: secret` in LIVEKIT_KEY_FILE".into(),
            );
            return None;
        }
        (None, _) => {}
    }
    Some(listed)
}

fn push_missing(reader: &mut SettingsReader<'_>, name: &'static str, expected: String) {
    reader.errors.push(Error::Missing { name, expected });
}

/// Refuses two secrets for one key, warns of short ones and forgets the text of all.
fn build_api_keys(
    reader: &mut SettingsReader<'_>,
    pairs: Vec<ApiKeyPair>,
    dev: bool,
) -> Option<SfuApiKeys> {
    let before = reader.errors.len();
    let mut seen: HashMap<String, (String, &'static str)> = HashMap::new();
    let mut keys = Vec::new();
    let mut known_to_everybody = false;
    for pair in pairs {
        let shown = quote_redacted(&pair.key);
        match seen.get(&pair.key) {
            Some((secret, _)) if *secret == pair.secret => continue,
            Some((_, other)) => {
                let expected = format!("one secret for API key {shown}, as in {other}");
                reader.push_invalid(pair.variable, expected, "another one");
                continue;
            }
            None => {}
        }
        let everybodys = (pair.key.as_str(), pair.secret.as_str()) == DEV_KEY_PAIR;
        known_to_everybody |= everybodys;
        if pair.secret.len() < RECOMMENDED_SECRET_BYTES && !(dev && everybodys) {
            reader.report.add_warning(format!(
                "{}: the secret of API key {shown} has {} bytes; the SFU wants {RECOMMENDED_SECRET_BYTES} or more",
                pair.variable,
                pair.secret.len()
            ));
        }
        let row = format!("{} {}", pair.key, mask_secret(&pair.secret));
        reader.report.add_setting(pair.variable, row, pair.origin);
        keys.push(ApiKey::new(&pair.key, &pair.secret));
        seen.insert(pair.key, (pair.secret, pair.variable));
    }
    if keys.len() > MAX_API_KEYS {
        reader.push_invalid(
            "LIVEKIT_KEYS",
            format!("at most {MAX_API_KEYS} keys in all"),
            keys.len().to_string(),
        );
    }
    (reader.errors.len() == before).then_some(SfuApiKeys {
        keys,
        includes_dev_key_pair: known_to_everybody,
    })
}

/// What a key file or `LIVEKIT_KEYS` holds.
enum KeyListContent {
    /// A single word without `:`, the bare key.
    BareKey(String),
    /// `key: secret`, each with the number of its line.
    Pairs(Vec<(String, String)>),
    /// The number of a line that is neither, and how many there are.
    InvalidLine(usize),
}

/// Reads lines as a YAML map of strings has them, which is what the SFU takes: comments, and quotes around either half.
fn parse_key_list(text: &str, separators: &[char]) -> KeyListContent {
    let mut pairs = Vec::new();
    let mut bare = Vec::new();
    for (index, line) in text.split(separators).enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(':') {
            Some((key, secret)) => match (unquote_yaml(key), unquote_yaml(secret)) {
                (Some(key), Some(secret))
                    if is_valid_api_key(key) && !secret.chars().any(char::is_control) =>
                {
                    pairs.push((key.to_owned(), secret.to_owned()));
                }
                _ => return KeyListContent::InvalidLine(index + 1),
            },
            None => bare.push((index + 1, line)),
        }
    }
    match (&*bare, pairs.is_empty()) {
        ([(_, key)], true) => KeyListContent::BareKey(unquote_yaml(key).unwrap_or_default().into()),
        ([(number, _), ..], _) => KeyListContent::InvalidLine(*number),
        ([], _) => KeyListContent::Pairs(pairs),
    }
}

/// What is left of a value without quotes and without a comment after it; none if nothing is left.
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

fn collect_pairs(
    reader: &mut SettingsReader<'_>,
    lines: KeyListContent,
    word: &str,
    from: &SettingValue,
) -> Vec<ApiKeyPair> {
    let number = match lines {
        KeyListContent::Pairs(pairs) => {
            let pair = |(key, secret)| ApiKeyPair {
                key,
                secret,
                variable: from.name,
                origin: from.origin.clone(),
            };
            return pairs.into_iter().map(pair).collect();
        }
        KeyListContent::BareKey(_) => 1,
        KeyListContent::InvalidLine(number) => number,
    };
    let found = format!("something else in {word} {number}");
    reader.push_invalid(from.name, "`key: secret`", found);
    Vec::new()
}
