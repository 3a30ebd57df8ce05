//! What is known of one guest, and what follows from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Guest;
use super::queue::{Lane, Turn};
use super::shares::Idle;
use crate::journal::Key;

/// For how long somebody may come back of whom the SFU says that they are not there, or whose token is too old: the SFU's leeway,
/// and the 10 minutes of the tokens by which it lets those reconnect who were connected.
pub(super) const AFTERGLOW: Duration = Duration::from_secs(660);
/// How many times more rarely those are looked at whom nothing has shown in a call: they are no harm there, and anybody can make
/// up thousands of them. Only the SFU is asked about them.
pub(super) const RARELY: u32 = 10;
/// After a look that has failed; twice as long after each further one, until it is the usual time.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::guests) enum Verdict {
    /// They may be where they are; whether the SFU has shown them there.
    Stays { shown: bool },
    /// They were put out.
    Out { shown: bool },
    /// The SFU says that they are not there.
    Absent,
    /// Somebody has not answered.
    Unknown,
    /// They are to be put out, and the SFU does not do it.
    NotPutOut,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) guest: Guest,
    pub(super) local: bool,
    admitted: Instant,
    /// Until when their token lets them in.
    pub(super) token_until: Instant,
    pub(super) out: bool,
    /// Whether the SFU has ever shown them in the call.
    seen: bool,
    /// Since when they are not there, as the SFU says or because they were put out.
    away: Option<Instant>,
    /// When to ask the SFU again whether they are there still.
    pub(super) ask_sfu: Instant,
    /// When to look next; none while somebody looks.
    pub(super) turn: Option<Turn>,
    /// Whether to look again at once, for they came while somebody looked.
    pub(super) again: bool,
    /// Looks in a row that have failed.
    failures: u32,
}

impl Entry {
    pub(super) fn new(guest: Guest, local: bool, now: Instant, token_until: Instant) -> Self {
        Self {
            guest,
            local,
            admitted: now,
            token_until,
            out: false,
            seen: false,
            away: None,
            ask_sfu: now,
            turn: None,
            again: false,
            failures: 0,
        }
    }

    pub(super) fn is_present(&self) -> bool {
        self.seen && self.away.is_none()
    }

    pub(super) fn idle(&self, key: &Arc<Key>) -> Option<Idle> {
        (!self.is_present()).then(|| Idle {
            out: self.out,
            seen: self.seen,
            admitted: self.admitted,
            key: key.clone(),
        })
    }

    /// The SFU shows them in the call.
    pub(super) fn show(&mut self, now: Instant) {
        self.seen = true;
        self.away = None;
        self.ask_sfu = now + AFTERGLOW;
    }

    pub(super) fn learn(&mut self, verdict: Verdict, now: Instant) {
        match verdict {
            Verdict::Unknown | Verdict::NotPutOut => {
                self.failures = self.failures.saturating_add(1);
                return;
            }
            Verdict::Stays { shown } => {
                self.out = false;
                if shown {
                    self.show(now);
                }
            }
            Verdict::Out { shown } => {
                self.out = true;
                self.seen |= shown;
                if !self.again {
                    self.away = Some(now);
                }
            }
            Verdict::Absent if self.again => {}
            Verdict::Absent => {
                self.away.get_or_insert(now);
            }
        }
        self.failures = 0;
    }

    /// When to look again; never, if they were not there twice and nothing has let them in between or will now.
    pub(super) fn turn_after(
        &mut self,
        verdict: Verdict,
        lane: Lane,
        every: Duration,
        now: Instant,
    ) -> Option<Turn> {
        if std::mem::take(&mut self.again) {
            return Some((Lane::Urgent, now));
        }
        if verdict == Verdict::Absent && self.barred().is_some_and(|barred| barred <= now) {
            return None;
        }
        let usual = self.usual_turn(every, now);
        if self.failures == 0 {
            return Some(usual);
        }
        let wait = RETRY.saturating_mul(1 << (self.failures - 1).min(16));
        let lane = match verdict {
            Verdict::NotPutOut => Lane::Urgent,
            _ if lane == Lane::Urgent => lane,
            _ => usual.0,
        };
        Some((lane, usual.1.min(now + wait)))
    }

    /// Those who are in the call, or were put out of it and might come back, are looked at again and again; others rarely.
    pub(super) fn usual_turn(&self, every: Duration, now: Instant) -> Turn {
        if self.is_present() || self.out && self.seen {
            return (Lane::Present, now + every);
        }
        let rarely = now + (every * RARELY).min(AFTERGLOW).max(every);
        let marks = [Some(self.token_until), self.barred()];
        let mark = marks.into_iter().flatten().filter(|mark| *mark > now).min();
        (Lane::Absent, mark.map_or(rarely, |mark| rarely.min(mark)))
    }

    /// From when on nothing brings them back, unless they come before.
    fn barred(&self) -> Option<Instant> {
        let away = self.away?;
        Some(away.max(self.token_until) + AFTERGLOW)
    }
}
