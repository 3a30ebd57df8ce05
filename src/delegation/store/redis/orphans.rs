//! How leaves of dead replicas find a new keeper.

use log::warn;
use redis::Value;

use super::RedisStore;
use super::connection::reply_text;
use super::script::{self, StoredLeave};
use crate::delegation::store::{Error, FencingToken};
use crate::livekit::id::ParticipantKey;

pub(super) type AdoptedLeave = (ParticipantKey, FencingToken, String);
type ScanPage = Vec<(Vec<u8>, Vec<u8>)>;

impl RedisStore {
    /// Who is not alive, of those that may have left something behind.
    fn dead_replicas(&self) -> Result<Vec<String>, Error> {
        let keepers: Vec<String> = match self.execute(&script::list_replicas())? {
            Value::Array(ids) | Value::Set(ids) => ids.iter().filter_map(reply_text).collect(),
            _ => Vec::new(),
        };
        let commands: Vec<_> = keepers
            .iter()
            .map(|id| script::replica_exists(id))
            .collect();
        let answers = self.execute_pipeline(&commands)?;
        let answers = keepers.into_iter().zip(answers);
        let dead = answers.filter(|(_, answer)| matches!(answer, Ok(Value::Int(0))));
        Ok(dead.map(|(id, _)| id).collect())
    }

    /// Adopts, and says whether those were all.
    pub(super) fn adopt_orphans(
        &self,
        most: usize,
        sweep: bool,
    ) -> Result<(Vec<AdoptedLeave>, bool), Error> {
        let dead = self.dead_replicas()?;
        if !sweep && dead.is_empty() {
            return Ok((Vec::new(), true));
        }
        let (orphans, all) = self.find_orphans(most)?;
        let me = self.shared.lock().replica_id.clone();
        let commands = orphans
            .iter()
            .map(|(field, kept)| script::adopt(field, kept, &me, *kept.replica_id == *me));
        let answers = self.execute_pipeline(&commands.collect::<Vec<_>>())?;
        let mut adopted = Vec::new();
        for ((field, _), answer) in orphans.iter().zip(answers) {
            let value = answer.ok().as_ref().and_then(reply_text);
            let kept = value.and_then(|value| StoredLeave::parse(&value));
            // otherwise another replica was faster
            let Some((key, kept)) = ParticipantKey::from_json(field).zip(kept) else {
                continue;
            };
            let fence = FencingToken(kept.fence);
            self.shared.insert_stored(&me, &key, fence, &kept.record);
            // unless an event for it has come meanwhile
            if self.shared.lock().buffer.fence(&key) == Some(fence) {
                adopted.push((key, fence, kept.record));
            }
        }
        if all {
            let buried: Vec<_> = dead.iter().map(|id| script::remove_replica(id)).collect();
            self.execute_pipeline(&buried)?;
        }
        Ok((adopted, all))
    }

    /// Leaves that nobody works, at most `most`, each as it was found; and whether those are all.
    fn find_orphans(&self, most: usize) -> Result<(Vec<(String, StoredLeave)>, bool), Error> {
        let me = self.shared.lock().replica_id.clone();
        let (mut orphans, mut cursor) = (Vec::new(), String::from("0"));
        let mut living: Vec<(String, bool)> = vec![(me.to_string(), true)];
        loop {
            let (next, page) = match self.execute(&script::scan_leaves(&cursor))? {
                Value::Array(answer) => parse_scan_reply(answer)?,
                _ => return Err(Error("Redis answered a scan with something else".into())),
            };
            for (field, value) in page {
                let Some((name, key, kept)) = parse_stored_leave(&field, &value) else {
                    warn!("a value in the journal makes no sense, and is set aside");
                    self.execute(&script::quarantine(&field, &value))?;
                    continue;
                };
                let lives = match living.iter().find(|(id, _)| *id == kept.replica_id) {
                    Some((_, lives)) => *lives,
                    None => {
                        let lives = self.execute(&script::replica_exists(&kept.replica_id))?
                            != Value::Int(0);
                        living.push((kept.replica_id.clone(), lives));
                        lives
                    }
                };
                if lives && !(*kept.replica_id == *me && self.is_untracked(&key, &kept)) {
                    continue;
                }
                if orphans.len() >= most {
                    return Ok((orphans, false));
                }
                // a scan may give a field twice
                if !orphans.iter().any(|(other, _)| *other == name) {
                    orphans.push((name, kept));
                }
            }
            cursor = next;
            if cursor == "0" {
                return Ok((orphans, true));
            }
        }
    }

    /// Whether a leave is ours though we know nothing of it: stored when we no longer waited for that.
    fn is_untracked(&self, key: &ParticipantKey, kept: &StoredLeave) -> bool {
        let state = self.shared.lock();
        state.buffer.fence(key) != Some(FencingToken(kept.fence))
            && !state.keys_in_flight.contains(key)
    }
}

/// The cursor and the fields of a scan's answer.
fn parse_scan_reply(answer: Vec<Value>) -> Result<(String, ScanPage), Error> {
    let mut answer = answer.into_iter();
    let cursor = answer.next().as_ref().and_then(reply_text);
    let fields = match answer.next() {
        Some(Value::Array(fields)) => fields,
        _ => Vec::new(),
    };
    let bytes = |value: &Value| match value {
        Value::BulkString(bytes) => bytes.clone(),
        _ => Vec::new(),
    };
    let pairs = fields.chunks_exact(2);
    let pairs = pairs.map(|pair| (bytes(&pair[0]), bytes(&pair[1])));
    match cursor {
        Some(cursor) => Ok((cursor, pairs.collect())),
        None => Err(Error("Redis answered a scan without a cursor".into())),
    }
}

fn parse_stored_leave(field: &[u8], value: &[u8]) -> Option<(String, ParticipantKey, StoredLeave)> {
    let field = std::str::from_utf8(field).ok()?;
    let kept = StoredLeave::parse(std::str::from_utf8(value).ok()?)?;
    Some((field.to_owned(), ParticipantKey::from_json(field)?, kept))
}
