use super::*;
use crate::livekit::access_token::{ApiKey, verify};
use crate::net::address::client_key;
use crate::token::api_key::{ApiKeyHash, generate_api_key};
use crate::token::jwt::KeySource;
use crate::token::keys::KeySet;

const NOW: u64 = 1_795_291_200;

fn name(text: &str) -> CallerName {
    CallerName::parse(text).unwrap()
}

fn empty_registry() -> CallerRegistry {
    CallerRegistry {
        api_keys: CallerApiKeys::default(),
        issuers: Vec::new(),
        anonymous: None,
        policies: BTreeMap::new(),
        default_policy: Arc::default(),
    }
}

fn token_source(registry: CallerRegistry) -> TokenSource {
    TokenSource::new(ApiKey::new("APIx", "secret"), registry)
}

fn api_key(caller: &str) -> (String, (ApiKeyHash, CallerName)) {
    let (key, hash) = generate_api_key();
    (key, (hash, name(caller)))
}

fn authenticate(
    source: &TokenSource,
    credentials: Credentials<'_>,
) -> Result<AuthenticatedCaller, Error> {
    source.authenticate(credentials, None, Instant::now(), NOW)
}

fn policy_with_rate(requests_per_minute: u32) -> Arc<CallerPolicy> {
    Arc::new(CallerPolicy {
        requests_per_minute,
        ..CallerPolicy::default()
    })
}

#[test]
fn a_caller_name_needs_no_quotes_in_a_log_line() {
    for text in ["a", "booking-app", "a.b_C-9", &"n".repeat(MAX_CALLER_NAME)] {
        assert_eq!(CallerName::parse(text).unwrap().as_str(), text);
    }
    for text in [
        "",
        "a b",
        "é",
        "a=b",
        "a\n",
        &"n".repeat(MAX_CALLER_NAME + 1),
    ] {
        assert_eq!(CallerName::parse(text), None);
    }
}

#[test]
fn without_configured_callers_every_request_is_refused() {
    let source = token_source(empty_registry());
    for credentials in [
        Credentials::Missing,
        Credentials::Unsupported,
        Credentials::ApiKeyOrJwt("lts_x"),
        Credentials::ApiKeyOrJwt("a.b.c"),
    ] {
        let error = authenticate(&source, credentials).unwrap_err();
        assert_eq!(error, Error::NoCallerConfigured);
    }
}

#[test]
fn an_api_key_authenticates_its_caller() {
    let (key, stored) = api_key("app");
    let (unknown_key, _) = api_key("app");
    let no_rooms = CallerPolicy {
        rooms: Vec::new(),
        ..CallerPolicy::default()
    };
    let source = token_source(CallerRegistry {
        api_keys: CallerApiKeys::new([stored]),
        policies: [(name("other"), Arc::new(no_rooms))].into(),
        ..empty_registry()
    });
    let caller = authenticate(&source, Credentials::ApiKeyOrJwt(&key)).unwrap();
    assert_eq!(caller.name(), &name("app"));
    assert_eq!(caller.api_key_id(), Some(&key[4..12]));
    let request = ParticipantRequest {
        room: Some("room".into()),
        display_name: Some("me".into()),
        lifetime: Some(60),
        ..ParticipantRequest::default()
    };
    let token = source.issue_access_token(&caller, request, NOW).unwrap();
    assert_eq!(token.expires_at, NOW + 60);
    let keys = [ApiKey::new("APIx", "secret")];
    let verified = verify(token.access_token.expose(), &keys, NOW).unwrap();
    assert_eq!(verified.identity.as_deref(), Some("me"));

    for (credentials, error) in [
        (Credentials::Missing, Error::MissingCredentials),
        (Credentials::ApiKeyOrJwt(&unknown_key), Error::UnknownApiKey),
        (
            Credentials::ApiKeyOrJwt("a.b.c"),
            Error::UnsupportedCredentials,
        ),
        (Credentials::ApiKeyOrJwt(""), Error::UnsupportedCredentials),
        (Credentials::Unsupported, Error::UnsupportedCredentials),
    ] {
        assert_eq!(authenticate(&source, credentials).unwrap_err(), error);
    }
}

#[test]
fn with_anonymous_access_an_api_key_still_has_to_be_valid() {
    let (key, stored) = api_key("app");
    let source = token_source(CallerRegistry {
        api_keys: CallerApiKeys::new([stored]),
        anonymous: Some(name("anyone")),
        ..empty_registry()
    });
    let caller = |credentials| authenticate(&source, credentials).map(|caller| caller.name);
    let with_key = caller(Credentials::ApiKeyOrJwt(&key)).unwrap();
    assert_eq!(with_key, name("app"));
    for credentials in [
        Credentials::Missing,
        Credentials::Unsupported,
        Credentials::ApiKeyOrJwt("session-of-the-proxy"),
    ] {
        assert_eq!(caller(credentials).unwrap(), name("anyone"));
    }
    assert!(caller(Credentials::ApiKeyOrJwt(&key[..20])).is_err());
}

