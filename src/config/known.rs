//! The names of all settings, and which of them a misspelt one may have meant.

use super::environment::Environment;
use super::report::Report;

/// Longest name that is compared with the known ones, in bytes: twice the longest of them.
const MAX_NAME: usize = 64;
/// Most unknown names that are warned about one by one; a deployment that has more is better served by their number.
const MAX_UNKNOWN: usize = 20;
/// Most letters to insert and delete for a name to count as misspelt: `LIVEKIT_BIND` is 4 away from `LIVEKIT_JWT_BIND`.
const MAX_DISTANCE: usize = 5;
/// Names that begin so are meant for this service, or for its forerunners.
const PREFIXES: [&str; 3] = ["LIVEKIT_", "LK_", "TOKEN_SERVER_"];

/// How a setting is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The variable holds the value.
    Value,
    /// The variable holds a path; a credential of that name is the file itself.
    Path,
    /// An older name of another setting, still read.
    Older,
}

/// A setting.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// A line for `--help`, with unit and default.
    pub(crate) help: &'static str,
}

const fn known(name: &'static str, kind: Kind, help: &'static str) -> Known {
    Known { name, kind, help }
}

/// Every setting, in the order of `--help`.
#[rustfmt::skip]
pub(crate) const KNOWN: &[Known] = &[
    known("LIVEKIT_URL", Kind::Value, "SFU as clients reach it: ws, wss, http or https; required"),
    known("LIVEKIT_API_URL", Kind::Value, "SFU as this service reaches it; default: LIVEKIT_URL"),
    known("LIVEKIT_KEY", Kind::Value, "API key of the SFU"),
    known("LIVEKIT_SECRET", Kind::Value, "its secret"),
    known("LIVEKIT_API_KEY", Kind::Value, "the same as LIVEKIT_KEY"),
    known("LIVEKIT_API_SECRET", Kind::Value, "the same as LIVEKIT_SECRET"),
    known("LIVEKIT_KEY_FROM_FILE", Kind::Path, "file with the API key"),
    known("LIVEKIT_SECRET_FROM_FILE", Kind::Path, "file with its secret"),
    known("LIVEKIT_SECRET_FILE", Kind::Path, "the same as LIVEKIT_SECRET_FROM_FILE"),
    known("LIVEKIT_KEY_FILE", Kind::Path, "file with lines `key: secret`, or with the API key alone"),
    known("LIVEKIT_KEYS", Kind::Value, "`key: secret`, comma or newline separated; the first signs"),
    known("LIVEKIT_JWT_BIND", Kind::Value, ":PORT, HOST:PORT, [IPV6]:PORT or unix:/PATH; default :8080"),
    known("LIVEKIT_FULL_ACCESS_HOMESERVERS", Kind::Value, "homeservers whose users get rooms created, comma or space separated, or *; default: none"),
    known("LIVEKIT_FEDERATION_URL_OVERRIDES", Kind::Value, "where to ask homeservers: SERVER=URL, comma separated; http or https; default: discovery"),
    known("LIVEKIT_ALLOWED_NETWORKS", Kind::Value, "networks where any homeserver may be, such as 10.0.0.0/8; default: the public Internet"),
    known("LIVEKIT_DENIED_NETWORKS", Kind::Value, "networks where no homeserver may be, unless allowed; default: none"),
    known("LIVEKIT_HTTPS_PROXY", Kind::Value, "proxy to homeservers and a login's JWKS on public addresses: http://[USER:PASSWORD@]HOST:PORT; default: none"),
    known("LIVEKIT_CA_FILE", Kind::Path, "PEM file with more certificate authorities to trust"),
    known("SSL_CERT_FILE", Kind::Path, "the same"),
    known("SSL_CERT_DIR", Kind::Path, "directories of such files, colon separated"),
    known("LIVEKIT_INSECURE_SKIP_VERIFY_TLS", Kind::Value, "YES_I_KNOW_WHAT_I_AM_DOING: certificates of homeservers are not checked, except where LIVEKIT_AS_TOKEN is shown"),
    known("LIVEKIT_TOKEN_LIFETIME_SECONDS", Kind::Value, "seconds in which a token can be used to join, 60 to 86400; default 3600"),
    known("LIVEKIT_CAN_UPDATE_OWN_METADATA", Kind::Value, "whether participants may change their own metadata; default false"),
    known("LIVEKIT_REMOTE_USERS_MAY_PUBLISH", Kind::Value, "whether users without full access may send audio, video and data; default true"),
    known("LIVEKIT_OPENID_CACHE_SECONDS", Kind::Value, "seconds for which a verified OpenID token is remembered, 0 to 300; default 30"),
    known("LIVEKIT_CS_API_URL_OVERRIDES", Kind::Value, "where to tell homeservers about leaves: SERVER=URL, comma separated; http or https; default: .well-known/matrix/client"),
    known("LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS", Kind::Value, "seconds from one question to the SFU whether a participant is there to the next, 0 to 86400, 0 is only in doubt; default 60"),
    known("LIVEKIT_STATE_DIR", Kind::Value, "directory where delegated leaves survive a restart, or memory; default: systemd's STATE_DIRECTORY, or else memory"),
    known("STATE_DIRECTORY", Kind::Value, "the same, as systemd sets it"),
    known("LIVEKIT_REDIS_URL", Kind::Value, "Redis in which several services share delegated leaves: redis://, rediss:// or unix://; default: none"),
    known("LIVEKIT_REDIS_PASSWORD", Kind::Value, "its password"),
    known("LIVEKIT_REDIS_PASSWORD_FILE", Kind::Path, "file with its password"),
    known("LIVEKIT_AS_REGISTRATION_FILE", Kind::Path, "registration of this service with its homeserver, as generate-registration prints it: opens application-service mode"),
    known("LIVEKIT_AS_TOKEN", Kind::Value, "as_token of that registration, if it is not read from the file"),
    known("LIVEKIT_HS_TOKEN", Kind::Value, "hs_token of that registration, likewise"),
    known("LIVEKIT_HS_SERVER_NAME", Kind::Value, "server name of that homeserver, whose users are local"),
    known("LIVEKIT_HS_URL", Kind::Value, "where this service reaches it: http or https; default: its LIVEKIT_CS_API_URL_OVERRIDES"),
    known("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", Kind::Value, "seconds from one question to it whether somebody in a call is still in the room to the next, 1 to 3600; default 30"),
    known("LIVEKIT_TRUSTED_PROXIES", Kind::Value, "proxies whose X-Forwarded-For is believed, addresses or networks; default: loopback"),
    known("LIVEKIT_MAX_CONNECTIONS", Kind::Value, "connections of clients in all, 16 to 1000000; default 16384, or what ulimit -n allows"),
    known("LIVEKIT_MAX_CONNECTIONS_PER_ADDRESS", Kind::Value, "connections of one public address, 1 to 1000000; default 256"),
    known("LIVEKIT_METRICS_BIND", Kind::Value, "where /metrics is, in the same forms; default: nowhere"),
    known("LIVEKIT_RATE_PER_ADDRESS", Kind::Value, "requests for tokens of one public address in a minute, 0 to 1000000, 0 is no limit; default 300"),
    known("TOKEN_SERVER_API_KEYS", Kind::Value, "NAME:SHA256 of callers of /token, as keygen prints them, comma or newline separated"),
    known("TOKEN_SERVER_API_KEYS_FILE", Kind::Path, "file with such lines"),
    known("TOKEN_SERVER_JWT_ISSUER", Kind::Value, "iss of the JWTs of a login whose users may call /token"),
    known("TOKEN_SERVER_JWT_AUDIENCE", Kind::Value, "aud of those that are meant for it"),
    known("TOKEN_SERVER_JWT_KEYS", Kind::Value, "JWKS or PEM file with the login's keys, or https URL of a JWKS"),
    known("TOKEN_SERVER_JWT_SECRET", Kind::Value, "the secret of a login that signs with HS256"),
    known("TOKEN_SERVER_JWT_SECRET_FILE", Kind::Path, "file with it"),
    known("TOKEN_SERVER_JWT_IDENTITY_CLAIM", Kind::Value, "claim that says who a user is; default sub"),
    known("TOKEN_SERVER_POLICY_FILE", Kind::Path, "file with callers of /token and what each may ask for; read again on SIGHUP"),
    known("TOKEN_SERVER_AUTH", Kind::Value, "none: anybody may call /token; default: nobody without a key or JWT"),
    known("TOKEN_SERVER_MIN_NAME_LENGTH", Kind::Value, "characters that rooms and participants of /token have at least, 1 to 64; default 1"),
    known("TOKEN_SERVER_RATE_PER_CALLER", Kind::Value, "requests of one caller of /token in a minute, 0 to 1000000, 0 is no limit; default 600"),
    known("TOKEN_EXPIRY_HOURS", Kind::Value, "hours in which a token of /token can be used to join, 1 to 8760; default 24"),
    known("CORS_ORIGINS", Kind::Value, "origins of web pages that may call /token, comma or space separated, or *; default http://localhost:3000"),
    known("LIVEKIT_LOG_LEVEL", Kind::Value, "error, warn, info, debug or trace; default info"),
    known("LIVEKIT_LOG_FORMAT", Kind::Value, "logfmt or json; default logfmt"),
    known("LIVEKIT_JWT_PORT", Kind::Older, "LIVEKIT_JWT_BIND=:PORT"),
    known("LK_JWT_PORT", Kind::Older, "LIVEKIT_JWT_BIND=:PORT"),
    known("TOKEN_SERVER_PORT", Kind::Older, "LIVEKIT_JWT_BIND=:PORT"),
    known("LIVEKIT_LOCAL_HOMESERVERS", Kind::Older, "LIVEKIT_FULL_ACCESS_HOMESERVERS"),
];

