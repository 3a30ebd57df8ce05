use super::super::token_endpoint::TokenEndpointConfig;
use super::{Config, ConfigReport, Environment, Mode, TempDir};
use crate::api::cors::AllowedOrigins;
use crate::token::CallerName;
use crate::token::api_key::MAX_API_KEYS;
use crate::token::jwt::KeySource;
use crate::token::pattern::NamePattern;

const HASH: &str = "a3b27c1c2f20dc5d6ee2d4e0a27d9ea2d9c9a0d1d9c8f31bd6f3c9cd8f3f6a11";
const SECRET: &str = "never-logged-secret-of-a-login-0123456789";

fn environment(more: &[(&str, &str)]) -> Environment {
    let required = [
        ("LIVEKIT_URL", "wss://sfu.example.com"),
        ("LIVEKIT_API_KEY", "APIx"),
        ("LIVEKIT_API_SECRET", "never-logged-secret-of-32-characters"),
    ];
    required.iter().chain(more).copied().collect()
}

fn read_valid(more: &[(&str, &str)]) -> (Config, ConfigReport) {
    let (config, report) = Config::read(&environment(more), Mode::Serve);
    let config = config.unwrap_or_else(|errors| panic!("{errors:#?}"));
    (config, report)
}

fn read_endpoint(more: &[(&str, &str)]) -> TokenEndpointConfig {
    read_valid(more).0.token_endpoint.unwrap()
}

fn errors(more: &[(&str, &str)]) -> Vec<String> {
    super::errors(&environment(more))
}

fn name(text: &str) -> CallerName {
    CallerName::parse(text).unwrap()
}

#[test]
fn the_example_server_s_settings_open_the_token_endpoint_alone() {
    let (config, report) = read_valid(&[
        ("TOKEN_EXPIRY_HOURS", "2"),
        ("CORS_ORIGINS", "http://a,http://b:3000"),
        ("TOKEN_SERVER_PORT", "8000"),
    ]);
    assert!(!config.endpoints.matrix);
    let endpoint = config.token_endpoint.unwrap();
    assert_eq!(endpoint.callers.default_policy.default_lifetime, 7200);
    assert_eq!(
        endpoint.allowed_origins,
        AllowedOrigins::parse("http://a http://b:3000").unwrap()
    );
    assert_eq!(endpoint.callers.summary(), "none");
    // no warning about homeservers
    assert!(
        report.warnings.iter().all(|w| w.contains("older name")),
        "{report:?}"
    );
}

