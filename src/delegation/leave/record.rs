//! A leave's record in the store: versioned JSON.

use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::presence::PresenceSchedule;
use super::{
    CallSchedule, DelegationRequest, Leave, LeaveId, LeaveState, MAX_SEND_TIME, MAX_SIDS,
    MAX_TIMEOUT, MAX_WAIT, MIN_SEND_TIME, ParticipantKey, UnixMillis,
};
use crate::livekit::id::ParticipantSid;
use crate::matrix::id::{DelayId, UserId};
use crate::util::json;

/// Supported value of [`LeaveRecord::v`].
const VERSION: u32 = 1;
/// How much longer than recorded a delay may last: the last restart before a crash may not have been stored.
const EXPIRY_SLACK: Duration = Duration::from_secs(60);
/// Shortest wait after a restore: time for the check whether the participant connected meanwhile.
const PRESENCE_CHECK_WINDOW: Duration = Duration::from_secs(10);

/// Error for a record that this version cannot have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidLeaveRecord(&'static str);

impl fmt::Display for InvalidLeaveRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl std::error::Error for InvalidLeaveRecord {}

/// The stored fields. Their names are the format; times are milliseconds since 1970.
#[derive(Hash, Serialize, Deserialize)]
struct LeaveRecord<'a> {
    v: u32,
    leave: u32,
    user: Cow<'a, str>,
    delay_id: Cow<'a, str>,
    timeout: u64,
    state: RecordedState,
    /// When waiting or sending ends, or when the next restart is due.
    at: u64,
    confirmed: u64,
    perhaps: u64,
    #[serde(rename = "here", default, skip_serializing_if = "Vec::is_empty")]
    active_sids: Vec<Cow<'a, str>>,
    #[serde(rename = "gone", default, skip_serializing_if = "Vec::is_empty")]
    ended_sids: Vec<Cow<'a, str>>,
}

#[derive(Clone, Copy, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecordedState {
    Waiting,
    Aborted,
    Connected,
    Sending,
}

impl Leave {
    /// The record to store; `None` if the leave has ended.
    pub fn to_record(&self) -> Option<String> {
        let record = self.record_fields()?;
        Some(serde_json::to_string(&record).unwrap_or_else(|_| unreachable!()))
    }

    /// Hash that changes with the record, at less cost than the record; `None` if the leave has ended.
    pub(crate) fn record_hash(&self) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        self.record_fields()?.hash(&mut hasher);
        Some(hasher.finish())
    }

    fn record_fields(&self) -> Option<LeaveRecord<'_>> {
        let (state, at) = match &self.state {
            LeaveState::Waiting { until, aborted } if *aborted => (RecordedState::Aborted, until),
            LeaveState::Waiting { until, .. } => (RecordedState::Waiting, until),
            LeaveState::Connected { restart } => (RecordedState::Connected, &restart.due),
            LeaveState::Sending { until, .. } => (RecordedState::Sending, until),
            LeaveState::Ended => return None,
        };
        Some(LeaveRecord {
            v: VERSION,
            leave: self.id.0,
            user: self.user.as_str().into(),
            delay_id: self.request.delay_id.as_str().into(),
            timeout: u64::try_from(self.request.timeout.as_millis()).unwrap_or(u64::MAX),
            state,
            at: at.as_millis(),
            confirmed: self.confirmed_restart.as_millis(),
            perhaps: self.possible_restart.as_millis(),
            active_sids: self
                .active_sids
                .iter()
                .map(|sid| sid.as_str().into())
                .collect(),
            ended_sids: self
                .ended_sids
                .iter()
                .map(|sid| sid.as_str().into())
                .collect(),
        })
    }

    /// Restores a leave from its record at `now`; `None` if its time is over. The first action is a presence check.
    ///
    /// # Errors
    /// The record is not of this format.
    pub fn restore(
        key: ParticipantKey,
        record: &str,
        check_interval: Option<Duration>,
        now: UnixMillis,
    ) -> Result<Option<Self>, InvalidLeaveRecord> {
        let record: LeaveRecord<'static> =
            json::parse_object(record.as_bytes()).ok_or(InvalidLeaveRecord("a leave"))?;
        if record.v != VERSION {
            return Err(InvalidLeaveRecord("version 1"));
        }
        let timeout = Duration::from_millis(record.timeout);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            return Err(InvalidLeaveRecord("a delay of 1 ms to 24 h"));
        }
        let user = UserId::parse(&record.user).map_err(|_| InvalidLeaveRecord("a user id"))?;
        let delay_id =
            DelayId::parse(&record.delay_id).map_err(|_| InvalidLeaveRecord("a delay_id"))?;
        // a host clock that was set back must not make a leave immortal
        let past = |ms| UnixMillis::from_millis(ms).min(now);
        let (confirmed_restart, possible_restart) = (past(record.confirmed), past(record.perhaps));
        let at = UnixMillis::from_millis(record.at);
        let expires_at = confirmed_restart.max(possible_restart) + timeout;
        let (state, over_at, presence) = match record.state {
            RecordedState::Waiting | RecordedState::Aborted => {
                let state = LeaveState::Waiting {
                    until: at
                        .min(now + timeout.min(MAX_WAIT))
                        .max(now + PRESENCE_CHECK_WINDOW),
                    aborted: matches!(record.state, RecordedState::Aborted),
                };
                let presence = PresenceSchedule::immediate(check_interval, now);
                (state, expires_at, presence)
            }
            RecordedState::Connected => {
                let restart = CallSchedule::due_at(at.min(now + timeout));
                let presence = PresenceSchedule::immediate(check_interval, now);
                (
                    LeaveState::Connected { restart },
                    expires_at + EXPIRY_SLACK,
                    presence,
                )
            }
            RecordedState::Sending => {
                let state = LeaveState::Sending {
                    until: at.min(now + MAX_SEND_TIME).max(now + MIN_SEND_TIME),
                    send: CallSchedule::due_at(now),
                };
                (state, at + EXPIRY_SLACK, PresenceSchedule::default())
            }
        };
        if now >= over_at {
            return Ok(None);
        }
        Ok(Some(Self {
            key,
            user,
            request: DelegationRequest { delay_id, timeout },
            id: LeaveId(record.leave),
            state,
            confirmed_restart,
            // a restart that was not recorded may have started the timer again, which is worth one more call
            possible_restart: if now >= expires_at {
                now
            } else {
                possible_restart
            },
            active_sids: parse_sids(record.active_sids)?,
            ended_sids: parse_sids(record.ended_sids)?,
            presence,
        }))
    }
}

fn parse_sids(sids: Vec<Cow<'_, str>>) -> Result<Vec<ParticipantSid>, InvalidLeaveRecord> {
    if sids.len() > MAX_SIDS {
        return Err(InvalidLeaveRecord("at most 8 connections"));
    }
    let sids = sids.into_iter().map(|sid| {
        ParticipantSid::new(sid.into_owned()).map_err(|_| InvalidLeaveRecord("a connection's id"))
    });
    sids.collect()
}
