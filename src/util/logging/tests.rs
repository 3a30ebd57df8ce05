use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn at(seconds: u64, millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis)
}

const LOGGER: Logger = Logger {
    format: LogFormat::Logfmt,
    journald: false,
    write: |_| Ok(()),
};

fn line(logger: &Logger, level: Level, target: &str, text: &str) -> String {
    let message = format_args!("{text}");
    logger.format_line(at(1_795_291_200, 123), level, target, &message)
}

fn message(text: &str) -> String {
    line(&LOGGER, Level::Info, "crate::exchange", text)
}

#[test]
fn a_line_has_time_level_target_and_message() {
    let target = "crate::matrix::discovery";
    assert_eq!(
        line(&LOGGER, Level::Info, target, "found server=a.org"),
        "time=2026-11-21T20:00:00.123Z level=info target=matrix::discovery msg=found server=a.org\n"
    );
    assert_eq!(
        line(&LOGGER, Level::Error, "livekit_token_service", "it is so"),
        "time=2026-11-21T20:00:00.123Z level=error target=main msg=\"it is so\"\n"
    );
    assert!(
        line(&LOGGER, Level::Warn, "rustls::conn", "x")
            .ends_with("level=warn target=rustls::conn msg=x\n")
    );
}

#[test]
fn fields_are_the_pairs_at_the_end() {
    for (text, logfmt, json) in [
        (
            r#"refused user="@a:b" cause="no \"x\" in \u{1b}" ms=3"#,
            r#"msg=refused user="@a:b" cause="no \"x\" in \u{1b}" ms=3"#,
            r#""msg":"refused","user":"@a:b","cause":"no \"x\" in \\u{1b}","ms":"3"}"#,
        ),
        (
            "write A=b or c=d, says \"he\"",
            r#"msg="write A=b or c=d, says \"he\"""#,
            r#""msg":"write A=b or c=d, says \"he\""}"#,
        ),
        ("a=1 b=", "msg=\"\" a=1 b=", r#""msg":"","a":"1","b":""}"#),
        (
            r#"x a="1" b="2"3"#,
            r#"msg="x a=\"1\" b=\"2\"3""#,
            r#""msg":"x a=\"1\" b=\"2\"3"}"#,
        ),
        (
            r#"url u=wss://h?a=b"#,
            r#"msg=url u=wss://h?a=b"#,
            r#""msg":"url","u":"wss://h?a=b"}"#,
        ),
        ("", "msg=\"\"", r#""msg":""}"#),
    ] {
        let line = message(text);
        assert!(line.ends_with(&format!(" {logfmt}\n")), "{line}");
        let logger = Logger {
            format: LogFormat::Json,
            ..LOGGER
        };
        let message = format_args!("{text}");
        let line = logger.format_line(at(0, 0), Level::Debug, "livekit_token_service", &message);
        assert!(line.ends_with(&format!("{json}\n")), "{line}");
        let fields: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(fields["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(
            (&fields["level"], &fields["target"]),
            (&"debug".into(), &"main".into())
        );
    }
}

#[test]
fn the_journal_gets_a_priority_and_no_time() {
    for format in [LogFormat::Logfmt, LogFormat::Json] {
        let logger = Logger {
            format,
            journald: true,
            ..LOGGER
        };
        for (level, start) in [
            (Level::Error, "<3>"),
            (Level::Warn, "<4>"),
            (Level::Info, "<6>"),
            (Level::Debug, "<7>"),
            (Level::Trace, "<7>"),
        ] {
            let line = line(&logger, level, "livekit_token_service", "x");
            assert!(line.starts_with(start) && !line.contains("time"), "{line}");
        }
    }
    assert!(matches_journal_stream("9:1234", 9, 1234));
    for other in [
        "", "9", "9:", ":1234", "9:1235", "8:1234", "9:1234:1", "x:y",
    ] {
        assert!(!matches_journal_stream(other, 9, 1234), "{other}");
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
        assert_eq!(escape_control_chars(text), shown);
        let line = message(text);
        assert!(line.contains(" msg="), "{line:?}");
        assert_eq!(line.chars().filter(|c| c.is_control()).count(), 1);
    }
}

#[test]
fn a_line_has_an_end() {
    let line = message(&"ü\n".repeat(MAX_LINE));
    // quotes may take the room of as many more
    assert!(line.len() < 2 * MAX_LINE + 128);
    assert!(line.ends_with("…\"\n") || line.ends_with("…\n"));
}

#[test]
fn libraries_are_heard_from_warn_on_and_lookalikes_are_libraries() {
    let heard = |level, target: &str, of| {
        enabled(level, &Metadata::builder().level(of).target(target).build())
    };
    let ours = "crate::server::listener";
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
        write: |line| {
            assert!(line.ends_with(b"\n"));
            WRITES.fetch_add(1, Ordering::SeqCst);
            Err(io::ErrorKind::BrokenPipe.into())
        },
        ..LOGGER
    };
    set_level(LevelFilter::Info);
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
