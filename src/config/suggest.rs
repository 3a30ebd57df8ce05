//! Warnings about variables that no setting has the name of, with the setting that a misspelt name may mean.

use super::reader::{ConfigReport, Environment};
use super::table::{SETTINGS, find_setting};

/// Longest name that is compared with those of settings, in bytes: twice the longest of them.
const MAX_NAME_BYTES: usize = 64;
/// Unknown names with a warning each; of the rest only the number is in a warning.
const MAX_UNKNOWN_WARNINGS: usize = 20;
/// Most insertions and deletions in a misspelt name: `LIVEKIT_BIND` is 4 away from `LIVEKIT_JWT_BIND`.
const MAX_EDIT_DISTANCE: usize = 5;
/// Prefixes of variables that are meant for this service or for its predecessors.
const NAME_PREFIXES: [&str; 3] = ["LIVEKIT_", "LK_", "TOKEN_SERVER_"];

/// Whether Kubernetes injects the value (`enableServiceLinks`), for a service whose name makes it look like a setting.
pub(super) fn is_kubernetes_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
}

/// Warns of variables that look like settings and are none.
pub(super) fn warn_unknown_names(env: &Environment, report: &mut ConfigReport) {
    let mut unknown = 0;
    for (name, value) in env.iter() {
        let value = value.to_string_lossy();
        if value.trim().is_empty() {
            continue;
        }
        if find_setting(name).is_none()
            && NAME_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            && !is_set_by_kubernetes(name, &value)
        {
            unknown += 1;
            if unknown <= MAX_UNKNOWN_WARNINGS {
                report.warnings.push(unknown_name_warning(name));
            }
        }
    }
    if unknown > MAX_UNKNOWN_WARNINGS {
        let more = unknown - MAX_UNKNOWN_WARNINGS;
        report
            .warnings
            .push(format!("{more} more variables are unknown"));
    }
}

fn is_set_by_kubernetes(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_")
        || name.contains("_PORT_")
        || name.ends_with("_PORT") && is_kubernetes_service_link(value)
}

fn unknown_name_warning(name: &str) -> String {
    if name.len() > MAX_NAME_BYTES {
        return "a variable with a very long name is unknown".into();
    }
    match nearest_setting_name(name) {
        Some(setting) => format!("{name} is unknown; did you mean {setting}?"),
        None => format!("{name} is unknown"),
    }
}

fn nearest_setting_name(name: &str) -> Option<&'static str> {
    let rest = NAME_PREFIXES
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let max = MAX_EDIT_DISTANCE.min(rest?.len());
    SETTINGS
        .iter()
        .map(|setting| (edit_distance(name, setting.name), setting.name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= max)
        .map(|(_, name)| name)
}

/// Insertions and deletions; a replaced letter counts as both, so that a missing word is nearer than another word.
fn edit_distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let best = if a == b {
                diagonal
            } else {
                1 + row[j].min(row[j + 1])
            };
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(variables: &[(&str, &str)]) -> Vec<String> {
        let mut report = ConfigReport::default();
        let env = variables.iter().copied().collect();
        warn_unknown_names(&env, &mut report);
        report.warnings
    }

    #[test]
    fn a_misspelt_name_gets_the_nearest_setting() {
        for (name, setting) in [
            ("LIVEKIT_URI", "LIVEKIT_URL"),
            ("LIVEKIT_SERCET", "LIVEKIT_SECRET"),
            ("LIVEKIT_BIND", "LIVEKIT_JWT_BIND"),
            ("LIVEKIT_LOGLEVEL", "LIVEKIT_LOG_LEVEL"),
            (
                "LIVEKIT_FULL_ACCESS_HOMESERVER",
                "LIVEKIT_FULL_ACCESS_HOMESERVERS",
            ),
            ("LK_JWT_PROT", "LK_JWT_PORT"),
            ("TOKEN_SERVER_PORTS", "TOKEN_SERVER_PORT"),
        ] {
            let expected = format!("{name} is unknown; did you mean {setting}?");
            assert_eq!(warnings(&[(name, "x")]), [expected]);
        }
        assert_eq!(
            warnings(&[("LIVEKIT_WHATEVER_ELSE", "x")]),
            ["LIVEKIT_WHATEVER_ELSE is unknown"]
        );
    }

    #[test]
    fn variables_of_kubernetes_and_of_others_are_ignored() {
        let ignored = [
            ("LIVEKIT_SERVICE_HOST", "10.0.0.1"),
            ("LIVEKIT_SERVER_SERVICE_PORT", "80"),
            ("LIVEKIT_PORT_7880_TCP_ADDR", "10.0.0.1"),
            ("LIVEKIT_PORT", "tcp://10.0.0.1:7880"),
            ("LIVEKIT_SFU_PORT", "udp://10.0.0.1:7882"),
            ("LIVEKIT_EMPTY", " "),
            ("PATH", "/bin"),
        ];
        assert_eq!(warnings(&ignored), [""; 0]);
        assert_eq!(warnings(&[("LIVEKIT_PORT", "7880")]).len(), 1);
    }

    #[test]
    fn many_unknown_names_give_few_short_warnings() {
        let long = format!("LIVEKIT_{}", "A".repeat(10_000));
        let mut names: Vec<String> = (0..MAX_UNKNOWN_WARNINGS + 4)
            .map(|n| format!("LK_{n}"))
            .collect();
        names.push(long);
        let all: Vec<_> = names.iter().map(|n| (n.as_str(), "x")).collect();
        let warnings = warnings(&all);
        assert_eq!(warnings.len(), MAX_UNKNOWN_WARNINGS + 1);
        assert_eq!(warnings.last().unwrap(), "5 more variables are unknown");
        assert!(warnings.iter().all(|line| line.len() < 100));
    }
}
