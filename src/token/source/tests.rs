use super::*;
use crate::livekit::access_token::ApiKey;
use crate::livekit::access_token::verify;
use crate::token::api_key;
use crate::token::api_key::ApiKeyHash;
use crate::token::jwt::{JwtIssuer, KeySource};
use crate::token::keys::KeySet;

const CLOCK: u64 = 1_795_291_200;

fn name(text: &str) -> CallerName {
    CallerName::parse(text).unwrap()
}

fn source(book: CallerRegistry) -> TokenSource {
    TokenSource::new(ApiKey::new("APIx", "secret"), book)
}

fn key(of: &str) -> (String, (ApiKeyHash, CallerName)) {
    let (key, hash) = api_key::generate_api_key();
    (key, (hash, name(of)))
}

fn admit(source: &TokenSource, shown: Credentials<'_>) -> Result<AuthenticatedCaller, Error> {
    source.authenticate(shown, None, Instant::now(), CLOCK)
}

fn pace(requests_per_minute: u32) -> Arc<CallerPolicy> {
    Arc::new(CallerPolicy {
        requests_per_minute,
        ..CallerPolicy::default()
    })
}

#[test]
fn a_forgotten_setting_lets_nobody_in() {
    let source = source(CallerRegistry::default());
    for shown in [
        Credentials::Missing,
        Credentials::Unsupported,
        Credentials::ApiKeyOrJwt("lts_x"),
        Credentials::ApiKeyOrJwt("a.b.c"),
    ] {
        assert_eq!(
            admit(&source, shown).unwrap_err(),
            Error::NoCallerConfigured
        );
    }
}

#[test]
fn a_key_lets_its_caller_in_by_the_rules_for_them() {
    let (app, known) = key("app");
    let (stranger, _) = key("app");
    let strict = CallerPolicy {
        rooms: Vec::new(),
        ..CallerPolicy::default()
    };
    let source = source(CallerRegistry {
        api_keys: CallerApiKeys::new(vec![known]),
        policies: [(name("other"), Arc::new(strict))].into(),
        ..CallerRegistry::default()
    });
    let admitted = admit(&source, Credentials::ApiKeyOrJwt(&app)).unwrap();
    assert_eq!(admitted.caller().name, name("app"));
    assert_eq!(admitted.api_key_id(), Some(&app[4..12]));
    let asked = ParticipantRequest {
        room: Some("room".into()),
        display_name: Some("me".into()),
        lifetime: Some(60),
        ..ParticipantRequest::default()
    };
    let granted = source.issue_access_token(&admitted, asked, CLOCK).unwrap();
    assert_eq!(granted.expires_at, CLOCK + 60);
    let keys = [ApiKey::new("APIx", "secret")];
    let verified = verify(granted.access_token.expose(), &keys, CLOCK).unwrap();
    assert_eq!(verified.identity.as_deref(), Some("me"));

    assert_eq!(
        admit(&source, Credentials::Missing).unwrap_err(),
        Error::MissingCredentials
    );
    for wrong in [
        Credentials::ApiKeyOrJwt(&stranger),
        Credentials::ApiKeyOrJwt("a.b.c"),
        Credentials::ApiKeyOrJwt(""),
        Credentials::Unsupported,
    ] {
        assert!(matches!(
            admit(&source, wrong),
            Err(Error::InvalidCredentials(_))
        ));
    }
}

#[test]
fn where_anyone_may_call_a_shown_key_still_has_to_be_right() {
    let (app, known) = key("app");
    let source = source(CallerRegistry {
        api_keys: CallerApiKeys::new(vec![known]),
        anonymous: Some(name("anyone")),
        ..CallerRegistry::default()
    });
    let caller = |shown| admit(&source, shown).map(|admitted| admitted.caller().name.to_string());
    assert_eq!(caller(Credentials::ApiKeyOrJwt(&app)).unwrap(), "app");
    for shown in [
        Credentials::Missing,
        Credentials::Unsupported,
        Credentials::ApiKeyOrJwt("session-of-the-proxy"),
    ] {
        assert_eq!(caller(shown).unwrap(), "anyone");
    }
    assert!(caller(Credentials::ApiKeyOrJwt(&app[..20])).is_err());
}

#[test]
fn callers_have_their_own_pace_and_so_has_each_address_without_a_name() {
    let (a, known_a) = key("a");
    let (b, known_b) = key("b");
    let source = source(CallerRegistry {
        api_keys: CallerApiKeys::new(vec![known_a, known_b]),
        anonymous: Some(name("anyone")),
        policies: [(name("b"), pace(0))].into(),
        default_policy: pace(3),
        ..CallerRegistry::default()
    });
    let now = Instant::now();
    let passed = |shown, client: Option<&str>| {
        let client = client.map(|client| client.parse().unwrap());
        let pass = |_: &i32| source.authenticate(shown, client, now, CLOCK).is_ok();
        (0..9).filter(pass).count()
    };
    assert_eq!(passed(Credentials::ApiKeyOrJwt(&a), Some("1.1.1.1")), 3);
    assert_eq!(passed(Credentials::ApiKeyOrJwt(&a), Some("2.2.2.2")), 0);
    assert_eq!(passed(Credentials::ApiKeyOrJwt(&b), None), 9);
    assert_eq!(passed(Credentials::Missing, Some("1.1.1.1")), 3);
    assert_eq!(passed(Credentials::Missing, Some("2001:db8::1")), 3);
    assert_eq!(passed(Credentials::Missing, Some("2001:db8::2")), 0);
    assert_eq!(passed(Credentials::Missing, None), 9);
    let error = source
        .authenticate(Credentials::ApiKeyOrJwt(&a), None, now, CLOCK)
        .unwrap_err();
    assert_eq!(
        error,
        Error::RateLimited(name("a"), Duration::from_secs(20))
    );
}

#[test]
fn another_book_holds_from_the_next_request_on() {
    let (old, known_old) = key("app");
    let (new, known_new) = key("app");
    let book = |known| CallerRegistry {
        api_keys: CallerApiKeys::new(vec![known]),
        ..CallerRegistry::default()
    };
    let source = source(book(known_old));
    assert!(admit(&source, Credentials::ApiKeyOrJwt(&old)).is_ok());
    source.replace_registry(book(known_new));
    assert!(admit(&source, Credentials::ApiKeyOrJwt(&old)).is_err());
    assert!(admit(&source, Credentials::ApiKeyOrJwt(&new)).is_ok());
}

#[test]
fn only_a_jwt_could_have_to_wait_for_keys() {
    let keys = KeySet::from_secret("a secret of a login, long enough for it").unwrap();
    let issuer = JwtIssuer::new(name("jwt"), "i".into(), "a".into(), KeySource::Fixed(keys));
    let source = source(CallerRegistry {
        issuers: JwtIssuers::new(vec![issuer]),
        ..CallerRegistry::default()
    });
    for shown in [
        Credentials::Missing,
        Credentials::Unsupported,
        Credentials::ApiKeyOrJwt("lts_x"),
        Credentials::ApiKeyOrJwt("a.b.c"),
    ] {
        assert!(!source.would_wait(shown, CLOCK));
    }
    assert!(matches!(
        admit(&source, Credentials::ApiKeyOrJwt("a.b.c")),
        Err(Error::InvalidCredentials(_))
    ));
}
