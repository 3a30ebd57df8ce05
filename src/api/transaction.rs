//! Events that our homeserver pushes in transactions (Matrix spec v1.16, application service API, "Pushing events").

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::request_body::Error;
use crate::matrix::id::{RoomId, RoomMember, UserId};

/// Departures used of one transaction; Synapse sends 100 events in one. The periodic membership check finds the others.
const MAX_DEPARTURES: usize = 1000;

/// Users and rooms of the member events other than joins. They are unverified: a reason to check the membership.
///
/// Other events and invalid ones are ignored, since the homeserver would repeat a refused transaction for ever.
///
/// # Errors
/// The body is not a JSON object with a list of `events`.
pub fn parse_departures(body: &[u8]) -> Result<Vec<RoomMember>, Error> {
    let parsed: Result<Transaction, _> = serde_json::from_slice(body);
    parsed
        .map(|transaction| transaction.events.0)
        .map_err(|_| Error::NotJson)
}

#[derive(Deserialize)]
struct Transaction {
    events: Departures,
}

struct Departures(Vec<RoomMember>);

#[derive(Deserialize)]
struct PushedEvent<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    room_id: Cow<'a, str>,
    #[serde(borrow)]
    state_key: Cow<'a, str>,
    #[serde(borrow)]
    content: PushedMemberContent<'a>,
}

#[derive(Deserialize)]
struct PushedMemberContent<'a> {
    #[serde(borrow)]
    membership: Cow<'a, str>,
}

impl<'de> Deserialize<'de> for Departures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(DeparturesVisitor)
    }
}

struct DeparturesVisitor;

impl<'de> Visitor<'de> for DeparturesVisitor {
    type Value = Departures;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<Departures, A::Error> {
        let mut departures = Vec::new();
        while departures.len() < MAX_DEPARTURES {
            match events.next_element::<&RawValue>()? {
                Some(event) => departures.extend(parse_departure(event.get())),
                None => return Ok(Departures(departures)),
            }
        }
        while events.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Departures(departures))
    }
}

fn parse_departure(event: &str) -> Option<RoomMember> {
    let event: PushedEvent<'_> = serde_json::from_str(event).ok()?;
    if event.kind != "m.room.member" || event.content.membership == "join" {
        return None;
    }
    Some(RoomMember {
        room_id: RoomId::parse(&event.room_id).ok()?,
        user_id: UserId::parse(&event.state_key).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn member_event(user: &str, membership: &str) -> Value {
        json!({
            "type": "m.room.member", "room_id": "!r:hs", "state_key": user, "sender": "@admin:hs",
            "content": { "membership": membership, "reason": "x\u{1F600}" }, "unsigned": {},
        })
    }

    fn users(events: &Value) -> Vec<String> {
        let body = json!({ "events": events, "ephemeral": [{}] }).to_string();
        let departures = parse_departures(body.as_bytes()).unwrap();
        departures
            .iter()
            .map(|departure| departure.user_id.to_string())
            .collect()
    }

    #[test]
    fn every_membership_but_join_is_a_departure() {
        let events = json!([
            member_event("@a:hs", "ban"),
            member_event("@b:hs", "join"),
            member_event("@c:hs", "leave"),
            member_event("@d:other", "knock"),
        ]);
        assert_eq!(users(&events), ["@a:hs", "@c:hs", "@d:other"]);
    }

    #[test]
    fn invalid_events_are_ignored_and_the_others_are_used() {
        let good = member_event("@a:hs", "leave");
        let mut events = vec![json!(null), json!([]), json!(1), json!({})];
        for (name, value) in [
            ("type", json!("m.room.message")),
            ("type", json!(1)),
            ("room_id", json!("")),
            ("room_id", json!(null)),
            ("state_key", json!("")),
            ("state_key", json!(["@a:hs"])),
            ("content", json!([])),
            ("content", json!({ "membership": 1 })),
            ("content", json!({})),
        ] {
            let mut event = good.clone();
            event[name] = value;
            events.push(event);
        }
        events.push(member_event("@z:hs", "leave"));
        assert_eq!(users(&json!(events)), ["@z:hs"]);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let body = format!(r#"{{"events":[{{"content":{deep}}},{good}]}}"#);
        assert_eq!(parse_departures(body.as_bytes()).unwrap().len(), 1);
        for body in ["", "[]", "{}", r#"{"events":{}}"#, r#"{"events":[}"#] {
            assert_eq!(
                parse_departures(body.as_bytes()).unwrap_err(),
                Error::NotJson
            );
        }
    }

    #[test]
    fn the_departures_of_a_large_transaction_are_bounded() {
        let events = vec![member_event("@a:hs", "leave"); MAX_DEPARTURES + 10];
        assert_eq!(users(&json!(events)).len(), MAX_DEPARTURES);
    }
}
