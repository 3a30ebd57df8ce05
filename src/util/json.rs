//! JSON from other parties.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Parses an object into `T`. An array of the fields' values, which serde takes for a struct as well, is refused. The content of
/// fields that `T` does not have is skipped.
pub(crate) fn parse_object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_object = text.trim_ascii_start().starts_with('{');
    is_object.then(|| serde_json::from_str(text).ok())?
}

/// For `deserialize_with`: a struct from a nested object, not from an array of the fields' values.
pub(crate) fn deserialize_object<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct ObjectVisitor<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(object))
        }
    }

    deserializer.deserialize_map(ObjectVisitor(PhantomData))
}

/// Parses a value in which no object has two fields of the same name: parsers differ in which of the two they take.
pub(crate) fn parse_unique_keys(bytes: &[u8]) -> Option<Value> {
    let parsed: Result<UniqueKeyValue, _> = serde_json::from_slice(bytes);
    parsed.ok().map(|UniqueKeyValue(value)| value)
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
                return Err(A::Error::custom("two fields of the same name"));
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
    fn two_fields_of_the_same_name_are_refused_at_any_depth() {
        let text = r#"{"a":[1,-1,1.5,"x",null,true,{"b":{}}],"c":{"a":1}}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse_unique_keys(text.as_bytes()), Some(expected));
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
    fn only_an_object_is_parsed() {
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
            "{\"a\":1,\"a\":1}",
            "\u{feff}{\"a\":1}",
        ] {
            assert!(
                parse_object::<TestObject>(other.as_bytes()).is_none(),
                "{other}"
            );
        }
        assert!(parse_object::<TestObject>(b"{\"a\":1,\"b\":\"\xff\"}").is_none());
        // the range of a number in an unknown field is not checked
        assert!(parse_object::<TestObject>(b"{\"a\":1,\"b\":1e9999}").is_some());
    }
}
