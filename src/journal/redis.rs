//! Leaves in a Redis that several of us share: each leave has one keeper at a time, and another one soon after its keeper has died.
//!
//! Who keeps what is a matter between each of us and Redis; we do not talk to each other. A replica gives a sign of life every
//! second; without one for 5 s the others may take what it kept, and by its own clock it has stopped a second earlier. What it
//! then finds under a later fence is no longer its own.

mod address;
mod connection;
mod keeper;
mod script;
mod shared;
mod writing;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::warn;
use redis::{Cmd, Value};
use rustls::ClientConfig;

use self::connection::{Answer, Failure, text};
use self::keeper::Keeper;
use self::script::{Found, Kept, Touch};
use self::shared::Shared;
use super::{Error, Fence, Hold, Journal, Key, fits};
use crate::net::tls::{Roots, Verification, client_config};

pub use self::address::Address;

/// How often the whole hash is looked through though no replica is known to have died: for what a Redis that lost its latest
/// writes has left without a keeper.
const SWEEP: Duration = Duration::from_secs(60);
/// As [`SWEEP`], after a call that may have been carried out though it failed.
const SWEEP_SOON: Duration = Duration::from_secs(1);

/// A journal in Redis. Calls wait for a second at the longest if Redis is silent, and not at all once it is known to be gone.
pub struct Redis {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Redis {
    /// Connects, which may take some seconds. This does not fail: what is amiss is logged, told by [`Journal::trouble`], and tried
    /// again every other second.
    pub fn open(address: Address, roots: &Roots) -> Self {
        let tls: Arc<ClientConfig> = client_config(roots, Verification::On);
        let shared = Arc::new(Shared::new(address.to_string()));
        let mut keeper = Keeper::new(address, tls, Arc::clone(&shared));
        keeper.turn(Instant::now());
        let thread = thread::Builder::new().name("journal".into());
        let thread = match thread.spawn(move || keeper.run()) {
            Ok(thread) => Some(thread),
            Err(reason) => {
                shared.broken(&format!("no thread for it: {reason}"));
                None
            }
        };
        Self {
            shared,
            thread: Mutex::new(thread),
        }
    }

    fn ask(&self, command: &Cmd) -> Result<Value, Error> {
        self.shared.ask(|connection| connection.ask(command))
    }

    fn ask_all(&self, commands: &[Cmd]) -> Result<Vec<Answer>, Error> {
        self.shared.ask(|connection| connection.ask_all(commands))
    }

    /// A call that gives us a leave: it may be carried out even if it fails, and then the leave is found again soon.
    fn fetch<T>(
        &self,
        key: &Key,
        call: impl FnOnce(&Arc<str>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let me = {
            let mut state = self.shared.lock();
            state.moving.push(key.clone());
            state.me.clone()
        };
        let outcome = call(&me);
        let mut state = self.shared.lock();
        state.has_arrived(key);
        if outcome.is_err() {
            state.sweep = Some(Instant::now() + SWEEP_SOON);
        }
        outcome
    }

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
    fn adopt_all(&self, most: usize, sweep: bool) -> Result<(Vec<Adopted>, bool), Error> {
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

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({})", self.shared.name)
    }
}

impl Journal for Redis {
    fn put(&self, key: &Key, record: &str) -> Result<Fence, Error> {
        fits(record)?;
        self.fetch(key, |me| {
            let answer = self.ask(&script::put(key, me, record))?;
            let fence = text(&answer).and_then(|fence| fence.parse().ok());
            let fence = Fence(fence.ok_or_else(|| Error("Redis gave no fence".into()))?);
            self.shared.keep(me, key, fence, record);
            Ok(fence)
        })
    }

    fn update(&self, key: &Key, fence: Fence, record: &str) -> Result<Hold, Error> {
        fits(record)?;
        Ok(self.shared.change(key, fence, Some(record)))
    }

    fn remove(&self, key: &Key, fence: Fence) -> Result<Hold, Error> {
        Ok(self.shared.change(key, fence, None))
    }

    fn sync(&self) -> Result<(), Error> {
        match self
            .shared
            .ask(|connection| self.shared.write(connection))?
        {
            true => Ok(()),
            false => {
                self.shared.renew_now();
                Err(Error("Redis has lost what it had".into()))
            }
        }
    }

    fn hold(&self, key: &Key, fence: Fence) -> Result<Hold, Error> {
        let Some(me) = self.shared.holds(key, fence)? else {
            return Ok(Hold::Lost);
        };
        // if Redis is gone nobody knows: another of us may have taken it for a webhook, though our lease has not lapsed
        let answer = self.ask(&script::touch(key, &me, fence, Touch::Look))?;
        match Found::of(&answer) {
            Some(Found::Lost | Found::Absent) => {
                self.shared.lock().ledger.lose(key, fence);
                Ok(Hold::Lost)
            }
            Some(Found::Forgotten) => {
                self.shared.renew_now();
                Err(Error("Redis has lost what it had".into()))
            }
            // our clock may have stood still meanwhile
            Some(Found::Ours) => {
                let held = self.shared.holds(key, fence)?.is_some();
                Ok(if held { Hold::Ours } else { Hold::Lost })
            }
            None => Err(Error(
                "Redis answered a question with something else".into(),
            )),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn take(&self, key: &Key) -> Result<Option<(Fence, String)>, Error> {
        {
            let state = self.shared.lock();
            if state.ledger.has(key) || state.moving.contains(key) {
                return Ok(None);
            }
        }
        self.fetch(key, |me| {
            let value = self.ask(&script::take(key, me))?;
            let Some(kept) = text(&value).and_then(|value| Kept::parse(&value)) else {
                return Ok(None);
            };
            self.shared.keep(me, key, Fence(kept.fence), &kept.record);
            Ok(Some((Fence(kept.fence), kept.record)))
        })
    }

    fn adopt(&self, most: usize) -> Result<Vec<(Key, Fence, String)>, Error> {
        let now = Instant::now();
        let swept = {
            let mut state = self.shared.lock();
            let due = state.sweep.is_none_or(|sweep| now >= sweep);
            due.then(|| state.sweep.replace(now + SWEEP))
        };
        let adopted = self.adopt_all(most, swept.is_some());
        if !matches!(adopted, Ok((_, true))) {
            self.shared.lock().sweep = None;
        }
        adopted.map(|(adopted, _)| adopted)
    }

    fn set_aside(&self, key: &Key, fence: Fence, why: &str) -> Result<Hold, Error> {
        let (me, record) = {
            let state = self.shared.lock();
            (state.me.clone(), state.ledger.record(key, fence))
        };
        let Some(record) = record else {
            return Ok(Hold::Lost);
        };
        warn!("a record of the journal is set aside: {why}");
        let value = script::value(&me, fence, &record);
        self.ask(&script::set_aside(
            key.to_json().as_bytes(),
            value.as_bytes(),
        ))?;
        self.shared.lock().ledger.lose(key, fence);
        Ok(Hold::Ours)
    }

    fn renew(&self) -> Result<(), Error> {
        let state = self.shared.lock();
        match state.is_leased(Instant::now()) {
            true => Ok(()),
            false => Err(Error("the lease in Redis has lapsed".into())),
        }
    }

    fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    fn close(&self) {
        self.shared.close();
        let thread = self.thread.lock().map(|mut thread| thread.take());
        if let Ok(Some(thread)) = thread {
            // it has nothing to say
            let _ = thread.join();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.close();
    }
}

type Adopted = (Key, Fence, String);
type Page = Vec<(Vec<u8>, Vec<u8>)>;

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

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self(format!("Redis: {failure}"))
    }
}
