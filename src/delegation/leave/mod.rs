//! One delegated leave (MSC4140, MSC4195) as a pure state machine: [`Leave::step`] takes an event and returns actions.
//!
//! The states:
//!
//! - *waiting* for the participant's first connection, for at most [`MAX_WAIT`], then the leave is sent. After an aborted connection
//!   attempt (*aborted*) it is left to the homeserver's own timer instead;
//! - *connected*: the delayed event is restarted again and again, while a connection of the participant is open or the SFU reports
//!   the participant as present;
//! - *disconnected*: the leave is being sent, until the homeserver has it or would have sent it anyway. This state is final;
//! - *ended*.

mod presence;
mod record;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use self::presence::PresenceSchedule;
pub use super::time::UnixMillis;
use crate::livekit::id::{ParticipantKey, ParticipantSid};
use crate::livekit::room_service::ParticipantPresence;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};
use crate::matrix::id::{DelayId, ServerName, UserId};
use crate::util::backoff::Backoff;

/// Longest delay. A longer one is restarted as if it were this one, more often than it needs.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Longest wait for the first connection: access tokens are not valid for much longer.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Wait for a connection after a disconnect that comes first: the disconnect is of an earlier connection, or of the only one.
const WAIT_AFTER_LEFT: Duration = Duration::from_secs(30);
/// Bounds of the time in which a leave is sent; between them, it lasts until the homeserver would have sent the leave itself.
const MIN_SEND_TIME: Duration = Duration::from_secs(1);
const MAX_SEND_TIME: Duration = Duration::from_secs(3600);
/// A restart follows after 72 to 80 % of the delay, so that participants who joined together do not stay in step.
const RESTART_PERCENT: u32 = 80;
const RESTART_JITTER_PERCENT: u32 = 8;
/// Shortest time between two restarts. An event with a much shorter delay is sent before its delegation arrives.
const MIN_RESTART_INTERVAL: Duration = Duration::from_millis(500);
/// Retry policy of failed calls and presence checks. [`retry_delay`] adds jitter.
const RETRY_BACKOFF: Backoff = Backoff::growing(MIN_RETRY_DELAY, MAX_RETRY_DELAY, 150);
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);
/// How long a running call is waited for after the time by which it was needed; longer than a call can take.
const CALL_GRACE: Duration = Duration::from_secs(30);
/// Connections remembered of each kind, open and ended: older webhooks have long arrived.
const MAX_SIDS: usize = 8;

/// A delayed leave event that a client delegates (MSC4195).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegationRequest {
    /// Id of the delayed event on the user's homeserver.
    pub delay_id: DelayId,
    /// Delay after which the homeserver sends the event unless it is restarted.
    pub timeout: Duration,
}

/// Random number that names a leave in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaveId(pub(super) u32);

impl fmt::Display for LeaveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Input of the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaveEvent {
    /// The participant has connected.
    Connected(Option<ParticipantSid>),
    /// A connection of the participant has ended.
    Disconnected {
        /// The ended connection.
        sid: Option<ParticipantSid>,
        /// Whether the SFU expects the participant on another connection at once.
        replaced: bool,
    },
    /// A connection attempt of the participant has failed.
    ConnectionAborted(Option<ParticipantSid>),
    /// The SFU reports the room as finished, perhaps a room of the same name before this one.
    RoomFinished,
    /// Result of [`LeaveAction::CheckPresence`]; `None` if the SFU did not answer.
    PresenceChecked(Option<ParticipantPresence>),
    /// Result of [`LeaveAction::Restart`] or [`LeaveAction::Send`].
    CallFinished {
        /// The call that was made.
        action: DelayedEventAction,
        /// Its outcome.
        outcome: DelayedEventOutcome,
        /// When it was started.
        started_at: UnixMillis,
    },
    /// A new delegation for the same participant replaces this one.
    Replaced,
    /// The time of [`LeaveAction::WakeAt`] has come.
    Tick,
}

/// Output of the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaveAction {
    /// Restart the delayed event before this time.
    Restart(UnixMillis),
    /// Send the delayed event now. A restart that has not begun is cancelled.
    Send,
    /// Ask the SFU whether the participant is connected.
    CheckPresence,
    /// Deliver a [`LeaveEvent::Tick`] at this time; replaces an earlier `WakeAt`.
    WakeAt(UnixMillis),
    /// The leave has ended.
    Finish(LeaveEndReason),
}

