use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::super::reader::{MAX_VALUE_BYTES, quote_redacted};
use super::{Config, Environment, Mode, SECRET, TempDir, environment, errors, row};

/// The required settings, with these bytes as values.
fn with_bytes(more: &[(&str, &[u8])]) -> Environment {
    let owned =
        |(name, bytes): &(&str, &[u8])| ((*name).to_owned(), OsString::from_vec(bytes.to_vec()));
    let required = environment(&[]);
    let required = required
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    required.chain(more.iter().map(owned)).collect()
}

#[test]
fn a_value_that_is_not_utf_8_or_too_long_is_an_error_of_its_setting() {
    let bytes = with_bytes(&[("LIVEKIT_URL", b"\xffx"), ("LIVEKIT_SECRET", b"\xff")]);
    assert_eq!(
        errors(&bytes),
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
    let (config, report) =
        Config::read(&with_bytes(&[("LIVEKIT_OTHER_NAME", b"\xff")]), Mode::Serve);
    assert!(config.is_ok());
    let last = report.warnings.last().unwrap();
    assert_eq!(last, "LIVEKIT_OTHER_NAME is unknown");
}

#[test]
fn an_unusable_file_is_named_with_the_reason() {
    let directory = TempDir::new();
    let large = [b'a'; MAX_VALUE_BYTES + 1];
    for (path, end) in [
        (
            "/nowhere/x".to_owned(),
            "found \"/nowhere/x\": No such file or directory (os error 2)",
        ),
        (directory.path().to_owned(), "Is a directory (os error 21)"),
        (directory.file("empty", b" \n"), "empty\" empty"),
        (directory.file("bytes", b"\xff"), "bytes\""),
        (directory.file("large", large), "large\" larger"),
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
        let [error] = &errors[..] else {
            panic!("{errors:?}")
        };
        let start = "LIVEKIT_SECRET_FILE: expected ";
        assert!(error.starts_with(start) && error.ends_with(end), "{error}");
    }
}

#[test]
fn credentials_stand_in_for_variables_that_are_not_set() {
    let directory = TempDir::new();
    directory.file("LIVEKIT_KEY", "APIc\n");
    directory.file("livekit-secret", format!("{SECRET}\n"));
    directory.file("livekit-url", "ws://from-credentials");
    let env = [
        ("CREDENTIALS_DIRECTORY", directory.path()),
        ("LIVEKIT_URL", "ws://from-variable"),
    ];
    let (config, report) = Config::read(&env.into_iter().collect(), Mode::Serve);
    let config = config.unwrap();
    assert_eq!(config.sfu.url, "ws://from-variable");
    assert_eq!(config.sfu_keys.keys.signing().id(), "APIc");
    assert_eq!(row(&report, "LIVEKIT_KEY"), "APIc | credentials directory");

    // a credential with the name of a path's setting is the file itself
    let directory = TempDir::new();
    directory.file("livekit-key-file", format!("APIf: {SECRET}"));
    let env = [
        ("CREDENTIALS_DIRECTORY", directory.path()),
        ("LIVEKIT_URL", "ws://h"),
    ];
    let (config, _) = Config::read(&env.into_iter().collect(), Mode::Serve);
    assert_eq!(config.unwrap().sfu_keys.keys.signing().id(), "APIf");
}

#[test]
fn wrong_values_are_quoted_truncated_and_without_secrets() {
    assert_eq!(quote_redacted("a\nb"), r#""a\nb""#);
    let long = format!("\"{}…\"", "ü".repeat(80));
    assert_eq!(quote_redacted(&"ü".repeat(200)), long);
    assert_eq!(quote_redacted("https://u:p@h/@x"), "\"https://…@x\"");
}
