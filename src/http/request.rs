//! Wire bodies of the Matrix endpoints. Lenient where clients differ: unknown fields are passed over, and only what is needed is required.

pub mod proxied;
pub mod pushed;

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::alias::DEFAULT_SLOT;
use crate::exchange::{Delay, Participant, TokenRequest};
use crate::matrix::id::{DelayId, DeviceId, Invalid, MemberId, RoomId, SlotId};
use crate::matrix::openid::OpenIdToken;

/// Longest name of a server or user in bytes: no valid one is longer, and it may stand in the log.
const MAX_NAME: usize = 255;

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// It is not JSON.
    NotJson,
    /// It is JSON, but a field is missing or not what it should be.
    Field(&'static str, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson => f.write_str("the body is not JSON"),
            Self::Field(name, expected) => write!(f, "{name}: expected {expected}"),
        }
    }
}

impl std::error::Error for Error {}

/// Reads the body of `POST /delegate_delayed_leave`, which is that of `/get_token` with a delayed event.
pub fn delegate(body: &[u8]) -> Result<(TokenRequest, Delay), Error> {
    let request = get_token(body)?;
    match request.delay.clone() {
        Some(delay) => Ok((request, delay)),
        None => Err(Error::Field("delay_id", "a non-empty string".into())),
    }
}

/// Reads the body of `POST /get_token` (MSC4195).
pub fn get_token(body: &[u8]) -> Result<TokenRequest, Error> {
    let body = read(body)?;
    let body = Object(&body);
    let (server, token) = openid_token(&body)?;
    let member = body.object("member")?;
    Ok(TokenRequest {
        server,
        token,
        room: parse("room_id", body.text("room_id")?, RoomId::parse)?,
        slot: parse("slot_id", body.text("slot_id")?, SlotId::parse)?,
        participant: Participant::Member {
            claimed_user: member
                .name("member.claimed_user_id", "claimed_user_id")?
                .into(),
            device: parse(
                "member.claimed_device_id",
                member.named("member.claimed_device_id", "claimed_device_id")?,
                DeviceId::parse,
            )?,
            member: parse(
                "member.id",
                member.named("member.id", "id")?,
                MemberId::parse,
            )?,
        },
        delay: delay(&body)?,
    })
}

/// Reads the body of `POST /sfu/get`, the older form.
pub fn sfu_get(body: &[u8]) -> Result<TokenRequest, Error> {
    let body = read(body)?;
    let body = Object(&body);
    let (server, token) = openid_token(&body)?;
    Ok(TokenRequest {
        server,
        token,
        room: parse("room", body.text("room")?, RoomId::parse)?,
        slot: parse("slot", DEFAULT_SLOT, SlotId::parse)?,
        participant: Participant::Device(parse(
            "device_id",
            body.text("device_id")?,
            DeviceId::parse,
        )?),
        delay: delay(&body)?,
    })
}

fn openid_token(body: &Object<'_>) -> Result<(String, OpenIdToken), Error> {
    let token = body.object("openid_token")?;
    let server = token.name("openid_token.matrix_server_name", "matrix_server_name")?;
    let access_token = token.named("openid_token.access_token", "access_token")?;
    Ok((server.to_owned(), OpenIdToken::new(access_token)))
}

/// Both delay fields, valid, or neither.
fn delay(body: &Object<'_>) -> Result<Option<Delay>, Error> {
    let timeout = match body.get("delay_timeout") {
        None => None,
        Some(Value::Number(number)) => Some(number.as_u64()),
        Some(Value::String(digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().ok())
        }
        Some(_) => Some(None),
    };
    let timeout = match timeout {
        None => None,
        Some(Some(ms)) if ms > 0 => Some(Duration::from_millis(ms)),
        Some(_) => {
            let expected = "a whole number of milliseconds above 0";
            return Err(Error::Field("delay_timeout", expected.into()));
        }
    };
    let id = match body.get("delay_id") {
        None => None,
        Some(Value::String(id)) => Some(parse("delay_id", id, DelayId::parse)?),
        Some(_) => return Err(Error::Field("delay_id", "a string".into())),
    };
    match (id, timeout) {
        (None, None) => Ok(None),
        (Some(id), Some(timeout)) => Ok(Some(Delay { id, timeout })),
        (Some(_), None) => Err(Error::Field(
            "delay_timeout",
            "it together with delay_id".into(),
        )),
        (None, Some(_)) => Err(Error::Field(
            "delay_id",
            "it together with delay_timeout".into(),
        )),
    }
}

fn parse<T>(
    name: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, Invalid>,
) -> Result<T, Error> {
    parse(text).map_err(|expected| Error::Field(name, expected.to_string()))
}

/// The object in a body.
fn read(body: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::Field("body", "a JSON object".into())),
        Err(_) => Err(Error::NotJson),
    }
}

/// A JSON object that says by name what it lacks. Of repeated names the last one counts, as it does for browsers.
struct Object<'a>(&'a Map<String, Value>);