/// Why a leave ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaveEndReason {
    /// The homeserver has sent it.
    Sent,
    /// The homeserver had sent or cancelled it before.
    AlreadyFinal,
    /// The participant never connected, and the homeserver's own timer is over.
    NeverConnected,
    /// The homeserver did not answer until its own timer was over.
    Expired,
    /// The homeserver refuses the call with this status, as it requires authentication.
    Denied(u16),
    /// A new delegation replaced it.
    Replaced,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LeaveState {
    Waiting {
        until: UnixMillis,
        aborted: bool,
    },
    Connected {
        restart: CallSchedule,
    },
    Sending {
        until: UnixMillis,
        send: CallSchedule,
    },
    Ended,
}

/// A call to the homeserver that is due once, or again after it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CallSchedule {
    due: UnixMillis,
    /// Whether the call is queued or running.
    in_flight: bool,
    failures: u32,
}

impl CallSchedule {
    fn due_at(due: UnixMillis) -> Self {
        Self {
            due,
            in_flight: false,
            failures: 0,
        }
    }

    /// Starts the call if it is due, and returns the next wake-up; `None` if it is too late, as the call is needed until `end` only.
    fn start_if_due(
        &mut self,
        call: LeaveAction,
        end: UnixMillis,
        now: UnixMillis,
        actions: &mut Vec<LeaveAction>,
    ) -> Option<UnixMillis> {
        // a running call may still succeed
        let give_up_at = if self.in_flight {
            end + CALL_GRACE
        } else {
            end
        };
        if now >= give_up_at {
            return None;
        }
        if !self.in_flight && now >= self.due {
            self.in_flight = true;
            actions.push(call);
        }
        Some(if self.in_flight {
            end + CALL_GRACE
        } else {
            self.due.min(end)
        })
    }
}

/// State of one delegated leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    key: ParticipantKey,
    user: UserId,
    request: DelegationRequest,
    id: LeaveId,
    state: LeaveState,
    /// When the homeserver's timer last started for certain, and when it may have started last.
    confirmed_restart: UnixMillis,
    possible_restart: UnixMillis,
    /// Open connections of the participant, and some that have ended.
    active_sids: Vec<ParticipantSid>,
    ended_sids: Vec<ParticipantSid>,
    presence: PresenceSchedule,
}

impl Leave {
    /// A leave that is delegated at `now`. A connected participant's presence is checked every `check_interval`, or only after events
    /// that leave it in doubt.
    pub fn new(
        key: ParticipantKey,
        user: UserId,
        request: DelegationRequest,
        id: LeaveId,
        check_interval: Option<Duration>,
        now: UnixMillis,
    ) -> Self {
        let timeout = request.timeout.min(MAX_TIMEOUT);
        Self {
            key,
            user,
            request: DelegationRequest { timeout, ..request },
            id,
            state: LeaveState::Waiting {
                until: now + timeout.min(MAX_WAIT),
                aborted: false,
            },
            confirmed_restart: now,
            possible_restart: now,
            active_sids: Vec::new(),
            ended_sids: Vec::new(),
            presence: PresenceSchedule::new(check_interval, now),
        }
    }

    /// The participant whose leave this is.
    pub fn key(&self) -> &ParticipantKey {
        &self.key
    }

    /// The participant's Matrix user.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// The homeserver on which the event is scheduled.
    pub fn server(&self) -> &ServerName {
        self.user.server()
    }

    /// The delegated event; its delay is at most 24 h.
    pub fn request(&self) -> &DelegationRequest {
        &self.request
    }

    /// The leave's name in the log.
    pub fn id(&self) -> LeaveId {
        self.id
    }

