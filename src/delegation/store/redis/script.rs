//! Commands of the store in Redis. Each step is one script, which Redis carries out as a whole or not at all.
//!
//! A leave is a field of the hash `lk-jwt:jobs`, named by its participant's JSON; its value begins with the owner's replica id and the
//! fencing token. A replica lives as long as its key `lk-jwt:replica:{id}`; the set `lk-jwt:replicas` has all replicas that may own leaves.
//! The name `jobs` is lk-jwt-service's.
//! A fencing token is the time in microseconds, or one more than the last token if that is greater: tokens grow even after Redis has
//! lost all data, the last token included.

use redis::{Cmd, Value};
use serde::Deserialize;

use super::connection::reply_text;
use crate::delegation::store::{FencingToken, MAX_QUARANTINED};
use crate::livekit::id::ParticipantKey;

/// Time from a replica's last renewal to the end of its lease, in ms.
pub(super) const LEASE_MS: u64 = 5000;

const LEAVES_KEY: &str = "lk-jwt:jobs";
const REPLICAS_KEY: &str = "lk-jwt:replicas";
const FENCE_KEY: &str = "lk-jwt:fence";
const QUARANTINE_KEY: &str = "lk-jwt:aside";

/// Approximate number of leaves in one page of a scan.
const SCAN_COUNT: usize = 100;

/// First part of the scripts that issue a fencing token.
macro_rules! next_fence {
    () => {
        "
local time = redis.call('TIME')
local fence = time[1] * 1000000 + time[2]
fence = math.max(fence, tonumber(redis.call('GET', KEYS[2]) or 0) + 1)
fence = string.format('%.0f', fence)
redis.call('SET', KEYS[2], fence)
local head = '{\"owner\":\"' .. ARGV[2] .. '\",\"fence\":' .. fence .. ','
"
    };
}

const PUT_SCRIPT: &str = concat!(
    next_fence!(),
    "
redis.call('HSET', KEYS[1], ARGV[1], head .. ARGV[3])
return fence
"
);

const CLAIM_SCRIPT: &str = concat!(
    next_fence!(),
    "
local value = redis.call('HGET', KEYS[1], ARGV[1])
local old = value and string.match(value, '^{\"owner\":\"%x+\",\"fence\":%d+,')
if not old or (KEYS[3] and (old ~= ARGV[3] or redis.call('EXISTS', KEYS[3]) == 1)) then return false end
value = head .. string.sub(value, #old + 1)
redis.call('HSET', KEYS[1], ARGV[1], value)
return value
"
);

const FENCED_OP_SCRIPT: &str = "
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value then return redis.call('EXISTS', KEYS[2]) == 1 and 'absent' or 'data lost' end
if string.sub(value, 1, #ARGV[2]) ~= ARGV[2] then return 'lost' end
if ARGV[3] == 'set' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[4]) end
if ARGV[3] == 'delete' then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 'owned'
";

const RESTORE_SCRIPT: &str = "
local value = redis.call('HGET', KEYS[1], ARGV[1])
local fence = tonumber(value and string.match(value, '^{\"owner\":\"%x+\",\"fence\":(%d+),') or 0)
if fence > tonumber(ARGV[3]) then return 'lost' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[4])
if tonumber(redis.call('GET', KEYS[2]) or 0) < tonumber(ARGV[3]) then redis.call('SET', KEYS[2], ARGV[3]) end
return 'owned'
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

/// The value of a leave in Redis.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct StoredLeave {
    // the name in the stored format
    #[serde(rename = "owner")]
    pub(super) replica_id: String,
    pub(super) fence: FencingToken,
    pub(super) record: String,
}

impl StoredLeave {
    pub(super) fn parse(value: &str) -> Option<Self> {
        let stored: Self = serde_json::from_str(value).ok()?;
        let id = &stored.replica_id;
        let valid_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        // the scripts compare the first part as text
        let prefix = value_prefix(id, stored.fence);
        (valid_id && value.starts_with(&prefix)).then_some(stored)
    }

    pub(super) fn from_reply(reply: &Value) -> Option<Self> {
        Self::parse(&reply_text(reply)?)
    }
}

