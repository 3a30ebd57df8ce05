//! Tokens for another homeserver's SFU: our homeserver relays the request to the service there (MSC4195, MSC4512).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;
use serde_json::{Value, json};

use super::{CallMember, CallMembership, Error};
use crate::matrix::appservice::{self, HomeserverClient, JoinedUser, RelayResponse};
use crate::matrix::id::{ServerName, UserId};
use crate::net::permits::{
    FairQueue, FairQueueEntry, MAX_CALLS_PER_SERVER, MAX_CALLS_PER_SERVER_IF_RESPONSIVE,
};
use crate::util::ttl_cache::TtlCache;

/// Requests for one homeserver's SFU, in progress or queued. At the start of a call each of our users calls each other homeserver at
/// once, and one that does not answer must leave permits for the others.
const MAX_QUEUED_PER_DESTINATION: usize = 32;
/// The same for a homeserver that failed to answer lately: naming an unreachable one must not block the others.
const MAX_QUEUED_PER_FAILING_DESTINATION: usize = 2 * MAX_CALLS_PER_SERVER;
/// Time that a homeserver counts as failing after a failure.
const FAILING_TTL: Duration = Duration::from_secs(60);
/// Time that a homeserver counts as responsive after a response.
const RESPONSIVE_TTL: Duration = Duration::from_secs(600);
/// Longest wait in the queue. Earlier requests may time out later than that, but then this one has little chance.
const RELAY_QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time reserved for the relayed request itself.
const MIN_RELAY_TIME: Duration = Duration::from_secs(4);
/// Homeservers whose last outcome is remembered.
const MAX_REMEMBERED_DESTINATIONS: usize = 1024;

/// Stable or unstable path prefix of MSC4195's endpoints. A request is relayed under the prefix that the client used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MscVersion {
    Stable,
    Unstable,
}

impl MscVersion {
    fn federation_path(self) -> &'static str {
        match self {
            Self::Stable => "/_matrix/federation/v1/rtc/livekit/get_token",
            Self::Unstable => {
                "/_matrix/federation/unstable/io.element.msc4195/rtc/livekit/get_token"
            }
        }
    }
}

/// A failure of another homeserver's service to issue a token.
#[derive(Debug)]
pub(crate) struct RelayError {
    /// The user that the token is for.
    pub user: UserId,
    /// The homeserver whose service was called.
    pub server: ServerName,
    pub failure: RelayFailure,
}

/// Why the relayed request failed.
#[derive(Debug)]
pub(crate) enum RelayFailure {
    /// 403.
    Forbidden,
    /// 400.
    BadRequest,
    /// The service, or our homeserver on the way to it, failed: status and errcode.
    Failed(u16, String),
    /// No response in time, or an invalid one.
    NoResponse(String),
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, server) = (&self.user, &self.server);
        write!(f, "the service of {server} issued no token for {user}: ")?;
        match &self.failure {
            RelayFailure::Forbidden => f.write_str("status 403"),
            RelayFailure::BadRequest => f.write_str("status 400"),
            RelayFailure::Failed(status, errcode) => write!(f, "status {status} {errcode:?}"),
            RelayFailure::NoResponse(cause) => f.write_str(cause),
        }
    }
}

/// A request for a token for another homeserver's SFU.
pub(super) struct RelayRequest<'a> {
    pub(super) user: &'a JoinedUser,
    /// The other homeserver's SFU.
    pub(super) url: &'a str,
    pub(super) membership: &'a CallMembership,
    pub(super) version: MscVersion,
    pub(super) deadline: Instant,
}

impl RelayRequest<'_> {
    /// The body in the dialect of `member`.
    fn body(&self, member: &CallMember) -> Value {
        let mut body = json!({
            "user_id": self.user.id().as_str(),
            "url": self.url,
            "room_id": self.membership.room.as_str(),
            "slot_id": self.membership.slot.as_str(),
        });
        match member {
            CallMember::MemberId { id, .. } => body["member_id"] = id.as_str().into(),
            CallMember::Member { id, device } => {
                body["member"] = json!({ "id": id.as_str(), "claimed_device_id": device.as_str() });
            }
        }
        body
    }
}

/// All relayed requests, queued by destination.
#[derive(Debug)]
pub(super) struct RelayQueue {
    queue: Arc<FairQueue<ServerName>>,
    /// Whether the homeserver's service answered the last request.
    responsive: TtlCache<ServerName, bool>,
}

impl RelayQueue {
    /// Holds at most `max_total` requests.
    pub(super) fn new(max_total: usize) -> Self {
        Self {
            queue: FairQueue::new(max_total, MAX_QUEUED_PER_DESTINATION),
            responsive: TtlCache::new(MAX_REMEMBERED_DESTINATIONS),
        }
    }