#[test]
fn each_caller_and_each_anonymous_address_has_a_rate_limit() {
    let (a, stored_a) = api_key("a");
    let (b, stored_b) = api_key("b");
    let source = token_source(CallerRegistry {
        api_keys: CallerApiKeys::new([stored_a, stored_b]),
        anonymous: Some(name("anyone")),
        policies: [(name("b"), policy_with_rate(0))].into(),
        default_policy: policy_with_rate(3),
        ..empty_registry()
    });
    let now = Instant::now();
    let accepted = |credentials, client: Option<&str>| {
        let client = client.map(|client| client_key(client.parse().unwrap()));
        (0..9)
            .filter(|_| source.authenticate(credentials, client, now, NOW).is_ok())
            .count()
    };
    assert_eq!(accepted(Credentials::ApiKeyOrJwt(&a), Some("1.1.1.1")), 3);
    assert_eq!(accepted(Credentials::ApiKeyOrJwt(&a), Some("2.2.2.2")), 0);
    assert_eq!(accepted(Credentials::ApiKeyOrJwt(&b), None), 9);
    assert_eq!(accepted(Credentials::Missing, Some("1.1.1.1")), 3);
    assert_eq!(accepted(Credentials::Missing, Some("2001:db8::1")), 3);
    assert_eq!(accepted(Credentials::Missing, Some("2001:db8::2")), 0);
    assert_eq!(accepted(Credentials::Missing, None), 9);
    let error = source
        .authenticate(Credentials::ApiKeyOrJwt(&a), None, now, NOW)
        .unwrap_err();
    assert_eq!(
        error,
        Error::RateLimited(name("a"), Duration::from_secs(20))
    );
}

#[test]
fn a_replaced_registry_applies_to_the_next_request() {
    let (old, stored_old) = api_key("app");
    let (new, stored_new) = api_key("app");
    let registry = |stored| CallerRegistry {
        api_keys: CallerApiKeys::new([stored]),
        ..empty_registry()
    };
    let source = token_source(registry(stored_old));
    assert!(authenticate(&source, Credentials::ApiKeyOrJwt(&old)).is_ok());
    source.replace_registry(registry(stored_new));
    assert!(authenticate(&source, Credentials::ApiKeyOrJwt(&old)).is_err());
    assert!(authenticate(&source, Credentials::ApiKeyOrJwt(&new)).is_ok());
}

#[test]
fn the_summary_names_every_caller_once() {
    let (_, stored_a) = api_key("a");
    let (_, stored_again) = api_key("a");
    let (_, stored_z) = api_key("z");
    let registry = CallerRegistry {
        api_keys: CallerApiKeys::new([stored_z, stored_a, stored_again]),
        issuers: vec![issuer_with_secret()],
        ..empty_registry()
    };
    assert_eq!(registry.summary(), "a,jwt,z");
    let registry = CallerRegistry {
        anonymous: Some(name("anyone")),
        ..registry
    };
    assert_eq!(registry.summary(), "anyone,a,jwt,z");
    assert_eq!(empty_registry().summary(), "none");
}

fn issuer_with_secret() -> JwtIssuer {
    let keys = KeySet::from_secret("a secret of an issuer, long enough for it").unwrap();
    JwtIssuer {
        name: name("jwt"),
        issuer: "i".into(),
        audience: "a".into(),
        identity_claim: "sub".into(),
        keys: KeySource::Fixed(keys),
    }
}

#[test]
fn only_a_jwt_of_a_remote_issuer_can_need_a_key_fetch() {
    let source = token_source(CallerRegistry {
        issuers: vec![issuer_with_secret()],
        ..empty_registry()
    });
    for credentials in [
        Credentials::Missing,
        Credentials::Unsupported,
        Credentials::ApiKeyOrJwt("lts_x"),
        Credentials::ApiKeyOrJwt("a.b.c"),
    ] {
        assert!(!source.needs_key_fetch(credentials, NOW));
        assert!(authenticate(&source, credentials).is_err());
    }
    assert_eq!(
        authenticate(&source, Credentials::ApiKeyOrJwt("a.b.c")).unwrap_err(),
        Error::JwtRejected(JwtRejection::Malformed)
    );
}
