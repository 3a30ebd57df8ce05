//! Wire bodies of the Matrix endpoints. Lenient where clients differ: unknown fields are passed over, and only what is needed is required.

pub(crate) mod proxied;

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::exchange::standalone::{DelayedLeaveRequest, ExchangeRequest, RequestedParticipant};
use crate::matrix::id::{DelayId, DeviceId, InvalidIdentifier, MemberId, RoomId, SlotId};
use crate::matrix::livekit_names::DEFAULT_SLOT;
use crate::matrix::openid::OpenIdToken;

/// Longest name of a server or user in bytes: no valid one is longer, and it may stand in the log.
const MAX_NAME_BYTES: usize = 255;

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// It is not JSON.
    NotJson,
    /// It is JSON, but a field is missing or not what it should be.
    InvalidField(&'static str, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson => f.write_str("the body is not JSON"),
            Self::InvalidField(name, expected) => write!(f, "{name}: expected {expected}"),
        }
    }
}

impl std::error::Error for Error {}

/// Reads the body of `POST /delegate_delayed_leave`, which is that of `/get_token` with a delayed event.
pub fn parse_delegate_delayed_leave(
    body: &[u8],
) -> Result<(ExchangeRequest, DelayedLeaveRequest), Error> {
    let request = parse_get_token(body)?;
    match request.delayed_leave.clone() {
        Some(delay) => Ok((request, delay)),
        None => Err(Error::InvalidField("delay_id", "a non-empty string".into())),
    }
}

/// Reads the body of `POST /get_token` (MSC4195).
pub fn parse_get_token(body: &[u8]) -> Result<ExchangeRequest, Error> {
    let body = parse_body(body)?;
    let body = BodyObject(&body);
    let (server, token) = parse_openid_token(&body)?;
    let member = body.required_object("member")?;
    Ok(ExchangeRequest {
        server_name: server,
        openid_token: token,
        room: parse_field("room_id", body.required_string("room_id")?, RoomId::parse)?,
        slot: parse_field("slot_id", body.required_string("slot_id")?, SlotId::parse)?,
        participant: RequestedParticipant::Member {
            claimed_user: member
                .required_name_as("member.claimed_user_id", "claimed_user_id")?
                .into(),
            device: parse_field(
                "member.claimed_device_id",
                member.required_string_as("member.claimed_device_id", "claimed_device_id")?,
                DeviceId::parse,
            )?,
            member: parse_field(
                "member.id",
                member.required_string_as("member.id", "id")?,
                MemberId::parse,
            )?,
        },
        delayed_leave: parse_delayed_leave(&body)?,
    })
}

/// Reads the body of `POST /sfu/get`, the older form.
pub fn parse_sfu_get(body: &[u8]) -> Result<ExchangeRequest, Error> {
    let body = parse_body(body)?;
    let body = BodyObject(&body);
    let (server, token) = parse_openid_token(&body)?;
    Ok(ExchangeRequest {
        server_name: server,
        openid_token: token,
        room: parse_field("room", body.required_string("room")?, RoomId::parse)?,
        slot: parse_field("slot", DEFAULT_SLOT, SlotId::parse)?,
        participant: RequestedParticipant::Device(parse_field(
            "device_id",
            body.required_string("device_id")?,
            DeviceId::parse,
        )?),
        delayed_leave: parse_delayed_leave(&body)?,
    })
}

fn parse_openid_token(body: &BodyObject<'_>) -> Result<(String, OpenIdToken), Error> {
    let token = body.required_object("openid_token")?;
    let server = token.required_name_as("openid_token.matrix_server_name", "matrix_server_name")?;
    let access_token = token.required_string_as("openid_token.access_token", "access_token")?;
    Ok((server.to_owned(), OpenIdToken::new(access_token)))
}

/// Both delay fields, valid, or neither.
fn parse_delayed_leave(body: &BodyObject<'_>) -> Result<Option<DelayedLeaveRequest>, Error> {
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
            return Err(Error::InvalidField("delay_timeout", expected.into()));
        }
    };
    let id = match body.get("delay_id") {
        None => None,
        Some(Value::String(id)) => Some(parse_field("delay_id", id, DelayId::parse)?),
        Some(_) => return Err(Error::InvalidField("delay_id", "a string".into())),
    };
    match (id, timeout) {
        (None, None) => Ok(None),
        (Some(id), Some(timeout)) => Ok(Some(DelayedLeaveRequest {
            delay_id: id,
            timeout,
        })),
        (Some(_), None) => Err(Error::InvalidField(
            "delay_timeout",
            "it together with delay_id".into(),
        )),
        (None, Some(_)) => Err(Error::InvalidField(
            "delay_id",
            "it together with delay_timeout".into(),
        )),
    }
}

fn parse_field<T>(
    name: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, InvalidIdentifier>,
) -> Result<T, Error> {
    parse(text).map_err(|expected| Error::InvalidField(name, expected.to_string()))
}

