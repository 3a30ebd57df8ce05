//! What is done in Redis: each step is one script, and so happens as a whole or not at all.
//!
//! A leave is a field of the hash `lk-jwt:jobs`, the JSON of its key; its value begins with the id of the replica that keeps it and
//! its fence. A replica lives as long as its `lk-jwt:keeper:{id}`; `lk-jwt:keepers` has all that were ever seen and may have
//! left something behind. Fences are the time in microseconds, or one more than the last one if that is later: they grow even when
//! Redis has lost everything, the last fence included.

use redis::{Cmd, Value};
use serde::{Deserialize, Serialize};

use super::connection::reply_text;
use crate::delegation::store::{FencingToken, MAX_QUARANTINED};
use crate::livekit::id::ParticipantKey;

/// How long a replica is taken to live after its last sign of life.
pub(super) const LEASE_MS: u64 = 5000;

const LEAVES_KEY: &str = "lk-jwt:jobs";
const REPLICAS_KEY: &str = "lk-jwt:keepers";
const FENCE_KEY: &str = "lk-jwt:fence";
const QUARANTINE_KEY: &str = "lk-jwt:aside";

/// Fields looked at in one step of a scan, about.
const SCAN_COUNT: usize = 100;

/// The beginning of both scripts that hand out fences.
const NEXT_FENCE_SCRIPT: &str = "
local time = redis.call('TIME')
local fence = time[1] * 1000000 + time[2]
fence = math.max(fence, tonumber(redis.call('GET', KEYS[2]) or 0) + 1)
fence = string.format('%.0f', fence)
redis.call('SET', KEYS[2], fence)
local head = '{\"keeper\":\"' .. ARGV[2] .. '\",\"fence\":' .. fence .. ','
";

const PUT_SCRIPT: &str = "
redis.call('HSET', KEYS[1], ARGV[1], head .. ARGV[3])
return fence
";

const CLAIM_SCRIPT: &str = "
local value = redis.call('HGET', KEYS[1], ARGV[1])
local old = value and string.match(value, '^{\"keeper\":\"%x+\",\"fence\":%d+,')
if not old or (KEYS[3] and (old ~= ARGV[3] or redis.call('EXISTS', KEYS[3]) == 1)) then return false end
value = head .. string.sub(value, #old + 1)
redis.call('HSET', KEYS[1], ARGV[1], value)
return value
";

const FENCED_OP_SCRIPT: &str = "
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value then return redis.call('EXISTS', KEYS[2]) == 1 and 'absent' or 'forgotten' end
if string.sub(value, 1, #ARGV[2]) ~= ARGV[2] then return 'lost' end
if ARGV[3] == 'set' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[4]) end
if ARGV[3] == 'delete' then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 'ours'
";

const RESTORE_SCRIPT: &str = "
local value = redis.call('HGET', KEYS[1], ARGV[1])
local fence = tonumber(value and string.match(value, '^{\"keeper\":\"%x+\",\"fence\":(%d+),') or 0)
if fence > tonumber(ARGV[3]) then return 'lost' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[4])
if tonumber(redis.call('GET', KEYS[2]) or 0) < tonumber(ARGV[3]) then redis.call('SET', KEYS[2], ARGV[3]) end
return 'ours'
";

const RENEW_LEASE_SCRIPT: &str = "
local known = redis.call('EXISTS', KEYS[1])
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
return known
";

const QUARANTINE_SCRIPT: &str = "
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('HLEN', KEYS[2]) < tonumber(ARGV[3]) then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
return redis.call('HDEL', KEYS[1], ARGV[1])
";

/// A leave as Redis has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredLeave {
    #[serde(rename = "keeper")]
    pub(super) replica_id: String,
    pub(super) fence: u64,
    pub(super) record: String,
}

impl StoredLeave {
    pub(super) fn parse(value: &str) -> Option<Self> {
        let kept: Self = serde_json::from_str(value).ok()?;
        // the scripts know no other form
        (value.starts_with(&value_prefix(&kept.replica_id, FencingToken(kept.fence)))
            && is_replica_id(&kept.replica_id))
        .then_some(kept)
    }
}

