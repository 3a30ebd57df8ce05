//! JSON objects of strangers.

use serde::de::DeserializeOwned;

/// Reads an object, and nothing but one: serde would take an array of the fields' values as well.
pub fn object<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let begins = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    let is_object = begins == Some(&b'{');
    is_object
        .then(|| serde_json::from_slice(bytes).ok())
        .flatten()
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
        for other in ["[1]", "1", "", "{}", "{\"a\":1", "\u{feff}{\"a\":1}"] {
            assert!(object::<One>(other.as_bytes()).is_none(), "{other}");
        }
    }
}
