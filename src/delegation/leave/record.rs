//! A leave as the journal has it: JSON, with its version.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::presence::PresenceSchedule;
use super::{
    CallRetry, DelegationRequest, Leave, LeaveState, MAX_SIDS, MAX_TIMEOUT, MAX_WAIT, SEND_WINDOW,
    UnixMillis,
};
use crate::livekit::id::{ParticipantKey, ParticipantSid};
use crate::matrix::id::DelayId;
use crate::matrix::id::UserId;
use crate::util::json;

/// What [`Record::v`] has to be.
const VERSION: u32 = 1;
/// How much later than recorded a delay may end: the journal's last word on a leave may have been lost with us.
const EXPIRY_SLACK: Duration = Duration::from_secs(60);
/// How long a look may take at those who may have connected while nobody waited for them.
const PRESENCE_CHECK_WINDOW: Duration = Duration::from_secs(10);

/// A record that is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidLeaveRecord(&'static str);

impl fmt::Display for InvalidLeaveRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl std::error::Error for InvalidLeaveRecord {}

/// Times are milliseconds since 1970.
#[derive(Serialize, Deserialize)]
struct LeaveRecord {
    v: u32,
    leave: u32,
    user: String,
    delay_id: String,
    timeout: u64,
    state: RecordedState,
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
enum RecordedState {
    Waiting,
    Aborted,
    Connected,
    Sending,
}

impl Leave {
    /// The leave for the journal, as it stands; none if it has ended.
    pub fn to_record(&self) -> Option<String> {
        let (state, at) = match &self.state {
            LeaveState::Waiting { until, aborted } if *aborted => (RecordedState::Aborted, until),
            LeaveState::Waiting { until, .. } => (RecordedState::Waiting, until),
            LeaveState::Connected { due, .. } => (RecordedState::Connected, due),
            LeaveState::Sending { until, .. } => (RecordedState::Sending, until),
            LeaveState::Ended => return None,
        };
        let names =
            |sids: &[ParticipantSid]| sids.iter().map(|sid| sid.as_str().to_owned()).collect();
        let record = LeaveRecord {
            v: VERSION,
            leave: self.id,
            user: self.request.user.as_str().to_owned(),
            delay_id: self.request.delay_id.as_str().to_owned(),
            timeout: u64::try_from(self.request.timeout.as_millis()).unwrap_or(u64::MAX),
            state,
            at: at.0,
            confirmed: self.confirmed_restart.0,
            perhaps: self.possible_restart.0,
            here: names(&self.active_sids),
            gone: names(&self.ended_sids),
        };
        Some(serde_json::to_string(&record).unwrap_or_else(|_| unreachable!()))
    }

    /// The leave that a record speaks of, to go on with at `now`; none if its time has passed. Whether its participant is still
    /// there is asked first.
    pub fn restore(
        key: ParticipantKey,
        record: &str,
        check: Option<Duration>,
        now: UnixMillis,
    ) -> Result<Option<Self>, InvalidLeaveRecord> {
        let record: LeaveRecord =
            json::parse_object(record.as_bytes()).ok_or(InvalidLeaveRecord("a leave"))?;
        if record.v != VERSION {
            return Err(InvalidLeaveRecord("version 1"));
        }
        let timeout = Duration::from_millis(record.timeout);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            return Err(InvalidLeaveRecord("a delay of 1 ms to 24 h"));
        }
        let user = UserId::parse(&record.user).map_err(|_| InvalidLeaveRecord("a user id"))?;
        let delay =
            DelayId::parse(&record.delay_id).map_err(|_| InvalidLeaveRecord("a delay_id"))?;
        // a clock that has been set back must not make a leave immortal
        let past = |ms| UnixMillis(ms).min(now);
        let (confirmed, perhaps) = (past(record.confirmed), past(record.perhaps));
        let at = |most: Duration| UnixMillis(record.at).min(now + most);
        let end = confirmed.max(perhaps) + timeout;
        let (state, over) = match record.state {
            standing @ (RecordedState::Waiting | RecordedState::Aborted) => {
                let until = at(timeout.min(MAX_WAIT)).max(now + PRESENCE_CHECK_WINDOW);
                let aborted = matches!(standing, RecordedState::Aborted);
                (LeaveState::Waiting { until, aborted }, end)
            }
            RecordedState::Connected => {
                let (due, call) = (at(timeout), CallRetry::default());
                (LeaveState::Connected { due, call }, end + EXPIRY_SLACK)
            }
            RecordedState::Sending => {
                let (until, call) = (
                    at(SEND_WINDOW.1).max(now + SEND_WINDOW.0),
                    CallRetry::default(),
                );
                let state = LeaveState::Sending {
                    until,
                    due: now,
                    call,
                };
                (state, UnixMillis(record.at) + EXPIRY_SLACK)
            }
        };
        if now >= over {
            return Ok(None);
        }
        // what may have been restarted after the record's last word is tried once more
        let perhaps = if now >= end { now } else { perhaps };
        let look = match state {
            LeaveState::Sending { .. } | LeaveState::Ended => PresenceSchedule::disabled(),
            LeaveState::Waiting { .. } | LeaveState::Connected { .. } => {
                PresenceSchedule::immediate(check, now)
            }
        };
        Ok(Some(Self {
            key,
            request: DelegationRequest {
                user,
                delay_id: delay,
                timeout,
            },
            id: record.leave,
            state,
            confirmed_restart: confirmed,
            possible_restart: perhaps,
            active_sids: parse_sids(record.here)?,
            ended_sids: parse_sids(record.gone)?,
            presence: look,
        }))
    }
}

fn parse_sids(names: Vec<String>) -> Result<Vec<ParticipantSid>, InvalidLeaveRecord> {
    if names.len() > MAX_SIDS {
        return Err(InvalidLeaveRecord("at most 8 connections"));
    }
    names
        .into_iter()
        .map(|name| ParticipantSid::new(name).map_err(|_| InvalidLeaveRecord("a connection's id")))
        .collect()
}
