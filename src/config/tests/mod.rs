mod generated;
mod reader;
mod sfu_keys;
mod token_endpoint;

use std::fs;
use std::path::PathBuf;

use super::table::{EndpointGroup, SETTINGS};
use super::*;
use crate::util::random;

/// A directory that is removed with the value.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        let name = format!("lts-{:016x}", u64::from_ne_bytes(random::bytes()));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Writes a file. Returns its path.
    pub(super) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// The settings without which a service does not start.
const REQUIRED: [(&str, &str); 3] = [
    ("LIVEKIT_URL", "wss://sfu.example.com/livekit/sfu/"),
    ("LIVEKIT_KEY", "APIx"),
    ("LIVEKIT_SECRET", SECRET),
];

/// The required settings and these.
pub(super) fn environment(more: &[(&str, &str)]) -> Environment {
    REQUIRED.iter().chain(more).copied().collect()
}

pub(super) fn read_valid(more: &[(&str, &str)]) -> (Config, ConfigReport) {
    let (config, report) = Config::read(&environment(more), Mode::Serve);
    let config = config.unwrap_or_else(|errors| panic!("{errors:#?}"));
    (config, report)
}

pub(super) fn errors(env: &Environment) -> Vec<String> {
    let (config, _) = Config::read(env, Mode::Serve);
    let errors = config.unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

/// Value and origin of the first row of a setting.
pub(super) fn row(report: &ConfigReport, name: &str) -> String {
    let setting = report.settings.iter().find(|s| s.name == name);
    setting.map_or("(no row)".into(), |s| {
        format!("{} | {}", s.display_value, s.origin)
    })
}

#[test]
fn three_settings_are_enough() {
    let (config, report) = read_valid(&[]);
    assert_eq!(config.sfu.url, "wss://sfu.example.com/livekit/sfu/");
    let api_url = "https://sfu.example.com/livekit/sfu";
    assert_eq!(config.sfu.api_url.to_string(), api_url);
    assert_eq!(config.listen.bind, BindAddress::AllInterfaces(8080));
    assert_eq!(config.log.level, LevelFilter::Info);
    assert_eq!(config.sfu_keys.keys.all().len(), 1);
    let tokens = &config.access_tokens;
    assert_eq!(tokens.lifetime.as_secs(), 3600);
    assert_eq!(tokens.openid_cache_ttl.as_secs(), 30);
    assert!(tokens.remote_users_may_publish && !tokens.can_update_own_metadata);
    assert!(config.homeservers.full_access.is_empty());
    assert!(config.homeservers.federation_overrides.is_empty());
    assert_eq!(report.warnings.len(), 1);
    assert!(report.warnings[0].contains("restricted"));
    assert!(report.warnings[0].contains("LIVEKIT_FULL_ACCESS_HOMESERVERS=your.server.name"));
    assert_eq!(row(&report, "LIVEKIT_JWT_BIND"), ":8080 | default");
    assert_eq!(
        row(&report, "LIVEKIT_API_URL"),
        format!("{api_url} | from LIVEKIT_URL")
    );
    assert_eq!(
        row(&report, "LIVEKIT_SECRET"),
        "APIx (set, 32 characters) | environment"
    );
    assert!(!format!("{config:?} {report:?}").contains(SECRET));
}

#[test]
fn all_errors_are_reported_at_once() {
    let env = [
        ("LIVEKIT_URL", "sfu.example.com"),
        ("LIVEKIT_KEY", "APIx"),
        ("LIVEKIT_JWT_BIND", "8080"),
        ("LIVEKIT_LOG_LEVEL", "loud"),
        ("LIVEKIT_TOKEN_LIFETIME_SECONDS", "59"),
        ("LIVEKIT_OPENID_CACHE_SECONDS", "301"),
        ("LIVEKIT_CAN_UPDATE_OWN_METADATA", "maybe"),
        ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "a.org,*"),
        ("LIVEKIT_ALLOWED_NETWORKS", "10.0.0.0/8 lan"),
        ("LIVEKIT_FEDERATION_URL_OVERRIDES", "a.org=hs"),
        ("LIVEKIT_CA_FILE", "/nowhere/ca.pem"),
    ];
    let errors = errors(&env.into_iter().collect());
    let starts = [
        r#"LIVEKIT_URL: expected a ws, wss, http or https URL"#,
        r#"LIVEKIT_JWT_BIND: expected :8080, host:8080, [::1]:8080 or unix:/path, found "8080""#,
        r#"LIVEKIT_SECRET: expected the secret of LIVEKIT_KEY"#,
        r#"LIVEKIT_FULL_ACCESS_HOMESERVERS: expected server names"#,
        r#"LIVEKIT_FEDERATION_URL_OVERRIDES: expected example.com=https://host:port"#,
        r#"LIVEKIT_ALLOWED_NETWORKS: expected addresses or networks"#,
        r#"LIVEKIT_CA_FILE: expected a PEM file of certificates, found "/nowhere/ca.pem": No such file"#,
        r#"LIVEKIT_TOKEN_LIFETIME_SECONDS: expected 60 to 86400 seconds, found "59""#,
        r#"LIVEKIT_OPENID_CACHE_SECONDS: expected 0 to 300 seconds, found "301""#,
        r#"LIVEKIT_CAN_UPDATE_OWN_METADATA: expected true, false, yes, no, 1 or 0, found "maybe""#,
        r#"LIVEKIT_LOG_LEVEL: expected error, warn, info, debug or trace, found "loud""#,
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{error}\n{start}");
    }
}

