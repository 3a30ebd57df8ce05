//! The wishes of our users for the SFU of another server: that server's service is asked through our homeserver (MSC4195, MSC4512).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{CallMembership, Error};
use crate::matrix::appservice::{self, HomeserverClient, JoinedUser, RelayResponse};
use crate::matrix::id::{ServerName, UserId};
use crate::net::fair_queue::{FairQueue, FairQueueEntry};
use crate::net::permits::{MAX_CALLS_PER_SERVER, MAX_CALLS_PER_SERVER_IF_RESPONSIVE};
use crate::util::ttl_cache::TtlCache;

/// Wishes for one server's SFU that may be here, waiting or not. In a meeting each of our users asks each other server, all at once; but
/// one that does not answer is to leave places for the others.
const MAX_QUEUED_PER_DESTINATION: usize = 32;
/// The same for one that has failed to answer lately: whoever names one that never does is to keep nobody from the others.
const MAX_QUEUED_PER_FAILING_DESTINATION: usize = 2 * MAX_CALLS_PER_SERVER;
/// How long a server that has failed to counts as one that does.
const FAILING_TTL: Duration = Duration::from_secs(60);
/// How long to wait until the server may be asked: those before may ask in vain for longer, but then there is little hope.
const RELAY_QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is left for the question itself when it is asked.
const MIN_RELAY_TIME: Duration = Duration::from_secs(4);
/// How long a server that has answered counts as one that does.
const RESPONSIVE_TTL: Duration = Duration::from_secs(600);
/// Servers that are remembered as such.
const MAX_REMEMBERED_DESTINATIONS: usize = 1024;

/// Why another server's service has given no token.
#[derive(Debug)]
pub(crate) struct RelayError {
    /// For whom.
    pub user: UserId,
    /// Whose service.
    pub server: ServerName,
    /// Why.
    pub failure: RelayFailure,
}

/// What it answered instead.
#[derive(Debug)]
pub(crate) enum RelayFailure {
    /// Its 403: it forbids it, as it may.
    Forbidden,
    /// Its 400: it finds that something is wrong.
    BadRequest,
    /// It, or our homeserver on the way to it, failed: status and errcode.
    Failed(u16, String),
    /// Nothing in time, or nothing that makes sense.
    NoResponse(String),
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            user,
            server,
            failure: why,
        } = self;
        write!(f, "no token for {user} from the service of {server}: ")?;
        match why {
            RelayFailure::Forbidden => f.write_str("it forbids it"),
            RelayFailure::BadRequest => f.write_str("it finds it invalid"),
            RelayFailure::Failed(status, errcode) => write!(f, "status {status} {errcode:?}"),
            RelayFailure::NoResponse(why) => f.write_str(why),
        }
    }
}

/// A wish for another server's SFU.
pub(super) struct RelayRequest<'a> {
    pub(super) user: &'a JoinedUser,
    pub(super) membership: &'a CallMembership,
    /// By which the other server's service is asked.
    pub(super) path: &'a str,
    pub(super) deadline: Instant,
}

/// All such wishes that are here.
#[derive(Debug)]
pub(super) struct RelayQueue {
    queue: Arc<FairQueue<ServerName>>,
    /// Whether they have answered last.
    responsive: TtlCache<ServerName, bool>,
}

impl RelayQueue {
    /// They take at most `places`.
    pub(super) fn new(places: usize) -> Self {
        Self {
            queue: FairQueue::new(places, MAX_QUEUED_PER_DESTINATION),
            responsive: TtlCache::new(MAX_REMEMBERED_DESTINATIONS),
        }
    }

