use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::config::Config;
use crate::config::tests::{SECRET, TempDir, environment, errors, row};

#[test]
fn values_that_are_no_text_or_too_long_are_errors_of_their_variable_alone() {
    let mut env = environment(&[]);
    for name in ["LIVEKIT_URL", "LIVEKIT_SECRET"] {
        let bytes = (name, OsString::from_vec(vec![0xff, b'x']));
        let all = env.iter().map(|(n, v)| (n.to_owned(), v.to_owned()));
        env = all.chain([(bytes.0.to_owned(), bytes.1)]).collect();
    }
    assert_eq!(
        errors(&env),
        [
            "LIVEKIT_URL: expected UTF-8, found other bytes",
            "LIVEKIT_SECRET: expected UTF-8, found other bytes"
        ]
    );
    let long = "a".repeat(MAX_VALUE_BYTES + 1);
    assert_eq!(
        errors(&environment(&[("LIVEKIT_FULL_ACCESS_HOMESERVERS", &long)])),
        ["LIVEKIT_FULL_ACCESS_HOMESERVERS: expected at most 64 KiB, found 65537 bytes"]
    );
    let bytes = OsString::from_vec(vec![0xff]);
    let named = [("LIVEKIT_WHATEVER_ELSE".to_owned(), bytes)];
    let (config, report) = Config::read_with_defaults(
        &environment(&[])
            .iter()
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .chain(named)
            .collect(),
    );
    assert!(config.is_ok());
    assert_eq!(
        report.warnings().last().unwrap(),
        "LIVEKIT_WHATEVER_ELSE is not known"
    );
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let scratch = TempDir::new();
    let file = |name: &str, content: &[u8]| {
        let path = scratch.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let directory = scratch.path().to_str().unwrap().to_owned();
    for (path, end) in [
        (
            "/nowhere/x".to_owned(),
            "found \"/nowhere/x\": No such file or directory (os error 2)",
        ),
        (directory, "Is a directory (os error 21)"),
        (file("empty", b" \n"), "empty\" empty"),
        (file("bytes", b"\xff"), "bytes\""),
        (
            file("large", &[b'a'; MAX_VALUE_BYTES + 1]),
            "large\" larger",
        ),
        ("/dev/zero".to_owned(), "\"/dev/zero\" larger"),
        (
            SECRET.to_owned(),
            "found a relative path of 32 characters: No such file or directory (os error 2)",
        ),
    ] {
        let env = [
            ("LIVEKIT_URL", "ws://h"),
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_SECRET_FILE", &path),
        ];
        let errors = errors(&env.into_iter().collect());
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].starts_with("LIVEKIT_SECRET_FILE: expected ") && errors[0].ends_with(end),
            "{}",
            errors[0]
        );
    }
}

#[test]
fn credentials_stand_in_for_variables_that_are_not_set() {
    let scratch = TempDir::new();
    let directory = scratch.path().to_str().unwrap();
    let put = |name: &str, content: &str| fs::write(scratch.path().join(name), content).unwrap();
    put("LIVEKIT_KEY", "APIc\n");
    put("livekit-secret", &format!("{SECRET}\n"));
    put("livekit-url", "ws://from-credentials");
    let given = [
        ("CREDENTIALS_DIRECTORY", directory),
        ("LIVEKIT_URL", "ws://from-variable"),
    ];
    let (config, report) = Config::read_with_defaults(&given.into_iter().collect());
    let config = config.unwrap();
    assert_eq!(
        (config.sfu_url.as_str(), config.api_keys[0].id()),
        ("ws://from-variable", "APIc")
    );
    assert_eq!(row(&report, "LIVEKIT_KEY"), "APIc | credentials directory");

    // a credential of the name of a path is the file, not a path to it
    let other = TempDir::new();
    let content = format!("APIf: {SECRET}");
    fs::write(other.path().join("livekit-key-file"), content).unwrap();
    let given = [
        ("CREDENTIALS_DIRECTORY", other.path().to_str().unwrap()),
        ("LIVEKIT_URL", "ws://h"),
    ];
    let (config, _) = Config::read_with_defaults(&given.into_iter().collect());
    assert_eq!(config.unwrap().api_keys[0].id(), "APIf");
}

#[test]
fn wrong_values_are_shown_short_and_escaped() {
    assert_eq!(quote_redacted("a\nb"), r#""a\nb""#);
    assert_eq!(
        quote_redacted(&"ü".repeat(200)),
        format!("\"{}…\"", "ü".repeat(80))
    );
    assert_eq!(quote_redacted("https://u:p@h/@x"), "\"https://…@x\"");
}