#[test]
fn the_sfu_url_is_unchanged_or_refused_without_its_secrets() {
    for url in ["ws://h:7880", "wss://h", "http://h/", "https://h/a/b/"] {
        let (config, _) = read_valid(&[("LIVEKIT_URL", &format!(" {url}\n"))]);
        assert_eq!(config.sfu.url, url);
    }
    for (url, found) in [
        ("wss://me:pw@h/x", r#""wss://…@h/x""#),
        ("wss://h?token=pw", r#""wss://h…""#),
        ("wss://h#pw", r#""wss://h…""#),
        ("ftp://h", r#""ftp://h""#),
    ] {
        for name in ["LIVEKIT_URL", "LIVEKIT_API_URL"] {
            let errors = errors(&environment(&[(name, url)]));
            assert_eq!(errors.len(), 1);
            assert!(errors[0].starts_with(name) && errors[0].ends_with(found));
        }
    }
    let (config, _) = read_valid(&[("LIVEKIT_API_URL", "http://10.0.0.1:7880")]);
    assert_eq!(config.sfu.api_url.to_string(), "http://10.0.0.1:7880");
}

#[test]
fn an_empty_value_counts_as_not_set() {
    let is_required = |name: &str| REQUIRED.iter().any(|(required, _)| *required == name);
    let names = SETTINGS.iter().map(|setting| setting.name);
    let empty: Vec<_> = names
        .filter(|name| !is_required(name))
        .map(|name| (name, " \n"))
        .collect();
    let (_, report) = read_valid(&empty);
    assert_eq!(report.warnings.len(), 1);
    assert!(errors(&Environment::default())[0].ends_with("found nothing"));
}

#[test]
fn every_integer_is_within_the_range_of_the_table() {
    let as_mode = ("LIVEKIT_AS_TOKEN", "an-as-token");
    for setting in SETTINGS {
        let Some((min, max)) = setting.range else {
            continue;
        };
        for value in [min.wrapping_sub(1), max + 1] {
            let value = value.to_string();
            // opens the endpoints that read it, if its own name does not
            let token = ("TOKEN_SERVER_AUTH", "none");
            let errors = errors(&environment(&[(setting.name, &value), as_mode, token]));
            let start = format!("{}: expected {min} to {max}", setting.name);
            assert!(
                errors.iter().any(|error| error.starts_with(&start)),
                "{start} {errors:?}"
            );
        }
    }
}

#[test]
fn dev_needs_no_setting_and_stays_on_loopback() {
    let dev =
        |variables: &[(&str, &str)]| Config::read(&variables.iter().copied().collect(), Mode::Dev);
    let (config, report) = dev(&[]);
    let config = config.unwrap();
    assert_eq!(config.sfu.url, "ws://localhost:7880");
    assert_eq!(config.listen.bind.to_string(), "127.0.0.1:8080");
    assert!(config.homeservers.full_access.is_all());
    assert_eq!(row(&report, "LIVEKIT_URL"), "ws://localhost:7880 | --dev");
    assert_eq!(row(&report, "LIVEKIT_LOG_LEVEL"), "info | default");
    assert_eq!(report.warnings, [""; 0]);

    for (name, value) in [("LIVEKIT_JWT_BIND", ":9000"), ("LK_JWT_PORT", "9000")] {
        let errors = dev(&[(name, value)]).0.unwrap_err();
        assert_eq!(errors.len(), 1);
        let start = format!("{name}: expected a loopback address");
        assert!(errors[0].to_string().starts_with(&start));
    }
    // the same pair in a setting is as public
    let (config, _) = dev(&[
        ("LIVEKIT_KEYS", "devkey: secret"),
        ("LIVEKIT_JWT_BIND", ":9000"),
    ]);
    assert!(config.is_err());
    let (config, _) = dev(&[
        ("LIVEKIT_KEY", "APIx"),
        ("LIVEKIT_SECRET", SECRET),
        ("LIVEKIT_JWT_BIND", ":9000"),
    ]);
    assert_eq!(
        config.unwrap().listen.bind,
        BindAddress::AllInterfaces(9000)
    );
}

/// Which endpoints are open with these settings, an SFU URL and a key under any name: Matrix, `/token`, application service.
fn open_endpoints(settings: &[(&str, &str)]) -> ([bool; 3], ConfigReport) {
    let url = [("LIVEKIT_URL", "wss://sfu.example.com")];
    let env = url.iter().chain(settings).copied().collect();
    let report = Config::read(&env, Mode::Serve).1;
    let open = EndpointGroup::ALL.map(|group| {
        let mut endpoints = report.endpoints.iter();
        endpoints.any(|(other, open, _)| *other == group && *open)
    });
    (open, report)
}

#[test]
fn settings_of_endpoints_and_the_name_of_the_key_open_endpoints() {
    let (matrix, token, appservice) = (
        [true, false, false],
        [false, true, false],
        [false, false, true],
    );
    let both = [true, true, false];
    let pair = format!("a: {SECRET}");
    let keys = ("LIVEKIT_KEYS", pair.as_str());
    let token_key = ("LIVEKIT_API_KEY", "APIx");
    let registration = ("LIVEKIT_AS_TOKEN", "an-as-token");
    for (settings, expected) in [
        (&[][..], matrix),
        (&[keys], matrix),
        (&[token_key], token),
        (&[token_key, ("LIVEKIT_KEY", " ")], token),
        (&[token_key, ("LIVEKIT_KEY", "APIx")], both),
        (
            &[token_key, ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "a.org")],
            both,
        ),
        (&[keys, ("TOKEN_SERVER_AUTH", "none")], both),
        (&[("TOKEN_SERVER_AUTH", "none")], token),
        // settings that several endpoints read, or that say nothing of callers, open none
        (&[token_key, ("LIVEKIT_REDIS_URL", "redis://h")], token),
        (
            &[token_key, ("LIVEKIT_TOKEN_LIFETIME_SECONDS", "60")],
            token,
        ),
        (&[keys, ("CORS_ORIGINS", "*")], matrix),
        (
            &[keys, ("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", "5")],
            matrix,
        ),
        // with application-service mode, the name of the key is of no meaning
        (&[registration], appservice),
        (&[registration, keys, token_key], appservice),
        (
            &[registration, ("LIVEKIT_OPENID_CACHE_SECONDS", "0")],
            [true, false, true],
        ),
        (
            &[registration, ("TOKEN_SERVER_PORT", "80")],
            [false, true, true],
        ),
        (&[keys, ("TOKEN_SERVER_PORT", "tcp://10.0.0.1:80")], matrix),
    ] {
        let (open, report) = open_endpoints(settings);
        assert_eq!(open, expected, "{settings:?} {:?}", report.endpoints);
    }
}

#[test]
fn the_report_says_why_endpoints_are_open_or_closed() {
    let (_, report) = open_endpoints(&[("LIVEKIT_API_KEY", "APIx")]);
    let reasons: Vec<_> = report
        .endpoints
        .iter()
        .map(|(_, _, reason)| reason)
        .collect();
    let [matrix, token, appservice] = reasons[..] else {
        panic!("{reasons:?}")
    };
    assert!(
        matrix.starts_with("none of LIVEKIT_KEY, LIVEKIT_KEY_FROM_FILE, "),
        "{matrix}"
    );
    assert_eq!(token, "LIVEKIT_API_KEY is set");
    assert!(
        appservice.starts_with("none of LIVEKIT_AS_REGISTRATION_FILE, "),
        "{appservice}"
    );
    assert_eq!(
        open_endpoints(&[]).1.endpoints[0].2,
        "no setting opens any endpoints"
    );
}

#[test]
fn a_set_setting_that_no_open_endpoint_reads_draws_a_warning() {
    for (name, value) in [
        ("CORS_ORIGINS", "*"),
        ("TOKEN_EXPIRY_HOURS", "nonsense"),
        ("LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS", "5"),
    ] {
        let (_, report) = read_valid(&[(name, value)]);
        let start = format!("{name} has no effect: ");
        assert!(
            report.warnings.iter().any(|w| w.starts_with(&start)),
            "{report:?}"
        );
    }
    let (_, report) = read_valid(&[("STATE_DIRECTORY", "/tmp"), ("LIVEKIT_LOG_LEVEL", "warn")]);
    assert_eq!(report.warnings.len(), 1, "{report:?}");
}

#[test]
fn a_reload_keeps_only_the_sections_that_are_wrong() {
    let directory = TempDir::new();
    let keys = directory.file("keys", format!("APIa: {SECRET}"));
    let policy = directory.file("policy", "[default]\nrooms = ['a']");
    let callers = directory.file("callers", "");
    let env = [
        ("LIVEKIT_URL", "wss://h"),
        ("LIVEKIT_KEY_FILE", &keys),
        ("TOKEN_SERVER_POLICY_FILE", &policy),
        ("TOKEN_SERVER_API_KEYS_FILE", &callers),
    ];
    let env: Environment = env.into_iter().collect();
    directory.file("callers", "# none yet");
    let config = Config::read(&env, Mode::Serve).0.unwrap();
    let default_policy = |config: &Config| {
        let endpoint = config.token_endpoint.as_ref().unwrap();
        endpoint.callers.default_policy.clone()
    };

    directory.file("keys", format!("APIb: {SECRET}\nAPIa: {SECRET}"));
    directory.file("policy", "[default]\nrooms = 'b'");
    directory.file("callers", format!("app:{}", "0".repeat(64)));
    let reloaded = config.reload(&env, Mode::Serve);
    let refused: Vec<_> = reloaded
        .outcomes
        .iter()
        .filter(|outcome| !outcome.errors.is_empty())
        .map(|outcome| (outcome.section, join_errors(&outcome.errors)))
        .collect();
    let [(Section::Policy, error)] = &refused[..] else {
        panic!("{refused:?}")
    };
    assert!(error.starts_with("TOKEN_SERVER_POLICY_FILE: "), "{error}");
    assert_eq!(reloaded.config.sfu_keys.keys.signing().id(), "APIb");
    assert_eq!(default_policy(&reloaded.config), default_policy(&config));
    let endpoint = reloaded.config.token_endpoint.as_ref().unwrap();
    assert_eq!(endpoint.callers.summary(), "app");

    directory.file("keys", "");
    directory.file("policy", "[default]\nrooms = ['b']");
    let again = reloaded.config.reload(&env, Mode::Serve).config;
    assert_eq!(again.sfu_keys, reloaded.config.sfu_keys);
    assert_ne!(default_policy(&again), default_policy(&config));
}

#[test]
fn a_reload_with_dev_keeps_the_defaults_of_dev() {
    let env = Environment::default();
    let config = Config::read(&env, Mode::Dev).0.unwrap();
    let reloaded = config.reload(&env, Mode::Dev);
    for outcome in &reloaded.outcomes {
        assert!(outcome.errors.is_empty(), "{outcome:?}");
    }
    assert_eq!(reloaded.config.sfu, config.sfu);
    assert_eq!(reloaded.config.sfu_keys, config.sfu_keys);
    assert_eq!(reloaded.config.homeservers, config.homeservers);
}
