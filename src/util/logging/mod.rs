//! Log lines to stderr, one write each: logfmt, `time=2026-11-21T20:00:00.123Z level=info target=http::route msg=granted user=…`,
//! or JSON with the same fields. Under systemd the priority stands before the line and journald keeps the time.

mod fields;
#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};

use super::clock::Timestamp;

/// Longest line in bytes. What strangers send is cut to less before it is logged; this is the end of all mistakes.
const MAX_LINE: usize = 16 * 1024;
/// The most that libraries may say: from `debug` on they log headers, and with them tokens.
const MAX_LIBRARY_LEVEL: LevelFilter = LevelFilter::Warn;
/// Reports as an error that its listener is closed, which the gate does on purpose; what else befalls it ends the service.
const SILENCED_CRATE: &str = "tiny_http";
/// What our own targets begin with; it goes without saying.
const CRATE: &str = env!("CARGO_CRATE_NAME");

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value`, values in quotes where they have blanks.
    Logfmt,
    /// One JSON object; all values are strings.
    Json,
}

/// Starts logging. Fails if something logs already.
pub(crate) fn start(level: LevelFilter, format: LogFormat) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(Logger {
        format,
        journald: stderr_is_journald(),
        write: |line| io::stderr().write_all(line),
    }))?;
    set_level(level);
    Ok(())
}

/// Changes what is logged from now on.
pub(crate) fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Whether journald reads our stderr: it says which file that is (systemd.exec(5), `JOURNAL_STREAM`).
fn stderr_is_journald() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let metadata = std::fs::metadata("/proc/self/fd/2");
    metadata.is_ok_and(|file| matches_journal_stream(&stream, file.dev(), file.ino()))
}

fn matches_journal_stream(stream: &str, device: u64, inode: u64) -> bool {
    let parts = stream.split_once(':');
    let parts = parts.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    parts == Some((device, inode))
}

struct Logger {
    format: LogFormat,
    journald: bool,
    write: fn(&[u8]) -> io::Result<()>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        enabled(log::max_level(), metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = self.format_line(
                SystemTime::now(),
                record.level(),
                record.target(),
                record.args(),
            );
            // nobody is left to tell that stderr is closed
            let _ = (self.write)(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

fn enabled(level: LevelFilter, metadata: &Metadata<'_>) -> bool {
    let most = match metadata.target() {
        target if crate_relative_target(target).is_some() => level,
        target if target.split("::").next() == Some(SILENCED_CRATE) => LevelFilter::Off,
        _ => level.min(MAX_LIBRARY_LEVEL),
    };
    metadata.level() <= most
}

/// The rest of a target of ours, `main` for the root; none of another crate's.
fn crate_relative_target(target: &str) -> Option<&str> {
    match target.strip_prefix(CRATE)? {
        "" => Some("main"),
        rest => rest.strip_prefix("::"),
    }
}

impl Logger {
    fn format_line(
        &self,
        now: SystemTime,
        level: Level,
        target: &str,
        message: &fmt::Arguments<'_>,
    ) -> String {
        let mut text = String::with_capacity(256);
        // a String takes whatever it is given, and is left as it is if a Display fails
        let _ = write!(LineEscaper(&mut text), "{message}");
        let (message, fields) = fields::split_fields(&text);
        let time = format!("{:.3}", Timestamp(now));
        let mut standing = vec![
            ("time", time.as_str()),
            ("level", level_name(level)),
            ("target", crate_relative_target(target).unwrap_or(target)),
            ("msg", message),
        ];
        let mut line = String::with_capacity(text.len() + 128);
        if self.journald {
            // it keeps the time itself
            standing.remove(0);
            line.push_str(journald_priority(level));
        }
        match self.format {
            LogFormat::Logfmt => {
                for (name, value) in standing {
                    fields::add_logfmt(&mut line, name, value);
                    line.push(' ');
                }
                line.push_str(fields);
                line.truncate(line.trim_end().len());
            }
            LogFormat::Json => {
                let standing = standing
                    .into_iter()
                    .map(|(name, value)| (name, value.into()));
                for (index, (name, value)) in
                    standing.chain(fields::parse_fields(fields)).enumerate()
                {
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
fn journald_priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Text in which no character can end a line, move the cursor or turn the direction of writing.
pub(crate) fn escape_control_chars(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let _ = LineEscaper(&mut escaped).write_str(text);
    escaped
}

/// Writes no more than a line, and no character that could forge another.
struct LineEscaper<'a>(&'a mut String);

impl fmt::Write for LineEscaper<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() >= MAX_LINE {
                self.0.push('…');
                return Err(fmt::Error);
            }
            if c.is_control() || is_separator_or_bidi(c) {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

/// Separators of lines and paragraphs, and what reorders the text that follows (Unicode, UAX #9).
fn is_separator_or_bidi(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}
