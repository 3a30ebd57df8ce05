//! The names of all settings, and which of them a misspelt one may have meant.

use super::environment::Environment;
use super::report::ConfigReport;

/// Longest name that is compared with the known ones, in bytes: twice the longest of them.
const MAX_NAME_BYTES: usize = 64;
/// Most unknown names that are warned about one by one; a deployment that has more is better served by their number.
const MAX_UNKNOWN_WARNINGS: usize = 20;
/// Most letters to insert and delete for a name to count as misspelt: `LIVEKIT_BIND` is 4 away from `LIVEKIT_JWT_BIND`.
const MAX_EDIT_DISTANCE: usize = 5;
/// Names that begin so are meant for this service, or for its forerunners.
const NAME_PREFIXES: [&str; 3] = ["LIVEKIT_", "LK_", "TOKEN_SERVER_"];

/// How a setting is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SettingKind {
    /// The variable holds the value.
    Value,
    /// The variable holds a path; a credential of that name is the file itself.
    Path,
    /// An older name of another setting, still read.
    Deprecated,
}

/// A setting.
pub(crate) struct SettingDefinition {
    pub(crate) name: &'static str,
    pub(crate) kind: SettingKind,
    /// A line for `--help`, with unit and default.
    pub(crate) help: &'static str,
}

const fn define(name: &'static str, kind: SettingKind, help: &'static str) -> SettingDefinition {
    SettingDefinition { name, kind, help }
}

