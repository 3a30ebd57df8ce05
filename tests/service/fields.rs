//! Reads log lines as a machine does: `name=value` and `name="quoted value"`, separated by spaces.

/// The fields of a line, in order, without quotes. Panics at a value that ends in the middle of a word.
pub(crate) fn fields(line: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(' ').unwrap_or(rest.len());
        let Some((name, _)) = rest[..end].split_once('=') else {
            rest = rest[end..].trim_start();
            continue;
        };
        let value;
        (value, rest) = match rest[name.len() + 1..].strip_prefix('"') {
            Some(quoted) => unquoted(quoted, line),
            None => (rest[name.len() + 1..end].to_owned(), &rest[end..]),
        };
        assert!(rest.is_empty() || rest.starts_with(' '), "{line}");
        fields.push((name.to_owned(), value));
        rest = rest.trim_start();
    }
    fields
}

/// The value of the field `name`, if it has one. Panics if it has two: which of them is to be believed?
pub(crate) fn field(line: &str, name: &str) -> Option<String> {
    let mut values = fields(line).into_iter().filter(|field| field.0 == name);
    let value = values.next().map(|(_, value)| value);
    assert!(values.next().is_none(), "{name} twice in {line}");
    value
}

/// What stands before the closing quote, and what after it.
fn unquoted<'a>(quoted: &'a str, line: &str) -> (String, &'a str) {
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
fn quoted_values_are_one_field_whatever_they_hold() {
    let line = r#"2026 INFO it a=1 b="two = \"2\" c=3" c= "d=4"#;
    let expected = [
        ("a", "1"),
        ("b", r#"two = "2" c=3"#),
        ("c", ""),
        ("\"d", "4"),
    ];
    let found = fields(line);
    assert!(
        found
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .eq(expected),
        "{found:?}"
    );
}
