//! Logger of the process: one line for each event to stderr, in one write.
//!
//! A line has the fields `time`, `level`, `target` and `msg`, then the key-value pairs of the event, as logfmt or as JSON. Under
//! systemd the journal's priority stands before the line, and `time` is left to journald.

#[cfg(test)]
mod tests;

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::panic::{self, PanicHookInfo};
use std::thread;
use std::time::SystemTime;

use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};

use super::clock::Timestamp;

/// Largest text of a line, message and values together, in bytes. A backstop: callers truncate what comes from the network.
const MAX_TEXT: usize = 16 * 1024;
/// Most verbose level of libraries: from `debug` on they log header fields, and with them tokens.
const MAX_LIBRARY_LEVEL: LevelFilter = LevelFilter::Warn;
/// Crate that logs the intended end of its listener as an error; its other failures end the process.
const SILENCED_CRATE: &str = "tiny_http";
/// First part of this crate's own targets, which is left out.
const CRATE: &str = env!("CARGO_CRATE_NAME");

/// Format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// `key=value`; quotes around a value that is empty or has blanks, quotes or `=`.
    Logfmt,
    /// One JSON object; numbers and booleans are typed.
    Json,
}

/// Installs the logger. Fails if the process has one.
pub(crate) fn start(level: LevelFilter, format: LogFormat) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(Logger {
        format,
        journald: stderr_is_journald(),
        write: |line| io::stderr().write_all(line),
    }))?;
    set_level(level);
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Logs the cause of a panic, which the standard library's hook would write to stderr as lines of its own.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let cause = payload.downcast_ref::<&str>().copied();
    let cause = cause.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let location = panic.location().map(ToString::to_string);
    log::error!(thread = thread::current().name(), location, cause; "thread panicked");
}

pub(crate) fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Whether stderr is the file that `JOURNAL_STREAM` names (systemd.exec(5)).
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
        is_enabled(log::max_level(), metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = self.format_line(SystemTime::now(), record);
            // a closed stderr leaves no channel to report it
            let _ = (self.write)(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

fn is_enabled(level: LevelFilter, metadata: &Metadata<'_>) -> bool {
    let max_level = match metadata.target() {
        target if crate_relative_target(target).is_some() => level,
        target if target.split("::").next() == Some(SILENCED_CRATE) => LevelFilter::Off,
        _ => level.min(MAX_LIBRARY_LEVEL),
    };
    metadata.level() <= max_level
}

/// This crate's target without the crate's name, `main` for the root; `None` for another crate's.
fn crate_relative_target(target: &str) -> Option<&str> {
    match target.strip_prefix(CRATE)? {
        "" => Some("main"),
        rest => rest.strip_prefix("::"),
    }
}

impl Logger {
    fn format_line(&self, now: SystemTime, record: &Record<'_>) -> String {
        let (level, target) = (record.level(), record.target());
        let mut line = LineBuilder {
            format: self.format,
            line: String::with_capacity(512),
            text_left: MAX_TEXT,
            has_fields: false,
        };
        if self.journald {
            line.line.push_str(journald_priority(level));
        } else {
            line.add_text("time", format_args!("{:.3}", Timestamp(now)));
        }
        line.add_text("level", level_name(level));
        line.add_text("target", crate_relative_target(target).unwrap_or(target));
        line.add_text("msg", record.args());
        // LineBuilder returns no error
        let _ = record.key_values().visit(&mut line);
        line.finish()
    }
}

/// A line under construction.
struct LineBuilder {
    format: LogFormat,
    line: String,
    /// Bytes of text that the line may still take.
    text_left: usize,
    has_fields: bool,
}

impl LineBuilder {
    fn add_text(&mut self, name: &str, value: impl Display) {
        self.add_name(name);
        let mut text = String::new();
        let mut escaper = ControlEscaper {
            text: &mut text,
            max: self.text_left,
        };
        // a Display that fails leaves what it has written
        let _ = write!(escaper, "{value}");
        self.text_left = self.text_left.saturating_sub(text.len());
        let unquoted = !text.is_empty() && !text.contains([' ', '"', '=']);
        if self.format == LogFormat::Logfmt && unquoted {
            self.line.push_str(&text);
        } else {
            self.add_quoted(&text);
        }
    }

    /// A number or a boolean.
    fn add_literal(&mut self, name: &str, value: impl Display) {
        self.add_name(name);
        let _ = write!(self.line, "{value}");
    }

    fn add_name(&mut self, name: &str) {
        let (first, next, end) = match self.format {
            LogFormat::Logfmt => ("", " ", "="),
            LogFormat::Json => ("{\"", ",\"", "\":"),
        };
        self.line
            .push_str(if self.has_fields { next } else { first });
        self.has_fields = true;
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let name = name.chars().map(|c| if valid(c) { c } else { '_' });
        self.line.extend(name);
        self.line.push_str(end);
    }

    /// Text in quotes, as JSON and logfmt have it; no control character is in it.
    fn add_quoted(&mut self, text: &str) {
        self.line.push('"');
        for c in text.chars() {
            if matches!(c, '"' | '\\') {
                self.line.push('\\');
            }
            self.line.push(c);
        }
        self.line.push('"');
    }

    fn finish(mut self) -> String {
        self.line.push_str(match self.format {
            LogFormat::Logfmt => "\n",
            LogFormat::Json => "}\n",
        });
        self.line
    }
}

impl<'kvs> VisitSource<'kvs> for LineBuilder {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(FieldVisitor {
            line: self,
            name: key.as_str(),
        })
    }
}

/// Adds one field by its type; an absent value (`None`) adds none.
struct FieldVisitor<'a> {
    line: &'a mut LineBuilder,
    name: &'a str,
}

impl<'v> VisitValue<'v> for FieldVisitor<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        // JSON has no NaN and no infinity
        let is_number = value.to_i128().is_some() || value.to_f64().is_some_and(f64::is_finite);
        if is_number || value.to_bool().is_some() {
            self.line.add_literal(self.name, value);
        } else {
            self.line.add_text(self.name, value);
        }
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
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

/// Prefix that journald reads as the priority (sd-daemon(3)).
fn journald_priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// The text with every character escaped that can end a line, move a terminal's cursor or change the direction of text.
pub(crate) fn escape_control_chars(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let _ = ControlEscaper {
        text: &mut escaped,
        max: MAX_TEXT,
    }
    .write_str(text);
    escaped
}

/// Escapes control characters, and truncates at `max` bytes.
struct ControlEscaper<'a> {
    text: &'a mut String,
    max: usize,
}

impl fmt::Write for ControlEscaper<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.text.len() >= self.max {
                self.text.push('…');
                return Err(fmt::Error);
            }
            if c.is_control() || is_separator_or_bidi(c) {
                self.text.extend(c.escape_default());
            } else {
                self.text.push(c);
            }
        }
        Ok(())
    }
}

/// Line and paragraph separators, and characters that reorder the text after them (Unicode, UAX #9).
fn is_separator_or_bidi(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}
