//! A message's fields: messages are written as `what happened key=value key="more values"`, and read again here.

use std::borrow::Cow;

/// What happened, and the `key=value` pairs at the end of the message, as they stand there. Prose that only mentions a pair
/// has none.
pub(super) fn split_fields(text: &str) -> (&str, &str) {
    let mut end = None;
    for (at, token) in tokens(text) {
        match parse_field(token) {
            Some(_) => end = end.or(Some(at)),
            None => end = None,
        }
    }
    let (message, fields) = text.split_at(end.unwrap_or(text.len()));
    (message.trim_end(), fields)
}

/// The pairs of what [`split`] found, without quotes.
pub(super) fn parse_fields(fields: &str) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    tokens(fields).filter_map(|(_, token)| parse_field(token))
}

/// Words with their places; blanks within double quotes do not end one.
fn tokens(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        at = text.len() - text[at..].trim_start_matches(' ').len();
        let start = at;
        let (mut quoted, mut escaped) = (false, false);
        for c in text[start..].chars() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                ' ' if !quoted => break,
                _ => {}
            }
            at += c.len_utf8();
        }
        (at > start).then(|| (start, &text[start..at]))
    })
}

fn parse_field(token: &str) -> Option<(&str, Cow<'_, str>)> {
    let (name, value) = token.split_once('=')?;
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(letter) {
        return None;
    }
    match value.strip_prefix('"') {
        None => (!value.contains('"')).then_some((name, value.into())),
        Some(rest) => Some((name, unquote(rest.strip_suffix('"')?)?)),
    }
}

/// Undoes `{:?}` as far as quotes and backslashes go; its other escapes are for the eye, and stay. None if a quote ends within.
fn unquote(inner: &str) -> Option<Cow<'_, str>> {
    if !inner.contains(['\\', '"']) {
        return Some(inner.into());
    }
    let mut text = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return None,
            '\\' => match chars.next()? {
                c @ ('"' | '\\' | '\'') => text.push(c),
                c => text.extend(['\\', c]),
            },
            c => text.push(c),
        }
    }
    Some(text.into())
}