    /// Enters a request for the SFU of `server`. It leaves the queue when it is dropped.
    pub(super) fn enqueue(&self, server: &ServerName) -> Result<QueuedRelay<'_>, Error> {
        let max_queued = match self.responsive.get(server, Instant::now()) {
            Some(false) => MAX_QUEUED_PER_FAILING_DESTINATION,
            _ => MAX_QUEUED_PER_DESTINATION,
        };
        let entry = self.queue.join_with_limit(max_queued, server.clone());
        let entry = entry.map_err(|_| Error::Busy(Some(server.clone())))?;
        Ok(QueuedRelay {
            relay_queue: self,
            server: server.clone(),
            entry,
        })
    }

    /// Remembers whether `server` answered, which decides how many requests it gets at once.
    fn record_outcome(
        &self,
        server: &ServerName,
        outcome: &Result<RelayResponse, appservice::Error>,
    ) {
        use appservice::Error::{IncompleteResponse, UnexpectedResponse};
        let (responsive, ttl) = match outcome {
            Ok(RelayResponse::Token(_) | RelayResponse::Forbidden | RelayResponse::BadRequest) => {
                (true, RESPONSIVE_TTL)
            }
            Ok(RelayResponse::Other(500.., _))
            | Err(IncompleteResponse(_) | UnexpectedResponse(_)) => (false, FAILING_TTL),
            // says nothing of the other homeserver
            Ok(RelayResponse::Other(..)) | Err(_) => return,
        };
        self.responsive
            .insert(server.clone(), responsive, Instant::now() + ttl);
    }
}

/// A request in the [`RelayQueue`].
#[derive(Debug)]
pub(super) struct QueuedRelay<'a> {
    relay_queue: &'a RelayQueue,
    server: ServerName,
    entry: FairQueueEntry<ServerName>,
}

impl QueuedRelay<'_> {
    /// Requests the other service's token, in the client's dialect and after a 400 once in the other dialect, which then determines the
    /// identity in the token. A homeserver without a user in the Matrix room has no SFU for it and is not asked.
    pub(super) fn send(
        mut self,
        homeserver: &HomeserverClient,
        request: &RelayRequest<'_>,
    ) -> Result<Box<str>, Error> {
        let (server, membership) = (&self.server, request.membership);
        if !homeserver.is_server_joined(&membership.room, server, request.deadline)? {
            return Err(Error::ServerNotJoined(server.clone()));
        }
        let max_active = || match self.relay_queue.responsive.get(server, Instant::now()) {
            Some(true) => MAX_CALLS_PER_SERVER_IF_RESPONSIVE,
            _ => MAX_CALLS_PER_SERVER,
        };
        let until = (request.deadline - MIN_RELAY_TIME).min(Instant::now() + RELAY_QUEUE_TIMEOUT);
        let active = self.entry.acquire(max_active, until);
        let _active = active.map_err(|_| Error::Busy(Some(server.clone())))?;
        let post = |member: &CallMember| {
            let (path, body) = (request.version.federation_path(), request.body(member));
            let outcome = homeserver.relay(server, path, &body, request.deadline);
            self.relay_queue.record_outcome(server, &outcome);
            outcome
        };
        let mut outcome = post(&membership.member);
        // services know one dialect or both, and do not announce which
        if let (Ok(RelayResponse::BadRequest), Some(member)) =
            (&outcome, membership.member.in_other_dialect())
        {
            debug!(server:%; "relay repeated in the other dialect");
            outcome = post(&member);
        }
        let failure = match outcome {
            Ok(RelayResponse::Token(token)) => return Ok(token),
            Ok(RelayResponse::Forbidden) => RelayFailure::Forbidden,
            Ok(RelayResponse::BadRequest) => RelayFailure::BadRequest,
            Ok(RelayResponse::Other(status, errcode)) => RelayFailure::Failed(status, errcode),
            // our homeserver relayed the request, and the other side failed
            Err(
                error @ (appservice::Error::IncompleteResponse(_)
                | appservice::Error::UnexpectedResponse(_)),
            ) => RelayFailure::NoResponse(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        Err(Error::RelayFailed(Box::new(RelayError {
            user: request.user.id().clone(),
            server: server.clone(),
            failure,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_destination_has_a_shorter_queue_until_it_answers() {
        let relays = RelayQueue::new(MAX_QUEUED_PER_DESTINATION);
        let server = ServerName::parse("b.org").unwrap();
        let queue_length = || {
            let queued: Vec<_> = (0..MAX_QUEUED_PER_DESTINATION + 1)
                .filter_map(|_| relays.enqueue(&server).ok())
                .collect();
            queued.len()
        };
        assert_eq!(queue_length(), MAX_QUEUED_PER_DESTINATION);
        relays.record_outcome(
            &server,
            &Err(appservice::Error::IncompleteResponse("late".into())),
        );
        assert_eq!(queue_length(), MAX_QUEUED_PER_FAILING_DESTINATION);
        // a failure of our own homeserver changes nothing
        relays.record_outcome(&server, &Err(appservice::Error::Busy));
        assert_eq!(queue_length(), MAX_QUEUED_PER_FAILING_DESTINATION);
        relays.record_outcome(&server, &Ok(RelayResponse::Forbidden));
        assert_eq!(queue_length(), MAX_QUEUED_PER_DESTINATION);
    }
}