/// Every setting, in the order of `--help`.
#[rustfmt::skip]
pub(crate) const SETTINGS: &[SettingDefinition] = &[
    define("LIVEKIT_URL", SettingKind::Value, "SFU as clients reach it: ws, wss, http or https; required"),
    define("LIVEKIT_API_URL", SettingKind::Value, "SFU as this service reaches it; default: LIVEKIT_URL"),
    define("LIVEKIT_KEY", SettingKind::Value, "API key of the SFU"),
    define("LIVEKIT_SECRET", SettingKind::Value, "its secret"),
    define("LIVEKIT_API_KEY", SettingKind::Value, "the same as LIVEKIT_KEY"),
    define("LIVEKIT_API_SECRET", SettingKind::Value, "the same as LIVEKIT_SECRET"),
    define("LIVEKIT_KEY_FROM_FILE", SettingKind::Path, "file with the API key"),
    define("LIVEKIT_SECRET_FROM_FILE", SettingKind::Path, "file with its secret"),
    define("LIVEKIT_SECRET_FILE", SettingKind::Path, "the same as LIVEKIT_SECRET_FROM_FILE"),
    define("LIVEKIT_KEY_FILE", SettingKind::Path, "file with lines `key: secret`, or with the API key alone"),
    define("LIVEKIT_KEYS", SettingKind::Value, "`key: secret`, comma or newline separated; the first signs"),
    define("LIVEKIT_JWT_BIND", SettingKind::Value, ":PORT, HOST:PORT, [IPV6]:PORT or unix:/PATH; default :8080"),
    define("LIVEKIT_FULL_ACCESS_HOMESERVERS", SettingKind::Value, "homeservers whose users get rooms created, comma or space separated, or *; default: none"),
    define("LIVEKIT_FEDERATION_URL_OVERRIDES", SettingKind::Value, "where to ask homeservers: SERVER=URL, comma separated; http or https; default: discovery"),
    define("LIVEKIT_ALLOWED_NETWORKS", SettingKind::Value, "networks where any homeserver may be, such as 10.0.0.0/8; default: the public Internet"),
    define("LIVEKIT_DENIED_NETWORKS", SettingKind::Value, "networks where no homeserver may be, unless allowed; default: none"),
    define("LIVEKIT_HTTPS_PROXY", SettingKind::Value, "proxy to homeservers and a login's JWKS on public addresses: http://[USER:PASSWORD@]HOST:PORT; default: none"),
    define("LIVEKIT_CA_FILE", SettingKind::Path, "PEM file with more certificate authorities to trust"),
    define("SSL_CERT_FILE", SettingKind::Path, "the same"),
    define("SSL_CERT_DIR", SettingKind::Path, "directories of such files, colon separated"),
    define("LIVEKIT_INSECURE_SKIP_VERIFY_TLS", SettingKind::Value, "YES_I_KNOW_WHAT_I_AM_DOING: certificates of homeservers are not checked, except where LIVEKIT_AS_TOKEN is shown"),
    define("LIVEKIT_TOKEN_LIFETIME_SECONDS", SettingKind::Value, "seconds in which a token can be used to join, 60 to 86400; default 3600"),
    define("LIVEKIT_CAN_UPDATE_OWN_METADATA", SettingKind::Value, "whether participants may change their own metadata; default false"),
    define("LIVEKIT_REMOTE_USERS_MAY_PUBLISH", SettingKind::Value, "whether users without full access may send audio, video and data; default true"),
    define("LIVEKIT_OPENID_CACHE_SECONDS", SettingKind::Value, "seconds for which a verified OpenID token is remembered, 0 to 300; default 30"),
    define("LIVEKIT_CS_API_URL_OVERRIDES", SettingKind::Value, "where to tell homeservers about leaves: SERVER=URL, comma separated; http or https; default: .well-known/matrix/client"),
    define("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", SettingKind::Value, "seconds from one question to the SFU whether a participant is there to the next, 0 to 86400, 0 is only in doubt; default 60"),
    define("LIVEKIT_STATE_DIR", SettingKind::Value, "directory where delegated leaves survive a restart, or memory; default: systemd's STATE_DIRECTORY, or else memory"),
    define("STATE_DIRECTORY", SettingKind::Value, "the same, as systemd sets it"),
    define("LIVEKIT_REDIS_URL", SettingKind::Value, "Redis in which several services share delegated leaves: redis://, rediss:// or unix://; default: none"),
    define("LIVEKIT_REDIS_PASSWORD", SettingKind::Value, "its password"),
    define("LIVEKIT_REDIS_PASSWORD_FILE", SettingKind::Path, "file with its password"),
    define("LIVEKIT_AS_REGISTRATION_FILE", SettingKind::Path, "registration of this service with its homeserver, as generate-registration prints it: opens application-service mode"),
    define("LIVEKIT_AS_TOKEN", SettingKind::Value, "as_token of that registration, if it is not read from the file"),
    define("LIVEKIT_HS_TOKEN", SettingKind::Value, "hs_token of that registration, likewise"),
    define("LIVEKIT_HS_SERVER_NAME", SettingKind::Value, "server name of that homeserver, whose users are local"),
    define("LIVEKIT_HS_URL", SettingKind::Value, "where this service reaches it: http or https; default: its LIVEKIT_CS_API_URL_OVERRIDES"),
    define("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", SettingKind::Value, "seconds from one question to it whether somebody in a call is still in the room to the next, 1 to 3600; default 30"),
    define("LIVEKIT_TRUSTED_PROXIES", SettingKind::Value, "proxies whose X-Forwarded-For is believed, addresses or networks; default: loopback"),
    define("LIVEKIT_MAX_CONNECTIONS", SettingKind::Value, "connections of clients in all, 16 to 1000000; default 16384, or what ulimit -n allows"),
    define("LIVEKIT_MAX_CONNECTIONS_PER_ADDRESS", SettingKind::Value, "connections of one public address, 1 to 1000000; default 256"),
    define("LIVEKIT_METRICS_BIND", SettingKind::Value, "where /metrics is, in the same forms; default: nowhere"),
    define("LIVEKIT_RATE_PER_ADDRESS", SettingKind::Value, "requests for tokens of one public address in a minute, 0 to 1000000, 0 is no limit; default 300"),
    define("TOKEN_SERVER_API_KEYS", SettingKind::Value, "NAME:SHA256 of callers of /token, as keygen prints them, comma or newline separated"),
    define("TOKEN_SERVER_API_KEYS_FILE", SettingKind::Path, "file with such lines"),
    define("TOKEN_SERVER_JWT_ISSUER", SettingKind::Value, "iss of the JWTs of a login whose users may call /token"),
    define("TOKEN_SERVER_JWT_AUDIENCE", SettingKind::Value, "aud of those that are meant for it"),
    define("TOKEN_SERVER_JWT_KEYS", SettingKind::Value, "JWKS or PEM file with the login's keys, or https URL of a JWKS"),
    define("TOKEN_SERVER_JWT_SECRET", SettingKind::Value, "the secret of a login that signs with HS256"),
    define("TOKEN_SERVER_JWT_SECRET_FILE", SettingKind::Path, "file with it"),
    define("TOKEN_SERVER_JWT_IDENTITY_CLAIM", SettingKind::Value, "claim that says who a user is; default sub"),
    define("TOKEN_SERVER_POLICY_FILE", SettingKind::Path, "file with callers of /token and what each may ask for; read again on SIGHUP"),
    define("TOKEN_SERVER_AUTH", SettingKind::Value, "none: anybody may call /token; default: nobody without a key or JWT"),
    define("TOKEN_SERVER_MIN_NAME_LENGTH", SettingKind::Value, "characters that rooms and participants of /token have at least, 1 to 64; default 1"),
    define("TOKEN_SERVER_RATE_PER_CALLER", SettingKind::Value, "requests of one caller of /token in a minute, 0 to 1000000, 0 is no limit; default 600"),
    define("TOKEN_EXPIRY_HOURS", SettingKind::Value, "hours in which a token of /token can be used to join, 1 to 8760; default 24"),
    define("CORS_ORIGINS", SettingKind::Value, "origins of web pages that may call /token, comma or space separated, or *; default http://localhost:3000"),
    define("LIVEKIT_LOG_LEVEL", SettingKind::Value, "error, warn, info, debug or trace; default info"),
    define("LIVEKIT_LOG_FORMAT", SettingKind::Value, "logfmt or json; default logfmt"),
    define("LIVEKIT_JWT_PORT", SettingKind::Deprecated, "LIVEKIT_JWT_BIND=:PORT"),
    define("LK_JWT_PORT", SettingKind::Deprecated, "LIVEKIT_JWT_BIND=:PORT"),
    define("TOKEN_SERVER_PORT", SettingKind::Deprecated, "LIVEKIT_JWT_BIND=:PORT"),
    define("LIVEKIT_LOCAL_HOMESERVERS", SettingKind::Deprecated, "LIVEKIT_FULL_ACCESS_HOMESERVERS"),
];

