use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A directory of a test's own.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = format!("livekit-token-service-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NEEDED: [(&str, &str); 3] = [
    ("LIVEKIT_URL", "wss://sfu.example.com/livekit/sfu/"),
    ("LIVEKIT_KEY", "APIx"),
    ("LIVEKIT_SECRET", SECRET),
];

pub(super) fn environment(more: &[(&str, &str)]) -> Environment {
    NEEDED.iter().chain(more).copied().collect()
}

fn valid(more: &[(&str, &str)]) -> (Config, ConfigReport) {
    let (config, report) = Config::read_with_defaults(&environment(more));
    (config.unwrap(), report)
}

pub(super) fn errors(env: &Environment) -> Vec<String> {
    let (config, _) = Config::read_with_defaults(env);
    let errors = config.unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

pub(super) fn row(report: &ConfigReport, name: &str) -> String {
    let setting = report.settings().iter().find(|s| s.name == name);
    setting.map_or("(no row)".into(), |s| {
        format!("{} | {}", s.display_value, s.origin)
    })
}

#[test]
fn three_variables_are_enough_and_the_rest_has_defaults() {
    let (config, report) = valid(&[]);
    assert_eq!(config.sfu_url, "wss://sfu.example.com/livekit/sfu/");
    assert_eq!(
        config.sfu_api_url.to_string(),
        "https://sfu.example.com/livekit/sfu"
    );
    assert_eq!(config.bind, BindAddress::AllInterfaces(8080));
    assert_eq!(config.log_level, LevelFilter::Info);
    assert_eq!(config.api_keys.len(), 1);
    assert_eq!(config.token_lifetime, Duration::from_secs(3600));
    assert_eq!(config.openid_cache_ttl, Duration::from_secs(30));
    assert!(config.full_access.is_empty() && config.federation_overrides.is_empty());
    assert!(config.remote_users_may_publish && !config.can_update_own_metadata);
    assert!(!config.insecure_skip_verify_tls);
    assert_eq!(report.warnings().len(), 1);
    assert!(report.warnings()[0].contains("restricted"));
    assert!(report.warnings()[0].contains("LIVEKIT_FULL_ACCESS_HOMESERVERS=your.server.name"));
    assert_eq!(row(&report, "LIVEKIT_JWT_BIND"), ":8080 | default");
    assert_eq!(
        row(&report, "LIVEKIT_API_URL"),
        "https://sfu.example.com/livekit/sfu | from LIVEKIT_URL"
    );
    assert_eq!(
        row(&report, "LIVEKIT_SECRET"),
        "APIx (set, 32 characters) | environment"
    );
    assert!(!format!("{config:?} {report:?}").contains(SECRET));
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
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
        r#"LIVEKIT_SECRET: expected the secret of LIVEKIT_KEY"#,
        r#"LIVEKIT_JWT_BIND: expected :8080, host:8080, [::1]:8080 or unix:/path, found "8080""#,
        r#"LIVEKIT_FULL_ACCESS_HOMESERVERS: expected server names"#,
        r#"LIVEKIT_FEDERATION_URL_OVERRIDES: expected example.com=https://host:port"#,
        r#"LIVEKIT_ALLOWED_NETWORKS: expected addresses or networks"#,
        r#"LIVEKIT_CA_FILE: expected a readable file, found "/nowhere/ca.pem": No such file"#,
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
fn the_url_of_the_sfu_is_handed_out_unchanged_or_refused_without_its_secrets() {
    for url in ["ws://h:7880", "wss://h", "http://h/", "https://h/a/b/"] {
        let (config, _) = valid(&[("LIVEKIT_URL", &format!(" {url}\n"))]);
        assert_eq!(config.sfu_url, url);
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
    let (config, _) = valid(&[("LIVEKIT_API_URL", "http://10.0.0.1:7880")]);
    assert_eq!(config.sfu_api_url.to_string(), "http://10.0.0.1:7880");
}

#[test]
fn an_empty_value_is_an_unset_one() {
    let empty: Vec<_> = table::SETTINGS
        .iter()
        .filter(|known| NEEDED.iter().all(|(name, _)| *name != known.name))
        .map(|known| (known.name, " \n"))
        .collect();
    let (_, report) = valid(&empty);
    assert_eq!(report.warnings().len(), 1);
    assert!(errors(&Environment::default())[0].ends_with("found nothing"));
}

#[test]
fn full_access_has_two_names_and_says_whom_it_lets_in() {
    let older = ("LIVEKIT_LOCAL_HOMESERVERS", "b.org a.org");
    let (config, report) = valid(&[older]);
    assert_eq!(config.full_access.names().count(), 2);
    assert!(report.warnings()[0].starts_with("LIVEKIT_LOCAL_HOMESERVERS is an older name"));
    let memory = ("LIVEKIT_STATE_DIR", "memory");
    let both = ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "a.org,b.org");
    let (config, report) = valid(&[older, both, memory]);
    assert_eq!(config.full_access.names().count(), 2);
    assert_eq!(report.warnings().len(), 1);
    assert_eq!(
        errors(&environment(&[
            older,
            ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "a.org")
        ])),
        [
            "LIVEKIT_LOCAL_HOMESERVERS: expected the same as in LIVEKIT_FULL_ACCESS_HOMESERVERS, found another value"
        ]
    );
    let (config, report) = valid(&[("LIVEKIT_FULL_ACCESS_HOMESERVERS", "*")]);
    assert!(config.full_access.is_all());
    assert!(report.warnings()[0].starts_with("anybody on any homeserver can create rooms"));
    let (_, report) = valid(&[("LIVEKIT_FULL_ACCESS_HOMESERVERS", "a.org"), memory]);
    assert_eq!(report.warnings(), [""; 0]);
}

#[test]
fn certificates_are_checked_unless_the_exact_words_say_otherwise() {
    const NAME: &str = "LIVEKIT_INSECURE_SKIP_VERIFY_TLS";
    for value in ["true", "1", "yes_i_know_what_i_am_doing"] {
        let (config, report) = valid(&[(NAME, value)]);
        assert!(!config.insecure_skip_verify_tls);
        assert!(
            report
                .warnings()
                .iter()
                .any(|w| w.starts_with(&format!("{NAME} has no effect")))
        );
    }
    let (config, report) = valid(&[(NAME, "YES_I_KNOW_WHAT_I_AM_DOING")]);
    assert!(config.insecure_skip_verify_tls);
    assert!(report.warnings().iter().any(|w| w.contains("NOT CHECKED")));
}

#[test]
fn authorities_of_every_program_may_be_absent_ours_may_not() {
    let scratch = TempDir::new();
    let ca = scratch.path().join("ca.pem");
    let certificate = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap();
    fs::write(&ca, certificate.cert.pem()).unwrap();
    let (_, report) = valid(&[
        ("LIVEKIT_CA_FILE", ca.to_str().unwrap()),
        ("SSL_CERT_FILE", "/etc/hosts"),
        ("SSL_CERT_DIR", "/etc/ssl/certs:/nowhere"),
    ]);
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        let ignored = format!("{name} is ignored: ");
        assert!(
            report.warnings().iter().any(|w| w.starts_with(&ignored)),
            "{report:?}"
        );
    }
    fs::write(&ca, "no certificate").unwrap();
    let wrong = errors(&environment(&[("LIVEKIT_CA_FILE", ca.to_str().unwrap())]));
    assert!(
        wrong[0].starts_with("LIVEKIT_CA_FILE: expected a PEM file of certificates, found"),
        "{wrong:?}"
    );
}

#[test]
fn dev_needs_nothing_and_stays_on_this_host() {
    let dev = |variables: &[(&str, &str)]| Config::read_dev(&variables.iter().copied().collect());
    let (config, report) = dev(&[]);
    let config = config.unwrap();
    assert_eq!(config.sfu_url, "ws://localhost:7880");
    assert_eq!(config.bind.to_string(), "127.0.0.1:8080");
    assert!(config.full_access.is_all());
    assert_eq!(row(&report, "LIVEKIT_URL"), "ws://localhost:7880 | --dev");
    assert_eq!(report.warnings(), [""; 0]);

    for (name, value) in [("LIVEKIT_JWT_BIND", ":9000"), ("LK_JWT_PORT", "9000")] {
        let (config, _) = dev(&[(name, value)]);
        let errors = config.unwrap_err();
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0]
                .to_string()
                .starts_with(&format!("{name}: expected a loopback address"))
        );
    }
    // the same pair given by hand is as well known
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
    assert_eq!(config.unwrap().bind, BindAddress::AllInterfaces(9000));
}
