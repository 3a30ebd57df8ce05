//! Log lines to stderr: `2026-11-21T20:00:00.123Z INFO  target message`, one write each.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
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

/// Starts logging. Fails if something logs already.
pub fn start(level: LevelFilter) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(Logger {
        level,
        out: |line| io::stderr().write_all(line),
    }))?;
    log::set_max_level(level);
    Ok(())
}

struct Logger {
    level: LevelFilter,
    out: fn(&[u8]) -> io::Result<()>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let most = match metadata.target() {
            target if own(target).is_some() => self.level,
            target if target.split("::").next() == Some(HUSHED) => LevelFilter::Off,
            _ => self.level.min(FOREIGN),
        };
        metadata.level() <= most
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(
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

/// The rest of a target of ours, `main` for the root; none of another crate's.
fn own(target: &str) -> Option<&str> {
    match target.strip_prefix(CRATE)? {
        "" => Some("main"),
        rest => rest.strip_prefix("::"),
    }
}

fn line(now: SystemTime, level: Level, target: &str, message: &fmt::Arguments<'_>) -> String {
    let mut line = String::with_capacity(256);
    let target = own(target).unwrap_or(target);
    // a String takes whatever it is given, and is left as it is if a Display fails
    let _ = write!(line, "{:.3} {level:<5} ", Timestamp(now));
    let _ = write!(Escaping(&mut line), "{target} {message}");
    line.push('\n');
    line
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