impl<'a> Object<'a> {
    /// A field's value; null is as good as none.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &'static str) -> Result<&'a str, Error> {
        self.named(name, name)
    }

    /// The non-empty string `name`, called `path` if it is amiss.
    fn named(&self, path: &'static str, name: &str) -> Result<&'a str, Error> {
        let text = self
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty());
        text.ok_or_else(|| Error::Field(path, "a non-empty string".into()))
    }

    /// As [`Self::named`], and short.
    fn name(&self, path: &'static str, name: &str) -> Result<&'a str, Error> {
        let text = self.named(path, name)?;
        if text.len() <= MAX_NAME {
            Ok(text)
        } else {
            Err(Error::Field(path, format!("at most {MAX_NAME} bytes")))
        }
    }

    fn object(&self, name: &'static str) -> Result<Self, Error> {
        let object = self.get(name).and_then(Value::as_object);
        object
            .map(Self)
            .ok_or_else(|| Error::Field(name, "an object".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body() -> Value {
        json!({
            "room_id": "!r:hs", "slot_id": "m.call#ROOM",
            "openid_token": {"access_token": "t", "matrix_server_name": "hs", "token_type": "Bearer"},
            "member": {"id": "m", "claimed_user_id": "@a:hs", "claimed_device_id": "D"},
            "delay_cs_api_url": "https://ignored.example", "anything": [1, {"else": null}],
        })
    }

    fn with(path: &[&str], value: Value) -> Result<TokenRequest, Error> {
        let mut body = body();
        let mut at = &mut body;
        for name in path {
            at = &mut at[*name];
        }
        *at = value;
        get_token(body.to_string().as_bytes())
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let request = get_token(body().to_string().as_bytes()).unwrap();
        assert_eq!(
            (request.server.as_str(), request.room.as_str()),
            ("hs", "!r:hs")
        );
    }

    #[test]
    fn what_is_amiss_is_named() {
        for path in [
            &["room_id"][..],
            &["slot_id"],
            &["openid_token"],
            &["openid_token", "access_token"],
            &["openid_token", "matrix_server_name"],
            &["member"],
            &["member", "id"],
            &["member", "claimed_user_id"],
            &["member", "claimed_device_id"],
        ] {
            for value in [json!(null), json!(""), json!(1), json!(["x"]), json!(true)] {
                let error = with(path, value).unwrap_err();
                assert!(
                    matches!(error, Error::Field(name, _) if name == path.join(".")),
                    "{path:?}: {error}"
                );
            }
        }
        assert!(matches!(
            with(&["room_id"], json!("r".repeat(256))),
            Err(Error::Field("room_id", _))
        ));
        for path in [
            &["openid_token", "matrix_server_name"],
            &["member", "claimed_user_id"],
        ] {
            let error = with(path, json!("a".repeat(256))).unwrap_err();
            assert!(matches!(error, Error::Field(name, _) if name == path.join(".")));
        }
        assert_eq!(get_token(b"{").unwrap_err(), Error::NotJson);
        assert_eq!(get_token(b"").unwrap_err(), Error::NotJson);
        assert_eq!(get_token(&[b'['; 60_000]).unwrap_err(), Error::NotJson);
        assert!(matches!(get_token(b"[]"), Err(Error::Field("body", _))));
    }

    #[test]
    fn delays_come_in_pairs() {
        let delayed = |id: Value, timeout: Value| {
            let mut body = body();
            body["delay_id"] = id;
            body["delay_timeout"] = timeout;
            let request = get_token(body.to_string().as_bytes())?;
            Ok(request.delay.map(|delay| delay.timeout.as_millis()))
        };
        assert_eq!(delayed(json!(null), json!(null)), Ok(None));
        for (timeout, ms) in [
            (json!(1), 1),
            (json!(3_600_000), 3_600_000),
            (json!("18000"), 18_000),
            (json!(u64::MAX), u64::MAX.into()),
        ] {
            assert_eq!(delayed(json!("d"), timeout), Ok(Some(ms)));
        }
        for timeout in [
            json!(0),
            json!(-1),
            json!("0"),
            json!(""),
            json!("1s"),
            json!(1.5),
            json!([]),
            json!("-1"),
            json!(true),
        ] {
            assert!(matches!(
                delayed(json!("d"), timeout),
                Err(Error::Field("delay_timeout", _))
            ));
        }
        for id in [json!(""), json!(1), json!("d".repeat(256))] {
            assert!(matches!(
                delayed(id, json!(1)),
                Err(Error::Field("delay_id", _))
            ));
        }
        assert!(matches!(
            delayed(json!("d"), json!(null)),
            Err(Error::Field("delay_timeout", _))
        ));
        assert!(matches!(
            delayed(json!(null), json!(1)),
            Err(Error::Field("delay_id", _))
        ));
    }

    #[test]
    fn there_is_nothing_to_delegate_without_a_delay() {
        assert!(matches!(
            delegate(body().to_string().as_bytes()),
            Err(Error::Field("delay_id", _))
        ));
        let mut body = body();
        body["delay_id"] = json!("d");
        body["delay_timeout"] = json!(1000);
        let (_, delay) = delegate(body.to_string().as_bytes()).unwrap();
        assert_eq!(
            (delay.id.as_str(), delay.timeout),
            ("d", Duration::from_secs(1))
        );
    }

    #[test]
    fn the_older_form_has_its_own_names() {
        let body = json!({"room": "!r:hs", "device_id": "D", "openid_token": {"access_token": "t", "matrix_server_name": "hs"}});
        let request = sfu_get(body.to_string().as_bytes()).unwrap();
        assert_eq!(request.slot.as_str(), "m.call#ROOM");
        assert!(matches!(
            sfu_get(b"{}"),
            Err(Error::Field("openid_token", _))
        ));
    }
}
