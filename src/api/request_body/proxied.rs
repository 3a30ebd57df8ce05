//! Bodies that a homeserver passes on to its application service (MSC4195).

use super::{BodyObject, Error, parse_body, parse_field};
use crate::exchange::appservice::CallMembership;
use crate::matrix::id::{DelayId, MemberId, RoomId, ServerName, SlotId, UserId};

/// Longest URL of an SFU in bytes; longer ones fit no setting.
const MAX_URL_BYTES: usize = 2048;

/// What a user of the homeserver wants: a place in a call, and the server whose SFU it is on if that is not their own.
#[derive(Debug)]
pub(crate) struct ClientTokenRequest {
    /// The server.
    pub server: Option<ServerName>,
    /// The place.
    pub membership: CallMembership,
}

/// What another homeserver wants for its user.
#[derive(Debug)]
pub(crate) struct FederationTokenRequest {
    /// The user, whoever they are.
    pub user: UserId,
    /// The place.
    pub membership: CallMembership,
}

/// A leave that is handed to us.
#[derive(Debug)]
pub(crate) struct ClientDelegateRequest {
    /// Whose place it is.
    pub membership: CallMembership,
    /// The delayed event.
    pub delay_id: DelayId,
}

/// Reads the body of `POST /_matrix/client/…/rtc/livekit/get_token`.
pub(crate) fn parse_client_token(body: &[u8]) -> Result<ClientTokenRequest, Error> {
    let body = parse_body(body)?;
    let body = BodyObject(&body);
    let server = match body.get("server_name") {
        None => None,
        Some(_) => Some(parse_field(
            "server_name",
            body.required_string("server_name")?,
            ServerName::parse,
        )?),
    };
    Ok(ClientTokenRequest {
        server,
        membership: parse_call_membership(&body)?,
    })
}

/// Reads the body of `POST /_matrix/federation/…/rtc/livekit/get_token`.
pub(crate) fn parse_federation_token(body: &[u8]) -> Result<FederationTokenRequest, Error> {
    let body = parse_body(body)?;
    let body = BodyObject(&body);
    Ok(FederationTokenRequest {
        user: parse_field("user_id", body.required_string("user_id")?, UserId::parse)?,
        membership: parse_call_membership(&body)?,
    })
}

/// Reads the body of `POST /_matrix/client/…/rtc/livekit/delegate_delayed_leave`.
pub(crate) fn parse_client_delegate(body: &[u8]) -> Result<ClientDelegateRequest, Error> {
    let body = parse_body(body)?;
    let body = BodyObject(&body);
    Ok(ClientDelegateRequest {
        membership: parse_call_membership(&body)?,
        delay_id: parse_field(
            "delay_id",
            body.required_string("delay_id")?,
            DelayId::parse,
        )?,
    })
}

fn parse_call_membership(body: &BodyObject<'_>) -> Result<CallMembership, Error> {
    let url = body.required_string("url")?;
    if url.len() > MAX_URL_BYTES {
        return Err(Error::InvalidField(
            "url",
            format!("at most {MAX_URL_BYTES} bytes"),
        ));
    }
    Ok(CallMembership {
        url: url.to_owned(),
        room: parse_field(
            "room_id",
            body.required_string("room_id")?,
            RoomId::parse_for_path,
        )?,
        slot: parse_field("slot_id", body.required_string("slot_id")?, SlotId::parse)?,
        member: parse_field(
            "member_id",
            body.required_string("member_id")?,
            MemberId::parse,
        )?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn body() -> Value {
        json!({
            "url": "wss://sfu", "room_id": "!r:hs", "slot_id": "m.call#ROOM", "member_id": "m",
            "user_id": "@a:hs", "delay_id": "d", "server_name": null, "unknown": [{}],
        })
    }

    fn with(name: &str, value: Value) -> Vec<u8> {
        let mut body = body();
        body[name] = value;
        body.to_string().into_bytes()
    }

    #[test]
    fn what_is_amiss_is_named() {
        let text = body().to_string();
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
        let named = |error: Option<Error>, name: &str| {
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
            for name in ["room_id", "slot_id", "member_id", "url"] {
                named(parse_client_token(&with(name, value.clone())).err(), name);
                named(
                    parse_federation_token(&with(name, value.clone())).err(),
                    name,
                );
                named(
                    parse_client_delegate(&with(name, value.clone())).err(),
                    name,
                );
            }
            named(
                parse_federation_token(&with("user_id", value.clone())).err(),
                "user_id",
            );
            named(
                parse_client_delegate(&with("delay_id", value.clone())).err(),
                "delay_id",
            );
            if !value.is_null() {
                named(
                    parse_client_token(&with("server_name", value)).err(),
                    "server_name",
                );
            }
        }
        assert_eq!(parse_client_token(b"{").unwrap_err(), Error::NotJson);
    }
}
