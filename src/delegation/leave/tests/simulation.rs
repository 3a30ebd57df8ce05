//! Walks at random through everything that may happen, with a homeserver that keeps the time. What must hold:
//!
//! 1. a leave is sent with success at most once, and nothing is restarted after that;
//! 2. a leave that has ended asks for nothing;
//! 3. there is always a next thing: a call or a question that is out, or a wake-up that is not past;
//! 4. no restart is asked for once the delay must have ended;
//! 5. at most one restart, one send and one question are out at a time;
//! 6. it ends: once nobody comes back, within the bounds on waiting and sending;
//! 7. at any time its record brings back a leave in the same state.

use super::*;

/// The numbers of a seed (xorshift64*).
struct TestRng(u64);

impl TestRng {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }
}

/// The delayed event as the homeserver has it.
struct SimulatedHomeserver {
    fires_at: UnixMillis,
    sent: bool,
}

struct LeaveSimulation {
    leave: Leave,
    now: UnixMillis,
    homeserver: SimulatedHomeserver,
    restart: Option<UnixMillis>,
    send: Option<UnixMillis>,
    presence_check: bool,
    wake_at: Option<UnixMillis>,
    end_reason: Option<LeaveEndReason>,
    sends: u32,
    /// When calls whose outcome is not known may have begun anew what they restart.
    last_call: UnixMillis,
}

impl LeaveSimulation {
    fn apply(&mut self, event: &LeaveEvent) {
        let actions = self.leave.step(event, self.now);
        let ended = self.end_reason.is_some();
        assert!(!ended || actions.is_empty(), "2: {event:?} {actions:?}");
        if !actions.is_empty() {
            self.wake_at = None;
        }
        for action in actions {
            match action {
                LeaveAction::Restart(by) => {
                    assert!(self.restart.is_none() && self.send.is_none(), "1, 5");
                    assert!(
                        self.now < self.last_call + self.leave.request().timeout,
                        "4"
                    );
                    assert!(by <= self.last_call + self.leave.request().timeout, "4");
                    self.restart = Some(self.now);
                }
                LeaveAction::Send => {
                    assert!(self.send.is_none(), "5");
                    self.send = Some(self.now);
                }
                LeaveAction::CheckPresence => {
                    assert!(!self.presence_check, "5");
                    self.presence_check = true;
                }
                LeaveAction::WakeAt(at) => {
                    assert!(at > self.now, "3: {at:?} at {:?}", self.now);
                    self.wake_at = Some(at);
                }
                LeaveAction::Finish(why) => self.end_reason = Some(why),
            }
        }
        if self.end_reason.is_none() {
            let next = self.wake_at.is_some() || self.presence_check || self.send.is_some();
            assert!(next || self.restart.is_some(), "3: {event:?}");
            let record = self.leave.to_record().unwrap();
            let restored = Leave::restore(key(), &record, None, self.now).unwrap();
            let standing = restored.map(|leave| leave.state_name());
            assert!(
                standing.is_none_or(|s| s == self.leave.state_name()),
                "7: {record}"
            );
        }
    }

    /// The homeserver answers a call, or the answer is lost on its way.
    fn answer_call(&mut self, deed: DelayedEventAction, began: UnixMillis, dice: &mut TestRng) {
        if !self.leave.needs_call(deed, began) {
            // taken out of the queue before it began
            return;
        }
        let overdue = !self.homeserver.sent && self.now >= self.homeserver.fires_at;
        self.homeserver.sent |= overdue;
        let outcome = match dice.below(8) {
            0 => DelayedEventOutcome::RateLimited(None),
            1 => DelayedEventOutcome::NotAttempted(seconds(1)),
            2 => DelayedEventOutcome::Failed("down".into()),
            3 if dice.below(5) == 0 => DelayedEventOutcome::Rejected(403),
            3 if dice.below(4) == 0 => DelayedEventOutcome::Finalised,
            _ if self.homeserver.sent => DelayedEventOutcome::NotFound,
            roll => {
                match deed {
                    DelayedEventAction::Restart => {
                        self.homeserver.fires_at = self.now + self.leave.request().timeout
                    }
                    DelayedEventAction::Send => self.homeserver.sent = true,
                }
                let lost = roll == 4;
                self.sends += u32::from(deed == DelayedEventAction::Send);
                assert!(self.sends <= 1, "1");
                if lost {
                    failed()
                } else {
                    DelayedEventOutcome::Done
                }
            }
        };
        if matches!(
            outcome,
            DelayedEventOutcome::Done | DelayedEventOutcome::Failed(_)
        ) && deed == DelayedEventAction::Restart
        {
            self.last_call = self.now;
        }
        self.apply(&LeaveEvent::CallFinished(deed, outcome, began));
    }

