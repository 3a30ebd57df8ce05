//! One delegated leave (MSC4140, MSC4195): a pure state machine. What happens goes in, what is to be done comes out.
//!
//! It waits for the participant, restarts the delayed event while they are connected, and sends it once they are gone:
//!
//! - *waiting*, at most [`MAX_WAIT`], then the leave is sent; if their connection was aborted, the homeserver's own timer sends it;
//! - *connected*, for as long as a connection of theirs is known that has not ended, or the SFU says that they are there;
//! - *sending*, until the homeserver has it or would have sent it anyway. There is no way back.

mod look;
mod record;

use std::time::Duration;

use self::look::Look;
pub use self::record::BadRecord;
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
/// The part of a delay after which it is restarted, in per cent; up to [`SPREAD`] less, so that those who came together part.
const RESTART_AT: u32 = 80;
const SPREAD: u32 = 8;
/// Shortest time from one restart to the next: delays that are shorter still have ended before we hear of them.
const MIN_INTERVAL: Duration = Duration::from_millis(500);
/// The first and the longest pause after calls that failed, each half as long again as the one before.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the outcome of a call is awaited beyond the time by which it was wanted; longer than a call can take.
const GRACE: Duration = Duration::from_secs(30);
/// How long those may take to connect of whom we hear first that they left: that was another connection, or all there was.
const LEFT_WAIT: Duration = Duration::from_secs(30);
/// Connections that are remembered, of each kind: what is still under way of them is soon past.
const MAX_SIDS: usize = 8;

