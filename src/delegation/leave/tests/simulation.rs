//! Random sequences of events, with a simulated homeserver. The invariants:
//!
//! 1. a leave is sent successfully at most once, and no restart follows;
//! 2. a leave that has ended returns no actions;
//! 3. a leave that has not ended waits for something: a running call or presence check, or a wake-up in the future;
//! 4. no restart is requested after the delay must have ended;
//! 5. at most one restart, one send and one presence check run at a time;
//! 6. a leave ends within the bounds on waiting and sending once its participant does not come back;
//! 7. its record restores a leave in the same state, and changes with its hash only.

use super::*;

/// A xorshift64* generator.
struct TestRng(u64);

impl TestRng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// The delayed event on the homeserver.
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
    /// When a call may last have restarted the homeserver's timer.
    last_call: UnixMillis,
    last_record: (String, Option<u64>),
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
                LeaveAction::Finish(reason) => self.end_reason = Some(reason),
            }
        }
        if self.end_reason.is_none() {
            let next = self.wake_at.is_some() || self.presence_check || self.send.is_some();
            assert!(next || self.restart.is_some(), "3: {event:?}");
            let record = self.leave.to_record().unwrap();
            let restored = Leave::restore(key(), &record, None, self.now).unwrap();
            let state = restored.map(|leave| leave.state_name());
            assert!(
                state.is_none_or(|state| state == self.leave.state_name()),
                "7: {record}"
            );
            let hash = self.leave.record_hash();
            let (last_record, last_hash) = &self.last_record;
            assert_eq!(*last_record == record, *last_hash == hash, "7: {record}");
            self.last_record = (record, hash);
        }
    }

    /// The homeserver handles a call. Its response may be lost.
    fn answer_call(
        &mut self,
        action: DelayedEventAction,
        started_at: UnixMillis,
        rng: &mut TestRng,
    ) {
        if !self.leave.needs_call(action, started_at) {
            // dropped from the queue
            return;
        }
        let overdue = !self.homeserver.sent && self.now >= self.homeserver.fires_at;
        self.homeserver.sent |= overdue;
        let outcome = match rng.below(8) {
            0 => DelayedEventOutcome::RateLimited(None),
            1 => DelayedEventOutcome::NotAttempted(seconds(1)),
            2 => DelayedEventOutcome::Failed("down".into()),
            3 if rng.below(5) == 0 => DelayedEventOutcome::Rejected(403),
            3 if rng.below(4) == 0 => DelayedEventOutcome::Finalised,
            _ if self.homeserver.sent => DelayedEventOutcome::NotFound,
            roll => {
                match action {
                    DelayedEventAction::Restart => {
                        self.homeserver.fires_at = self.now + self.leave.request().timeout
                    }
                    DelayedEventAction::Send => self.homeserver.sent = true,
                }
                let lost = roll == 4;
                self.sends += u32::from(action == DelayedEventAction::Send);
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
        ) && action == DelayedEventAction::Restart
        {
            self.last_call = self.now;
        }
        self.apply(&finished(action, outcome, started_at));
    }

    fn random_step(&mut self, rng: &mut TestRng, quiet: bool) {
        let sids = ["A", "B", "C"];
        let any_sid = |rng: &mut TestRng| match rng.below(4) {
            3 => None,
            n => sid(sids[usize::try_from(n).unwrap()]),
        };
        match rng.below(if quiet { 4 } else { 9 }) {
            0 => {
                let next = self.wake_at.unwrap_or(self.now + seconds(1));
                self.now = next;
                self.apply(&LeaveEvent::Tick);
            }
            1 => {
                if let Some(started_at) = self.restart.take() {
                    self.answer_call(DelayedEventAction::Restart, started_at, rng);
                }
            }
            2 => {
                if let Some(started_at) = self.send.take() {
                    self.restart = None;
                    self.answer_call(DelayedEventAction::Send, started_at, rng);
                }
            }
            3 => {
                if std::mem::take(&mut self.presence_check) {
                    let answer = match rng.below(3) {
                        0 if !quiet => Some(ParticipantPresence::Present(any_sid(rng))),
                        0 | 1 => Some(ParticipantPresence::Absent),
                        _ => None,
                    };
                    self.apply(&LeaveEvent::PresenceChecked(answer));
                }
            }
            4 => {
                self.now = self.now + Duration::from_millis(rng.below(30_000));
                self.apply(&LeaveEvent::Tick);
            }
            5 => {
                let sid = any_sid(rng);
                self.apply(&LeaveEvent::Connected(sid));
            }
            6 => {
                let (sid, replaced) = (any_sid(rng), rng.below(3) == 0);
                self.apply(&LeaveEvent::Disconnected { sid, replaced });
            }
            7 => {
                let sid = any_sid(rng);
                self.apply(&LeaveEvent::ConnectionAborted(sid));
            }
            _ => self.apply(&LeaveEvent::RoomFinished),
        }
        if self.send.is_some() {
            // a restart that has not begun is cancelled
            self.restart = None;
        }
    }
}

fn simulate(seed: u64) -> Option<LeaveEndReason> {
    let mut rng = TestRng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let timeout = [1, 1_000, 18_000, 100_000, 3_600_000, 86_400_000];
    let timeout = timeout[usize::try_from(rng.below(6)).unwrap()];
    let timeout = Duration::from_millis(timeout);
    let check = (rng.below(2) == 0).then_some(seconds(60));
    let mut simulation = LeaveSimulation {
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
        last_record: (String::new(), None),
    };
    simulation.apply(&LeaveEvent::Tick);
    for _ in 0..rng.below(200) {
        simulation.random_step(&mut rng, false);
    }
    // the participant has left for good
    let mut steps = 0;
    while simulation.end_reason.is_none() {
        simulation.apply(&LeaveEvent::Disconnected {
            sid: None,
            replaced: false,
        });
        for _ in 0..10 {
            simulation.random_step(&mut rng, true);
        }
        steps += 1;
        assert!(steps < 20_000, "6: {:?}", simulation.leave);
    }
    for _ in 0..20 {
        simulation.random_step(&mut rng, false);
    }
    simulation.end_reason
}

#[test]
fn random_sequences_keep_the_invariants() {
    let mut ends = std::collections::HashMap::new();
    for seed in 0..4_000 {
        let reason = std::panic::catch_unwind(|| simulate(seed));
        let reason = reason.unwrap_or_else(|_| panic!("seed {seed}"));
        *ends.entry(format!("{reason:?}")).or_insert(0) += 1;
    }
    // the sequences have to reach every end
    for reason in [
        "Sent",
        "AlreadyFinal",
        "NeverConnected",
        "Expired",
        "Denied(403)",
    ] {
        assert!(ends.contains_key(&format!("Some({reason})")), "{ends:?}");
    }
}
