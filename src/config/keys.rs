//! The API keys of the SFU, in every way in which deployments give them.

use std::collections::HashMap;

use super::Error;
use super::reader::{Reader, Value, characters, masked, quoted};
use super::report::Origin;
use crate::livekit::token::{ApiKey, SHORT_SECRET};

/// Most keys: two are needed while one is replaced by another.
const MAX_KEYS: usize = 64;
/// Longest API key in bytes: the SFU's own limit for names, and far above the 15 that it generates.
const MAX_KEY: usize = 256;
/// The pair that the SFU knows when it is started with `--dev`.
const DEV: (&str, &str) = ("devkey", "secret");
const KEY_EXPECTED: &str = "an API key: at most 256 bytes without spaces or colons";

/// The keys, of which the first signs.
pub(super) struct Keys {
    pub(super) keys: Vec<ApiKey>,
    /// Whether one of them is the pair of `--dev`, which everybody knows.
    pub(super) known_to_everybody: bool,
}

struct Pair {
    key: String,
    secret: String,
    /// The variable with the secret in it.
    name: &'static str,
    origin: Origin,
}

/// Reads all keys; none, with errors remembered, if anything is wrong with one.
pub(super) fn read(reader: &mut Reader<'_>, dev: bool) -> Option<Keys> {
    let before = reader.errors.len();
    let mut keys = vec![
        reader.value("LIVEKIT_KEY"),
        reader.value("LIVEKIT_API_KEY"),
        reader.file("LIVEKIT_KEY_FROM_FILE"),
    ];
    let secrets = vec![
        reader.value("LIVEKIT_SECRET"),
        reader.value("LIVEKIT_API_SECRET"),
        reader.file("LIVEKIT_SECRET_FROM_FILE"),
        reader.file("LIVEKIT_SECRET_FILE"),
    ];
    let mut listed = Vec::new();
    if let Some(file) = reader.file("LIVEKIT_KEY_FILE") {
        match lines(&file.text, &['\n']) {
            Lines::One(key) => keys.push(Some(Value { text: key, ..file })),
            other => listed.extend(pairs(reader, other, "line", &file)),
        }
    }
    if let Some(list) = reader.value("LIVEKIT_KEYS") {
        let found = lines(&list.text, &['\n', ',']);
        listed.extend(pairs(reader, found, "entry", &list));
    }
    let key = same(reader, keys);
    let secret = same(reader, secrets);
    for value in [&key, &secret].into_iter().flatten() {
        check_half(reader, value, value.name.contains("SECRET"));
    }
    if reader.errors.len() > before {
        return None;
    }
    let all = joined(reader, key, secret, listed, dev)?;
    accepted(reader, all, dev)
}

