//! What a leave does about what happens to it.

use std::time::Duration;

use super::{Action, Call, Event, Leave, MAX_SIDS, MIN_INTERVAL, SEND_FOR, State, Time, Why};
use crate::livekit::room_service::Presence;
use crate::livekit::token::Sid;
use crate::matrix::delayed_event::{Deed, Outcome};

/// The part of a delay after which it is restarted, in per cent; up to [`SPREAD`] less, so that those who came together part.
pub(super) const RESTART_AT: u32 = 80;
const SPREAD: u32 = 8;
/// The first and the longest pause after calls that failed, each half as long again as the one before.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the outcome of a call is awaited beyond the time by which it was wanted; longer than a call can take.
const GRACE: Duration = Duration::from_secs(30);
/// How long those may take to connect of whom we hear first that they left: that was another connection, or all there was.
pub(super) const LEFT_WAIT: Duration = Duration::from_secs(30);

impl Leave {
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
pub(super) fn pause(failures: u32, salt: u32) -> Duration {
    let (mut pause, most) = PAUSE;
    for _ in 1..failures.min(32) {
        pause = (pause * 3 / 2).min(most);
    }
    pause / 2 + pause / 2 * (salt % 101) / 100
}

/// A number that differs from leave to leave and from time to time: there is no randomness among the rules.
pub(super) fn salted(id: u32, now: Time) -> u32 {
    let mixed = (u64::from(id) << 20 ^ now.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 40).unwrap_or_default()
}
