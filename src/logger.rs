//! Log lines to stderr, one write each: logfmt, `time=2026-11-21T20:00:00.123Z level=info target=http::route msg=granted user=…`,
//! or JSON with the same fields. Under systemd the priority stands before the line and journald keeps the time.

mod fields;

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};

use crate::clock::Timestamp;

/// Longest line in bytes. What strangers send is cut to less before it is logged; this is the end of all mistakes.
const MAX_LINE: usize = 16 * 1024;
/// The most that libraries may say: from `debug` on they log headers, and with them tokens.
const FOREIGN: LevelFilter = LevelFilter::Warn;
/// Reports as an error that its listener is closed, which the gate does on purpose; what else befalls it ends the service.
const HUSHED: &str = "tiny_http";
/// What our own targets begin with; it goes without saying.
const CRATE: &str = env!("CARGO_CRATE_NAME");

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `key=value`, values in quotes where they have blanks.
    Logfmt,
    /// One JSON object; all values are strings.
    Json,
}

/// Starts logging. Fails if something logs already.
pub fn start(level: LevelFilter, format: Format) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(Logger {
        format,
        journal: stderr_is_the_journal(),
        out: |line| io::stderr().write_all(line),
    }))?;
    set_level(level);
    Ok(())
}

/// Changes what is logged from now on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Whether journald reads our stderr: it says which file that is (systemd.exec(5), `JOURNAL_STREAM`).
fn stderr_is_the_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let metadata = std::fs::metadata("/proc/self/fd/2");
    metadata.is_ok_and(|file| is_stream(&stream, file.dev(), file.ino()))
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    let parts = stream.split_once(':');
    let parts = parts.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    parts == Some((device, inode))
}

struct Logger {
    format: Format,
    journal: bool,
    out: fn(&[u8]) -> io::Result<()>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        enabled(log::max_level(), metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = self.line(
                SystemTime::now(),
                record.level(),
                record.target(),
                record.args(),
            );
            // nobody is left to tell that stderr is closed
            let _ = (self.out)(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

fn enabled(level: LevelFilter, metadata: &Metadata<'_>) -> bool {
    let most = match metadata.target() {
        target if own(target).is_some() => level,
        target if target.split("::").next() == Some(HUSHED) => LevelFilter::Off,
        _ => level.min(FOREIGN),
    };
    metadata.level() <= most
}

/// The rest of a target of ours, `main` for the root; none of another crate's.
fn own(target: &str) -> Option<&str> {
    match target.strip_prefix(CRATE)? {
        "" => Some("main"),
        rest => rest.strip_prefix("::"),
    }
}

impl Logger {
    fn line(
        &self,
        now: SystemTime,
        level: Level,
        target: &str,
        message: &fmt::Arguments<'_>,
    ) -> String {
        let mut text = String::with_capacity(256);
        // a String takes whatever it is given, and is left as it is if a Display fails
        let _ = write!(Escaping(&mut text), "{message}");
        let (message, fields) = fields::split(&text);
        let time = format!("{:.3}", Timestamp(now));
        let mut standing = vec![
            ("time", time.as_str()),
            ("level", level_name(level)),
            ("target", own(target).unwrap_or(target)),
            ("msg", message),
        ];
        let mut line = String::with_capacity(text.len() + 128);
        if self.journal {
            // it keeps the time itself
            standing.remove(0);
            line.push_str(priority(level));
        }
        match self.format {
            Format::Logfmt => {
                for (name, value) in standing {
                    fields::add_logfmt(&mut line, name, value);
                    line.push(' ');
                }
                line.push_str(fields);
                line.truncate(line.trim_end().len());
            }
            Format::Json => {
                let standing = standing
                    .into_iter()
                    .map(|(name, value)| (name, value.into()));
                for (index, (name, value)) in standing.chain(fields::pairs(fields)).enumerate() {
                    line.push(if index == 0 { '{' } else { ',' });
                    fields::add_quoted(&mut line, name);
                    line.push(':');
                    fields::add_quoted(&mut line, &value);
                }
                line.push('}');
            }
        }
        line.push('\n');
        line
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// What journald takes for the priority (sd-daemon(3)).
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Text in which no character can end a line, move the cursor or turn the direction of writing.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let _ = Escaping(&mut escaped).write_str(text);
    escaped
}

/// Writes no more than a line, and no character that could forge another.
struct Escaping<'a>(&'a mut String);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() >= MAX_LINE {
                self.0.push('…');
                return Err(fmt::Error);
            }
            if c.is_control() || is_directional(c) {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

/// Separators of lines and paragraphs, and what reorders the text that follows (Unicode, UAX #9).
fn is_directional(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

#[cfg(test)]
mod tests;
