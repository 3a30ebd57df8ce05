//! Names that a caller may use: literal text, `*` for any text, `{identity}` and `{claim:NAME}` for what is known of the caller.

use std::fmt;

use serde_json::{Map, Value};

/// Longest pattern in bytes: the longest name, and a few placeholders.
pub(crate) const MAX_PATTERN: usize = 512;
/// Longest value of a claim that is put into a pattern, in bytes: the longest name that it could be part of.
const MAX_CLAIM_BYTES: usize = 256;

/// A pattern of names. Names are compared byte by byte, so that nothing that merely looks alike matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern(Vec<PatternSegment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum PatternSegment {
    Literal(String),
    Wildcard,
    ParticipantIdentity,
    Claim(String),
}

/// What placeholders stand for.
#[derive(Debug, Clone, Copy, Default)]
pub struct PatternContext<'a> {
    /// The participant, once it is certain who that is.
    pub identity: Option<&'a str>,
    /// What the caller's login says of them.
    pub claims: Option<&'a Map<String, Value>>,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidPattern {
    /// Empty, or longer than [`MAX_PATTERN`].
    Length,
    /// A control character, which no name has.
    ControlCharacter,
    /// A brace that is not part of `{identity}` or `{claim:NAME}`.
    Placeholder,
    /// A placeholder with nothing between it and another one or a `*`, so that nobody can tell where its value ends.
    MissingSeparator,
}

impl fmt::Display for InvalidPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => write!(f, "expected a pattern of 1 to {MAX_PATTERN} bytes"),
            Self::ControlCharacter => f.write_str("expected a pattern without control characters"),
            Self::Placeholder => {
                f.write_str("expected {identity} or {claim:NAME} where there are braces")
            }
            Self::MissingSeparator => f.write_str(
                "expected a separator such as / between a placeholder and another one or *",
            ),
        }
    }
}

impl std::error::Error for InvalidPattern {}

