//! The wishes of our users for the SFU of another server: that server's service is asked through our homeserver (MSC4195, MSC4512).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Error, Place};
use crate::matrix::appservice::{self, Homeserver, JoinedUser, Relayed};
use crate::matrix::id::{ServerName, UserId};
use crate::memo::Memo;
use crate::net::bulkhead::{PER_KNOWN_STRANGER, PER_STRANGER};
use crate::net::lines::{Lines, Standing};

/// Wishes for one server's SFU that may be here, waiting or not. In a meeting each of our users asks each other server, all at once; but
/// one that does not answer is to leave places for the others.
const PER_DESTINATION: usize = 32;
/// The same for one that has failed to answer lately: whoever names one that never does is to keep nobody from the others.
const PER_FAILING: usize = 2 * PER_STRANGER;
/// How long a server that has failed to counts as one that does.
const FAILING_FOR: Duration = Duration::from_secs(60);
/// How long to wait until the server may be asked: those before may ask in vain for longer, but then there is little hope.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is left for the question itself when it is asked.
const LEAST: Duration = Duration::from_secs(4);
/// How long a server that has answered counts as one that does.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// Servers that are remembered as such.
const KNOWN: usize = 1024;

/// Why another server's service has given no token.
#[derive(Debug)]
pub struct NotRelayed {
    /// For whom.
    pub user: UserId,
    /// Whose service.
    pub server: ServerName,
    /// Why.
    pub why: Why,
}

/// What it answered instead.
#[derive(Debug)]
pub enum Why {
    /// Its 403: it forbids it, as it may.
    Forbidden,
    /// Its 400: it finds that something is wrong.
    Invalid,
    /// It, or our homeserver on the way to it, failed: status and errcode.
    Failed(u16, String),
    /// Nothing in time, or nothing that makes sense.
    Nothing(String),
}

impl fmt::Display for NotRelayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, server, why } = self;
        write!(f, "no token for {user} from the service of {server}: ")?;
        match why {
            Why::Forbidden => f.write_str("it forbids it"),
            Why::Invalid => f.write_str("it finds it invalid"),
            Why::Failed(status, errcode) => write!(f, "status {status} {errcode:?}"),
            Why::Nothing(why) => f.write_str(why),
        }
    }
}

/// A wish for another server's SFU.
pub(super) struct Wish<'a> {
    pub(super) user: &'a JoinedUser,
    pub(super) place: &'a Place,
    /// By which the other server's service is asked.
    pub(super) path: &'a str,
    pub(super) deadline: Instant,
}

/// All such wishes that are here.
#[derive(Debug)]
pub(super) struct Relays {
    lines: Arc<Lines<ServerName>>,
    /// Whether they have answered last.
    answering: Memo<ServerName, bool>,
}

impl Relays {
    /// They take at most `places`.
    pub(super) fn new(places: usize) -> Self {
        Self {
            lines: Lines::new(places, PER_DESTINATION),
            answering: Memo::new(KNOWN),
        }
    }

    /// A place for one for the SFU of `server`, from its beginning to its end.
    pub(super) fn join(&self, server: &ServerName) -> Result<Relay<'_>, Error> {
        let longest = match self.answering.recall(server, Instant::now()) {
            Some(false) => PER_FAILING,
            _ => PER_DESTINATION,
        };
        let line = self.lines.join_up_to(longest, server.clone());
        let line = line.map_err(|_| Error::Busy(Some(server.clone())))?;
        Ok(Relay {
            of: self,
            server: server.clone(),
            line,
        })
    }

    /// A server that has answered lately may be asked by more at once, and one that fails to by fewer again.
    fn remember(&self, server: &ServerName, answer: &Result<Relayed, appservice::Error>) {
        use appservice::Error::{NotUnderstood, Unanswered};
        let (answers, lasting) = match answer {
            Ok(Relayed::Token(_) | Relayed::Forbidden | Relayed::Invalid) => (true, KNOWN_FOR),
            Ok(Relayed::Else(500.., _)) | Err(Unanswered(_) | NotUnderstood(_)) => {
                (false, FAILING_FOR)
            }
            Ok(Relayed::Else(..)) | Err(_) => return,
        };
        let now = Instant::now();
        self.answering
            .learn(server.clone(), answers, now + lasting, now);
    }
}

/// One that has its place.
#[derive(Debug)]
pub(super) struct Relay<'a> {
    of: &'a Relays,
    server: ServerName,
    line: Standing<ServerName>,
}

impl Relay<'_> {
    /// The other server's token. One that has nobody in the room has no SFU for it, and is not asked.
    pub(super) fn ask(
        mut self,
        homeserver: &Homeserver,
        wish: &Wish<'_>,
    ) -> Result<Box<str>, Error> {
        let (server, room) = (&self.server, &wish.place.room);
        if !homeserver.has_server(room, server, wish.deadline)? {
            return Err(Error::ServerNotJoined(server.clone()));
        }
        let at_once = || match self.of.answering.recall(server, Instant::now()) {
            Some(true) => PER_KNOWN_STRANGER,
            _ => PER_STRANGER,
        };
        let until = (wish.deadline - LEAST).min(Instant::now() + PATIENCE);
        let turn = self.line.turn(at_once, until);
        let _turn = turn.map_err(|_| Error::Busy(Some(server.clone())))?;
        let place = wish.place;
        let body = json!({
            "user_id": wish.user.id().as_str(),
            "url": place.url,
            "room_id": room.as_str(),
            "slot_id": place.slot.as_str(),
            "member_id": place.member.as_str(),
        });
        let answer = homeserver.relay(server, wish.path, &body, wish.deadline);
        self.of.remember(server, &answer);
        let why = match answer {
            Ok(Relayed::Token(token)) => return Ok(token),
            Ok(Relayed::Forbidden) => Why::Forbidden,
            Ok(Relayed::Invalid) => Why::Invalid,
            Ok(Relayed::Else(status, errcode)) => Why::Failed(status, errcode),
            // our homeserver has passed it on, and was there
            Err(
                error @ (appservice::Error::Unanswered(_) | appservice::Error::NotUnderstood(_)),
            ) => Why::Nothing(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        Err(Error::NotRelayed(Box::new(NotRelayed {
            user: wish.user.id().clone(),
            server: server.clone(),
            why,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_fails_gets_few_places_until_it_answers() {
        let relays = Relays::new(PER_DESTINATION);
        let server = ServerName::parse("b.org").unwrap();
        let places = || {
            let standing: Vec<_> = (0..PER_DESTINATION + 1)
                .filter_map(|_| relays.join(&server).ok())
                .collect();
            standing.len()
        };
        assert_eq!(places(), PER_DESTINATION);
        relays.remember(&server, &Err(appservice::Error::Unanswered("late".into())));
        assert_eq!(places(), PER_FAILING);
        // that is no fault of the other server
        relays.remember(&server, &Err(appservice::Error::Busy));
        assert_eq!(places(), PER_FAILING);
        relays.remember(&server, &Ok(Relayed::Forbidden));
        assert_eq!(places(), PER_DESTINATION);
    }
}