/// The one value of several variables that mean the same.
fn same(reader: &mut Reader<'_>, values: Vec<Option<Value>>) -> Option<Value> {
    let mut values = values.into_iter().flatten().map(|value| Value {
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

fn check_half(reader: &mut Reader<'_>, value: &Value, is_secret: bool) {
    let text = &value.text;
    if is_secret && text.chars().any(char::is_control) {
        let expected = "a secret in one line without control characters";
        reader.wrong(value.name, expected, characters(text));
    }
    if !is_secret && !is_key(text) {
        // it may be a whole `key: secret`
        reader.wrong(value.name, KEY_EXPECTED, characters(text));
    }
}

fn is_key(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == ':';
    (1..=MAX_KEY).contains(&text.len()) && !text.contains(odd)
}

/// Puts halves and listed pairs together: a key alone chooses among those listed the one that signs.
fn joined(
    reader: &mut Reader<'_>,
    key: Option<Value>,
    secret: Option<Value>,
    mut listed: Vec<Pair>,
    dev: bool,
) -> Option<Vec<Pair>> {
    match (key, secret) {
        (Some(key), Some(secret)) => {
            reader.report.set(key.name, &*key.text, key.origin);
            let pair = Pair {
                key: key.text,
                secret: secret.text,
                name: secret.name,
                origin: secret.origin,
            };
            listed.insert(0, pair);
        }
        (Some(key), None) => match listed.iter().position(|pair| pair.key == key.text) {
            Some(chosen) => listed[..=chosen].rotate_right(1),
            None => {
                missing(
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
            missing(
                reader,
                "LIVEKIT_KEY",
                format!(
                    "the API key of {}, here or in the file that LIVEKIT_KEY_FROM_FILE names",
                    secret.name
                ),
            );
            return None;
        }
        (None, None) if listed.is_empty() && dev => listed.push(Pair {
            key: DEV.0.into(),
            secret: DEV.1.into(),
            name: "LIVEKIT_SECRET",
            origin: Origin::Dev,
        }),
        (None, None) if listed.is_empty() => {
            missing(
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

fn missing(reader: &mut Reader<'_>, name: &'static str, expected: String) {
    reader.errors.push(Error::Missing { name, expected });
}

/// Refuses two secrets for one key, warns of short ones and forgets the text of all.
fn accepted(reader: &mut Reader<'_>, pairs: Vec<Pair>, dev: bool) -> Option<Keys> {
    let before = reader.errors.len();
    let mut seen: HashMap<String, (String, &'static str)> = HashMap::new();
    let mut keys = Vec::new();
    let mut known_to_everybody = false;
    for pair in pairs {
        let shown = quoted(&pair.key);
        match seen.get(&pair.key) {
            Some((secret, _)) if *secret == pair.secret => continue,
            Some((_, other)) => {
                let expected = format!("one secret for API key {shown}, as in {other}");
                reader.wrong(pair.name, expected, "another one");
                continue;
            }
            None => {}
        }
        let everybodys = (pair.key.as_str(), pair.secret.as_str()) == DEV;
        known_to_everybody |= everybodys;
        if pair.secret.len() < SHORT_SECRET && !(dev && everybodys) {
            reader.report.warn(format!(
                "{}: the secret of API key {shown} has {} bytes; the SFU wants {SHORT_SECRET} or more",
                pair.name,
                pair.secret.len()
            ));
        }
        let row = format!("{} {}", pair.key, masked(&pair.secret));
        reader.report.set(pair.name, row, pair.origin);
        keys.push(ApiKey::new(&pair.key, &pair.secret));
        seen.insert(pair.key, (pair.secret, pair.name));
    }
    if keys.len() > MAX_KEYS {
        reader.wrong(
            "LIVEKIT_KEYS",
            format!("at most {MAX_KEYS} keys in all"),
            keys.len().to_string(),
        );
    }
    (reader.errors.len() == before).then_some(Keys {
        keys,
        known_to_everybody,
    })
}

/// What a key file or `LIVEKIT_KEYS` holds.
enum Lines {
    /// A single word without `:`, the bare key.
    One(String),
    /// `key: secret`, each with the number of its line.
    Pairs(Vec<(String, String)>),
    /// The number of a line that is neither, and how many there are.
    Wrong(usize),
}

/// Reads lines as a YAML map of strings has them, which is what the SFU takes: comments, and quotes around either half.
fn lines(text: &str, separators: &[char]) -> Lines {
    let mut pairs = Vec::new();
    let mut bare = Vec::new();
    for (index, line) in text.split(separators).enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(':') {
            Some((key, secret)) => match (unquoted(key), unquoted(secret)) {
                (Some(key), Some(secret))
                    if is_key(key) && !secret.chars().any(char::is_control) =>
                {
                    pairs.push((key.to_owned(), secret.to_owned()));
                }
                _ => return Lines::Wrong(index + 1),
            },
            None => bare.push((index + 1, line)),
        }
    }
    match (&*bare, pairs.is_empty()) {
        ([(_, key)], true) => Lines::One(unquoted(key).unwrap_or_default().into()),
        ([(number, _), ..], _) => Lines::Wrong(*number),
        ([], _) => Lines::Pairs(pairs),
    }
}

/// What is left of a value without quotes and without a comment after it; none if nothing is left.
fn unquoted(text: &str) -> Option<&str> {
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

fn pairs(reader: &mut Reader<'_>, lines: Lines, word: &str, from: &Value) -> Vec<Pair> {
    let number = match lines {
        Lines::Pairs(pairs) => {
            let pair = |(key, secret)| Pair {
                key,
                secret,
                name: from.name,
                origin: from.origin.clone(),
            };
            return pairs.into_iter().map(pair).collect();
        }
        Lines::One(_) => 1,
        Lines::Wrong(number) => number,
    };
    let found = format!("something else in {word} {number}");
    reader.wrong(from.name, "`key: secret`", found);
    Vec::new()
}

#[cfg(test)]
mod tests;
