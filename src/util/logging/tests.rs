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
const JSON_LOGGER: Logger = Logger {
    format: LogFormat::Json,
    ..LOGGER
};

fn line(logger: &Logger, level: Level, target: &str, text: &str) -> String {
    line_with(logger, level, target, text, &[])
}

fn line_with(
    logger: &Logger,
    level: Level,
    target: &str,
    text: &str,
    pairs: &[(&str, kv::Value<'_>)],
) -> String {
    logger.format_line(
        at(1_795_291_200, 123),
        &Record::builder()
            .level(level)
            .target(target)
            .args(format_args!("{text}"))
            .key_values(&pairs)
            .build(),
    )
}

fn message(text: &str) -> String {
    line(
        &LOGGER,
        Level::Info,
        "livekit_token_service::exchange",
        text,
    )
}

#[test]
fn a_line_has_time_level_target_and_message() {
    let target = "livekit_token_service::matrix::discovery";
    assert_eq!(
        line(&LOGGER, Level::Info, target, "found"),
        "time=2026-11-21T20:00:00.123Z level=info target=matrix::discovery msg=found\n"
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
fn key_value_pairs_become_typed_fields() {
    let error = io::Error::other("no \"x\"\n");
    let pairs: &[(&str, kv::Value<'_>)] = &[
        ("user", "@a:b".into()),
        ("count", 3_usize.into()),
        ("delta", (-2_i32).into()),
        ("share", 0.5.into()),
        ("ratio", f64::NAN.into()),
        ("full", true.into()),
        ("room", kv::ToValue::to_value(&None::<&str>)),
        ("cause", kv::Value::from_display(&error)),
        ("empty", "".into()),
        ("a b\n", "1=2".into()),
    ];
    let target = "livekit_token_service::exchange";
    let logfmt = line_with(&LOGGER, Level::Info, target, "token issued", pairs);
    let expected = r#" msg="token issued" user=@a:b count=3 delta=-2 share=0.5 ratio=NaN full=true cause="no \"x\"\\n" empty="" a_b_="1=2""#;
    assert!(logfmt.ends_with(&format!("{expected}\n")), "{logfmt}");
    let json = line_with(&JSON_LOGGER, Level::Info, target, "token issued", pairs);
    let expected = r#","msg":"token issued","user":"@a:b","count":3,"delta":-2,"share":0.5,"ratio":"NaN","full":true,"cause":"no \"x\"\\n","empty":"","a_b_":"1=2"}"#;
    assert!(json.ends_with(&format!("{expected}\n")), "{json}");
    let fields: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(fields["count"], 3);
}

#[test]
fn a_message_is_one_field() {
    for (text, logfmt, json) in [
        ("a b=c", r#"msg="a b=c""#, r#""msg":"a b=c"}"#),
        (
            r#"write "x" \n"#,
            r#"msg="write \"x\" \\n""#,
            r#""msg":"write \"x\" \\n"}"#,
        ),
        ("", "msg=\"\"", r#""msg":""}"#),
    ] {
        let found = message(text);
        assert!(found.ends_with(&format!(" {logfmt}\n")), "{found}");
        let found = line(&JSON_LOGGER, Level::Debug, "livekit_token_service", text);
        assert!(found.ends_with(&format!("{json}\n")), "{found}");
        let fields: serde_json::Value = serde_json::from_str(&found).unwrap();
        assert_eq!(fields["time"], "2026-11-21T20:00:00.123Z");
        assert_eq!(
            (&fields["level"], &fields["target"]),
            (&"debug".into(), &"main".into())
        );
    }
}

#[test]
fn the_journal_receives_a_priority_and_no_time() {
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
fn control_characters_are_escaped() {
    for (text, escaped) in [
        ("a\r\nb", r"a\r\nb"),
        ("\u{1b}[2Ja", r"\u{1b}[2Ja"),
        ("a\0b\u{7f}\u{85}", r"a\u{0}b\u{7f}\u{85}"),
        (
            "a\u{2028}b\u{202e}c\u{2066}",
            r"a\u{2028}b\u{202e}c\u{2066}",
        ),
        ("bücher 日本 \\n \"q\"", "bücher 日本 \\n \"q\""),
    ] {
        assert_eq!(escape_control_chars(text), escaped);
        let line = message(text);
        assert!(line.contains(" msg="), "{line:?}");
        assert_eq!(line.chars().filter(|c| c.is_control()).count(), 1);
    }
}

#[test]
fn a_line_is_bounded_and_keeps_its_fields() {
    let text = "ü\n".repeat(MAX_TEXT);
    let found = message(&text);
    // quotes take at most as much again
    assert!(found.len() < 2 * MAX_TEXT + 128);
    assert!(found.ends_with("…\"\n") || found.ends_with("…\n"));
    let pairs: &[(&str, kv::Value<'_>)] = &[
        ("long", text.as_str().into()),
        ("room", "r".into()),
        ("count", 7.into()),
    ];
    let found = line_with(&JSON_LOGGER, Level::Info, "x", &text[..9], pairs);
    assert!(found.len() < 2 * MAX_TEXT + 256);
    let fields: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert!(fields["long"].as_str().unwrap().ends_with('…'));
    assert_eq!(
        (&fields["room"], &fields["count"]),
        (&"…".into(), &7.into())
    );
}

#[test]
fn libraries_log_from_warn_on_and_a_similar_crate_name_is_a_library() {
    let logs = |level, target: &str, of| {
        is_enabled(level, &Metadata::builder().level(of).target(target).build())
    };
    let own = "livekit_token_service::server::listener";
    assert!(logs(LevelFilter::Trace, own, Level::Trace));
    assert!(logs(
        LevelFilter::Trace,
        "livekit_token_service",
        Level::Debug
    ));
    assert!(!logs(LevelFilter::Info, own, Level::Debug));
    for silenced in ["tiny_http", "tiny_http::util"] {
        assert!(
            !logs(LevelFilter::Trace, silenced, Level::Error),
            "{silenced}"
        );
    }
    for library in ["ureq::run", "rustls::client", "livekit_token_services", ""] {
        assert!(!logs(LevelFilter::Trace, library, Level::Info), "{library}");
        assert!(logs(LevelFilter::Trace, library, Level::Warn), "{library}");
        assert!(!logs(LevelFilter::Error, library, Level::Warn), "{library}");
    }
}

#[test]
fn each_line_is_one_write_and_a_closed_stderr_is_no_error() {
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