    /// The state's name in the log.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            LeaveState::Waiting { aborted: false, .. } => "waiting",
            LeaveState::Waiting { aborted: true, .. } => "aborted",
            LeaveState::Connected { .. } => "connected",
            LeaveState::Sending { .. } => "disconnected",
            LeaveState::Ended => "ended",
        }
    }

    /// When the homeserver will have sent the leave itself, even if calls without an answer restarted the timer.
    fn expires_at(&self) -> UnixMillis {
        self.possible_restart.max(self.confirmed_restart) + self.request.timeout
    }

    /// Whether a queued call is still needed, if it starts at `now`.
    pub fn needs_call(&self, action: DelayedEventAction, now: UnixMillis) -> bool {
        match (&self.state, action) {
            (LeaveState::Connected { restart }, DelayedEventAction::Restart) => {
                restart.in_flight && now < self.expires_at()
            }
            (LeaveState::Sending { send, .. }, DelayedEventAction::Send) => send.in_flight,
            _ => false,
        }
    }

    /// Longest time between two successful restarts.
    pub fn restart_interval(&self) -> Duration {
        (self.request.timeout * RESTART_PERCENT / 100).max(MIN_RESTART_INTERVAL)
    }

    /// Handles an event at `now`, and returns what to do next.
    pub fn step(&mut self, event: &LeaveEvent, now: UnixMillis) -> Vec<LeaveAction> {
        let mut actions = Vec::new();
        match event {
            LeaveEvent::Connected(sid) => self.on_connected(sid.as_ref(), now),
            LeaveEvent::Disconnected { sid, replaced } => {
                self.on_disconnected(sid.as_ref(), *replaced, now);
            }
            LeaveEvent::ConnectionAborted(sid) => self.on_connection_aborted(sid.as_ref(), now),
            LeaveEvent::RoomFinished => self.presence.recheck_soon(now),
            LeaveEvent::PresenceChecked(presence) => {
                self.on_presence_checked(presence.as_ref(), now);
            }
            LeaveEvent::CallFinished {
                action,
                outcome,
                started_at,
            } => self.on_call_finished(*action, outcome, *started_at, now, &mut actions),
            LeaveEvent::Replaced => self.finish(LeaveEndReason::Replaced, &mut actions),
            LeaveEvent::Tick => {}
        }
        self.run_due(now, &mut actions);
        actions
    }

    fn on_connected(&mut self, sid: Option<&ParticipantSid>, now: UnixMillis) {
        if sid.is_some_and(|sid| self.ended_sids.contains(sid)) {
            // the webhooks of one connection arrived in the wrong order: it has ended already
            if matches!(self.state, LeaveState::Waiting { .. }) {
                self.start_sending(now);
            }
            return;
        }
        match self.state {
            LeaveState::Waiting { .. } => {
                let restart = CallSchedule::due_at(now);
                self.state = LeaveState::Connected { restart };
            }
            LeaveState::Connected { .. } => {}
            LeaveState::Sending { .. } | LeaveState::Ended => return,
        }
        if let Some(sid) = sid {
            push_bounded(&mut self.active_sids, sid);
        }
        self.presence.mark_present(now, self.id);
    }

    fn on_disconnected(&mut self, sid: Option<&ParticipantSid>, replaced: bool, now: UnixMillis) {
        let is_active = sid.is_some_and(|sid| self.active_sids.contains(sid));
        let was_current = sid.is_some() && (is_active || self.active_sids.is_empty());
        if let Some(sid) = sid {
            self.active_sids.retain(|active| active != sid);
            push_bounded(&mut self.ended_sids, sid);
        }
        match &mut self.state {
            LeaveState::Waiting { until, aborted } if !replaced => {
                *until = (*until).min(now + WAIT_AFTER_LEFT);
                *aborted = false;
            }
            LeaveState::Connected { .. }
                if was_current && self.active_sids.is_empty() && !replaced =>
            {
                self.start_sending(now);
            }
            LeaveState::Connected { .. } => self.presence.recheck_soon(now),
            LeaveState::Waiting { .. } | LeaveState::Sending { .. } | LeaveState::Ended => {}
        }
    }

    /// Another attempt may follow, so the wait goes on. Without one the participant was never there, and there is no leave to send.
    fn on_connection_aborted(&mut self, sid: Option<&ParticipantSid>, now: UnixMillis) {
        match &mut self.state {
            LeaveState::Waiting { aborted, .. } => *aborted = true,
            LeaveState::Connected { .. } => {
                self.active_sids.retain(|active| Some(active) != sid);
                self.presence.recheck_soon(now);
            }
            LeaveState::Sending { .. } | LeaveState::Ended => {}
        }
    }

    fn on_presence_checked(&mut self, presence: Option<&ParticipantPresence>, now: UnixMillis) {
        let connected = match self.state {
            LeaveState::Connected { .. } => true,
            LeaveState::Waiting { .. } => false,
            LeaveState::Sending { .. } | LeaveState::Ended => return,
        };
        match presence {
            Some(ParticipantPresence::Present(sid))
                if !sid.as_ref().is_some_and(|s| self.ended_sids.contains(s)) =>
            {
                if connected && sid.is_some() {
                    self.active_sids.clear();
                }
                self.on_connected(sid.as_ref(), now);
                self.presence.record_present(now, self.id);
            }
            Some(ParticipantPresence::Absent) if connected => {
                if self.presence.record_absent(now) {
                    self.start_sending(now);
                }
            }
            // an ended connection may still be listed, and a participant who is waited for may still come
            Some(_) | None => self.presence.record_failure(now, self.id),
        }
    }

    fn on_call_finished(
        &mut self,
        action: DelayedEventAction,
        outcome: &DelayedEventOutcome,
        started_at: UnixMillis,
        now: UnixMillis,
        actions: &mut Vec<LeaveAction>,
    ) {
        let (end, id, timeout) = (self.expires_at(), self.id, self.request.timeout);
        let call = match (&mut self.state, action) {
            (LeaveState::Connected { restart }, DelayedEventAction::Restart) => restart,
            (LeaveState::Sending { send, .. }, DelayedEventAction::Send) => send,
            // a restart that was running when the participant left, or a call of a leave that has ended
            _ => return,
        };
        call.in_flight = false;
        match outcome {
            DelayedEventOutcome::Done if action == DelayedEventAction::Send => {
                self.finish(LeaveEndReason::Sent, actions);
            }
            DelayedEventOutcome::Done => {
                let percent = RESTART_PERCENT
                    - deterministic_jitter(id, started_at) % (RESTART_JITTER_PERCENT + 1);
                let interval = (timeout * percent / 100).max(MIN_RESTART_INTERVAL);
                *call = CallSchedule::due_at(started_at + interval);
                self.confirmed_restart = self.confirmed_restart.max(started_at);
                self.possible_restart = self.confirmed_restart;
            }
            DelayedEventOutcome::NotFound | DelayedEventOutcome::Finalised => {
                self.finish(LeaveEndReason::AlreadyFinal, actions);
            }
            DelayedEventOutcome::Rejected(status) => {
                self.finish(LeaveEndReason::Denied(*status), actions);
            }
            // due at once, to keep its position in the queue: the queue makes all calls to the server wait
            DelayedEventOutcome::RateLimited(_) | DelayedEventOutcome::NotAttempted(_) => {
                call.due = now;
            }
            DelayedEventOutcome::Failed(_) => {
                call.failures = call.failures.saturating_add(1);
                // a short delay has no time for long pauses
                let longest = (end.duration_since(now) / 4).clamp(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
                call.due = now + retry_delay(call.failures, id, now).min(longest);
                // the call may have had its effect, if it started before the timer ended
                if action == DelayedEventAction::Restart
                    && started_at < self.confirmed_restart + timeout
                {
                    self.possible_restart = self.possible_restart.max(now);
                }
            }
        }
    }

    fn start_sending(&mut self, now: UnixMillis) {
        self.state = LeaveState::Sending {
            until: self
                .expires_at()
                .clamp(now + MIN_SEND_TIME, now + MAX_SEND_TIME),
            send: CallSchedule::due_at(now),
        };
        self.presence.stop();
    }

    fn finish(&mut self, reason: LeaveEndReason, actions: &mut Vec<LeaveAction>) {
        if self.state != LeaveState::Ended {
            self.state = LeaveState::Ended;
            self.presence.stop();
            actions.push(LeaveAction::Finish(reason));
        }
    }

    /// Starts what is due, and schedules the next wake-up.
    fn run_due(&mut self, now: UnixMillis, actions: &mut Vec<LeaveAction>) {
        if let LeaveState::Waiting { until, aborted } = self.state
            && now >= until
        {
            if aborted {
                self.finish(LeaveEndReason::NeverConnected, actions);
            } else {
                self.start_sending(now);
            }
        }
        let expires_at = self.expires_at();
        let restart_by = self.confirmed_restart + self.request.timeout;
        let wake_at = match &mut self.state {
            LeaveState::Waiting { until, .. } => Some(*until),
            LeaveState::Connected { restart } => {
                restart.start_if_due(LeaveAction::Restart(restart_by), expires_at, now, actions)
            }
            LeaveState::Sending { until, send } => {
                send.start_if_due(LeaveAction::Send, *until, now, actions)
            }
            LeaveState::Ended => return,
        };
        if wake_at.is_none() {
            self.finish(LeaveEndReason::Expired, actions);
        }
        if self.presence.start_if_due(now) {
            actions.push(LeaveAction::CheckPresence);
        }
        let wake_times = wake_at.into_iter().chain(self.presence.next_check());
        actions.extend(wake_times.min().map(LeaveAction::WakeAt));
    }
}

fn push_bounded(sids: &mut Vec<ParticipantSid>, sid: &ParticipantSid) {
    if !sids.contains(sid) {
        if sids.len() >= MAX_SIDS {
            sids.remove(0);
        }
        sids.push(sid.clone());
    }
}

/// Pause after this many failures in a row: from half of the backoff to all of it.
fn retry_delay(failures: u32, id: LeaveId, now: UnixMillis) -> Duration {
    let pause = RETRY_BACKOFF.delay(failures);
    pause / 2 + pause / 2 * (deterministic_jitter(id, now) % 101) / 100
}

/// A number that differs between leaves and times, so that the state machine needs no random source.
fn deterministic_jitter(id: LeaveId, now: UnixMillis) -> u32 {
    let mixed = (u64::from(id.0) << 20 ^ now.as_millis()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 40).unwrap_or_default()
}
