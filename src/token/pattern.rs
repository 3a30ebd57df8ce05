//! Patterns of names that a caller may request: literal text, `*` for any text, `{identity}` and `{claim:NAME}`.

use std::fmt;

use serde_json::{Map, Value};

/// Longest pattern in bytes: the longest name and a few placeholders.
const MAX_PATTERN_BYTES: usize = 512;
/// Longest value of a claim in bytes, the same as the longest name.
const MAX_CLAIM_BYTES: usize = 256;

/// A pattern of names. Names are compared byte by byte: characters that only look alike do not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern(Vec<PatternSegment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum PatternSegment {
    Literal(String),
    Wildcard,
    ParticipantIdentity,
    Claim(String),
}

/// Values of the placeholders.
#[derive(Debug, Clone, Copy, Default)]
pub struct PatternContext<'a> {
    /// The participant's identity, if it is known.
    pub identity: Option<&'a str>,
    /// The claims of the caller's JWT.
    pub claims: Option<&'a Map<String, Value>>,
}

/// Error for a text that is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidPattern {
    /// Empty, or longer than [`MAX_PATTERN_BYTES`].
    Length,
    /// A control character, which no name contains.
    ControlCharacter,
    /// A brace that is not part of `{identity}` or `{claim:NAME}`.
    Placeholder,
    /// A placeholder next to another one or to a `*`, so that the end of its value is ambiguous.
    MissingSeparator,
}

impl fmt::Display for InvalidPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => write!(f, "expected a pattern of 1 to {MAX_PATTERN_BYTES} bytes"),
            Self::ControlCharacter => f.write_str("expected a pattern without control characters"),
            Self::Placeholder => f.write_str("expected {identity} or {claim:NAME} between braces"),
            Self::MissingSeparator => f.write_str(
                "expected a separator such as / between a placeholder and another one or *",
            ),
        }
    }
}

impl std::error::Error for InvalidPattern {}

