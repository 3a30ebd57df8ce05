use std::fs;
use std::path::PathBuf;

use super::*;
use crate::config::environment::Environment;
use crate::config::tests::TempDir;

const LONG: &str = "0123456789abcdef0123456789abcdef";

fn read_from(variables: &[(&str, &str)], dev: bool) -> (Vec<String>, Vec<String>, Vec<String>) {
    let env: Environment = variables.iter().copied().collect();
    let mut reader = SettingsReader::new(&env);
    let keys = read(&mut reader, dev).map_or(Vec::new(), |keys| keys.keys);
    let shown = reader
        .report
        .settings()
        .iter()
        .map(|s| format!("{} = {} from {}", s.name, s.display_value, s.origin))
        .collect::<Vec<_>>()
        .join("\n");
    assert!(!shown.contains(LONG), "{shown}");
    (
        keys.iter().map(|key| key.id().to_owned()).collect(),
        reader.errors.iter().map(ToString::to_string).collect(),
        reader.report.warnings().to_vec(),
    )
}

/// The ids of keys that are accepted without a word.
fn ids(variables: &[(&str, &str)]) -> Vec<String> {
    let (ids, errors, warnings) = read_from(variables, false);
    assert_eq!((errors, warnings), (Vec::new(), Vec::new()));
    ids
}

fn errors(variables: &[(&str, &str)]) -> Vec<String> {
    let (ids, errors, _) = read_from(variables, false);
    assert_eq!(ids, [""; 0]);
    assert!(errors.iter().all(|error| !error.contains(LONG)));
    errors
}

