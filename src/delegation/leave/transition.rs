//! What a leave does about what happens to it.

use std::time::Duration;

use super::{
    CallRetry, Leave, LeaveAction, LeaveEndReason, LeaveEvent, LeaveState, MAX_SIDS,
    MIN_RESTART_INTERVAL, SEND_WINDOW, UnixMillis,
};
use crate::livekit::id::ParticipantSid;
use crate::livekit::room_service::ParticipantPresence;
use crate::matrix::delayed_event::{DelayedEventAction, DelayedEventOutcome};

/// The part of a delay after which it is restarted, in per cent; up to [`SPREAD`] less, so that those who came together part.
pub(super) const RESTART_PERCENT: u32 = 80;
const RESTART_JITTER_PERCENT: u32 = 8;
/// The first and the longest pause after calls that failed, each half as long again as the one before.
const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the outcome of a call is awaited beyond the time by which it was wanted; longer than a call can take.
const CALL_GRACE: Duration = Duration::from_secs(30);
/// How long those may take to connect of whom we hear first that they left: that was another connection, or all there was.
pub(super) const WAIT_AFTER_LEFT: Duration = Duration::from_secs(30);

impl Leave {
    /// Takes in what happened at `now`, and says what is to be done about it.
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
                self.on_presence_checked(presence.as_ref(), now)
            }
            LeaveEvent::CallFinished(deed, outcome, began) => {
                self.on_call_finished(*deed, outcome, *began, now, &mut actions);
            }
            LeaveEvent::Replaced => self.finish(LeaveEndReason::Replaced, &mut actions),
            LeaveEvent::Tick => {}
        }
        self.run_due(now, &mut actions);
        actions
    }

    fn on_connected(&mut self, sid: Option<&ParticipantSid>, now: UnixMillis) {
        if sid.is_some_and(|sid| self.ended_sids.contains(sid)) {
            // news of a connection that has ended before we knew of it
            if matches!(self.state, LeaveState::Waiting { .. }) {
                self.start_sending(now);
            }
            return;
        }
        match self.state {
            LeaveState::Waiting { .. } => {
                let call = CallRetry::default();
                self.state = LeaveState::Connected { due: now, call };
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
        let known = sid.is_some_and(|sid| self.active_sids.contains(sid));
        let certain = sid.is_some() && (known || self.active_sids.is_empty());
        if let Some(sid) = sid {
            self.active_sids.retain(|here| here != sid);
            push_bounded(&mut self.ended_sids, sid);
        }
        match &mut self.state {
            LeaveState::Waiting { until, aborted } if !replaced => {
                *until = (*until).min(now + WAIT_AFTER_LEFT);
                *aborted = false;
            }
            LeaveState::Connected { .. } if certain && self.active_sids.is_empty() && !replaced => {
                self.start_sending(now);
            }
            LeaveState::Connected { .. } => self.presence.recheck_soon(now),
            LeaveState::Waiting { .. } | LeaveState::Sending { .. } | LeaveState::Ended => {}
        }
    }

    /// A new attempt may follow, so that they are still waited for; but if none does, nobody was ever there to leave.
    fn on_connection_aborted(&mut self, sid: Option<&ParticipantSid>, now: UnixMillis) {
        match &mut self.state {
            LeaveState::Waiting { aborted, .. } => *aborted = true,
            LeaveState::Connected { .. } => {
                self.active_sids.retain(|here| Some(here) != sid);
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
            Some(_) | None => self.presence.record_failure(now, self.id),
        }
    }

    fn on_call_finished(
        &mut self,
        deed: DelayedEventAction,
        outcome: &DelayedEventOutcome,
        began: UnixMillis,
        now: UnixMillis,
        actions: &mut Vec<LeaveAction>,
    ) {
        let (end, id) = (self.expires_at(), self.id);
        let (due, call) = match &mut self.state {
            LeaveState::Connected { due, call } if deed == DelayedEventAction::Restart => {
                (due, call)
            }
            LeaveState::Sending { due, call, .. } if deed == DelayedEventAction::Send => {
                (due, call)
            }
            // a restart that was under way when they left, or the last word on a leave that has ended
            _ => return,
        };
        call.in_flight = false;
        match outcome {
            DelayedEventOutcome::Done if deed == DelayedEventAction::Send => {
                self.finish(LeaveEndReason::Sent, actions)
            }
            DelayedEventOutcome::Done => {
                *call = CallRetry::default();
                let spread = self.request.timeout
                    * (deterministic_jitter(id, began) % (RESTART_JITTER_PERCENT + 1))
                    / 100;
                self.confirmed_restart = self.confirmed_restart.max(began);
                self.possible_restart = self.confirmed_restart;
                *due = began
                    + (self.request.timeout * RESTART_PERCENT / 100 - spread)
                        .max(MIN_RESTART_INTERVAL);
            }
            DelayedEventOutcome::NotFound | DelayedEventOutcome::Finalised => {
                self.finish(LeaveEndReason::AlreadyFinal, actions)
            }
            DelayedEventOutcome::Rejected(status) => {
                self.finish(LeaveEndReason::Denied(*status), actions)
            }
            // the whole server waits: to be asked for again at once is to keep the place in its queue
            DelayedEventOutcome::RateLimited(_) | DelayedEventOutcome::NotAttempted(_) => {
                *due = now
            }
            DelayedEventOutcome::Failed(_) => {
                call.failures = call.failures.saturating_add(1);
                // a short delay has no time for long pauses
                let most = (end.duration_since(now) / 4).clamp(RETRY_BACKOFF.0, RETRY_BACKOFF.1);
                *due = now + retry_backoff(call.failures, deterministic_jitter(id, now)).min(most);
                // it may have come off; but only what began before the certain end could
                if deed == DelayedEventAction::Restart
                    && began < self.confirmed_restart + self.request.timeout
                {
                    self.possible_restart = self.possible_restart.max(now);
                }
            }
        }
    }

    fn start_sending(&mut self, now: UnixMillis) {
        let (least, most) = SEND_WINDOW;
        self.state = LeaveState::Sending {
            until: self.expires_at().clamp(now + least, now + most),
            due: now,
            call: CallRetry::default(),
        };
        self.presence.stop();
    }

    fn finish(&mut self, why: LeaveEndReason, actions: &mut Vec<LeaveAction>) {
        if self.state != LeaveState::Ended {
            self.state = LeaveState::Ended;
            self.presence.stop();
            actions.push(LeaveAction::Finish(why));
        }
    }

    /// Does what is due, and says when the next thing will be.
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
        let end = self.expires_at();
        let mut wake = None;
        match &mut self.state {
            LeaveState::Waiting { until, .. } => wake = Some(*until),
            LeaveState::Connected { due, call } => {
                if now >= give_up_at(end, *call) {
                    self.finish(LeaveEndReason::Expired, actions);
                } else if !call.in_flight && now >= *due {
                    call.in_flight = true;
                    actions.push(LeaveAction::Restart(
                        self.confirmed_restart + self.request.timeout,
                    ));
                    wake = Some(give_up_at(end, *call));
                } else if call.in_flight {
                    wake = Some(give_up_at(end, *call));
                } else {
                    wake = Some((*due).min(end));
                }
            }
            LeaveState::Sending { until, due, call } => {
                if now >= give_up_at(*until, *call) {
                    self.finish(LeaveEndReason::Expired, actions);
                } else if !call.in_flight && now >= *due {
                    call.in_flight = true;
                    actions.push(LeaveAction::Send);
                    wake = Some(give_up_at(*until, *call));
                } else if call.in_flight {
                    wake = Some(give_up_at(*until, *call));
                } else {
                    wake = Some((*due).min(*until));
                }
            }
            LeaveState::Ended => return,
        }
        if self.presence.start_if_due(now) {
            actions.push(LeaveAction::CheckPresence);
        }
        let wakes = wake.into_iter().chain(self.presence.next_check());
        actions.extend(wakes.min().map(LeaveAction::WakeAt));
    }
}

/// When to give up at the latest: a call that is out may still bring something.
fn give_up_at(end: UnixMillis, call: CallRetry) -> UnixMillis {
    if call.in_flight {
        end + CALL_GRACE
    } else {
        end
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

/// The pause after that many failures in a row: from half of it to all of it.
pub(super) fn retry_backoff(failures: u32, salt: u32) -> Duration {
    let (mut pause, most) = RETRY_BACKOFF;
    for _ in 1..failures.min(32) {
        pause = (pause * 3 / 2).min(most);
    }
    pause / 2 + pause / 2 * (salt % 101) / 100
}

/// A number that differs from leave to leave and from time to time: there is no randomness among the rules.
pub(super) fn deterministic_jitter(id: u32, now: UnixMillis) -> u32 {
    let mixed = (u64::from(id) << 20 ^ now.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 40).unwrap_or_default()
}
