//! One delegated leave (MSC4140, MSC4195): a pure state machine. What happens goes in, what is to be done comes out.
//!
//! It waits for the participant, restarts the delayed event while they are connected, and sends it once they are gone:
//!
//! - *waiting*, at most [`MAX_WAIT`], then the leave is sent; if their connection was aborted, the homeserver's own timer sends it;
//! - *connected*, for as long as a connection of theirs is known that has not ended, or the SFU says that they are there;
//! - *sending*, until the homeserver has it or would have sent it anyway. There is no way back.

mod presence;
mod record;
#[cfg(test)]
mod tests;
mod time;
mod transition;

use std::time::Duration;

use self::presence::PresenceSchedule;
pub use self::time::UnixMillis;
use crate::livekit::id::{ParticipantKey, ParticipantSid};
use crate::livekit::room_service::ParticipantPresence;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::DelayId;
use crate::matrix::id::{ServerName, UserId};

/// Longest delay that is believed. A longer one is restarted as if it were this one, which is merely more often than needed.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Longest wait for the first connection: tokens are not valid for much longer.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Bounds on how long a leave is tried to be sent; in between, until the homeserver would have sent it.
const SEND_WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Shortest time from one restart to the next: delays that are shorter still have ended before we hear of them.
const MIN_RESTART_INTERVAL: Duration = Duration::from_millis(500);
/// Connections that are remembered, of each kind: what is still under way of them is soon past.
const MAX_SIDS: usize = 8;

/// What a client has handed to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegationRequest {
    /// Whose leave it is; it is scheduled on their homeserver.
    pub user: UserId,
    /// The delayed event.
    pub delay_id: DelayId,
    /// After how long without a restart the homeserver sends it.
    pub timeout: Duration,
}

/// What happens to a leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaveEvent {
    /// The participant is connected.
    Connected(Option<ParticipantSid>),
    /// A connection of theirs has ended; `replaced` if the SFU says that another one took its place.
    Disconnected {
        /// Which connection.
        sid: Option<ParticipantSid>,
        /// Whether they are expected to be back at once.
        replaced: bool,
    },
    /// A connection of theirs did not come about.
    ConnectionAborted(Option<ParticipantSid>),
    /// The SFU says that the room has ended.
    RoomFinished,
    /// What [`Action::LookUp`] brought; none if the SFU gave no answer.
    PresenceChecked(Option<ParticipantPresence>),
    /// What came of [`Action::Restart`] or [`Action::Send`], and when that call began.
    CallFinished(DelayedEventAction, DelayedEventOutcome, UnixMillis),
    /// Another leave takes its place.
    Replaced,
    /// [`Action::Wake`] is due.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaveAction {
    /// Restart the delayed event, by this time.
    Restart(UnixMillis),
    /// Send it at once; a restart that has not begun is off.
    Send,
    /// Ask the SFU whether the participant is there.
    CheckPresence,
    /// Bring a [`Event::Tick`] at this time; replaces any earlier wish.
    WakeAt(UnixMillis),
    /// Nothing more will be done.
    Finish(LeaveEndReason),
}

/// How a leave ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaveEndReason {
    /// The homeserver has sent it.
    Sent,
    /// It had been sent or cancelled before.
    AlreadyFinal,
    /// The participant never got in, and the homeserver's own timer is over.
    NeverConnected,
    /// The homeserver could not be reached before its own timer was over.
    Expired,
    /// The homeserver wants to know who asks, which we cannot tell.
    Denied(u16),
    /// Another leave took its place.
    Replaced,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LeaveState {
    Waiting {
        until: UnixMillis,
        aborted: bool,
    },
    Connected {
        due: UnixMillis,
        call: CallRetry,
    },
    Sending {
        until: UnixMillis,
        due: UnixMillis,
        call: CallRetry,
    },
    Ended,
}

/// A call that is repeated until it comes off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CallRetry {
    /// Whether it is with whoever carries out our actions.
    in_flight: bool,
    failures: u32,
}

/// A leave that somebody relies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    key: ParticipantKey,
    request: DelegationRequest,
    id: u32,
    state: LeaveState,
    /// When the delay began anew for certain, and when it last may have.
    confirmed_restart: UnixMillis,
    possible_restart: UnixMillis,
    /// Connections that have come and not gone, and some that have gone.
    active_sids: Vec<ParticipantSid>,
    ended_sids: Vec<ParticipantSid>,
    presence: PresenceSchedule,
}

impl Leave {
    /// A leave that has just been delegated. `id` names it in the log; the SFU is asked about a connected participant every
    /// `check`, or only in doubt.
    pub fn new(
        key: ParticipantKey,
        order: DelegationRequest,
        id: u32,
        check: Option<Duration>,
        now: UnixMillis,
    ) -> Self {
        let timeout = order.timeout.min(MAX_TIMEOUT);
        Self {
            key,
            request: DelegationRequest { timeout, ..order },
            id,
            state: LeaveState::Waiting {
                until: now + timeout.min(MAX_WAIT),
                aborted: false,
            },
            confirmed_restart: now,
            possible_restart: now,
            active_sids: Vec::new(),
            ended_sids: Vec::new(),
            presence: PresenceSchedule::new(check, now),
        }
    }

    /// What it is kept under.
    pub fn key(&self) -> &ParticipantKey {
        &self.key
    }

    /// What was delegated, with the delay that is believed.
    pub fn request(&self) -> &DelegationRequest {
        &self.request
    }

    /// The homeserver that it is scheduled on.
    pub fn server(&self) -> &ServerName {
        self.request.user.server()
    }

    /// Its name in the log.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where it stands, for the log.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            LeaveState::Waiting { aborted: false, .. } => "waiting",
            LeaveState::Waiting { aborted: true, .. } => "aborted",
            LeaveState::Connected { .. } => "connected",
            LeaveState::Sending { .. } => "disconnected",
            LeaveState::Ended => "ended",
        }
    }

    /// When the homeserver will have sent the leave, whatever became of calls whose outcome is not known.
    fn expires_at(&self) -> UnixMillis {
        self.possible_restart.max(self.confirmed_restart) + self.request.timeout
    }

    /// Whether a call that was asked for is still to be made, should it begin at `now`.
    pub fn needs_call(&self, deed: DelayedEventAction, now: UnixMillis) -> bool {
        match (&self.state, deed) {
            (LeaveState::Connected { call, .. }, DelayedEventAction::Restart) => {
                call.in_flight && now < self.expires_at()
            }
            (LeaveState::Sending { call, .. }, DelayedEventAction::Send) => call.in_flight,
            _ => false,
        }
    }

    /// Time from one restart to the next when all is well.
    pub fn restart_interval(&self) -> Duration {
        (self.request.timeout * transition::RESTART_PERCENT / 100).max(MIN_RESTART_INTERVAL)
    }
}
