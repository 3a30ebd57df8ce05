//! Bodies that a homeserver passes on to its application service (MSC4195).

use super::{Error, Object, parse, read};
use crate::appservice::Place;
use crate::matrix::id::{DelayId, MemberId, RoomId, ServerName, SlotId, UserId};

/// Longest URL of an SFU in bytes; longer ones fit no setting.
const MAX_URL: usize = 2048;

/// What a user of the homeserver wants: a place in a call, and the server whose SFU it is on if that is not their own.
#[derive(Debug)]
pub struct OfUser {
    /// The server.
    pub server: Option<ServerName>,
    /// The place.
    pub place: Place,
}

/// What another homeserver wants for its user.
#[derive(Debug)]
pub struct OfServer {
    /// The user, whoever they are.
    pub user: UserId,
    /// The place.
    pub place: Place,
}

/// A leave that is handed to us.
#[derive(Debug)]
pub struct Leave {
    /// Whose place it is.
    pub place: Place,
    /// The delayed event.
    pub delay: DelayId,
}

/// Reads the body of `POST /_matrix/client/…/rtc/livekit/get_token`.
pub fn user_token(body: &[u8]) -> Result<OfUser, Error> {
    let body = read(body)?;
    let body = Object(&body);
    let server = match body.get("server_name") {
        None => None,
        Some(_) => Some(parse(
            "server_name",
            body.text("server_name")?,
            ServerName::parse,
        )?),
    };
    Ok(OfUser {
        server,
        place: place(&body)?,
    })
}

/// Reads the body of `POST /_matrix/federation/…/rtc/livekit/get_token`.
pub fn server_token(body: &[u8]) -> Result<OfServer, Error> {
    let body = read(body)?;
    let body = Object(&body);
    Ok(OfServer {
        user: parse("user_id", body.text("user_id")?, UserId::parse)?,
        place: place(&body)?,
    })
}

/// Reads the body of `POST /_matrix/client/…/rtc/livekit/delegate_delayed_leave`.
pub fn user_leave(body: &[u8]) -> Result<Leave, Error> {
    let body = read(body)?;
    let body = Object(&body);
    Ok(Leave {
        place: place(&body)?,
        delay: parse("delay_id", body.text("delay_id")?, DelayId::parse)?,
    })
}

fn place(body: &Object<'_>) -> Result<Place, Error> {
    let url = body.text("url")?;
    if url.len() > MAX_URL {
        return Err(Error::Field("url", format!("at most {MAX_URL} bytes")));
    }
    Ok(Place {
        url: url.to_owned(),
        room: parse("room_id", body.text("room_id")?, RoomId::parse_for_path)?,
        slot: parse("slot_id", body.text("slot_id")?, SlotId::parse)?,
        member: parse("member_id", body.text("member_id")?, MemberId::parse)?,
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
        assert!(user_token(text.as_bytes()).unwrap().server.is_none());
        assert_eq!(
            server_token(text.as_bytes()).unwrap().user.as_str(),
            "@a:hs"
        );
        assert_eq!(user_leave(text.as_bytes()).unwrap().delay.as_str(), "d");
        let named = |error: Option<Error>, name: &str| {
            assert!(
                matches!(error, Some(Error::Field(n, _)) if n == name),
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
                named(user_token(&with(name, value.clone())).err(), name);
                named(server_token(&with(name, value.clone())).err(), name);
                named(user_leave(&with(name, value.clone())).err(), name);
            }
            named(
                server_token(&with("user_id", value.clone())).err(),
                "user_id",
            );
            named(
                user_leave(&with("delay_id", value.clone())).err(),
                "delay_id",
            );
            if !value.is_null() {
                named(user_token(&with("server_name", value)).err(), "server_name");
            }
        }
        assert_eq!(user_token(b"{").unwrap_err(), Error::NotJson);
    }
}
