use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
fn dates_are_right_around_leap_days_and_ends_of_centuries() {
    for (seconds, date) in [
        (951_782_400, "2000-02-29"),
        (951_868_800, "2000-03-01"),
        (1_709_164_800, "2024-02-29"),
        (1_735_603_200, "2024-12-31"),
        (1_735_689_600, "2025-01-01"),
        (4_107_456_000, "2100-02-28"),
        (4_107_542_400, "2100-03-01"),
        (253_402_214_400, "9999-12-31"),
    ] {
        assert_eq!(
            Timestamp(at(seconds, 999)).to_string(),
            format!("{date}T00:00:00.999Z")
        );
    }
    let before = UNIX_EPOCH - Duration::from_secs(1);
    assert_eq!(Timestamp(before).to_string(), "1970-01-01T00:00:00.000Z");
}

#[test]
fn every_day_of_two_centuries_follows_the_one_before() {
    let lengths = |year: u64| {
        let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        [
            31,
            if leap { 29 } else { 28 },
            31,
            30,
            31,
            30,
            31,
            31,
            30,
            31,
            30,
            31,
        ]
    };
    let mut days = 0;
    for year in 1970..2170 {
        for (month, length) in (1..).zip(lengths(year)) {
            for day in 1..=length {
                assert_eq!(civil(days), (year, month, day));
                days += 1;
            }
        }
    }
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