/// The setting of that name.
pub(super) fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// Whether Kubernetes put the value there, for a service whose name happens to fit.
pub(super) fn is_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme))
}

/// Warns of names that have no effect, as nobody knows them.
pub(super) fn warn_of_names(env: &Environment, report: &mut Report) {
    let mut unknown = 0;
    for (name, value) in env.iter() {
        let value = value.to_string_lossy();
        if value.trim().is_empty() {
            continue;
        }
        if find(name).is_none() && is_ours(name) && !is_from_kubernetes(name, &value) {
            unknown += 1;
            if unknown <= MAX_UNKNOWN {
                report.warn(unknown_name(name));
            }
        }
    }
    if unknown > MAX_UNKNOWN {
        let more = unknown - MAX_UNKNOWN;
        report.warn(format!("{more} more variables are not known"));
    }
}

fn is_ours(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_from_kubernetes(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_")
        || name.contains("_PORT_")
        || name.ends_with("_PORT") && is_service_link(value)
}

fn unknown_name(name: &str) -> String {
    if name.len() > MAX_NAME {
        return "a variable with a very long name is not known".into();
    }
    match nearest(name) {
        Some(known) => format!("{name} is not known; did you mean {known}?"),
        None => format!("{name} is not known"),
    }
}

fn nearest(name: &str) -> Option<&'static str> {
    let own = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    let most = MAX_DISTANCE.min(own?.len());
    KNOWN
        .iter()
        .map(|known| (distance(name, known.name), known.name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= most)
        .map(|(_, name)| name)
}

/// Letters to insert and delete; a changed letter counts as both, so that a missing word is nearer than another word.
fn distance(from: &str, to: &str) -> usize {
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
        let mut report = Report::default();
        let env = variables.iter().copied().collect();
        warn_of_names(&env, &mut report);
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
        let mut names: Vec<String> = (0..MAX_UNKNOWN + 4).map(|n| format!("LK_{n}")).collect();
        names.push(long);
        let all: Vec<_> = names.iter().map(|n| (n.as_str(), "x")).collect();
        let warnings = warnings(&all);
        assert_eq!(warnings.len(), MAX_UNKNOWN + 1);
        assert_eq!(warnings.last().unwrap(), "5 more variables are not known");
        assert!(warnings.iter().all(|line| line.len() < 100));
    }
}