/// The first part of a leave's value, with owner and token.
fn value_prefix(replica_id: &str, fence: FencingToken) -> String {
    format!(r#"{{"owner":"{replica_id}","fence":{},"#, fence.0)
}

/// The second part of a leave's value, with its record.
fn value_suffix(record: &str) -> String {
    let record = serde_json::to_string(record).unwrap_or_else(|_| unreachable!());
    format!(r#""record":{record}}}"#)
}

pub(super) fn encode_value(replica_id: &str, fence: FencingToken, record: &str) -> String {
    value_prefix(replica_id, fence) + &value_suffix(record)
}

fn replica_key(id: &str) -> String {
    format!("lk-jwt:replica:{id}")
}

fn command(name: &str, key: &str) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(key);
    command
}

fn eval_script(code: &str, keys: &[&str]) -> Cmd {
    let mut command = command("EVAL", code);
    command.arg(keys.len()).arg(keys);
    command
}

/// Stores a new leave. Reply: its fencing token.
pub(super) fn put(key: &ParticipantKey, replica_id: &str, record: &str) -> Cmd {
    let mut command = eval_script(PUT_SCRIPT, &[LEAVES_KEY, FENCE_KEY]);
    command
        .arg(key.to_json())
        .arg(replica_id)
        .arg(value_suffix(record));
    command
}

/// Takes a leave from its owner. Reply: its value.
pub(super) fn claim(key: &ParticipantKey, replica_id: &str) -> Cmd {
    let mut command = eval_script(CLAIM_SCRIPT, &[LEAVES_KEY, FENCE_KEY]);
    command.arg(key.to_json()).arg(replica_id);
    command
}

/// Takes an orphan, if it still has the owner and token of `found`, and that owner no lease unless it is `replica_id`. Reply: its value.
pub(super) fn adopt(key: &ParticipantKey, found: &StoredLeave, replica_id: &str) -> Cmd {
    // the script needs a key that does not exist
    let no_replica = "-";
    let owner = Some(&*found.replica_id).filter(|id| *id != replica_id);
    let owner_key = replica_key(owner.unwrap_or(no_replica));
    let mut command = eval_script(CLAIM_SCRIPT, &[LEAVES_KEY, FENCE_KEY, &owner_key]);
    let prefix = value_prefix(&found.replica_id, found.fence);
    command.arg(key.to_json()).arg(replica_id).arg(prefix);
    command
}

/// Operation on an owned leave.
#[derive(Debug, Clone, Copy)]
pub(super) enum FencedOp<'a> {
    Check,
    Set(&'a str),
    Delete,
}

/// Performs an operation if `replica_id` owns the leave. Reply: a [`FencedOpReply`].
pub(super) fn fenced_op(
    key: &ParticipantKey,
    replica_id: &str,
    fence: FencingToken,
    op: FencedOp<'_>,
) -> Cmd {
    let mut command = eval_script(FENCED_OP_SCRIPT, &[LEAVES_KEY, &replica_key(replica_id)]);
    let prefix = value_prefix(replica_id, fence);
    command.arg(key.to_json()).arg(&prefix);
    match op {
        FencedOp::Check => command.arg("check"),
        FencedOp::Set(record) => command.arg("set").arg(prefix + &value_suffix(record)),
        FencedOp::Delete => command.arg("delete"),
    };
    command
}

/// Writes a leave that Redis may have lost, unless it has the leave under a greater token. Reply: a [`FencedOpReply`].
pub(super) fn restore(
    key: &ParticipantKey,
    replica_id: &str,
    fence: FencingToken,
    record: &str,
) -> Cmd {
    let mut command = eval_script(RESTORE_SCRIPT, &[LEAVES_KEY, FENCE_KEY, REPLICAS_KEY]);
    let value = encode_value(replica_id, fence, record);
    command
        .arg(key.to_json())
        .arg(value)
        .arg(fence.0)
        .arg(replica_id);
    command
}

/// State in which Redis found an owned leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FencedOpReply {
    Owned,
    /// Another replica owns it.
    Lost,
    /// Another replica took and ended it.
    Absent,
    /// Neither the leave nor this replica is there: Redis has lost its data.
    DataLost,
}

impl FencedOpReply {
    pub(super) fn parse(reply: &Value) -> Option<Self> {
        match &*reply_text(reply)? {
            "owned" => Some(Self::Owned),
            "lost" => Some(Self::Lost),
            "absent" => Some(Self::Absent),
            "data lost" => Some(Self::DataLost),
            _ => None,
        }
    }
}

/// Renews a replica's lease. Reply: 1 if the last one has not expired.
pub(super) fn renew_lease(replica_id: &str) -> Cmd {
    let mut command = eval_script(
        RENEW_LEASE_SCRIPT,
        &[&replica_key(replica_id), REPLICAS_KEY],
    );
    command.arg(replica_id).arg(LEASE_MS);
    command
}

pub(super) fn release_lease(replica_id: &str) -> Cmd {
    command("DEL", &replica_key(replica_id))
}

/// Reply: the ids of all replicas that may own leaves.
pub(super) fn list_replicas() -> Cmd {
    command("SMEMBERS", REPLICAS_KEY)
}

/// Reply: 1 if the replica has a lease, otherwise 0.
pub(super) fn replica_exists(id: &str) -> Cmd {
    command("EXISTS", &replica_key(id))
}

/// Forgets a replica that owns no leaves.
pub(super) fn remove_replica(id: &str) -> Cmd {
    let mut command = command("SREM", REPLICAS_KEY);
    command.arg(id);
    command
}

/// Reads a page of all leaves. Reply: the next cursor, 0 after the last page, and fields with their values.
pub(super) fn scan_leaves(cursor: &str) -> Cmd {
    let mut command = command("HSCAN", LEAVES_KEY);
    command.arg(cursor).arg("COUNT").arg(SCAN_COUNT);
    command
}

/// Moves an invalid value to the quarantine hash, which keeps the first 100.
pub(super) fn quarantine(field: &[u8], value: &[u8]) -> Cmd {
    let mut command = eval_script(QUARANTINE_SCRIPT, &[LEAVES_KEY, QUARANTINE_KEY]);
    command.arg(field).arg(value).arg(MAX_QUARANTINED);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_parsed_as_it_was_encoded() {
        let record = "{\"a\":\"\\\"é\u{1}\"}";
        let value = encode_value("0af", FencingToken(7), record);
        let stored = StoredLeave::parse(&value).unwrap();
        assert_eq!(
            (&*stored.replica_id, stored.fence, &*stored.record),
            ("0af", FencingToken(7), record)
        );
    }

    #[test]
    fn other_values_are_invalid() {
        for value in [
            "",
            "{}",
            "7",
            r#"{"fence":7,"owner":"0af","record":""}"#,
            r#"{"owner":"x","fence":7,"record":""}"#,
            r#"{"owner":"","fence":7,"record":""}"#,
            r#"{"owner":"0af","fence":-7,"record":""}"#,
            r#"{"owner":"0af", "fence":7,"record":""}"#,
            r#"{"owner":"0af","fence":7,"record":{}}"#,
        ] {
            assert_eq!(StoredLeave::parse(value), None, "{value}");
        }
    }
}
