//! Parser of log lines, for logfmt (`name=value`, `name="quoted value"`) and JSON.

use serde_json::{Map, Value};

/// Fields that stand before those of the event, in this order; `time` is left to journald under systemd.
const STANDARD_FIELDS: [&str; 4] = ["time", "level", "target", "msg"];

/// The fields of a line in logfmt, in order, without quotes. Panics if the line has anything else.
pub(crate) fn fields(line: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (name, value) = rest
            .split_once('=')
            .filter(|(name, _)| is_name(name))
            .unwrap_or_else(|| panic!("no field at {rest:?} in {line}"));
        let value_end;
        let value = match value.strip_prefix('"') {
            Some(quoted) => {
                let (value, after) = unquote(quoted, line);
                value_end = after;
                value
            }
            None => {
                let end = value.find(' ').unwrap_or(value.len());
                value_end = &value[end..];
                assert!(!value[..end].contains(['"', '=']), "{name} in {line}");
                value[..end].to_owned()
            }
        };
        fields.push((name.to_owned(), value));
        rest = match value_end.strip_prefix(' ') {
            Some(next) => next,
            None => {
                assert!(value_end.is_empty(), "after {name} in {line}");
                value_end
            }
        };
    }
    fields
}

/// The value of the field `name`, if the line has one. Panics if it has two.
pub(crate) fn field(line: &str, name: &str) -> Option<String> {
    let mut values = fields(line).into_iter().filter(|field| field.0 == name);
    let value = values.next().map(|(_, value)| value);
    assert!(values.next().is_none(), "{name} twice in {line}");
    value
}

/// Panics unless the line consists of fields: the standard ones, then those of the event, each name once.
pub(crate) fn check_line(line: &str) {
    // the priority for journald
    let is_priority = |text: &str| text.len() == 2 && text.starts_with('<');
    let text = match line.split_once('>') {
        Some((priority, text)) if is_priority(priority) => text,
        _ => line,
    };
    let names: Vec<String> = if text.starts_with('{') {
        let fields: Map<String, Value> =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {line}"));
        for (name, value) in &fields {
            assert!(!value.is_object() && !value.is_array(), "{name} in {line}");
        }
        json_names(text)
    } else {
        fields(text).into_iter().map(|(name, _)| name).collect()
    };
    let standard = match names.first().map(String::as_str) {
        Some("time") => &STANDARD_FIELDS[..],
        _ => &STANDARD_FIELDS[1..],
    };
    assert!(
        names.starts_with(
            &standard
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        ),
        "{line}"
    );
    for (index, name) in names.iter().enumerate() {
        assert!(!names[..index].contains(name), "{name} twice in {line}");
    }
}

/// The names of a JSON object whose values are text, numbers and booleans, in order and as often as they occur.
fn json_names(object: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = object.trim_start_matches('{');
    while let Some(quoted) = rest.strip_prefix('"') {
        let (name, value) = unquote(quoted, object);
        names.push(name);
        let value = value.trim_start_matches(':');
        let after = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted, object).1,
            None => &value[value.find([',', '}']).unwrap_or(value.len())..],
        };
        rest = after.trim_start_matches(',');
    }
    assert_eq!(rest, "}", "{object}");
    names
}

fn is_name(text: &str) -> bool {
    let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !text.is_empty() && text.chars().all(is_name_char)
}

/// The value before the closing quote, and the rest after it.
fn unquote<'a>(quoted: &'a str, line: &str) -> (String, &'a str) {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => {
                let (_, escaped) = characters.next().unwrap_or_else(|| panic!("{line}"));
                value.push(escaped);
            }
            _ => value.push(character),
        }
    }
    panic!("a quote without end: {line}")
}

#[test]
fn quoted_values_are_one_field() {
    let line = r#"level=info msg="it is" a=1 b="two = \"2\" c=3" c= d="""#;
    let expected = [
        ("level", "info"),
        ("msg", "it is"),
        ("a", "1"),
        ("b", r#"two = "2" c=3"#),
        ("c", ""),
        ("d", ""),
    ];
    let found = fields(line);
    let found = found.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    assert!(found.eq(expected), "{line}");
}

#[test]
fn lines_that_are_not_fields_alone_are_found() {
    for line in [
        "time=1 level=info target=main msg=x",
        "level=info target=main msg=\"x y\" user=a",
        "<6>level=info target=main msg=x",
        r#"{"time":"1","level":"info","target":"main","msg":"x","count":3,"full":true}"#,
        r#"<4>{"level":"info","target":"main","msg":"a \"b\" {c}"}"#,
    ] {
        check_line(line);
    }
    for line in [
        "",
        "thread panicked",
        "level=info target=main msg=x y",
        "level=info target=main msg=x user=a user=b",
        "level=info target=main user=a msg=x",
        "level=info target=main msg=\"x\"y",
        "level=info target=main msg=x url=a?b=c",
        r#"{"level":"info","target":"main","msg":"x","msg":"y"}"#,
        r#"{"level":"info","target":"main","msg":"x","a":[1]}"#,
        r#"{"level":"info","target":"main","msg":"x""#,
    ] {
        let result = std::panic::catch_unwind(|| check_line(line));
        assert!(result.is_err(), "{line}");
    }
}
