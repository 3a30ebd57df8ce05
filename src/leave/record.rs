//! A leave as the journal has it: JSON, with its version.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::look::Look;
use super::{Call, Key, Leave, MAX_SIDS, MAX_TIMEOUT, MAX_WAIT, Order, SEND_FOR, State, Time};
use crate::json;
use crate::livekit::token::Sid;
use crate::matrix::delayed_event::DelayId;
use crate::matrix::id::UserId;

/// What [`Record::v`] has to be.
const VERSION: u32 = 1;
/// How much later than recorded a delay may end: the journal's last word on a leave may have been lost with us.
const SLACK: Duration = Duration::from_secs(60);
/// How long a look may take at those who may have connected while nobody waited for them.
const LOOK: Duration = Duration::from_secs(10);

/// A record that is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRecord(&'static str);

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl std::error::Error for BadRecord {}

/// Times are milliseconds since 1970.
#[derive(Serialize, Deserialize)]
struct Record {
    v: u32,
    leave: u32,
    user: String,
    delay_id: String,
    timeout: u64,
    state: Standing,
    /// When to stop waiting or sending, or to restart next.
    at: u64,
    confirmed: u64,
    perhaps: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    here: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    Waiting,
    Aborted,
    Connected,
    Sending,
}

impl Leave {
    /// The leave for the journal, as it stands; none if it has ended.
    pub fn record(&self) -> Option<String> {
        let (state, at) = match &self.state {
            State::Waiting { until, aborted } if *aborted => (Standing::Aborted, until),
            State::Waiting { until, .. } => (Standing::Waiting, until),
            State::Connected { due, .. } => (Standing::Connected, due),
            State::Sending { until, .. } => (Standing::Sending, until),
            State::Ended => return None,
        };
        let names = |sids: &[Sid]| sids.iter().map(|sid| sid.as_str().to_owned()).collect();
        let record = Record {
            v: VERSION,
            leave: self.id,
            user: self.order.user.as_str().to_owned(),
            delay_id: self.order.delay.as_str().to_owned(),
            timeout: u64::try_from(self.order.timeout.as_millis()).unwrap_or(u64::MAX),
            state,
            at: at.0,
            confirmed: self.confirmed.0,
            perhaps: self.perhaps.0,
            here: names(&self.here),
            gone: names(&self.gone),
        };
        Some(serde_json::to_string(&record).unwrap_or_else(|_| unreachable!()))
    }

    /// The leave that a record speaks of, to go on with at `now`; none if its time has passed. Whether its participant is still
    /// there is asked first.
    pub fn restore(
        key: Key,
        record: &str,
        check: Option<Duration>,
        now: Time,
    ) -> Result<Option<Self>, BadRecord> {
        let record: Record = json::object(record.as_bytes()).ok_or(BadRecord("a leave"))?;
        if record.v != VERSION {
            return Err(BadRecord("version 1"));
        }
        let timeout = Duration::from_millis(record.timeout);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            return Err(BadRecord("a delay of 1 ms to 24 h"));
        }
        let user = UserId::parse(&record.user).map_err(|_| BadRecord("a user id"))?;
        let delay = DelayId::parse(&record.delay_id).map_err(|_| BadRecord("a delay_id"))?;
        // a clock that has been set back must not make a leave immortal
        let past = |ms| Time(ms).min(now);
        let (confirmed, perhaps) = (past(record.confirmed), past(record.perhaps));
        let at = |most: Duration| Time(record.at).min(now + most);
        let end = confirmed.max(perhaps) + timeout;
        let (state, over) = match record.state {
            standing @ (Standing::Waiting | Standing::Aborted) => {
                let until = at(timeout.min(MAX_WAIT)).max(now + LOOK);
                let aborted = matches!(standing, Standing::Aborted);
                (State::Waiting { until, aborted }, end)
            }
            Standing::Connected => {
                let (due, call) = (at(timeout), Call::default());
                (State::Connected { due, call }, end + SLACK)
            }
            Standing::Sending => {
                let (until, call) = (at(SEND_FOR.1).max(now + SEND_FOR.0), Call::default());
                let state = State::Sending {
                    until,
                    due: now,
                    call,
                };
                (state, Time(record.at) + SLACK)
            }
        };
        if now >= over {
            return Ok(None);
        }
        // what may have been restarted after the record's last word is tried once more
        let perhaps = if now >= end { now } else { perhaps };
        let look = match state {
            State::Sending { .. } | State::Ended => Look::none(),
            State::Waiting { .. } | State::Connected { .. } => Look::anew(check, now),
        };
        Ok(Some(Self {
            key,
            order: Order {
                user,
                delay,
                timeout,
            },
            id: record.leave,
            state,
            confirmed,
            perhaps,
            here: sids(record.here)?,
            gone: sids(record.gone)?,
            look,
        }))
    }
}

fn sids(names: Vec<String>) -> Result<Vec<Sid>, BadRecord> {
    if names.len() > MAX_SIDS {
        return Err(BadRecord("at most 8 connections"));
    }
    names
        .into_iter()
        .map(|name| Sid::new(name).map_err(|_| BadRecord("a connection's id")))
        .collect()
}
