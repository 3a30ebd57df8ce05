mod logins;

use std::fs;

use super::super::{Config, ConfigReport};
use super::*;

const HASH: &str = "a3b27c1c2f20dc5d6ee2d4e0a27d9ea2d9c9a0d1d9c8f31bd6f3c9cd8f3f6a11";
const SECRET: &str = "never-logged-secret-of-a-login-0123456789";

fn with(more: &[(&str, &str)]) -> Environment {
    let example = [
        ("LIVEKIT_URL", "wss://sfu.example.com"),
        ("LIVEKIT_API_KEY", "APIx"),
        ("LIVEKIT_API_SECRET", "never-logged-secret-of-32-characters"),
    ];
    example.into_iter().chain(more.iter().copied()).collect()
}

fn valid(more: &[(&str, &str)]) -> (Config, ConfigReport) {
    let (config, report) = Config::read_with_defaults(&with(more));
    (
        config.unwrap_or_else(|errors| panic!("{errors:#?}")),
        report,
    )
}

fn server(more: &[(&str, &str)]) -> TokenEndpointConfig {
    valid(more).0.token_endpoint.unwrap()
}

fn errors(more: &[(&str, &str)]) -> Vec<String> {
    let (config, _) = Config::read_with_defaults(&with(more));
    config
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// A file in a directory of its own, which goes with it.
struct TempFile(std::path::PathBuf);

impl TempFile {
    fn new(name: &str, content: &str) -> Self {
        let unique = format!(
            "lts-{}-{:x}",
            std::process::id(),
            u64::from_ne_bytes(crate::util::random::bytes())
        );
        let directory = std::env::temp_dir().join(unique);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(name), content).unwrap();
        Self(directory.join(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn name(text: &str) -> CallerName {
    CallerName::parse(text).unwrap()
}

#[test]
fn the_example_s_variables_open_its_door_and_no_other() {
    let (config, report) = valid(&[
        ("TOKEN_EXPIRY_HOURS", "2"),
        ("CORS_ORIGINS", "http://a,http://b:3000"),
        ("TOKEN_SERVER_PORT", "8000"),
    ]);
    assert!(!config.matrix_enabled);
    let server = config.token_endpoint.unwrap();
    assert_eq!(server.callers.default_policy.default_lifetime, 7200);
    assert_eq!(
        server.allowed_origins,
        AllowedOrigins::parse("http://a http://b:3000").unwrap()
    );
    assert_eq!(server.callers.summary(), "none");
    // nobody is told of homeservers
    assert!(
        report.warnings().iter().all(|w| w.contains("older name")),
        "{report:?}"
    );
}

#[test]
fn each_door_has_settings_that_open_it() {
    let doors = |more: &[(&str, &str)]| {
        let (config, _) = valid(more);
        (config.matrix_enabled, config.token_endpoint.is_some())
    };
    assert_eq!(doors(&[]), (false, true));
    assert_eq!(
        doors(&[("LIVEKIT_FULL_ACCESS_HOMESERVERS", "a.org")]),
        (true, true)
    );
    assert_eq!(doors(&[("LIVEKIT_KEY", "APIx")]), (true, true));
    assert_eq!(
        doors(&[("LIVEKIT_API_KEY", ""), ("LIVEKIT_KEY", "APIx")]),
        (true, false)
    );
    let keys = [
        ("LIVEKIT_API_KEY", ""),
        ("LIVEKIT_API_SECRET", ""),
        ("LIVEKIT_KEYS", "a: secret-secret-secret-secret-secret-12"),
    ];
    assert_eq!(doors(&keys), (true, false));
    let [a, b, c] = keys;
    assert_eq!(
        doors(&[a, b, c, ("TOKEN_SERVER_AUTH", "none")]),
        (true, true)
    );
    assert_eq!(doors(&[("LIVEKIT_KEY", " ")]), (false, true));
    let [_, _, keys] = keys;
    let injected = ("TOKEN_SERVER_PORT", "tcp://10.0.0.1:80");
    assert_eq!(doors(&[a, b, keys, injected]), (true, false));
}

#[test]
fn api_keys_come_by_hash_directly_or_in_a_file() {
    let other = HASH.replace('a', "b");
    let third = HASH.replace('a', "c");
    let file = TempFile::new("keys", &format!("# comment\napp:{other}\n"));
    let callers = server(&[
        (
            "TOKEN_SERVER_API_KEYS",
            &format!("booking:{HASH}, app:sha256:{third}"),
        ),
        ("TOKEN_SERVER_API_KEYS_FILE", file.path()),
    ])
    .callers;
    assert_eq!(callers.summary(), "app,booking");
    for wrong in [
        "booking",
        "booking:",
        "lts_00000000_never-logged",
        &format!("a b:{HASH}"),
        &format!("anyone:{HASH}"),
    ] {
        let errors = errors(&[("TOKEN_SERVER_API_KEYS", wrong)]);
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].starts_with("TOKEN_SERVER_API_KEYS: expected "),
            "{errors:?}"
        );
        assert!(!errors[0].contains("never-logged"), "{errors:?}");
    }
    let many: String = (0..=MAX_API_KEYS).map(|n| format!("a:{n:064x},")).collect();
    let file = TempFile::new("keys", &many[..many.len() / 2]);
    let half = &many[many.len() / 2 / 67 * 67..];
    let too_many = [
        ("TOKEN_SERVER_API_KEYS", half),
        ("TOKEN_SERVER_API_KEYS_FILE", file.path()),
    ];
    assert!(
        errors(&too_many)
            .iter()
            .any(|e| e.contains("at most") || e.contains("entry"))
    );
}

#[test]
fn metadata_too_long_for_a_url_is_warned_of() {
    for (bytes, warned) in [(5120, false), (5121, true)] {
        let file = TempFile::new(
            "policy.toml",
            &format!("[callers.a]\nmax_metadata_bytes = {bytes}"),
        );
        let (_, report) = valid(&[("TOKEN_SERVER_POLICY_FILE", file.path())]);
        assert_eq!(
            report.warnings().iter().any(|w| w.contains("metadata")),
            warned
        );
    }
}

#[test]
fn the_policy_file_is_refused_with_its_line() {
    let file = TempFile::new("policy.toml", "[default]\nroom = 'a'\n");
    let errors = errors(&[("TOKEN_SERVER_POLICY_FILE", file.path())]);
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].starts_with("TOKEN_SERVER_POLICY_FILE: expected a policy file"),
        "{errors:?}"
    );
    assert!(
        errors[0].contains("line 2: unknown field `room`"),
        "{errors:?}"
    );
}