impl NamePattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// See [`InvalidPattern`].
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        if text.is_empty() || text.len() > MAX_PATTERN_BYTES {
            return Err(InvalidPattern::Length);
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidPattern::ControlCharacter);
        }
        let mut segments = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['*', '{', '}']) {
            if at > 0 {
                segments.push(PatternSegment::Literal(rest[..at].to_owned()));
            }
            let (segment, length) =
                parse_special_segment(&rest[at..]).ok_or(InvalidPattern::Placeholder)?;
            segments.push(segment);
            rest = &rest[at + length..];
        }
        if !rest.is_empty() {
            segments.push(PatternSegment::Literal(rest.to_owned()));
        }
        let is_ambiguous = |pair: &[PatternSegment]| {
            pair.iter().all(|segment| !segment.is_literal())
                && pair.iter().any(PatternSegment::is_placeholder)
        };
        if segments.windows(2).any(is_ambiguous) {
            return Err(InvalidPattern::MissingSeparator);
        }
        Ok(Self(segments))
    }

    /// The pattern `*`.
    pub fn wildcard() -> Self {
        Self(vec![PatternSegment::Wildcard])
    }

    /// The pattern `{claim:NAME}`.
    pub fn equal_to_claim(name: &str) -> Self {
        Self(vec![PatternSegment::Claim(name.to_owned())])
    }

    /// Whether the pattern contains `{identity}`.
    pub fn uses_identity(&self) -> bool {
        self.0.contains(&PatternSegment::ParticipantIdentity)
    }

    /// Whether a name matches; no name does if a placeholder has no value. Takes time proportional to both lengths.
    pub fn matches(&self, name: &str, context: PatternContext<'_>) -> bool {
        let Some(parts) = self.resolve_parts(context) else {
            return false;
        };
        let Some((last, before)) = parts.split_last() else {
            return false;
        };
        let Some((first, between)) = before.split_first() else {
            return name == last;
        };
        let Some(mut rest) = name.strip_prefix(first.as_str()) else {
            return false;
        };
        for part in between {
            // the leftmost match leaves the most text for the next parts, so no backtracking is needed
            let Some((_, after)) = rest.split_once(part.as_str()) else {
                return false;
            };
            rest = after;
        }
        rest.ends_with(last.as_str())
    }

    /// The name with `wildcard` instead of each `*`; none if a placeholder has no value.
    pub fn expand(&self, context: PatternContext<'_>, wildcard: &str) -> Option<String> {
        Some(self.resolve_parts(context)?.join(wildcard))
    }

    /// Whether the pattern matches one name only.
    pub fn is_without_wildcard(&self) -> bool {
        !self.0.contains(&PatternSegment::Wildcard)
    }

    /// The text before, between and after the wildcards.
    fn resolve_parts(&self, context: PatternContext<'_>) -> Option<Vec<String>> {
        let mut parts = vec![String::new()];
        for (index, segment) in self.0.iter().enumerate() {
            let text = match segment {
                PatternSegment::Wildcard => {
                    parts.push(String::new());
                    continue;
                }
                PatternSegment::Literal(text) => text.clone(),
                PatternSegment::ParticipantIdentity => context.identity?.to_owned(),
                PatternSegment::Claim(name) => claim_as_text(context.claims?.get(name)?)?,
            };
            if segment.is_placeholder() && !self.is_delimited(index, &text) {
                return None;
            }
            parts.last_mut()?.push_str(&text);
        }
        Some(parts)
    }

    /// Whether the value of a placeholder does not contain the characters that delimit it: with `{claim:tenant}-*`, a tenant `a`
    /// would otherwise match the rooms of a tenant `a-b`.
    fn is_delimited(&self, index: usize, value: &str) -> bool {
        let after = match &self.0[index + 1..] {
            // before literal text at the end of the pattern, the end of the value is unambiguous
            [PatternSegment::Literal(text), rest @ ..] if !rest.is_empty() => text.chars().next(),
            _ => None,
        };
        let before = match &self.0[..index] {
            [.., PatternSegment::Wildcard, PatternSegment::Literal(text)] => text.chars().last(),
            _ => None,
        };
        let mut delimiters = after.into_iter().chain(before);
        !delimiters.any(|delimiter| value.contains(delimiter))
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

/// Parses a segment that starts with `*` or a brace. Returns its length in bytes too.
fn parse_special_segment(text: &str) -> Option<(PatternSegment, usize)> {
    if text.starts_with('*') {
        return Some((PatternSegment::Wildcard, 1));
    }
    let end = text.find('}')?;
    let word = text[..end].strip_prefix('{')?;
    let segment = match word.strip_prefix("claim:") {
        Some(name) if !name.is_empty() && !name.contains(['{', '*']) => {
            PatternSegment::Claim(name.to_owned())
        }
        None if word == "identity" => PatternSegment::ParticipantIdentity,
        _ => return None,
    };
    Some((segment, end + 1))
}

/// The value of a claim as a part of a name; none unless it is a string or an integer that a name can contain.
fn claim_as_text(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::String(text) => text.clone(),
        Value::Number(number) if !number.is_f64() => number.to_string(),
        _ => return None,
    };
    let is_usable =
        (1..=MAX_CLAIM_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
    is_usable.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(pattern: &str, name: &str) -> bool {
        let claims = json!({"tenant": "acme", "n": 7, "empty": "", "star": "*", "list": ["x"], "odd": "a\u{0}"});
        let context = PatternContext {
            identity: Some("alice"),
            claims: claims.as_object(),
        };
        NamePattern::parse(pattern).unwrap().matches(name, context)
    }

    #[test]
    fn only_a_wildcard_matches_any_text() {
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
    fn a_placeholder_matches_its_value_literally() {
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
        let empty = PatternContext::default();
        assert!(!NamePattern::parse("{identity}").unwrap().matches("", empty));
        assert!(
            !NamePattern::parse("{claim:sub}")
                .unwrap()
                .matches("", empty)
        );
    }

    #[test]
    fn a_value_with_the_delimiter_does_not_match_the_names_of_another_value() {
        let matches = |pattern: &str, tenant: &str, name: &str| {
            let claims = json!({ "t": tenant });
            let context = PatternContext {
                identity: None,
                claims: claims.as_object(),
            };
            NamePattern::parse(pattern).unwrap().matches(name, context)
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
    fn invalid_patterns_are_rejected() {
        let long = "a".repeat(MAX_PATTERN_BYTES + 1);
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
    fn matching_takes_linear_time() {
        // with backtracking it would take 2^40 steps or more
        let pattern = "a*".repeat(40) + "b";
        let started = std::time::Instant::now();
        assert!(!matches(&pattern, &"a".repeat(256)));
        assert!(started.elapsed() < std::time::Duration::from_secs(10));
    }

    #[test]
    fn a_pattern_expands_to_a_name() {
        let context = PatternContext {
            identity: Some("alice"),
            claims: None,
        };
        let expanded = |text: &str| NamePattern::parse(text).unwrap().expand(context, "r");
        assert_eq!(expanded("{identity}-*").as_deref(), Some("alice-r"));
        assert_eq!(expanded("{claim:sub}-*"), None);
        assert!(
            NamePattern::parse("{identity}")
                .unwrap()
                .is_without_wildcard()
        );
        assert!(!NamePattern::parse("a*").unwrap().is_without_wildcard());
    }
}