impl NamePattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if text.is_empty() || text.len() > MAX_PATTERN {
            return Err(InvalidPattern::Length);
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidPattern::ControlCharacter);
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['*', '{', '}']) {
            if at > 0 {
                pieces.push(PatternSegment::Literal(rest[..at].to_owned()));
            }
            let (piece, length) =
                parse_special_segment(&rest[at..]).ok_or(InvalidPattern::Placeholder)?;
            pieces.push(piece);
            rest = &rest[at + length..];
        }
        if !rest.is_empty() {
            pieces.push(PatternSegment::Literal(rest.to_owned()));
        }
        let blurred = |pair: &[PatternSegment]| {
            pair.iter().all(|piece| !piece.is_literal())
                && pair.iter().any(PatternSegment::is_placeholder)
        };
        if pieces.windows(2).any(blurred) {
            return Err(InvalidPattern::MissingSeparator);
        }
        Ok(Self(pieces))
    }

    /// `*`.
    pub fn wildcard() -> Self {
        Self(vec![PatternSegment::Wildcard])
    }

    /// A pattern that one claim must equal.
    pub fn equal_to_claim(name: &str) -> Self {
        Self(vec![PatternSegment::Claim(name.to_owned())])
    }

    /// Whether it speaks of the participant.
    pub fn uses_identity(&self) -> bool {
        self.0.contains(&PatternSegment::ParticipantIdentity)
    }

    /// Whether a name is one of those. None is if a placeholder stands for nothing. Takes time in proportion to both lengths.
    pub fn matches(&self, name: &str, known: PatternContext<'_>) -> bool {
        let Some(texts) = self.resolve_parts(known) else {
            return false;
        };
        let Some((last, before)) = texts.split_last() else {
            return false;
        };
        let Some((first, between)) = before.split_first() else {
            return name == last;
        };
        let Some(mut rest) = name.strip_prefix(first.as_str()) else {
            return false;
        };
        for text in between {
            // the leftmost place leaves the most for what follows
            let Some((_, after)) = rest.split_once(text.as_str()) else {
                return false;
            };
            rest = after;
        }
        rest.ends_with(last.as_str())
    }

    /// The name that it stands for, with `any` in the place of `*`; none if a placeholder stands for nothing.
    pub fn expand(&self, known: PatternContext<'_>, any: &str) -> Option<String> {
        Some(self.resolve_parts(known)?.join(any))
    }

    /// Whether it stands for one name only.
    pub fn is_without_wildcard(&self) -> bool {
        !self.0.contains(&PatternSegment::Wildcard)
    }

    /// What stands before, between and behind the `*`.
    fn resolve_parts(&self, known: PatternContext<'_>) -> Option<Vec<String>> {
        let mut texts = vec![String::new()];
        for (index, piece) in self.0.iter().enumerate() {
            let text = match piece {
                PatternSegment::Wildcard => {
                    texts.push(String::new());
                    continue;
                }
                PatternSegment::Literal(text) => text.clone(),
                PatternSegment::ParticipantIdentity => known.identity?.to_owned(),
                PatternSegment::Claim(name) => claim_as_text(known.claims?.get(name)?)?,
            };
            if piece.is_placeholder() && !self.is_delimited(index, &text) {
                return None;
            }
            texts.last_mut()?.push_str(&text);
        }
        Some(texts)
    }

    /// Whether the value of a placeholder cannot be taken for more than that: with `{claim:tenant}-*` a tenant `a` would have
    /// the rooms of a tenant `a-b`, so there a value with `-` stands for nothing.
    fn is_delimited(&self, index: usize, value: &str) -> bool {
        let after = match &self.0[index + 1..] {
            // with nothing but text behind it, its end is certain
            [PatternSegment::Literal(text), rest @ ..] if !rest.is_empty() => text.chars().next(),
            _ => None,
        };
        let before = match self.0[..index] {
            [
                ..,
                PatternSegment::Wildcard,
                PatternSegment::Literal(ref text),
            ] => text.chars().last(),
            _ => None,
        };
        let mut borders = after.into_iter().chain(before);
        !borders.any(|border| value.contains(border))
    }
}

impl PatternSegment {
    fn is_literal(&self) -> bool {
        matches!(self, Self::Literal(_))
    }

    fn is_placeholder(&self) -> bool {
        matches!(self, Self::ParticipantIdentity | Self::Claim(_))
    }
}

/// What begins with `*` or a brace, and its length in bytes.
fn parse_special_segment(text: &str) -> Option<(PatternSegment, usize)> {
    if text.starts_with('*') {
        return Some((PatternSegment::Wildcard, 1));
    }
    let end = text.find('}')?;
    let word = text[..end].strip_prefix('{')?;
    let piece = match word.strip_prefix("claim:") {
        Some(name) if !name.is_empty() && !name.contains(['{', '*']) => {
            PatternSegment::Claim(name.to_owned())
        }
        None if word == "identity" => PatternSegment::ParticipantIdentity,
        _ => return None,
    };
    Some((piece, end + 1))
}

