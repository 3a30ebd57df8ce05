//! JSON request bodies of the Matrix endpoints.
//!
//! Lenient where clients differ: unknown fields are ignored, `null` counts as absent, and of duplicate fields the last one is used,
//! as in browsers.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::delegation::leave::DelegationRequest;
use crate::exchange::appservice::{
    CallMember, CallMembership, ClientDelegateRequest, ClientTokenRequest, FederationTokenRequest,
};
use crate::exchange::standalone::{ExchangeRequest, RequestedParticipant};
use crate::matrix::id::{
    DelayId, DeviceId, InvalidIdentifier, MemberId, RoomId, ServerName, SlotId, UserId,
};
use crate::matrix::livekit_names::DEFAULT_SLOT;
use crate::matrix::openid::OpenIdToken;

/// Largest server name or user id in bytes. No valid one is larger, and both reach the log.
const MAX_NAME_BYTES: usize = 255;
/// Largest URL of an SFU in bytes. No larger one matches a setting.
const MAX_URL_BYTES: usize = 2048;

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The body is not JSON.
    NotJson,
    /// A field is missing or invalid: its path, and what was expected.
    InvalidField(&'static str, String),
    /// `member_id` and `member.id` differ.
    MemberMismatch,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson => f.write_str("the body is not JSON"),
            Self::InvalidField(name, expected) => write!(f, "{name}: expected {expected}"),
            Self::MemberMismatch => f.write_str("member_id: expected the same as member.id"),
        }
    }
}

impl std::error::Error for Error {}

/// Parses the body of `POST /get_token` (MSC4195).
///
/// # Errors
/// The body is not JSON, or a field is missing or invalid.
pub fn parse_get_token(body: &[u8]) -> Result<ExchangeRequest, Error> {
    let body = parse_object(body)?;
    let body = BodyObject(&body);
    let (server_name, openid_token) = parse_openid_token(&body)?;
    let member = body.required_object("member")?;
    let (user, device) = ("member.claimed_user_id", "member.claimed_device_id");
    Ok(ExchangeRequest {
        server_name,
        openid_token,
        room: body.parse("room_id", RoomId::parse)?,
        slot: body.parse("slot_id", SlotId::parse)?,
        participant: RequestedParticipant::Member {
            claimed_user: member.required_name(user)?.to_owned(),
            device: member.parse(device, DeviceId::parse)?,
            member: member.parse("member.id", MemberId::parse)?,
        },
        delayed_leave: parse_delayed_leave(&body)?,
    })
}

/// Parses the body of `POST /sfu/get`, the older form of `/get_token`.
///
/// # Errors
/// The body is not JSON, or a field is missing or invalid.
pub fn parse_sfu_get(body: &[u8]) -> Result<ExchangeRequest, Error> {
    let body = parse_object(body)?;
    let body = BodyObject(&body);
    let (server_name, openid_token) = parse_openid_token(&body)?;
    Ok(ExchangeRequest {
        server_name,
        openid_token,
        room: body.parse("room", RoomId::parse)?,
        slot: parse_field("slot", DEFAULT_SLOT, SlotId::parse)?,
        participant: RequestedParticipant::Device(body.parse("device_id", DeviceId::parse)?),
        delayed_leave: parse_delayed_leave(&body)?,
    })
}

/// Parses the body of `POST /delegate_delayed_leave`: that of `/get_token`, with a delayed leave.
///
/// # Errors
/// The body is not JSON, or a field is missing or invalid.
pub fn parse_delegate_delayed_leave(
    body: &[u8],
) -> Result<(ExchangeRequest, DelegationRequest), Error> {
    let mut request = parse_get_token(body)?;
    match request.delayed_leave.take() {
        Some(leave) => Ok((request, leave)),
        None => Err(Error::InvalidField("delay_id", NON_EMPTY_STRING.into())),
    }
}

