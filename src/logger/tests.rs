use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn at(seconds: u64, millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis)
}

fn message(text: &str) -> String {
    line(
        at(0, 0),
        Level::Info,
        "livekit_token_service::exchange",
        &format_args!("{text}"),
    )
}

#[test]
fn a_line_has_time_level_target_and_message() {
    let target = "livekit_token_service::matrix::discovery";
    assert_eq!(
        line(
            at(1_795_291_200, 123),
            Level::Info,
            target,
            &format_args!("found server={}", "a.org")
        ),
        "2026-11-21T20:00:00.123Z INFO  matrix::discovery found server=a.org\n"
    );
    assert_eq!(
        line(
            at(0, 0),
            Level::Error,
            "livekit_token_service",
            &format_args!("x")
        ),
        "1970-01-01T00:00:00.000Z ERROR main x\n"
    );
    assert!(
        line(at(0, 0), Level::Warn, "rustls::conn", &format_args!("x"))
            .ends_with("WARN  rustls::conn x\n")
    );
}

#[test]
fn nobody_can_forge_a_line() {
    for (text, shown) in [
        ("a\r\nb", r"a\r\nb"),
        ("\u{1b}[2Ja", r"\u{1b}[2Ja"),
        ("a\0b\u{7f}\u{85}", r"a\u{0}b\u{7f}\u{85}"),
        (
            "a\u{2028}b\u{202e}c\u{2066}",
            r"a\u{2028}b\u{202e}c\u{2066}",
        ),
        ("bücher 日本 \\n \"q\"", "bücher 日本 \\n \"q\""),
    ] {
        assert_eq!(escaped(text), shown);
        let line = message(text);
        assert!(line.ends_with(&format!(" exchange {shown}\n")), "{line:?}");
        assert_eq!(line.chars().filter(|c| c.is_control()).count(), 1);
    }
}

#[test]
fn a_line_has_an_end() {
    let line = message(&"ü\n".repeat(MAX_LINE));
    assert!(line.len() < MAX_LINE + 32);
    assert!(line.ends_with("…\n"));
}

#[test]
fn libraries_are_heard_from_warn_on_and_lookalikes_are_libraries() {
    let logger = |level| Logger {
        level,
        out: |_| Ok(()),
    };
    let heard = |level, target: &str, of| {
        logger(level).enabled(&Metadata::builder().level(of).target(target).build())
    };
    let ours = "livekit_token_service::http::listener";
    assert!(heard(LevelFilter::Trace, ours, Level::Trace));
    assert!(heard(
        LevelFilter::Trace,
        "livekit_token_service",
        Level::Debug
    ));
    assert!(!heard(LevelFilter::Info, ours, Level::Debug));
    for hushed in ["tiny_http", "tiny_http::util"] {
        assert!(!heard(LevelFilter::Trace, hushed, Level::Error), "{hushed}");
    }
    for foreign in ["ureq::run", "rustls::client", "livekit_token_services", ""] {
        assert!(
            !heard(LevelFilter::Trace, foreign, Level::Info),
            "{foreign}"
        );
        assert!(heard(LevelFilter::Trace, foreign, Level::Warn), "{foreign}");
        assert!(
            !heard(LevelFilter::Error, foreign, Level::Warn),
            "{foreign}"
        );
    }
}

#[test]
fn each_line_is_one_write_and_a_closed_stderr_is_survived() {
    static WRITES: AtomicUsize = AtomicUsize::new(0);
    let logger = Logger {
        level: LevelFilter::Info,
        out: |line| {
            assert!(line.ends_with(b"\n"));
            WRITES.fetch_add(1, Ordering::SeqCst);
            Err(io::ErrorKind::BrokenPipe.into())
        },
    };
    for level in [Level::Info, Level::Debug, Level::Error] {
        logger.log(
            &Record::builder()
                .level(level)
                .target("livekit_token_service")
                .args(format_args!("two\nlines"))
                .build(),
        );
    }
    assert_eq!(WRITES.load(Ordering::SeqCst), 2);
}