    fn random_step(&mut self, dice: &mut TestRng, quiet: bool) {
        let sids = ["A", "B", "C"];
        let one = |dice: &mut TestRng| match dice.below(4) {
            3 => None,
            n => sid(sids[usize::try_from(n).unwrap()]),
        };
        match dice.below(if quiet { 4 } else { 9 }) {
            0 => {
                let next = self.wake_at.unwrap_or(self.now + seconds(1));
                self.now = next;
                self.apply(&LeaveEvent::Tick);
            }
            1 => {
                if let Some(began) = self.restart.take() {
                    self.answer_call(DelayedEventAction::Restart, began, dice);
                }
            }
            2 => {
                if let Some(began) = self.send.take() {
                    self.restart = None;
                    self.answer_call(DelayedEventAction::Send, began, dice);
                }
            }
            3 => {
                if std::mem::take(&mut self.presence_check) {
                    let answer = match dice.below(3) {
                        0 if !quiet => Some(ParticipantPresence::Present(one(dice))),
                        0 | 1 => Some(ParticipantPresence::Absent),
                        _ => None,
                    };
                    self.apply(&LeaveEvent::PresenceChecked(answer));
                }
            }
            4 => {
                self.now = self.now + Duration::from_millis(dice.below(30_000));
                self.apply(&LeaveEvent::Tick);
            }
            5 => {
                let sid = one(dice);
                self.apply(&LeaveEvent::Connected(sid));
            }
            6 => {
                let (sid, replaced) = (one(dice), dice.below(3) == 0);
                self.apply(&LeaveEvent::Disconnected { sid, replaced });
            }
            7 => {
                let sid = one(dice);
                self.apply(&LeaveEvent::ConnectionAborted(sid));
            }
            _ => self.apply(&LeaveEvent::RoomFinished),
        }
        if self.send.is_some() {
            // what has not begun is off
            self.restart = None;
        }
    }
}

fn simulate(seed: u64) -> Option<LeaveEndReason> {
    let mut dice = TestRng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let timeout = [1, 1_000, 18_000, 100_000, 3_600_000, 86_400_000];
    let timeout = timeout[usize::try_from(dice.below(6)).unwrap()];
    let timeout = Duration::from_millis(timeout);
    let check = (dice.below(2) == 0).then_some(seconds(60));
    let mut walk = LeaveSimulation {
        leave: leave(timeout, check),
        now: START,
        homeserver: SimulatedHomeserver {
            fires_at: START + timeout,
            sent: false,
        },
        restart: None,
        send: None,
        presence_check: false,
        wake_at: None,
        end_reason: None,
        sends: 0,
        last_call: START,
    };
    walk.apply(&LeaveEvent::Tick);
    for _ in 0..dice.below(200) {
        walk.random_step(&mut dice, false);
    }
    // everybody has gone, and the SFU says so
    let mut steps = 0;
    while walk.end_reason.is_none() {
        walk.apply(&LeaveEvent::Disconnected {
            sid: None,
            replaced: false,
        });
        for _ in 0..10 {
            walk.random_step(&mut dice, true);
        }
        steps += 1;
        assert!(steps < 20_000, "6: {:?}", walk.leave);
    }
    for _ in 0..20 {
        walk.random_step(&mut dice, false);
    }
    walk.end_reason
}

#[test]
fn whatever_happens_a_leave_keeps_its_promises() {
    let mut ends = std::collections::HashMap::new();
    for seed in 0..4_000 {
        let why = std::panic::catch_unwind(|| simulate(seed));
        let why = why.unwrap_or_else(|_| panic!("seed {seed}"));
        *ends.entry(format!("{why:?}")).or_insert(0) += 1;
    }
    // walks that all end in one way would show little
    for why in [
        "Sent",
        "AlreadyFinal",
        "NeverConnected",
        "Expired",
        "Denied(403)",
    ] {
        assert!(ends.contains_key(&format!("Some({why})")), "{ends:?}");
    }
}