#[test]
fn caller_keys_are_hashes_in_a_setting_or_a_file() {
    let other = HASH.replace('a', "b");
    let third = HASH.replace('a', "c");
    let directory = TempDir::new();
    let file = directory.file("keys", format!("# comment\napp:{other}\n"));
    let callers = read_endpoint(&[
        (
            "TOKEN_SERVER_API_KEYS",
            &format!("booking:{HASH}, app:sha256:{third}"),
        ),
        ("TOKEN_SERVER_API_KEYS_FILE", &file),
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
    let directory = TempDir::new();
    let file = directory.file("keys", &many[..many.len() / 2]);
    let half = &many[many.len() / 2 / 67 * 67..];
    let too_many = [
        ("TOKEN_SERVER_API_KEYS", half),
        ("TOKEN_SERVER_API_KEYS_FILE", &file),
    ];
    assert!(
        errors(&too_many)
            .iter()
            .any(|e| e.contains("at most") || e.contains("entry"))
    );
}

#[test]
fn metadata_too_long_for_a_url_draws_a_warning() {
    for (bytes, warned) in [(5120, false), (5121, true)] {
        let directory = TempDir::new();
        let file = directory.file(
            "policy.toml",
            format!("[callers.a]\nmax_metadata_bytes = {bytes}"),
        );
        let (_, report) = read_valid(&[("TOKEN_SERVER_POLICY_FILE", &file)]);
        assert_eq!(
            report.warnings.iter().any(|w| w.contains("metadata")),
            warned
        );
    }
}

#[test]
fn an_error_of_the_policy_file_has_its_line() {
    let directory = TempDir::new();
    let file = directory.file("policy.toml", "[default]\nroom = 'a'\n");
    let errors = errors(&[("TOKEN_SERVER_POLICY_FILE", &file)]);
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
fn the_policy_file_has_policies_for_callers_of_other_settings() {
    let rules =
        "[default]\nrooms = ['d']\n[callers.jwt]\nrooms = ['j']\n[callers.booking]\nrooms = ['b']";
    let directory = TempDir::new();
    let file = directory.file("policy.toml", rules);
    let callers = read_endpoint(&[
        ("TOKEN_SERVER_POLICY_FILE", &file),
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
fn callers_without_credentials_draw_a_warning_except_with_dev_on_loopback() {
    let (config, report) = read_valid(&[("TOKEN_SERVER_AUTH", "none")]);
    assert_eq!(config.token_endpoint.unwrap().callers.summary(), "anyone");
    assert!(
        report
            .warnings
            .iter()
            .any(|w| w.starts_with("ANYONE WHO REACHES /token"))
    );
    assert!(
        errors(&[("TOKEN_SERVER_AUTH", "None")])[0].starts_with("TOKEN_SERVER_AUTH: expected none")
    );

    let dev = |more: &[(&str, &str)]| {
        let (config, _) = Config::read(&more.iter().copied().collect(), Mode::Dev);
        let config = config.unwrap();
        assert!(config.endpoints.matrix);
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
fn a_login_needs_issuer_audience_and_one_source_of_keys() {
    let complete = [
        ("TOKEN_SERVER_JWT_ISSUER", "https://login.example.com"),
        ("TOKEN_SERVER_JWT_AUDIENCE", "livekit"),
        ("TOKEN_SERVER_JWT_SECRET", SECRET),
    ];
    let callers = read_endpoint(&complete).callers;
    assert_eq!(callers.summary(), "jwt");
    let rules = &callers.policies[&name("jwt")];
    assert_eq!(rules.identities, [NamePattern::equal_to_claim("sub")]);
    let [issuer, audience, secret] = complete;
    let by_mail = read_endpoint(&[
        issuer,
        audience,
        secret,
        ("TOKEN_SERVER_JWT_IDENTITY_CLAIM", "email"),
    ]);
    let rules = &by_mail.callers.policies[&name("jwt")];
    assert_eq!(rules.identities, [NamePattern::equal_to_claim("email")]);

    let url = (
        "TOKEN_SERVER_JWT_KEYS",
        "https://login.example.com/jwks.json",
    );
    assert!(matches!(
        read_endpoint(&[issuer, audience, url]).callers.issuers[0].keys,
        KeySource::Remote(_)
    ));
    for (wrong, starts) in [
        (
            &[issuer][..],
            &["TOKEN_SERVER_JWT_AUDIENCE", "TOKEN_SERVER_JWT_KEYS"][..],
        ),
        (
            &[secret],
            &["TOKEN_SERVER_JWT_ISSUER", "TOKEN_SERVER_JWT_AUDIENCE"],
        ),
        (
            &[issuer, audience],
            &["TOKEN_SERVER_JWT_KEYS: expected a JWKS or PEM file"],
        ),
        (
            &[issuer, audience, secret, url],
            &["TOKEN_SERVER_JWT_KEYS: expected nothing beside TOKEN_SERVER_JWT_SECRET"],
        ),
        (
            &[
                issuer,
                audience,
                ("TOKEN_SERVER_JWT_KEYS", "http://login.example.com/"),
            ],
            &["TOKEN_SERVER_JWT_KEYS"],
        ),
        (
            &[
                issuer,
                audience,
                ("TOKEN_SERVER_JWT_KEYS", "/nowhere/jwks.json"),
            ],
            &["TOKEN_SERVER_JWT_KEYS"],
        ),
        (
            &[
                issuer,
                audience,
                ("TOKEN_SERVER_JWT_SECRET", "never-logged"),
            ],
            &["TOKEN_SERVER_JWT_SECRET: expected a secret for HS256, found 12 characters"],
        ),
    ] {
        let errors = errors(wrong);
        assert_eq!(errors.len(), starts.len(), "{errors:?}");
        for (error, start) in errors.iter().zip(starts) {
            assert!(error.starts_with(start), "{error}");
            assert!(!error.contains("never-logged"), "{error}");
        }
    }
}

#[test]
fn logins_differ_and_their_number_is_bounded() {
    let login = |name: &str, audience: &str| {
        format!(
            "[callers.{name}]\njwt = {{ issuer = 'i', audience = '{audience}', keys = 'https://login.example.com/' }}\n"
        )
    };
    let refused = |text: &str| {
        let directory = TempDir::new();
        let file = directory.file("policy.toml", text);
        errors(&[("TOKEN_SERVER_POLICY_FILE", &file)])
    };
    let twins = refused(&(login("one", "a") + &login("two", "a")));
    assert!(
        twins[0].contains(r#"differ in issuer or audience, found those of "two""#),
        "{twins:?}"
    );
    let many: String = (0..33)
        .map(|n| login(&format!("c{n}"), &format!("a{n}")))
        .collect();
    let many = refused(&many);
    assert!(many[0].contains("at most 32 logins, found 33"), "{many:?}");
    let directory = TempDir::new();
    let few = directory.file("policy.toml", &(login("one", "a") + &login("two", "b")));
    assert_eq!(
        read_endpoint(&[("TOKEN_SERVER_POLICY_FILE", &few)])
            .callers
            .issuers
            .len(),
        2
    );
}