/// The object in a body.
fn parse_body(body: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::InvalidField("body", "a JSON object".into())),
        Err(_) => Err(Error::NotJson),
    }
}

/// A JSON object that says by name what it lacks. Of repeated names the last one counts, as it does for browsers.
struct BodyObject<'a>(&'a Map<String, Value>);

impl<'a> BodyObject<'a> {
    /// A field's value; null is as good as none.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn required_string(&self, name: &'static str) -> Result<&'a str, Error> {
        self.required_string_as(name, name)
    }

    /// The non-empty string `name`, called `path` if it is amiss.
    fn required_string_as(&self, path: &'static str, name: &str) -> Result<&'a str, Error> {
        let text = self
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty());
        text.ok_or_else(|| Error::InvalidField(path, "a non-empty string".into()))
    }

    /// As [`Self::named`], and short.
    fn required_name_as(&self, path: &'static str, name: &str) -> Result<&'a str, Error> {
        let text = self.required_string_as(path, name)?;
        if text.len() <= MAX_NAME_BYTES {
            Ok(text)
        } else {
            Err(Error::InvalidField(
                path,
                format!("at most {MAX_NAME_BYTES} bytes"),
            ))
        }
    }

    fn required_object(&self, name: &'static str) -> Result<Self, Error> {
        let object = self.get(name).and_then(Value::as_object);
        object
            .map(Self)
            .ok_or_else(|| Error::InvalidField(name, "an object".into()))
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

    fn with(path: &[&str], value: Value) -> Result<ExchangeRequest, Error> {
        let mut body = body();
        let mut at = &mut body;
        for name in path {
            at = &mut at[*name];
        }
        *at = value;
        parse_get_token(body.to_string().as_bytes())
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let request = parse_get_token(body().to_string().as_bytes()).unwrap();
        assert_eq!(
            (request.server_name.as_str(), request.room.as_str()),
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
                    matches!(error, Error::InvalidField(name, _) if name == path.join(".")),
                    "{path:?}: {error}"
                );
            }
        }
        assert!(matches!(
            with(&["room_id"], json!("r".repeat(256))),
            Err(Error::InvalidField("room_id", _))
        ));
        for path in [
            &["openid_token", "matrix_server_name"],
            &["member", "claimed_user_id"],
        ] {
            let error = with(path, json!("a".repeat(256))).unwrap_err();
            assert!(matches!(error, Error::InvalidField(name, _) if name == path.join(".")));
        }
        assert_eq!(parse_get_token(b"{").unwrap_err(), Error::NotJson);
        assert_eq!(parse_get_token(b"").unwrap_err(), Error::NotJson);
        assert_eq!(
            parse_get_token(&[b'['; 60_000]).unwrap_err(),
            Error::NotJson
        );
        assert!(matches!(
            parse_get_token(b"[]"),
            Err(Error::InvalidField("body", _))
        ));
    }

    #[test]
    fn delays_come_in_pairs() {
        let delayed = |id: Value, timeout: Value| {
            let mut body = body();
            body["delay_id"] = id;
            body["delay_timeout"] = timeout;
            let request = parse_get_token(body.to_string().as_bytes())?;
            Ok(request.delayed_leave.map(|delay| delay.timeout.as_millis()))
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
                Err(Error::InvalidField("delay_timeout", _))
            ));
        }
        for id in [json!(""), json!(1), json!("d".repeat(256))] {
            assert!(matches!(
                delayed(id, json!(1)),
                Err(Error::InvalidField("delay_id", _))
            ));
        }
        assert!(matches!(
            delayed(json!("d"), json!(null)),
            Err(Error::InvalidField("delay_timeout", _))
        ));
        assert!(matches!(
            delayed(json!(null), json!(1)),
            Err(Error::InvalidField("delay_id", _))
        ));
    }

    #[test]
    fn there_is_nothing_to_delegate_without_a_delay() {
        assert!(matches!(
            parse_delegate_delayed_leave(body().to_string().as_bytes()),
            Err(Error::InvalidField("delay_id", _))
        ));
        let mut body = body();
        body["delay_id"] = json!("d");
        body["delay_timeout"] = json!(1000);
        let (_, delay) = parse_delegate_delayed_leave(body.to_string().as_bytes()).unwrap();
        assert_eq!(
            (delay.delay_id.as_str(), delay.timeout),
            ("d", Duration::from_secs(1))
        );
    }

    #[test]
    fn the_older_form_has_its_own_names() {
        let body = json!({"room": "!r:hs", "device_id": "D", "openid_token": {"access_token": "t", "matrix_server_name": "hs"}});
        let request = parse_sfu_get(body.to_string().as_bytes()).unwrap();
        assert_eq!(request.slot.as_str(), "m.call#ROOM");
        assert!(matches!(
            parse_sfu_get(b"{}"),
            Err(Error::InvalidField("openid_token", _))
        ));
    }
}
