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
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }
}

/// The delayed event as the homeserver has it.
struct Homeserver {
    fires: Time,
    sent: bool,
}

struct Walk {
    leave: Leave,
    now: Time,
    homeserver: Homeserver,
    restart: Option<Time>,
    send: Option<Time>,
    look: bool,
    wake: Option<Time>,
    finished: Option<Why>,
    sends: u32,
    /// When calls whose outcome is not known may have begun anew what they restart.
    last_call: Time,
}

impl Walk {
    fn take(&mut self, event: &Event) {
        let actions = self.leave.step(event, self.now);
        let ended = self.finished.is_some();
        assert!(!ended || actions.is_empty(), "2: {event:?} {actions:?}");
        if !actions.is_empty() {
            self.wake = None;
        }
        for action in actions {
            match action {
                Action::Restart(by) => {
                    assert!(self.restart.is_none() && self.send.is_none(), "1, 5");
                    assert!(self.now < self.last_call + self.leave.order().timeout, "4");
                    assert!(by <= self.last_call + self.leave.order().timeout, "4");
                    self.restart = Some(self.now);
                }
                Action::Send => {
                    assert!(self.send.is_none(), "5");
                    self.send = Some(self.now);
                }
                Action::LookUp => {
                    assert!(!self.look, "5");
                    self.look = true;
                }
                Action::Wake(at) => {
                    assert!(at > self.now, "3: {at:?} at {:?}", self.now);
                    self.wake = Some(at);
                }
                Action::Finish(why) => self.finished = Some(why),
            }
        }
        if self.finished.is_none() {
            let next = self.wake.is_some() || self.look || self.send.is_some();
            assert!(next || self.restart.is_some(), "3: {event:?}");
            let record = self.leave.record().unwrap();
            let restored = Leave::restore(key(), &record, None, self.now).unwrap();
            let standing = restored.map(|leave| leave.standing());
            assert!(
                standing.is_none_or(|s| s == self.leave.standing()),
                "7: {record}"
            );
        }
    }

    /// The homeserver answers a call, or the answer is lost on its way.
    fn call(&mut self, deed: Deed, began: Time, dice: &mut Dice) {
        if !self.leave.wants(deed, began) {
            // taken out of the queue before it began
            return;
        }
        let overdue = !self.homeserver.sent && self.now >= self.homeserver.fires;
        self.homeserver.sent |= overdue;
        let outcome = match dice.roll(8) {
            0 => Outcome::SlowDown(None),
            1 => Outcome::NotNow(seconds(1)),
            2 => Outcome::Failed("down".into()),
            3 if dice.roll(5) == 0 => Outcome::Denied(403),
            3 if dice.roll(4) == 0 => Outcome::Finalised,
            _ if self.homeserver.sent => Outcome::Gone,
            roll => {
                match deed {
                    Deed::Restart => self.homeserver.fires = self.now + self.leave.order().timeout,
                    Deed::Send => self.homeserver.sent = true,
                }
                let lost = roll == 4;
                self.sends += u32::from(deed == Deed::Send);
                assert!(self.sends <= 1, "1");
                if lost { failed() } else { Outcome::Done }
            }
        };
        if matches!(outcome, Outcome::Done | Outcome::Failed(_)) && deed == Deed::Restart {
            self.last_call = self.now;
        }
        self.take(&Event::Done(deed, outcome, began));
    }

    fn something(&mut self, dice: &mut Dice, quiet: bool) {
        let sids = ["A", "B", "C"];
        let one = |dice: &mut Dice| match dice.roll(4) {
            3 => None,
            n => sid(sids[usize::try_from(n).unwrap()]),
        };
        match dice.roll(if quiet { 4 } else { 9 }) {
            0 => {
                let next = self.wake.unwrap_or(self.now + seconds(1));
                self.now = next;
                self.take(&Event::Tick);
            }
            1 => {
                if let Some(began) = self.restart.take() {
                    self.call(Deed::Restart, began, dice);
                }
            }
            2 => {
                if let Some(began) = self.send.take() {
                    self.restart = None;
                    self.call(Deed::Send, began, dice);
                }
            }
            3 => {
                if std::mem::take(&mut self.look) {
                    let answer = match dice.roll(3) {
                        0 if !quiet => Some(Presence::Here(one(dice))),
                        0 | 1 => Some(Presence::NotFound),
                        _ => None,
                    };
                    self.take(&Event::LookedUp(answer));
                }
            }
            4 => {
                self.now = self.now + Duration::from_millis(dice.roll(30_000));
                self.take(&Event::Tick);
            }
            5 => {
                let sid = one(dice);
                self.take(&Event::Connected(sid));
            }
            6 => {
                let (sid, replaced) = (one(dice), dice.roll(3) == 0);
                self.take(&Event::Disconnected { sid, replaced });
            }
            7 => {
                let sid = one(dice);
                self.take(&Event::Aborted(sid));
            }
            _ => self.take(&Event::RoomFinished),
        }
        if self.send.is_some() {
            // what has not begun is off
            self.restart = None;
        }
    }
}

fn walk(seed: u64) -> Option<Why> {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let timeout = [1, 1_000, 18_000, 100_000, 3_600_000, 86_400_000];
    let timeout = timeout[usize::try_from(dice.roll(6)).unwrap()];
    let timeout = Duration::from_millis(timeout);
    let check = (dice.roll(2) == 0).then_some(seconds(60));
    let mut walk = Walk {
        leave: leave(timeout, check),
        now: START,
        homeserver: Homeserver {
            fires: START + timeout,
            sent: false,
        },
        restart: None,
        send: None,
        look: false,
        wake: None,
        finished: None,
        sends: 0,
        last_call: START,
    };
    walk.take(&Event::Tick);
    for _ in 0..dice.roll(200) {
        walk.something(&mut dice, false);
    }
    // everybody has gone, and the SFU says so
    let mut steps = 0;
    while walk.finished.is_none() {
        walk.take(&Event::Disconnected {
            sid: None,
            replaced: false,
        });
        for _ in 0..10 {
            walk.something(&mut dice, true);
        }
        steps += 1;
        assert!(steps < 20_000, "6: {:?}", walk.leave);
    }
    for _ in 0..20 {
        walk.something(&mut dice, false);
    }
    walk.finished
}

#[test]
fn whatever_happens_a_leave_keeps_its_promises() {
    let mut ends = std::collections::HashMap::new();
    for seed in 0..4_000 {
        let why = std::panic::catch_unwind(|| walk(seed));
        let why = why.unwrap_or_else(|_| panic!("seed {seed}"));
        *ends.entry(format!("{why:?}")).or_insert(0) += 1;
    }
    // walks that all end in one way would show little
    for why in ["Sent", "Gone", "Aborted", "Expired", "Denied(403)"] {
        assert!(ends.contains_key(&format!("Some({why})")), "{ends:?}");
    }
}