/// The setting of that name.
pub(super) fn find_setting(name: &str) -> Option<&'static SettingDefinition> {
    SETTINGS.iter().find(|known| known.name == name)
}

/// Whether Kubernetes put the value there, for a service whose name happens to fit.
pub(super) fn is_kubernetes_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
}

/// Warns of names that have no effect, as nobody knows them.
pub(super) fn warn_unknown_names(env: &Environment, report: &mut ConfigReport) {
    let mut unknown = 0;
    for (name, value) in env.iter() {
        let value = value.to_string_lossy();
        if value.trim().is_empty() {
            continue;
        }
        if find_setting(name).is_none()
            && has_known_prefix(name)
            && !is_set_by_kubernetes(name, &value)
        {
            unknown += 1;
            if unknown <= MAX_UNKNOWN_WARNINGS {
                report.add_warning(unknown_name_warning(name));
            }
        }
    }
    if unknown > MAX_UNKNOWN_WARNINGS {
        let more = unknown - MAX_UNKNOWN_WARNINGS;
        report.add_warning(format!("{more} more variables are not known"));
    }
}

fn has_known_prefix(name: &str) -> bool {
    NAME_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_set_by_kubernetes(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_")
        || name.contains("_PORT_")
        || name.ends_with("_PORT") && is_kubernetes_service_link(value)
}

fn unknown_name_warning(name: &str) -> String {
    if name.len() > MAX_NAME_BYTES {
        return "a variable with a very long name is not known".into();
    }
    match nearest_setting_name(name) {
        Some(known) => format!("{name} is not known; did you mean {known}?"),
        None => format!("{name} is not known"),
    }
}

fn nearest_setting_name(name: &str) -> Option<&'static str> {
    let own = NAME_PREFIXES
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let most = MAX_EDIT_DISTANCE.min(own?.len());
    SETTINGS
        .iter()
        .map(|known| (edit_distance(name, known.name), known.name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= most)
        .map(|(_, name)| name)
}

/// Letters to insert and delete; a changed letter counts as both, so that a missing word is nearer than another word.
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
        report.warnings().to_vec()
    }

    #[test]
    fn a_misspelt_name_is_told_what_it_may_have_meant() {
        for (wrong, right) in [
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
            let expected = format!("{wrong} is not known; did you mean {right}?");
            assert_eq!(warnings(&[(wrong, "x")]), [expected]);
        }
        assert_eq!(
            warnings(&[("LIVEKIT_WHATEVER_ELSE", "x")]),
            ["LIVEKIT_WHATEVER_ELSE is not known"]
        );
    }

    #[test]
    fn what_kubernetes_injects_and_what_is_not_ours_is_passed_over() {
        let quiet = [
            ("LIVEKIT_SERVICE_HOST", "10.0.0.1"),
            ("LIVEKIT_SERVER_SERVICE_PORT", "80"),
            ("LIVEKIT_PORT_7880_TCP_ADDR", "10.0.0.1"),
            ("LIVEKIT_PORT", "tcp://10.0.0.1:7880"),
            ("LIVEKIT_SFU_PORT", "udp://10.0.0.1:7882"),
            ("LIVEKIT_EMPTY", " "),
            ("PATH", "/bin"),
        ];
        assert_eq!(warnings(&quiet), [""; 0]);
        assert_eq!(warnings(&[("LIVEKIT_PORT", "7880")]).len(), 1);
    }

    #[test]
    fn a_flood_of_unknown_names_makes_a_few_short_lines() {
        let long = format!("LIVEKIT_{}", "A".repeat(10_000));
        let mut names: Vec<String> = (0..MAX_UNKNOWN_WARNINGS + 4)
            .map(|n| format!("LK_{n}"))
            .collect();
        names.push(long);
        let all: Vec<_> = names.iter().map(|n| (n.as_str(), "x")).collect();
        let warnings = warnings(&all);
        assert_eq!(warnings.len(), MAX_UNKNOWN_WARNINGS + 1);
        assert_eq!(warnings.last().unwrap(), "5 more variables are not known");
        assert!(warnings.iter().all(|line| line.len() < 100));
    }
}