/// Parses the body of `POST /_matrix/client/…/rtc/livekit/get_token`.
pub(super) fn parse_client_token(body: &[u8]) -> Result<ClientTokenRequest, Error> {
    let body = parse_object(body)?;
    let body = BodyObject(&body);
    let server = match body.get("server_name") {
        None => None,
        Some(_) => Some(body.parse("server_name", ServerName::parse)?),
    };
    Ok(ClientTokenRequest {
        server,
        url: parse_url(&body)?,
        membership: parse_call_membership(&body)?,
    })
}

/// Parses the body of `POST /_matrix/federation/…/rtc/livekit/get_token`.
pub(super) fn parse_federation_token(body: &[u8]) -> Result<FederationTokenRequest, Error> {
    let body = parse_object(body)?;
    let body = BodyObject(&body);
    Ok(FederationTokenRequest {
        user: body.parse("user_id", UserId::parse)?,
        url: parse_url(&body)?,
        membership: parse_call_membership(&body)?,
    })
}

/// Parses the body of `POST /_matrix/client/…/rtc/livekit/delegate_delayed_leave`.
pub(super) fn parse_client_delegate(body: &[u8]) -> Result<ClientDelegateRequest, Error> {
    let body = parse_object(body)?;
    let body = BodyObject(&body);
    Ok(ClientDelegateRequest {
        url: match body.get("url") {
            None => None,
            Some(_) => Some(parse_url(&body)?),
        },
        membership: parse_call_membership(&body)?,
        delay_id: body.parse("delay_id", DelayId::parse)?,
    })
}

fn parse_openid_token(body: &BodyObject<'_>) -> Result<(String, OpenIdToken), Error> {
    let token = body.required_object("openid_token")?;
    let server = token.required_name("openid_token.matrix_server_name")?;
    let access_token = token.required_string("openid_token.access_token")?;
    Ok((server.to_owned(), OpenIdToken::new(access_token)))
}

fn parse_call_membership(body: &BodyObject<'_>) -> Result<CallMembership, Error> {
    Ok(CallMembership {
        room: body.parse("room_id", RoomId::parse_for_path)?,
        slot: body.parse("slot_id", SlotId::parse)?,
        member: parse_call_member(body)?,
    })
}

fn parse_url(body: &BodyObject<'_>) -> Result<String, Error> {
    Ok(body.required_text("url", MAX_URL_BYTES)?.to_owned())
}

/// The member in either dialect. A body with both fields is of a client that sends what any service may need, and knows the latest
/// MSC4195: `member_id` determines the identity. With two ids it is unclear which member is meant: 400 `M_INVALID_PARAM`.
fn parse_call_member(body: &BodyObject<'_>) -> Result<CallMember, Error> {
    if body.get("member").is_none() {
        let id = body.parse("member_id", MemberId::parse)?;
        return Ok(CallMember::MemberId { id, device: None });
    }
    let member = body.required_object("member")?;
    let id = member.parse("member.id", MemberId::parse)?;
    let device_path = "member.claimed_device_id";
    if body.get("member_id").is_none() {
        let device = member.parse(device_path, DeviceId::parse)?;
        return Ok(CallMember::Member { id, device });
    }
    if body.parse("member_id", MemberId::parse)? != id {
        return Err(Error::MemberMismatch);
    }
    let device = match member.get(device_path) {
        None => None,
        Some(_) => Some(member.parse(device_path, DeviceId::parse)?),
    };
    Ok(CallMember::MemberId { id, device })
}

/// The two delay fields, which come together or not at all.
fn parse_delayed_leave(body: &BodyObject<'_>) -> Result<Option<DelegationRequest>, Error> {
    let invalid = |name, expected: &str| Error::InvalidField(name, expected.into());
    let timeout = body.get("delay_timeout").map(|value| {
        let ms = match value {
            Value::Number(number) => number.as_u64(),
            Value::String(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok()
            }
            _ => None,
        };
        ms.filter(|ms| *ms > 0).ok_or_else(|| {
            let expected = "a whole number of milliseconds above 0";
            invalid("delay_timeout", expected)
        })
    });
    let delay_id = body.get("delay_id").map(|value| match value {
        Value::String(id) => parse_field("delay_id", id, DelayId::parse),
        _ => Err(invalid("delay_id", "a string")),
    });
    match (timeout.transpose()?, delay_id.transpose()?) {
        (None, None) => Ok(None),
        (Some(ms), Some(delay_id)) => Ok(Some(DelegationRequest {
            delay_id,
            timeout: Duration::from_millis(ms),
        })),
        (None, Some(_)) => Err(invalid("delay_timeout", "it together with delay_id")),
        (Some(_), None) => Err(invalid("delay_id", "it together with delay_timeout")),
    }
}

