//! JSON objects of strangers.

use serde::de::DeserializeOwned;

/// Reads an object, and nothing but one, all of it JSON: serde would take an array of the fields' values as well, and pass over
/// what means nothing in fields that it does not know.
pub fn object<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_object = text.trim_ascii_start().starts_with('{');
    if !is_object || serde_json::from_str::<serde_json::Value>(text).is_err() {
        return None;
    }
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct One {
        a: u8,
    }

    #[test]
    fn an_array_of_values_is_no_object() {
        assert_eq!(object::<One>(b" {\"a\":1,\"b\":2}\n").unwrap().a, 1);
        for other in [
            "[1]",
            "1",
            "",
            "{}",
            "{\"a\":1",
            "{\"a\":1,\"b\":1e9999}",
            "{\"a\":1,\"a\":1}",
            "\u{feff}{\"a\":1}",
        ] {
            assert!(object::<One>(other.as_bytes()).is_none(), "{other}");
        }
        assert!(object::<One>(b"{\"a\":1,\"b\":\"\xff\"}").is_none());
    }
}