/// Milliseconds since 1970: leaves outlast the process, which no monotonic clock does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// From milliseconds since 1970.
    pub fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970.
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// How long it is from `earlier` until this; zero if it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ms))
    }
}

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
        (self.order.timeout * RESTART_AT / 100).max(MIN_INTERVAL)
    }

    /// When the homeserver will have sent the leave, whatever became of calls whose outcome is not known.
    fn end(&self) -> Time {
        self.perhaps.max(self.confirmed) + self.order.timeout
    }

    /// Takes in what happened at `now`, and says what is to be done about it.
    pub fn step(&mut self, event: &Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Connected(sid) => self.connected(sid.as_ref(), now),
            Event::Disconnected { sid, replaced } => {
                self.disconnected(sid.as_ref(), *replaced, now);
            }
            Event::Aborted(sid) => self.aborted(sid.as_ref(), now),
            Event::RoomFinished => self.look.doubt(now),
            Event::LookedUp(presence) => self.looked_up(presence.as_ref(), now),
            Event::Done(deed, outcome, began) => {
                self.done(*deed, outcome, *began, now, &mut actions);
            }
            Event::Replaced => self.finish(Why::Replaced, &mut actions),
            Event::Tick => {}
        }
        self.act(now, &mut actions);
        actions
    }

    fn connected(&mut self, sid: Option<&Sid>, now: Time) {
        if sid.is_some_and(|sid| self.gone.contains(sid)) {
            // news of a connection that has ended before we knew of it
            if matches!(self.state, State::Waiting { .. }) {
                self.send(now);
            }
            return;
        }
        match self.state {
            State::Waiting { .. } => {
                let call = Call::default();
                self.state = State::Connected { due: now, call };
            }
            State::Connected { .. } => {}
            State::Sending { .. } | State::Ended => return,
        }
        if let Some(sid) = sid {
            remember(&mut self.here, sid);
        }
        self.look.present(now, self.id);
    }

    fn disconnected(&mut self, sid: Option<&Sid>, replaced: bool, now: Time) {
        let known = sid.is_some_and(|sid| self.here.contains(sid));
        let certain = sid.is_some() && (known || self.here.is_empty());
        if let Some(sid) = sid {
            self.here.retain(|here| here != sid);
            remember(&mut self.gone, sid);
        }
        match &mut self.state {
            State::Waiting { until, aborted } if !replaced => {
                *until = (*until).min(now + LEFT_WAIT);
                *aborted = false;
            }
            State::Connected { .. } if certain && self.here.is_empty() && !replaced => {
                self.send(now);
            }
            State::Connected { .. } => self.look.doubt(now),
            State::Waiting { .. } | State::Sending { .. } | State::Ended => {}
        }
    }

    /// A new attempt may follow, so that they are still waited for; but if none does, nobody was ever there to leave.
    fn aborted(&mut self, sid: Option<&Sid>, now: Time) {
        match &mut self.state {
            State::Waiting { aborted, .. } => *aborted = true,
            State::Connected { .. } => {
                self.here.retain(|here| Some(here) != sid);
                self.look.doubt(now);
            }
            State::Sending { .. } | State::Ended => {}
        }
    }

    fn looked_up(&mut self, presence: Option<&Presence>, now: Time) {
        let connected = match self.state {
            State::Connected { .. } => true,
            State::Waiting { .. } => false,
            State::Sending { .. } | State::Ended => return,
        };
        match presence {
            Some(Presence::Here(sid)) if !sid.as_ref().is_some_and(|s| self.gone.contains(s)) => {
                if connected && sid.is_some() {
                    self.here.clear();
                }
                self.connected(sid.as_ref(), now);
                self.look.answered(now, self.id);
            }
            Some(Presence::NotFound) if connected => {
                if self.look.absent(now) {
                    self.send(now);
                }
            }
            Some(_) | None => self.look.unanswered(now, self.id),
        }
    }

    fn done(
        &mut self,
        deed: Deed,
        outcome: &Outcome,
        began: Time,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let (end, id) = (self.end(), self.id);
        let (due, call) = match &mut self.state {
            State::Connected { due, call } if deed == Deed::Restart => (due, call),
            State::Sending { due, call, .. } if deed == Deed::Send => (due, call),
            // a restart that was under way when they left, or the last word on a leave that has ended
            _ => return,
        };
        call.out = false;
        match outcome {
            Outcome::Done if deed == Deed::Send => self.finish(Why::Sent, actions),
            Outcome::Done => {
                *call = Call::default();
                let spread = self.order.timeout * (salted(id, began) % (SPREAD + 1)) / 100;
                self.confirmed = self.confirmed.max(began);
                self.perhaps = self.confirmed;
                *due = began + (self.order.timeout * RESTART_AT / 100 - spread).max(MIN_INTERVAL);
            }
            Outcome::Gone | Outcome::Finalised => self.finish(Why::Gone, actions),
            Outcome::Denied(status) => self.finish(Why::Denied(*status), actions),
            // the whole server waits: to be asked for again at once is to keep the place in its queue
            Outcome::SlowDown(_) | Outcome::NotNow(_) => *due = now,
            Outcome::Failed(_) => {
                call.failures = call.failures.saturating_add(1);
                // a short delay has no time for long pauses
                let most = (end.since(now) / 4).clamp(PAUSE.0, PAUSE.1);
                *due = now + pause(call.failures, salted(id, now)).min(most);
                // it may have come off; but only what began before the certain end could
                if deed == Deed::Restart && began < self.confirmed + self.order.timeout {
                    self.perhaps = self.perhaps.max(now);
                }
            }
        }
    }

    fn send(&mut self, now: Time) {
        let (least, most) = SEND_FOR;
        self.state = State::Sending {
            until: self.end().clamp(now + least, now + most),
            due: now,
            call: Call::default(),
        };
        self.look.stop();
    }

    fn finish(&mut self, why: Why, actions: &mut Vec<Action>) {
        if self.state != State::Ended {
            self.state = State::Ended;
            self.look.stop();
            actions.push(Action::Finish(why));
        }
    }

    /// Does what is due, and says when the next thing will be.
    fn act(&mut self, now: Time, actions: &mut Vec<Action>) {
        if let State::Waiting { until, aborted } = self.state
            && now >= until
        {
            if aborted {
                self.finish(Why::Aborted, actions);
            } else {
                self.send(now);
            }
        }
        let end = self.end();
        let mut wake = None;
        match &mut self.state {
            State::Waiting { until, .. } => wake = Some(*until),
            State::Connected { due, call } => {
                if now >= overdue(end, *call) {
                    self.finish(Why::Expired, actions);
                } else if !call.out && now >= *due {
                    call.out = true;
                    actions.push(Action::Restart(self.confirmed + self.order.timeout));
                    wake = Some(overdue(end, *call));
                } else if call.out {
                    wake = Some(overdue(end, *call));
                } else {
                    wake = Some((*due).min(end));
                }
            }
            State::Sending { until, due, call } => {
                if now >= overdue(*until, *call) {
                    self.finish(Why::Expired, actions);
                } else if !call.out && now >= *due {
                    call.out = true;
                    actions.push(Action::Send);
                    wake = Some(overdue(*until, *call));
                } else if call.out {
                    wake = Some(overdue(*until, *call));
                } else {
                    wake = Some((*due).min(*until));
                }
            }
            State::Ended => return,
        }
        if self.look.due(now) {
            actions.push(Action::LookUp);
        }
        let wakes = wake.into_iter().chain(self.look.at());
        actions.extend(wakes.min().map(Action::Wake));
    }
}

/// When to give up at the latest: a call that is out may still bring something.
fn overdue(end: Time, call: Call) -> Time {
    if call.out { end + GRACE } else { end }
}

fn remember(sids: &mut Vec<Sid>, sid: &Sid) {
    if !sids.contains(sid) {
        if sids.len() >= MAX_SIDS {
            sids.remove(0);
        }
        sids.push(sid.clone());
    }
}

/// The pause after that many failures in a row: from half of it to all of it.
fn pause(failures: u32, salt: u32) -> Duration {
    let (mut pause, most) = PAUSE;
    for _ in 1..failures.min(32) {
        pause = (pause * 3 / 2).min(most);
    }
    pause / 2 + pause / 2 * (salt % 101) / 100
}

/// A number that differs from leave to leave and from time to time: there is no randomness among the rules.
fn salted(id: u32, now: Time) -> u32 {
    let mixed = (u64::from(id) << 20 ^ now.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 40).unwrap_or_default()
}

#[cfg(test)]
mod tests;
