//! How leaves of dead replicas find a new keeper.

use log::warn;
use redis::Value;

use super::Redis;
use super::connection::text;
use super::script::{self, Kept};
use crate::journal::{Error, Fence, Key};

pub(super) type Adopted = (Key, Fence, String);
type Page = Vec<(Vec<u8>, Vec<u8>)>;

impl Redis {
    /// Who is not alive, of those that may have left something behind.
    fn dead(&self) -> Result<Vec<String>, Error> {
        let keepers: Vec<String> = match self.ask(&script::keepers())? {
            Value::Array(ids) | Value::Set(ids) => ids.iter().filter_map(text).collect(),
            _ => Vec::new(),
        };
        let commands: Vec<_> = keepers.iter().map(|id| script::lives(id)).collect();
        let answers = self.ask_all(&commands)?;
        let answers = keepers.into_iter().zip(answers);
        let dead = answers.filter(|(_, answer)| matches!(answer, Ok(Value::Int(0))));
        Ok(dead.map(|(id, _)| id).collect())
    }

    /// Adopts, and says whether those were all.
    pub(super) fn adopt_all(
        &self,
        most: usize,
        sweep: bool,
    ) -> Result<(Vec<Adopted>, bool), Error> {
        let dead = self.dead()?;
        if !sweep && dead.is_empty() {
            return Ok((Vec::new(), true));
        }
        let (orphans, all) = self.orphans(most)?;
        let me = self.shared.lock().me.clone();
        let commands = orphans
            .iter()
            .map(|(field, kept)| script::adopt(field, kept, &me, *kept.keeper == *me));
        let answers = self.ask_all(&commands.collect::<Vec<_>>())?;
        let mut adopted = Vec::new();
        for ((field, _), answer) in orphans.iter().zip(answers) {
            let value = answer.ok().as_ref().and_then(text);
            let kept = value.and_then(|value| Kept::parse(&value));
            // otherwise another replica was faster
            let Some((key, kept)) = Key::from_json(field).zip(kept) else {
                continue;
            };
            let fence = Fence(kept.fence);
            self.shared.keep(&me, &key, fence, &kept.record);
            // unless an event for it has come meanwhile
            if self.shared.lock().ledger.fence(&key) == Some(fence) {
                adopted.push((key, fence, kept.record));
            }
        }
        if all {
            let buried: Vec<_> = dead.iter().map(|id| script::bury(id)).collect();
            self.ask_all(&buried)?;
        }
        Ok((adopted, all))
    }

    /// Leaves that nobody works, at most `most`, each as it was found; and whether those are all.
    fn orphans(&self, most: usize) -> Result<(Vec<(String, Kept)>, bool), Error> {
        let me = self.shared.lock().me.clone();
        let (mut orphans, mut cursor) = (Vec::new(), String::from("0"));
        let mut living: Vec<(String, bool)> = vec![(me.to_string(), true)];
        loop {
            let (next, page) = match self.ask(&script::scan(&cursor))? {
                Value::Array(answer) => page(answer)?,
                _ => return Err(Error("Redis answered a scan with something else".into())),
            };
            for (field, value) in page {
                let Some((name, key, kept)) = read(&field, &value) else {
                    warn!("a value in the journal makes no sense, and is set aside");
                    self.ask(&script::set_aside(&field, &value))?;
                    continue;
                };
                let lives = match living.iter().find(|(id, _)| *id == kept.keeper) {
                    Some((_, lives)) => *lives,
                    None => {
                        let lives = self.ask(&script::lives(&kept.keeper))? != Value::Int(0);
                        living.push((kept.keeper.clone(), lives));
                        lives
                    }
                };
                if lives && !(*kept.keeper == *me && self.is_unknown(&key, &kept)) {
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
    fn is_unknown(&self, key: &Key, kept: &Kept) -> bool {
        let state = self.shared.lock();
        state.ledger.fence(key) != Some(Fence(kept.fence)) && !state.moving.contains(key)
    }
}

/// The cursor and the fields of a scan's answer.
fn page(answer: Vec<Value>) -> Result<(String, Page), Error> {
    let mut answer = answer.into_iter();
    let cursor = answer.next().as_ref().and_then(text);
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

fn read(field: &[u8], value: &[u8]) -> Option<(String, Key, Kept)> {
    let field = std::str::from_utf8(field).ok()?;
    let kept = Kept::parse(std::str::from_utf8(value).ok()?)?;
    Some((field.to_owned(), Key::from_json(field)?, kept))
}