fn file(scratch: &TempDir, name: &str, content: &str) -> PathBuf {
    let path = scratch.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn both_pairs_of_names_and_any_mixture_give_the_key() {
    for key in ["LIVEKIT_KEY", "LIVEKIT_API_KEY"] {
        for secret in ["LIVEKIT_SECRET", "LIVEKIT_API_SECRET"] {
            assert_eq!(ids(&[(key, " APIx "), (secret, LONG)]), ["APIx"]);
        }
    }
    assert_eq!(
        ids(&[
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_API_KEY", "APIx"),
            ("LIVEKIT_SECRET", LONG)
        ]),
        ["APIx"]
    );
}

#[test]
fn either_half_may_stand_in_a_file() {
    let scratch = TempDir::new();
    let key = file(&scratch, "key", "\nAPIx\n");
    let secret = file(&scratch, "secret", &format!("  {LONG}\r\n"));
    let (key, secret) = (key.to_str().unwrap(), secret.to_str().unwrap());
    for (name, file) in [
        ("LIVEKIT_SECRET_FROM_FILE", secret),
        ("LIVEKIT_SECRET_FILE", secret),
    ] {
        for (key_name, key_value) in [
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_KEY_FROM_FILE", key),
            ("LIVEKIT_KEY_FILE", key),
        ] {
            assert_eq!(ids(&[(key_name, key_value), (name, file)]), ["APIx"]);
        }
    }
    assert_eq!(
        ids(&[("LIVEKIT_KEY_FROM_FILE", key), ("LIVEKIT_API_SECRET", LONG)]),
        ["APIx"]
    );
}

#[test]
fn a_key_file_may_hold_several_keys_as_yaml_has_them() {
    let scratch = TempDir::new();
    let text = format!(
        "# ours\n\nAPIb: {LONG}\r\n\"APIa\": '{LONG}#:x' # old\n  APIc : {LONG}  # note\nAPId:{LONG}\n"
    );
    let path = file(&scratch, "keys", &text);
    let path = path.to_str().unwrap();
    assert_eq!(
        ids(&[("LIVEKIT_KEY_FILE", path)]),
        ["APIb", "APIa", "APIc", "APId"]
    );
    let quoted = KeyListContent::Pairs(vec![("a".into(), "s#:x".into()), ("b".into(), "s".into())]);
    let (KeyListContent::Pairs(expected), KeyListContent::Pairs(found)) = (
        quoted,
        parse_key_list("'a': \"s#:x\" # c\nb: s # c", &['\n']),
    ) else {
        panic!("expected pairs");
    };
    assert_eq!(found, expected);
}

#[test]
fn a_list_is_separated_by_commas_or_lines_and_the_first_signs() {
    let list = format!("APIb: {LONG}, APIa: {LONG}\nAPIb: {LONG},");
    assert_eq!(ids(&[("LIVEKIT_KEYS", &list)]), ["APIb", "APIa"]);
    // a pair of its own comes before a list; a key alone chooses from it
    assert_eq!(
        ids(&[
            ("LIVEKIT_KEYS", &list),
            ("LIVEKIT_KEY", "APIz"),
            ("LIVEKIT_SECRET", LONG)
        ]),
        ["APIz", "APIb", "APIa"]
    );
    assert_eq!(
        ids(&[("LIVEKIT_KEYS", &list), ("LIVEKIT_KEY", "APIa")]),
        ["APIa", "APIb"]
    );
}

#[test]
fn a_wrong_line_is_named_by_its_number_and_never_repeated() {
    let scratch = TempDir::new();
    for (text, number) in [
        (format!("\n# c\nAPIa: {LONG}\n{LONG}\n"), 4),
        (format!("{LONG}\n{LONG}x"), 1),
        (format!("APIa: {LONG}\nAPIb:\n"), 2),
        (format!(": {LONG}\n"), 1),
        (format!("API a: {LONG}\n"), 1),
        (format!("APIa: \"{LONG}\n"), 1),
        (format!("APIa: \"{LONG}\" x\n"), 1),
    ] {
        let path = file(&scratch, "keys", &text);
        assert_eq!(
            errors(&[("LIVEKIT_KEY_FILE", path.to_str().unwrap())]),
            [format!(
                "LIVEKIT_KEY_FILE: expected `key: secret`, found something else in line {number}"
            )]
        );
    }
    assert_eq!(
        errors(&[("LIVEKIT_KEYS", &format!("APIa: {LONG},{LONG}"))]),
        ["LIVEKIT_KEYS: expected `key: secret`, found something else in entry 2"]
    );
    assert_eq!(
        errors(&[("LIVEKIT_KEYS", LONG)]),
        ["LIVEKIT_KEYS: expected `key: secret`, found something else in entry 1"]
    );
}

#[test]
fn half_a_pair_names_the_variable_that_is_missing() {
    assert_eq!(
        errors(&[("LIVEKIT_API_KEY", "APIx")]),
        [
            "LIVEKIT_SECRET: expected the secret of LIVEKIT_API_KEY, here or in the file that LIVEKIT_SECRET_FROM_FILE names, found nothing"
        ]
    );
    assert_eq!(
        errors(&[("LIVEKIT_SECRET", LONG)]),
        [
            "LIVEKIT_KEY: expected the API key of LIVEKIT_SECRET, here or in the file that LIVEKIT_KEY_FROM_FILE names, found nothing"
        ]
    );
    let none = errors(&[("LIVEKIT_KEY", ""), ("LIVEKIT_SECRET", " ")]);
    assert_eq!(none.len(), 1);
    for name in [
        "LIVEKIT_KEY",
        "LIVEKIT_SECRET",
        "LIVEKIT_KEY_FROM_FILE",
        "LIVEKIT_SECRET_FROM_FILE",
        "LIVEKIT_KEY_FILE",
    ] {
        assert!(none[0].contains(name), "{}", none[0]);
    }
}

#[test]
fn the_same_half_twice_with_two_values_is_a_contradiction() {
    let scratch = TempDir::new();
    let path = file(&scratch, "secret", &format!("{LONG}!"));
    assert_eq!(
        errors(&[
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_API_KEY", "APIy"),
            ("LIVEKIT_SECRET", LONG),
            ("LIVEKIT_SECRET_FILE", path.to_str().unwrap()),
        ]),
        [
            "LIVEKIT_API_KEY: expected the same as in LIVEKIT_KEY, found another value",
            "LIVEKIT_SECRET_FILE: expected the same as in LIVEKIT_SECRET, found another value",
        ]
    );
    let list = format!("APIx: {LONG}!");
    assert_eq!(
        errors(&[
            ("LIVEKIT_KEY", "APIx"),
            ("LIVEKIT_SECRET", LONG),
            ("LIVEKIT_KEYS", &list)
        ]),
        [
            r#"LIVEKIT_KEYS: expected one secret for API key "APIx", as in LIVEKIT_SECRET, found another one"#
        ]
    );
}

#[test]
fn halves_of_the_wrong_shape_are_refused_without_being_repeated() {
    let pair = format!("APIx: {LONG}");
    assert_eq!(
        errors(&[("LIVEKIT_KEY", &pair), ("LIVEKIT_SECRET", LONG)]),
        [
            "LIVEKIT_KEY: expected an API key: at most 256 bytes without spaces or colons, found 38 characters"
        ]
    );
    let two_lines = format!("{LONG}\nx");
    assert_eq!(
        errors(&[("LIVEKIT_KEY", "APIx"), ("LIVEKIT_SECRET", &two_lines)]),
        [
            "LIVEKIT_SECRET: expected a secret in one line without control characters, found 34 characters"
        ]
    );
}

#[test]
fn short_secrets_draw_a_warning_that_does_not_show_them() {
    let (ids, errors, warnings) = read_from(
        &[("LIVEKIT_KEY", "APIx"), ("LIVEKIT_SECRET", "hunter2")],
        false,
    );
    assert_eq!((ids, errors), (vec!["APIx".to_owned()], Vec::new()));
    assert_eq!(
        warnings,
        [r#"LIVEKIT_SECRET: the secret of API key "APIx" has 7 bytes; the SFU wants 32 or more"#]
    );
}

#[test]
fn only_dev_brings_a_key_of_its_own_and_only_where_none_is_given() {
    let (ids, errors, warnings) = read_from(&[], true);
    assert_eq!(ids, ["devkey"]);
    assert_eq!((errors, warnings), (Vec::new(), Vec::new()));
    let (ids, ..) = read_from(&[("LIVEKIT_KEY", "APIx"), ("LIVEKIT_SECRET", LONG)], true);
    assert_eq!(ids, ["APIx"]);
    let (ids, errors, _) = read_from(&[("LIVEKIT_KEY", "devkey")], true);
    assert_eq!((ids.len(), errors.len()), (0, 1));
}

#[test]
fn there_is_an_end_to_the_keys() {
    let list = |n| -> String { (0..n).map(|i| format!("API{i}: {LONG}\n")).collect() };
    assert_eq!(
        ids(&[("LIVEKIT_KEYS", &list(MAX_API_KEYS))]).len(),
        MAX_API_KEYS
    );
    assert_eq!(
        errors(&[("LIVEKIT_KEYS", &list(MAX_API_KEYS + 1))]),
        ["LIVEKIT_KEYS: expected at most 64 keys in all, found 65"]
    );
}