const NON_EMPTY_STRING: &str = "a non-empty string";

fn parse_field<T>(
    path: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, InvalidIdentifier>,
) -> Result<T, Error> {
    parse(text).map_err(|expected| Error::InvalidField(path, expected.to_string()))
}

fn parse_object(body: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::InvalidField("body", "a JSON object".into())),
        Err(_) => Err(Error::NotJson),
    }
}

/// A JSON object, in the body or nested. Fields are named by their path from the body, as errors report it; its last part is the
/// field's name.
struct BodyObject<'a>(&'a Map<String, Value>);

impl<'a> BodyObject<'a> {
    fn get(&self, path: &str) -> Option<&'a Value> {
        let name = path.rsplit('.').next()?;
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn parse<T>(
        &self,
        path: &'static str,
        parse: impl Fn(&str) -> Result<T, InvalidIdentifier>,
    ) -> Result<T, Error> {
        parse_field(path, self.required_string(path)?, parse)
    }

    fn required_string(&self, path: &'static str) -> Result<&'a str, Error> {
        let text = self.get(path).and_then(Value::as_str);
        text.filter(|text| !text.is_empty())
            .ok_or_else(|| Error::InvalidField(path, NON_EMPTY_STRING.into()))
    }

    fn required_name(&self, path: &'static str) -> Result<&'a str, Error> {
        self.required_text(path, MAX_NAME_BYTES)
    }

    fn required_text(&self, path: &'static str, max: usize) -> Result<&'a str, Error> {
        let text = self.required_string(path)?;
        if text.len() > max {
            return Err(Error::InvalidField(path, format!("at most {max} bytes")));
        }
        Ok(text)
    }

    fn required_object(&self, path: &'static str) -> Result<Self, Error> {
        let object = self.get(path).and_then(Value::as_object);
        object
            .map(Self)
            .ok_or_else(|| Error::InvalidField(path, "an object".into()))
    }
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    use super::*;

    /// The member of a request in application-service mode.
    #[derive(Debug, PartialEq, Eq)]
    pub struct ProxiedMember {
        /// Whether the field `member_id` determines the identity.
        pub by_member_id: bool,
        /// The member's id.
        pub id: String,
        /// The device, if known.
        pub device: Option<String>,
    }

    /// The members that the three endpoints of application-service mode parse, as far as they accept the body.
    pub fn proxied_members(body: &[u8]) -> [Option<ProxiedMember>; 3] {
        let client = parse_client_token(body).map(|request| request.membership.member);
        let federation = parse_federation_token(body).map(|request| request.membership.member);
        let delegate = parse_client_delegate(body).map(|request| request.membership.member);
        [client, federation, delegate].map(|member| {
            let member = member.ok()?;
            let by_member_id = matches!(member, CallMember::MemberId { .. });
            let (id, device) = match member {
                CallMember::MemberId { id, device } => (id, device),
                CallMember::Member { id, device } => (id, Some(device)),
            };
            Some(ProxiedMember {
                by_member_id,
                id: id.as_str().to_owned(),
                device: device.map(|device| device.as_str().to_owned()),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn get_token_body() -> Value {
        json!({
            "room_id": "!r:hs", "slot_id": "m.call#ROOM",
            "openid_token": {"access_token": "t", "matrix_server_name": "hs", "token_type": "Bearer"},
            "member": {"id": "m", "claimed_user_id": "@a:hs", "claimed_device_id": "D"},
            "delay_cs_api_url": "https://ignored.example", "anything": [1, {"else": null}],
        })
    }

    fn parse_with(path: &[&str], value: Value) -> Result<ExchangeRequest, Error> {
        let mut body = get_token_body();
        let mut field = &mut body;
        for name in path {
            field = &mut field[*name];
        }
        *field = value;
        parse_get_token(body.to_string().as_bytes())
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let request = parse_get_token(get_token_body().to_string().as_bytes()).unwrap();
        assert_eq!(
            (request.server_name.as_str(), request.room.as_str()),
            ("hs", "!r:hs")
        );
    }

    #[test]
    fn an_error_names_the_invalid_field() {
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
                let error = parse_with(path, value).unwrap_err();
                assert!(
                    matches!(error, Error::InvalidField(name, _) if name == path.join(".")),
                    "{path:?}: {error}"
                );
            }
        }
        assert!(matches!(
            parse_with(&["room_id"], json!("r".repeat(256))),
            Err(Error::InvalidField("room_id", _))
        ));
        for path in [
            &["openid_token", "matrix_server_name"],
            &["member", "claimed_user_id"],
        ] {
            let error = parse_with(path, json!("a".repeat(256))).unwrap_err();
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
    fn the_delay_fields_come_together() {
        let delayed = |id: Value, timeout: Value| {
            let mut body = get_token_body();
            body["delay_id"] = id;
            body["delay_timeout"] = timeout;
            let request = parse_get_token(body.to_string().as_bytes())?;
            Ok(request.delayed_leave.map(|leave| leave.timeout.as_millis()))
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
    fn a_delegation_needs_the_delay_fields() {
        assert!(matches!(
            parse_delegate_delayed_leave(get_token_body().to_string().as_bytes()),
            Err(Error::InvalidField("delay_id", _))
        ));
        let mut body = get_token_body();
        body["delay_id"] = json!("d");
        body["delay_timeout"] = json!(1000);
        let (_, leave) = parse_delegate_delayed_leave(body.to_string().as_bytes()).unwrap();
        assert_eq!(
            (leave.delay_id.as_str(), leave.timeout),
            ("d", Duration::from_secs(1))
        );
    }

    #[test]
    fn sfu_get_has_other_field_names_and_the_default_slot() {
        let body = json!({"room": "!r:hs", "device_id": "D", "openid_token": {"access_token": "t", "matrix_server_name": "hs"}});
        let request = parse_sfu_get(body.to_string().as_bytes()).unwrap();
        assert_eq!(request.slot.as_str(), "m.call#ROOM");
        assert!(matches!(
            parse_sfu_get(b"{}"),
            Err(Error::InvalidField("openid_token", _))
        ));
    }

    fn proxied_body() -> Value {
        json!({
            "url": "wss://sfu", "room_id": "!r:hs", "slot_id": "m.call#ROOM", "member_id": "m",
            "user_id": "@a:hs", "delay_id": "d", "server_name": null, "unknown": [{}],
        })
    }

    fn proxied_body_with(name: &str, value: Value) -> Vec<u8> {
        let mut body = proxied_body();
        body[name] = value;
        body.to_string().into_bytes()
    }

    #[test]
    fn an_error_names_the_invalid_field_of_a_proxied_body() {
        let text = proxied_body().to_string();
        assert!(
            parse_client_token(text.as_bytes())
                .unwrap()
                .server
                .is_none()
        );
        assert_eq!(
            parse_federation_token(text.as_bytes())
                .unwrap()
                .user
                .as_str(),
            "@a:hs"
        );
        assert_eq!(
            parse_client_delegate(text.as_bytes())
                .unwrap()
                .delay_id
                .as_str(),
            "d"
        );
        let assert_named = |error: Option<Error>, name: &str| {
            assert!(
                matches!(error, Some(Error::InvalidField(n, _)) if n == name),
                "{name}"
            );
        };
        for value in [
            json!(null),
            json!(""),
            json!(1),
            json!({}),
            json!("a\u{0}".repeat(4000)),
        ] {
            for name in ["room_id", "slot_id", "member_id"] {
                assert_named(
                    parse_client_token(&proxied_body_with(name, value.clone())).err(),
                    name,
                );
                assert_named(
                    parse_federation_token(&proxied_body_with(name, value.clone())).err(),
                    name,
                );
                assert_named(
                    parse_client_delegate(&proxied_body_with(name, value.clone())).err(),
                    name,
                );
            }
            let bad_url = proxied_body_with("url", value.clone());
            assert_named(parse_client_token(&bad_url).err(), "url");
            assert_named(parse_federation_token(&bad_url).err(), "url");
            match parse_client_delegate(&bad_url) {
                Ok(request) => assert!(value.is_null() && request.url.is_none()),
                Err(error) => assert_named(Some(error), "url"),
            }
            assert_named(
                parse_federation_token(&proxied_body_with("user_id", value.clone())).err(),
                "user_id",
            );
            assert_named(
                parse_client_delegate(&proxied_body_with("delay_id", value.clone())).err(),
                "delay_id",
            );
            if !value.is_null() {
                assert_named(
                    parse_client_token(&proxied_body_with("server_name", value)).err(),
                    "server_name",
                );
            }
        }
        assert_eq!(parse_client_token(b"{").unwrap_err(), Error::NotJson);
    }

    /// The member of a body with these two fields, which the three endpoints parse alike.
    fn parse_members(member_id: &Value, member: &Value) -> Result<CallMember, Error> {
        let mut body = proxied_body();
        body["member_id"] = member_id.clone();
        body["member"] = member.clone();
        let body = body.to_string().into_bytes();
        let members = [
            parse_client_token(&body).map(|request| request.membership.member),
            parse_federation_token(&body).map(|request| request.membership.member),
            parse_client_delegate(&body).map(|request| request.membership.member),
        ];
        let [member, others @ ..] = members;
        assert!(others.iter().all(|other| *other == member), "{others:?}");
        member
    }

    #[test]
    fn the_member_is_parsed_in_both_dialects() {
        let (id, device) = (MemberId::parse("m").unwrap(), DeviceId::parse("D").unwrap());
        let by_id = |device| {
            let id = id.clone();
            Ok(CallMember::MemberId { id, device })
        };
        let known = || Some(device.clone());
        let member = json!({ "id": "m", "claimed_device_id": "D", "claimed_user_id": 1 });
        let without_device = json!({ "id": "m", "claimed_device_id": null });
        assert_eq!(parse_members(&json!("m"), &json!(null)), by_id(None));
        assert_eq!(parse_members(&json!("m"), &member), by_id(known()));
        assert_eq!(parse_members(&json!("m"), &without_device), by_id(None));
        let expected = CallMember::Member {
            id: id.clone(),
            device: device.clone(),
        };
        assert_eq!(parse_members(&json!(null), &member), Ok(expected));
    }

    #[test]
    fn an_error_names_the_invalid_field_of_a_member() {
        let assert_named = |member_id: Value, member: Value, name: &str| {
            let parsed = parse_members(&member_id, &member);
            assert!(
                matches!(parsed, Err(Error::InvalidField(n, _)) if n == name),
                "{member_id} {member}"
            );
        };
        for invalid in [json!(""), json!(1), json!([]), json!("a".repeat(256))] {
            let id = json!({ "id": invalid, "claimed_device_id": "D" });
            let device = json!({ "id": "m", "claimed_device_id": invalid });
            for member_id in [json!(null), json!("m")] {
                assert_named(member_id.clone(), invalid.clone(), "member");
                assert_named(member_id.clone(), id.clone(), "member.id");
                assert_named(member_id, device.clone(), "member.claimed_device_id");
            }
            let member = json!({ "id": "m", "claimed_device_id": "D" });
            assert_named(invalid, member, "member_id");
        }
        let device = "member.claimed_device_id";
        assert_named(json!(null), json!({ "id": "m" }), device);
        assert_named(
            json!(null),
            json!({ "claimed_device_id": "D" }),
            "member.id",
        );
        assert_named(json!(null), json!(null), "member_id");
        let other = json!({ "id": "other", "claimed_device_id": "D" });
        assert_eq!(
            parse_members(&json!("m"), &other),
            Err(Error::MemberMismatch)
        );
    }
}
