//! JSON objects of strangers.

use std::fmt;

use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Reads an object, and nothing but one, all of it JSON: serde would take an array of the fields' values as well, and pass over
/// what means nothing in fields that it does not know.
pub(crate) fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_object = text.trim_ascii_start().starts_with('{');
    if !is_object || serde_json::from_str::<serde_json::Value>(text).is_err() {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// Reads a value in which no object has two fields of one name: readers differ in which of them they take.
pub(crate) fn parse_unique_keys(bytes: &[u8]) -> Option<Value> {
    let read: Result<UniqueKeyValue, _> = serde_json::from_slice(bytes);
    read.ok().map(|UniqueKeyValue(value)| value)
}

struct UniqueKeyValue(Value);

impl<'de> Deserialize<'de> for UniqueKeyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueKeyVisitor).map(Self)
    }
}

struct UniqueKeyVisitor;

impl<'de> Visitor<'de> for UniqueKeyVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(UniqueKeyValue(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((name, UniqueKeyValue(value))) = object.next_entry::<String, _>()? {
            if fields.insert(name, value).is_some() {
                return Err(A::Error::custom("a field is there twice"));
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct TestObject {
        a: u8,
    }

    #[test]
    fn a_field_is_there_once_at_any_depth() {
        let text = r#"{"a":[1,-1,1.5,"x",null,true,{"b":{}}],"c":{"a":1}}"#;
        let read: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse_unique_keys(text.as_bytes()), Some(read));
        for other in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"[{"b":{"a":1,"a":1}}]"#,
            "{} {}",
            "",
            "{",
            "\u{feff}{}",
        ] {
            assert_eq!(parse_unique_keys(other.as_bytes()), None, "{other}");
        }
        assert_eq!(parse_unique_keys(&[b'['; 60_000]), None);
        assert_eq!(parse_unique_keys(b"\"\xff\""), None);
    }

    #[test]
    fn an_array_of_values_is_no_object() {
        assert_eq!(
            parse_object::<TestObject>(b" {\"a\":1,\"b\":2}\n")
                .unwrap()
                .a,
            1
        );
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
            assert!(
                parse_object::<TestObject>(other.as_bytes()).is_none(),
                "{other}"
            );
        }
        assert!(parse_object::<TestObject>(b"{\"a\":1,\"b\":\"\xff\"}").is_none());
    }
}