/// A claim as part of a name: a string or a whole number, and nothing that no name could hold.
fn claim_as_text(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::String(text) => text.clone(),
        Value::Number(number) if !number.is_f64() => number.to_string(),
        _ => return None,
    };
    let fits = (1..=MAX_CLAIM_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
    fits.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(pattern: &str, name: &str) -> bool {
        let claims = json!({"tenant": "acme", "n": 7, "empty": "", "star": "*", "list": ["x"], "odd": "a\u{0}"});
        let known = PatternContext {
            identity: Some("alice"),
            claims: claims.as_object(),
        };
        NamePattern::parse(pattern).unwrap().matches(name, known)
    }

    #[test]
    fn a_star_stands_for_any_text_and_nothing_else_does() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "anything at all"),
            ("room", "room"),
            ("appointment-*", "appointment-1"),
            ("appointment-*", "appointment-"),
            ("*-end", "a-end-end"),
            ("a*b*c", "a-b-b-c"),
            ("a**c", "ac"),
            ("é*", "é1"),
            ("[a-z]?", "[a-z]?"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("room", "room1"),
            ("room", "Room"),
            ("appointment-*", "xappointment-1"),
            ("appointment-*", "../appointment-1"),
            ("appointment-*", "appointment\u{2010}1"),
            ("appointment-*", "\u{430}ppointment-1"),
            ("*-end", "-end-"),
            ("a*a", "a"),
            ("a*b*b", "ab"),
            ("a*b*c", "a-c-b"),
            ("room", "room\0"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn placeholders_stand_for_what_is_known_and_never_for_a_pattern() {
        assert!(matches("{identity}", "alice"));
        assert!(matches("{claim:tenant}/{identity}/*", "acme/alice/1"));
        assert!(matches("{claim:n}", "7"));
        assert!(matches("{claim:star}", "*"));
        for pattern in [
            "{claim:star}",
            "{claim:empty}x",
            "{claim:none}",
            "{claim:list}",
            "{claim:odd}",
        ] {
            assert!(!matches(pattern, "x"), "{pattern}");
        }
        let nobody = PatternContext::default();
        assert!(
            !NamePattern::parse("{identity}")
                .unwrap()
                .matches("", nobody)
        );
        assert!(
            !NamePattern::parse("{claim:sub}")
                .unwrap()
                .matches("", nobody)
        );
    }

    #[test]
    fn nobody_gets_the_names_of_others_by_a_longer_value() {
        let matches = |pattern: &str, tenant: &str, name: &str| {
            let claims = json!({ "t": tenant });
            let known = PatternContext {
                identity: None,
                claims: claims.as_object(),
            };
            NamePattern::parse(pattern).unwrap().matches(name, known)
        };
        assert!(matches("{claim:t}-*", "a", "a-b-1"));
        assert!(!matches("{claim:t}-*", "a-b", "a-b-1"));
        assert!(matches("{claim:t}/*", "a-b", "a-b/1"));
        assert!(matches("*-{claim:t}", "b", "a-b"));
        assert!(!matches("*-{claim:t}", "a-b", "x-a-b"));
        assert!(matches("room-{claim:t}", "a-b", "room-a-b"));
        assert!(matches("{claim:t}-own", "a-b", "a-b-own"));
        assert!(!matches("{claim:t}-own-*", "a-b", "a-b-own-1"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let long = "a".repeat(MAX_PATTERN + 1);
        for text in [
            "",
            &long,
            "{",
            "}",
            "{}",
            "{user}",
            "{claim:}",
            "{identity",
            "a}b",
            "{claim:a}*",
            "*{identity}",
            "{identity}{claim:a}",
            "{claim:a{b}",
            "a\nb",
        ] {
            assert!(NamePattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_hostile_name_takes_no_more_than_linear_time() {
        // a matcher that tries again after each failure would take 2^40 steps or more
        let pattern = "a*".repeat(40) + "b";
        let started = std::time::Instant::now();
        assert!(!matches(&pattern, &"a".repeat(256)));
        assert!(started.elapsed() < std::time::Duration::from_secs(10));
    }

    #[test]
    fn a_pattern_can_be_filled() {
        let known = PatternContext {
            identity: Some("alice"),
            claims: None,
        };
        let filled = |text: &str| NamePattern::parse(text).unwrap().expand(known, "r");
        assert_eq!(filled("{identity}-*").as_deref(), Some("alice-r"));
        assert_eq!(filled("{claim:sub}-*"), None);
        assert!(
            NamePattern::parse("{identity}")
                .unwrap()
                .is_without_wildcard()
        );
        assert!(!NamePattern::parse("a*").unwrap().is_without_wildcard());
    }
}
