//! One delegated leave (MSC4140, MSC4195): a pure state machine. What happens goes in, what is to be done comes out.
//!
//! It waits for the participant, restarts the delayed event while they are connected, and sends it once they are gone:
//!
//! - *waiting*, at most [`MAX_WAIT`], then the leave is sent; if their connection was aborted, the homeserver's own timer sends it;
//! - *connected*, for as long as a connection of theirs is known that has not ended, or the SFU says that they are there;
//! - *sending*, until the homeserver has it or would have sent it anyway. There is no way back.

mod look;
mod record;
mod step;
mod time;

use std::time::Duration;

use self::look::Look;
pub use self::record::BadRecord;
pub use self::time::Time;
pub use crate::journal::Key;
use crate::livekit::room_service::Presence;
use crate::livekit::token::Sid;
use crate::matrix::delayed_event::{Deed, DelayId, Outcome};
use crate::matrix::id::{ServerName, UserId};

/// Longest delay that is believed. A longer one is restarted as if it were this one, which is merely more often than needed.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Longest wait for the first connection: tokens are not valid for much longer.
pub const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Bounds on how long a leave is tried to be sent; in between, until the homeserver would have sent it.
const SEND_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Shortest time from one restart to the next: delays that are shorter still have ended before we hear of them.
const MIN_INTERVAL: Duration = Duration::from_millis(500);
/// Connections that are remembered, of each kind: what is still under way of them is soon past.
const MAX_SIDS: usize = 8;

/// What a client has handed to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Whose leave it is; it is scheduled on their homeserver.
    pub user: UserId,
    /// The delayed event.
    pub delay: DelayId,
    /// After how long without a restart the homeserver sends it.
    pub timeout: Duration,
}

/// What happens to a leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The participant is connected.
    Connected(Option<Sid>),
    /// A connection of theirs has ended; `replaced` if the SFU says that another one took its place.
    Disconnected {
        /// Which connection.
        sid: Option<Sid>,
        /// Whether they are expected to be back at once.
        replaced: bool,
    },
    /// A connection of theirs did not come about.
    Aborted(Option<Sid>),
    /// The SFU says that the room has ended.
    RoomFinished,
    /// What [`Action::LookUp`] brought; none if the SFU gave no answer.
    LookedUp(Option<Presence>),
    /// What came of [`Action::Restart`] or [`Action::Send`], and when that call began.
    Done(Deed, Outcome, Time),
    /// Another leave takes its place.
    Replaced,
    /// [`Action::Wake`] is due.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Restart the delayed event, by this time.
    Restart(Time),
    /// Send it at once; a restart that has not begun is off.
    Send,
    /// Ask the SFU whether the participant is there.
    LookUp,
    /// Bring a [`Event::Tick`] at this time; replaces any earlier wish.
    Wake(Time),
    /// Nothing more will be done.
    Finish(Why),
}

/// How a leave ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The homeserver has sent it.
    Sent,
    /// It had been sent or cancelled before.
    Gone,
    /// The participant never got in, and the homeserver's own timer is over.
    Aborted,
    /// The homeserver could not be reached before its own timer was over.
    Expired,
    /// The homeserver wants to know who asks, which we cannot tell.
    Denied(u16),
    /// Another leave took its place.
    Replaced,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Waiting { until: Time, aborted: bool },
    Connected { due: Time, call: Call },
    Sending { until: Time, due: Time, call: Call },
    Ended,
}

/// A call that is repeated until it comes off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Call {
    /// Whether it is with whoever carries out our actions.
    out: bool,
    failures: u32,
}

/// A leave that somebody relies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    key: Key,
    order: Order,
    id: u32,
    state: State,
    /// When the delay began anew for certain, and when it last may have.
    confirmed: Time,
    perhaps: Time,
    /// Connections that have come and not gone, and some that have gone.
    here: Vec<Sid>,
    gone: Vec<Sid>,
    look: Look,
}

impl Leave {
    /// A leave that has just been delegated. `id` names it in the log; the SFU is asked about a connected participant every
    /// `check`, or only in doubt.
    pub fn new(key: Key, order: Order, id: u32, check: Option<Duration>, now: Time) -> Self {
        let timeout = order.timeout.min(MAX_TIMEOUT);
        Self {
            key,
            order: Order { timeout, ..order },
            id,
            state: State::Waiting {
                until: now + timeout.min(MAX_WAIT),
                aborted: false,
            },
            confirmed: now,
            perhaps: now,
            here: Vec::new(),
            gone: Vec::new(),
            look: Look::new(check, now),
        }
    }

    /// What it is kept under.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What was delegated, with the delay that is believed.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// The homeserver that it is scheduled on.
    pub fn server(&self) -> &ServerName {
        self.order.user.server()
    }

    /// Its name in the log.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where it stands, for the log.
    pub fn standing(&self) -> &'static str {
        match self.state {
            State::Waiting { aborted: false, .. } => "waiting",
            State::Waiting { aborted: true, .. } => "aborted",
            State::Connected { .. } => "connected",
            State::Sending { .. } => "disconnected",
            State::Ended => "ended",
        }
    }

    /// When the homeserver will have sent the leave, whatever became of calls whose outcome is not known.
    fn end(&self) -> Time {
        self.perhaps.max(self.confirmed) + self.order.timeout
    }

    /// Whether a call that was asked for is still to be made, should it begin at `now`.
    pub fn wants(&self, deed: Deed, now: Time) -> bool {
        match (&self.state, deed) {
            (State::Connected { call, .. }, Deed::Restart) => call.out && now < self.end(),
            (State::Sending { call, .. }, Deed::Send) => call.out,
            _ => false,
        }
    }

    /// Time from one restart to the next when all is well.
    pub fn interval(&self) -> Duration {
        (self.order.timeout * step::RESTART_AT / 100).max(MIN_INTERVAL)
    }
}

#[cfg(test)]
mod tests;
