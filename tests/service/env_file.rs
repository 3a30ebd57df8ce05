//! contrib/livekit-token-service.env has every setting, and nothing in it that the service would refuse.

use std::collections::BTreeMap;
use std::fs;

use crate::process::run_to_exit;
use crate::settings::{KEY, SECRET, Settings};

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/contrib/livekit-token-service.env"
);

#[test]
fn it_has_every_setting_that_help_has_with_its_line() {
    let help = run_to_exit(&["--help"], &Settings::none()).stdout;
    let of_help: BTreeMap<_, _> = help.lines().filter_map(in_help).collect();
    assert!(of_help.len() > 20, "{help}");
    let file = fs::read_to_string(FILE).unwrap();
    let of_file: BTreeMap<_, _> = examples(&file)
        .map(|(meaning, name, _)| (name, meaning))
        .collect();
    for (name, meaning) in &of_help {
        let line = format!("# {meaning}\n#{name}=");
        assert!(of_file.contains_key(name), "{FILE} lacks\n{line}");
        assert_eq!(of_file[name], *meaning, "{FILE} should have\n{line}");
    }
    for name in of_file.keys() {
        assert!(of_help.contains_key(name), "{name} is no setting any more");
    }
}

#[test]
fn its_examples_are_understood() {
    let file = fs::read_to_string(FILE).unwrap();
    let mut tried = 0;
    for (_, name, value) in examples(&file) {
        // they would have to be there
        if ["_FILE", "_DIR", "_DIRECTORY"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            continue;
        }
        let settings = Settings::none()
            .set("LIVEKIT_URL", "wss://sfu.example.com")
            .set("LIVEKIT_KEYS", format!("{KEY}: {SECRET}"))
            .set(name, value);
        // these come together
        let settings = match name.contains("_AS_") || name.contains("_HS_") {
            true => registered(settings).set(name, value),
            false => settings,
        };
        let settings = match name.strip_suffix("KEY") {
            // a key alone is half of a pair
            Some(prefix) if prefix.starts_with("LIVEKIT") => {
                settings.set(&format!("{prefix}SECRET"), SECRET)
            }
            _ if name.starts_with("TOKEN_SERVER_JWT_") => login(name, settings),
            _ if name == "LIVEKIT_REDIS_PASSWORD" => {
                settings.set("LIVEKIT_REDIS_URL", "redis://127.0.0.1")
            }
            None if name.ends_with("SECRET") => settings.set("LIVEKIT_KEY", "APIother"),
            _ => settings,
        };
        let exit = run_to_exit(&["check-config"], &settings);
        assert_eq!(exit.code, Some(0), "{name}={value}: {exit:?}");
        let said = format!("{name} ");
        let ignored = exit.stdout.lines().find(|line| {
            line.contains(&said) && (line.contains("ignored") || line.contains("no effect"))
        });
        assert_eq!(ignored, None, "{name}={value}");
        tried += 1;
    }
    assert!(tried > 15, "only {tried} examples were found");
}

fn registered(settings: Settings) -> Settings {
    settings
        .set("LIVEKIT_AS_TOKEN", "an-as-token")
        .set("LIVEKIT_HS_TOKEN", "an-hs-token")
        .set("LIVEKIT_HS_SERVER_NAME", "example.com")
        .set("LIVEKIT_HS_URL", "http://synapse:8008")
}

/// The rest of a login, of which the setting `name` is a part.
fn login(name: &str, settings: Settings) -> Settings {
    let keys = match name {
        "TOKEN_SERVER_JWT_KEYS" => None,
        _ => Some(("TOKEN_SERVER_JWT_SECRET", SECRET)),
    };
    let rest = [
        ("TOKEN_SERVER_JWT_ISSUER", "https://login.example.com"),
        ("TOKEN_SERVER_JWT_AUDIENCE", "livekit"),
    ];
    let rest = rest.into_iter().chain(keys);
    rest.filter(|(other, _)| *other != name)
        .fold(settings, |settings, (other, value)| {
            settings.set(other, value)
        })
}

/// As it is shipped it changes nothing: a package may install it.
#[test]
fn nothing_in_it_is_set() {
    let file = fs::read_to_string(FILE).unwrap();
    let set = file
        .lines()
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(set, None);
}

/// Name and meaning, if a line of `--help` has them and the name is no older one.
fn in_help(line: &str) -> Option<(&str, &str)> {
    let (name, meaning) = line.strip_prefix("  ")?.split_once(' ')?;
    let setting = name.contains('_') && is_name(name);
    let meaning = meaning.trim();
    (setting && !meaning.starts_with("older name of")).then_some((name, meaning))
}

/// Meaning, name and value of every example: `# meaning`, and `#NAME=value` on the next line.
fn examples(file: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let pairs = file.lines().zip(file.lines().skip(1));
    pairs.filter_map(|(meaning, example)| {
        let (name, value) = example.strip_prefix('#')?.split_once('=')?;
        is_name(name).then(|| (meaning.trim_start_matches("# "), name, value))
    })
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
}
