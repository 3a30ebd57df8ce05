//! Events that a homeserver pushes to its application service (Matrix spec v1.16, application service API, "Pushing events").

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::request_body::Error;
use crate::matrix::id::{RoomId, UserId};
use crate::membership::TrackedParticipant;

/// Most departures that are taken from one transaction: Synapse puts 100 events into one. Those beyond are found at the next look.
const MAX_DEPARTURES: usize = 1000;

/// Who may no longer be in a room, going by the member events of a transaction. Nothing of it is believed: it is a reason to ask.
/// Events that are none, or make no sense, are passed over, for the homeserver would send them for ever.
///
/// # Errors
/// The body is no JSON object with a list of `events`.
pub fn parse_departures(body: &[u8]) -> Result<Vec<TrackedParticipant>, Error> {
    let read: Result<Transaction, _> = serde_json::from_slice(body);
    read.map(|transaction| transaction.events.0)
        .map_err(|_| Error::NotJson)
}

#[derive(Deserialize)]
struct Transaction {
    events: Departures,
}

struct Departures(Vec<TrackedParticipant>);

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

fn parse_departure(event: &str) -> Option<TrackedParticipant> {
    let event: PushedEvent<'_> = serde_json::from_str(event).ok()?;
    if event.kind != "m.room.member" || event.content.membership == "join" {
        return None;
    }
    Some(TrackedParticipant {
        room_id: RoomId::parse(&event.room_id).ok()?,
        user_id: UserId::parse(&event.state_key).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn member(user: &str, membership: &str) -> Value {
        json!({
            "type": "m.room.member", "room_id": "!r:hs", "state_key": user, "sender": "@admin:hs",
            "content": { "membership": membership, "reason": "x\u{1F600}" }, "unsigned": {},
        })
    }

    fn users(events: &Value) -> Vec<String> {
        let body = json!({ "events": events, "ephemeral": [{}] }).to_string();
        let departures = parse_departures(body.as_bytes()).unwrap();
        departures.iter().map(|g| g.user_id.to_string()).collect()
    }

    #[test]
    fn whoever_is_said_to_be_no_longer_joined_is_a_reason_to_ask() {
        let events = json!([
            member("@a:hs", "ban"),
            member("@b:hs", "join"),
            member("@c:hs", "leave"),
            member("@d:other", "knock"),
        ]);
        assert_eq!(users(&events), ["@a:hs", "@c:hs", "@d:other"]);
    }

    #[test]
    fn what_makes_no_sense_is_passed_over_and_the_rest_is_not() {
        let good = member("@a:hs", "leave");
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
        events.push(member("@z:hs", "leave"));
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
    fn of_a_large_transaction_no_more_is_taken_than_there_are_places_for() {
        let events = vec![member("@a:hs", "leave"); MAX_DEPARTURES + 10];
        assert_eq!(users(&json!(events)).len(), MAX_DEPARTURES);
    }
}