#[test]
fn the_policy_file_has_rules_for_callers_of_the_variables() {
    let rules =
        "[default]\nrooms = ['d']\n[callers.jwt]\nrooms = ['j']\n[callers.booking]\nrooms = ['b']";
    let file = TempFile::new("policy.toml", rules);
    let callers = server(&[
        ("TOKEN_SERVER_POLICY_FILE", file.path()),
        ("TOKEN_SERVER_API_KEYS", &format!("booking:{HASH}")),
        ("TOKEN_SERVER_JWT_ISSUER", "i"),
        ("TOKEN_SERVER_JWT_AUDIENCE", "a"),
        ("TOKEN_SERVER_JWT_SECRET", SECRET),
    ])
    .callers;
    let jwt = &callers.policies[&name("jwt")];
    assert_eq!(jwt.rooms, [NamePattern::parse("j").unwrap()]);
    assert_eq!(jwt.identities, [NamePattern::equal_to_claim("sub")]);
    assert_eq!(callers.summary(), "booking,jwt");
}

#[test]
fn what_the_variables_name_is_read_again_and_nothing_else() {
    let file = TempFile::new("policy.toml", "[default]\nrooms = ['a']");
    let env = with(&[("TOKEN_SERVER_POLICY_FILE", file.path())]);
    let server = Config::read_with_defaults(&env)
        .0
        .unwrap()
        .token_endpoint
        .unwrap();
    fs::write(&file.0, "[default]\nrooms = ['b']").unwrap();
    let again = server.reload_callers(&env).unwrap();
    assert_eq!(
        again.default_policy.rooms,
        [NamePattern::parse("b").unwrap()]
    );
    fs::write(&file.0, "[default]\nrooms = 'b'").unwrap();
    assert_eq!(server.reload_callers(&env).unwrap_err().len(), 1);
}

#[test]
fn open_to_everyone_is_loud_and_dev_is_so_on_this_host() {
    let (config, report) = valid(&[("TOKEN_SERVER_AUTH", "none")]);
    assert_eq!(config.token_endpoint.unwrap().callers.summary(), "anyone");
    assert!(
        report
            .warnings()
            .iter()
            .any(|w| w.starts_with("ANYBODY WHO REACHES /token"))
    );
    assert!(
        errors(&[("TOKEN_SERVER_AUTH", "None")])[0].starts_with("TOKEN_SERVER_AUTH: expected none")
    );

    let dev = |more: &[(&str, &str)]| {
        let (config, _) = Config::read_dev(&more.iter().copied().collect());
        let config = config.unwrap();
        assert!(config.matrix_enabled);
        config.token_endpoint.unwrap().callers
    };
    assert_eq!(dev(&[]).summary(), "anyone");
    assert!(dev(&[]).default_policy.random_identity);
    let keyed = dev(&[("TOKEN_SERVER_API_KEYS", &format!("booking:{HASH}"))]);
    assert_eq!(keyed.summary(), "booking");
    let reachable = dev(&[
        ("LIVEKIT_KEY", "APIx"),
        ("LIVEKIT_SECRET", "never-logged-secret-of-32-characters"),
        ("LIVEKIT_JWT_BIND", ":9000"),
    ]);
    assert_eq!(reachable.summary(), "none");
}

#[test]
fn numbers_have_bounds() {
    for (name, wrong) in [
        ("TOKEN_EXPIRY_HOURS", "0"),
        ("TOKEN_EXPIRY_HOURS", "8761"),
        ("TOKEN_SERVER_MIN_NAME_LENGTH", "0"),
        ("TOKEN_SERVER_MIN_NAME_LENGTH", "65"),
        ("TOKEN_SERVER_RATE_PER_CALLER", "1000001"),
        ("LIVEKIT_RATE_PER_ADDRESS", "-1"),
        ("CORS_ORIGINS", "https://a/"),
    ] {
        let errors = errors(&[(name, wrong)]);
        assert!(
            errors.len() == 1 && errors[0].starts_with(name),
            "{errors:?}"
        );
    }
}
