//! README.md and `--help` speak of the same settings.

use std::collections::BTreeSet;
use std::fs;

use crate::process::run_to_exit;
use crate::settings::Settings;

#[test]
fn the_readme_s_table_has_every_setting_that_help_has_and_no_other() {
    let help = run_to_exit(&["--help"], &Settings::none()).stdout;
    let (older, current): (Vec<_>, Vec<_>) = help
        .lines()
        .filter(|line| setting(line).is_some())
        .partition(|line| line.contains("older name of"));
    let of_help = |lines: &[&str]| -> BTreeSet<String> {
        let names = lines.iter().filter_map(|line| setting(line));
        names.map(str::to_owned).collect()
    };
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let rows: String = readme
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    assert_eq!(in_code(&rows), of_help(&current));
    assert!(current.len() > 20, "{help}");

    let prose: String = readme
        .lines()
        .filter(|line| !line.starts_with('|'))
        .collect();
    let missing = &of_help(&older) - &in_code(&prose);
    assert!(missing.is_empty(), "{missing:?}");
}

/// The setting that a line of `--help` is about.
fn setting(line: &str) -> Option<&str> {
    let name = line.strip_prefix("  ")?.split(' ').next()?;
    is_setting(name).then_some(name)
}

/// The settings that stand in backticks, alone or before a value.
fn in_code(text: &str) -> BTreeSet<String> {
    let pieces = text.split('`').skip(1).step_by(2);
    let names = pieces.filter_map(|piece| piece.split('=').next());
    names
        .filter(|name| is_setting(name))
        .map(str::to_owned)
        .collect()
}

fn is_setting(name: &str) -> bool {
    let ours = ["LIVEKIT_", "LK_", "SSL_", "TOKEN_"];
    ours.iter().any(|prefix| name.starts_with(prefix))
        && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
}