    /// A place for one for the SFU of `server`, from its beginning to its end.
    pub(super) fn enqueue(&self, server: &ServerName) -> Result<QueuedRelay<'_>, Error> {
        let longest = match self.responsive.get(server, Instant::now()) {
            Some(false) => MAX_QUEUED_PER_FAILING_DESTINATION,
            _ => MAX_QUEUED_PER_DESTINATION,
        };
        let line = self.queue.join_with_limit(longest, server.clone());
        let line = line.map_err(|_| Error::Busy(Some(server.clone())))?;
        Ok(QueuedRelay {
            relay_queue: self,
            server: server.clone(),
            position: line,
        })
    }

    /// A server that has answered lately may be asked by more at once, and one that fails to by fewer again.
    fn record_outcome(
        &self,
        server: &ServerName,
        answer: &Result<RelayResponse, appservice::Error>,
    ) {
        use appservice::Error::{IncompleteResponse, UnexpectedResponse};
        let (answers, lasting) = match answer {
            Ok(
                RelayResponse::Token(_) | RelayResponse::Forbidden | RelayResponse::InvalidParam,
            ) => (true, RESPONSIVE_TTL),
            Ok(RelayResponse::Other(500.., _))
            | Err(IncompleteResponse(_) | UnexpectedResponse(_)) => (false, FAILING_TTL),
            Ok(RelayResponse::Other(..)) | Err(_) => return,
        };
        let now = Instant::now();
        self.responsive
            .insert(server.clone(), answers, now + lasting, now);
    }
}

/// One that has its place.
#[derive(Debug)]
pub(super) struct QueuedRelay<'a> {
    relay_queue: &'a RelayQueue,
    server: ServerName,
    position: FairQueueEntry<ServerName>,
}

impl QueuedRelay<'_> {
    /// The other server's token. One that has nobody in the room has no SFU for it, and is not asked.
    pub(super) fn send(
        mut self,
        homeserver: &HomeserverClient,
        wish: &RelayRequest<'_>,
    ) -> Result<Box<str>, Error> {
        let (server, room) = (&self.server, &wish.membership.room);
        if !homeserver.is_server_joined(room, server, wish.deadline)? {
            return Err(Error::ServerNotJoined(server.clone()));
        }
        let at_once = || match self.relay_queue.responsive.get(server, Instant::now()) {
            Some(true) => MAX_CALLS_PER_SERVER_IF_RESPONSIVE,
            _ => MAX_CALLS_PER_SERVER,
        };
        let until = (wish.deadline - MIN_RELAY_TIME).min(Instant::now() + RELAY_QUEUE_TIMEOUT);
        let turn = self.position.acquire(at_once, until);
        let _turn = turn.map_err(|_| Error::Busy(Some(server.clone())))?;
        let place = wish.membership;
        let body = json!({
            "user_id": wish.user.id().as_str(),
            "url": place.url,
            "room_id": room.as_str(),
            "slot_id": place.slot.as_str(),
            "member_id": place.member.as_str(),
        });
        let answer = homeserver.relay(server, wish.path, &body, wish.deadline);
        self.relay_queue.record_outcome(server, &answer);
        let why = match answer {
            Ok(RelayResponse::Token(token)) => return Ok(token),
            Ok(RelayResponse::Forbidden) => RelayFailure::Forbidden,
            Ok(RelayResponse::InvalidParam) => RelayFailure::BadRequest,
            Ok(RelayResponse::Other(status, errcode)) => RelayFailure::Failed(status, errcode),
            // our homeserver has passed it on, and was there
            Err(
                error @ (appservice::Error::IncompleteResponse(_)
                | appservice::Error::UnexpectedResponse(_)),
            ) => RelayFailure::NoResponse(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        Err(Error::RelayFailed(Box::new(RelayError {
            user: wish.user.id().clone(),
            server: server.clone(),
            failure: why,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_fails_gets_few_places_until_it_answers() {
        let relays = RelayQueue::new(MAX_QUEUED_PER_DESTINATION);
        let server = ServerName::parse("b.org").unwrap();
        let places = || {
            let standing: Vec<_> = (0..MAX_QUEUED_PER_DESTINATION + 1)
                .filter_map(|_| relays.enqueue(&server).ok())
                .collect();
            standing.len()
        };
        assert_eq!(places(), MAX_QUEUED_PER_DESTINATION);
        relays.record_outcome(
            &server,
            &Err(appservice::Error::IncompleteResponse("late".into())),
        );
        assert_eq!(places(), MAX_QUEUED_PER_FAILING_DESTINATION);
        // that is no fault of the other server
        relays.record_outcome(&server, &Err(appservice::Error::Busy));
        assert_eq!(places(), MAX_QUEUED_PER_FAILING_DESTINATION);
        relays.record_outcome(&server, &Ok(RelayResponse::Forbidden));
        assert_eq!(places(), MAX_QUEUED_PER_DESTINATION);
    }
}