fn is_replica_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// How a leave's value begins.
fn value_prefix(keeper: &str, fence: FencingToken) -> String {
    format!(r#"{{"keeper":"{keeper}","fence":{},"#, fence.0)
}

/// How it goes on.
fn value_suffix(record: &str) -> String {
    let record = serde_json::to_string(record).unwrap_or_else(|_| unreachable!());
    format!(r#""record":{record}}}"#)
}

/// All of it.
pub(super) fn encode_value(keeper: &str, fence: FencingToken, record: &str) -> String {
    value_prefix(keeper, fence) + &value_suffix(record)
}

fn replica_key(id: &str) -> String {
    format!("lk-jwt:keeper:{id}")
}

fn eval_script(code: &str, keys: &[&str]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(code).arg(keys.len()).arg(keys);
    command
}

/// Stores a new leave. Answers its fence.
pub(super) fn put(key: &ParticipantKey, me: &str, record: &str) -> Cmd {
    let mut command = eval_script(
        &format!("{NEXT_FENCE_SCRIPT}{PUT_SCRIPT}"),
        &[LEAVES_KEY, FENCE_KEY],
    );
    command.arg(key.to_json()).arg(me).arg(value_suffix(record));
    command
}

/// Takes a leave from whoever has it. Answers its value.
pub(super) fn claim(key: &ParticipantKey, me: &str) -> Cmd {
    let mut command = eval_script(
        &format!("{NEXT_FENCE_SCRIPT}{CLAIM_SCRIPT}"),
        &[LEAVES_KEY, FENCE_KEY],
    );
    command.arg(key.to_json()).arg(me);
    command
}

/// Takes a leave that was found under a keeper who is dead, if that is still so. With `mine`, the keeper is ourselves.
pub(super) fn adopt(field: &str, found: &StoredLeave, me: &str, mine: bool) -> Cmd {
    let keeper = if mine {
        String::from("-")
    } else {
        found.replica_id.clone()
    };
    let keys = [LEAVES_KEY, FENCE_KEY, &replica_key(&keeper)];
    let mut command = eval_script(&format!("{NEXT_FENCE_SCRIPT}{CLAIM_SCRIPT}"), &keys);
    let old = value_prefix(&found.replica_id, FencingToken(found.fence));
    command.arg(field).arg(me).arg(old);
    command
}

/// What may be done with a leave that is ours.
#[derive(Debug, Clone, Copy)]
pub(super) enum FencedOp<'a> {
    Check,
    Set(&'a str),
    Delete,
}

/// Does it if the leave is still ours. Answers a [`Found`].
pub(super) fn fenced_op(
    key: &ParticipantKey,
    me: &str,
    fence: FencingToken,
    touch: FencedOp<'_>,
) -> Cmd {
    let mut command = eval_script(FENCED_OP_SCRIPT, &[LEAVES_KEY, &replica_key(me)]);
    let head = value_prefix(me, fence);
    command.arg(key.to_json()).arg(&head);
    match touch {
        FencedOp::Check => command.arg("look"),
        FencedOp::Set(record) => command.arg("set").arg(head + &value_suffix(record)),
        FencedOp::Delete => command.arg("delete"),
    };
    command
}

/// Writes a leave again that Redis may have forgotten, unless somebody has it under a later fence. Answers a [`Found`].
pub(super) fn restore(key: &ParticipantKey, me: &str, fence: FencingToken, record: &str) -> Cmd {
    let mut command = eval_script(RESTORE_SCRIPT, &[LEAVES_KEY, FENCE_KEY, REPLICAS_KEY]);
    let value = encode_value(me, fence, record);
    command.arg(key.to_json()).arg(value).arg(fence.0).arg(me);
    command
}

/// How a leave of ours was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FencedOpReply {
    Owned,
    /// Somebody else has it.
    Lost,
    /// Somebody else has had it, and ended it.
    Absent,
    /// It is not there, and neither are we: Redis has lost what it had.
    DataLost,
}

impl FencedOpReply {
    pub(super) fn parse(value: &Value) -> Option<Self> {
        match &*reply_text(value)? {
            "ours" => Some(Self::Owned),
            "lost" => Some(Self::Lost),
            "absent" => Some(Self::Absent),
            "forgotten" => Some(Self::DataLost),
            _ => None,
        }
    }
}

/// A sign of life. Answers 1 if the last one was still known.
pub(super) fn renew_lease(me: &str) -> Cmd {
    let mut command = eval_script(RENEW_LEASE_SCRIPT, &[&replica_key(me), REPLICAS_KEY]);
    command.arg(me).arg(LEASE_MS);
    command
}

/// The opposite: others need not wait.
pub(super) fn release_lease(me: &str) -> Cmd {
    let mut command = redis::cmd("DEL");
    command.arg(replica_key(me));
    command
}

/// All keepers that may have left something behind. Answers their ids.
pub(super) fn list_replicas() -> Cmd {
    let mut command = redis::cmd("SMEMBERS");
    command.arg(REPLICAS_KEY);
    command
}

/// Whether a keeper lives. Answers 1 or 0.
pub(super) fn replica_exists(id: &str) -> Cmd {
    let mut command = redis::cmd("EXISTS");
    command.arg(replica_key(id));
    command
}

/// A keeper that has left nothing behind.
pub(super) fn remove_replica(id: &str) -> Cmd {
    let mut command = redis::cmd("SREM");
    command.arg(REPLICAS_KEY).arg(id);
    command
}

/// A page of all leaves. Answers the next cursor (0: that was the last) and fields with their values.
pub(super) fn scan_leaves(cursor: &str) -> Cmd {
    let mut command = redis::cmd("HSCAN");
    command
        .arg(LEAVES_KEY)
        .arg(cursor)
        .arg("COUNT")
        .arg(SCAN_COUNT);
    command
}

/// Moves a value that makes no sense to where it is in nobody's way; only the first 100 are kept.
pub(super) fn quarantine(field: &[u8], value: &[u8]) -> Cmd {
    let mut command = eval_script(QUARANTINE_SCRIPT, &[LEAVES_KEY, QUARANTINE_KEY]);
    command.arg(field).arg(value).arg(MAX_QUARANTINED);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_as_it_was_written() {
        let record = "{\"a\":\"\\\"é\u{1}\"}";
        let value = encode_value("0af", FencingToken(7), record);
        let kept = StoredLeave::parse(&value).unwrap();
        assert_eq!(
            (&*kept.replica_id, kept.fence, &*kept.record),
            ("0af", 7, record)
        );
    }

    #[test]
    fn values_of_others_make_no_sense() {
        for value in [
            "",
            "{}",
            "7",
            r#"{"fence":7,"keeper":"0af","record":""}"#,
            r#"{"keeper":"x","fence":7,"record":""}"#,
            r#"{"keeper":"","fence":7,"record":""}"#,
            r#"{"keeper":"0af","fence":-7,"record":""}"#,
            r#"{"keeper":"0af", "fence":7,"record":""}"#,
            r#"{"keeper":"0af","fence":7,"record":{}}"#,
        ] {
            assert_eq!(StoredLeave::parse(value), None, "{value}");
        }
    }
}
