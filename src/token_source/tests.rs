use super::*;
use crate::caller::api_key::{self, KeyHash};
use crate::caller::jwks::Keys;
use crate::caller::jwt::{Issuer, KeySource};
use crate::livekit::token::verify;

const CLOCK: u64 = 1_795_291_200;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn source(book: Book) -> TokenSource {
    TokenSource::new(ApiKey::new("APIx", "secret"), book)
}

fn key(of: &str) -> (String, (KeyHash, Name)) {
    let (key, hash) = api_key::generate();
    (key, (hash, name(of)))
}

fn admit(source: &TokenSource, shown: Shown<'_>) -> Result<Admitted, Error> {
    source.admit(shown, None, Instant::now(), CLOCK)
}

fn pace(requests_per_minute: u32) -> Arc<Policy> {
    Arc::new(Policy {
        requests_per_minute,
        ..Policy::default()
    })
}

#[test]
fn a_forgotten_setting_lets_nobody_in() {
    let source = source(Book::default());
    for shown in [
        Shown::Nothing,
        Shown::Other,
        Shown::Token("lts_x"),
        Shown::Token("a.b.c"),
    ] {
        assert_eq!(admit(&source, shown).unwrap_err(), Error::NobodyConfigured);
    }
}

#[test]
fn a_key_lets_its_caller_in_by_the_rules_for_them() {
    let (app, known) = key("app");
    let (stranger, _) = key("app");
    let strict = Policy {
        rooms: Vec::new(),
        ..Policy::default()
    };
    let source = source(Book {
        keys: ApiKeys::new(vec![known]),
        policies: [(name("other"), Arc::new(strict))].into(),
        ..Book::default()
    });
    let admitted = admit(&source, Shown::Token(&app)).unwrap();
    assert_eq!(admitted.caller().name, name("app"));
    assert_eq!(admitted.key(), Some(&app[4..12]));
    let asked = Asked {
        room: Some("room".into()),
        name: Some("me".into()),
        lifetime: Some(60),
        ..Asked::default()
    };
    let granted = source.token(&admitted, asked, CLOCK).unwrap();
    assert_eq!(granted.expires, CLOCK + 60);
    let keys = [ApiKey::new("APIx", "secret")];
    let verified = verify(granted.token.expose(), &keys, CLOCK).unwrap();
    assert_eq!(verified.identity.as_deref(), Some("me"));

    assert_eq!(
        admit(&source, Shown::Nothing).unwrap_err(),
        Error::NothingShown
    );
    for wrong in [
        Shown::Token(&stranger),
        Shown::Token("a.b.c"),
        Shown::Token(""),
        Shown::Other,
    ] {
        assert!(matches!(admit(&source, wrong), Err(Error::NotAccepted(_))));
    }
}

#[test]
fn where_anyone_may_call_a_shown_key_still_has_to_be_right() {
    let (app, known) = key("app");
    let source = source(Book {
        keys: ApiKeys::new(vec![known]),
        anyone: Some(name("anyone")),
        ..Book::default()
    });
    let caller = |shown| admit(&source, shown).map(|admitted| admitted.caller().name.to_string());
    assert_eq!(caller(Shown::Token(&app)).unwrap(), "app");
    for shown in [
        Shown::Nothing,
        Shown::Other,
        Shown::Token("session-of-the-proxy"),
    ] {
        assert_eq!(caller(shown).unwrap(), "anyone");
    }
    assert!(caller(Shown::Token(&app[..20])).is_err());
}

#[test]
fn callers_have_their_own_pace_and_so_has_each_address_without_a_name() {
    let (a, known_a) = key("a");
    let (b, known_b) = key("b");
    let source = source(Book {
        keys: ApiKeys::new(vec![known_a, known_b]),
        anyone: Some(name("anyone")),
        policies: [(name("b"), pace(0))].into(),
        default: pace(3),
        ..Book::default()
    });
    let now = Instant::now();
    let passed = |shown, client: Option<&str>| {
        let client = client.map(|client| client.parse().unwrap());
        let pass = |_: &i32| source.admit(shown, client, now, CLOCK).is_ok();
        (0..9).filter(pass).count()
    };
    assert_eq!(passed(Shown::Token(&a), Some("1.1.1.1")), 3);
    assert_eq!(passed(Shown::Token(&a), Some("2.2.2.2")), 0);
    assert_eq!(passed(Shown::Token(&b), None), 9);
    assert_eq!(passed(Shown::Nothing, Some("1.1.1.1")), 3);
    assert_eq!(passed(Shown::Nothing, Some("2001:db8::1")), 3);
    assert_eq!(passed(Shown::Nothing, Some("2001:db8::2")), 0);
    assert_eq!(passed(Shown::Nothing, None), 9);
    let error = source
        .admit(Shown::Token(&a), None, now, CLOCK)
        .unwrap_err();
    assert_eq!(error, Error::TooOften(name("a"), Duration::from_secs(20)));
}

#[test]
fn another_book_holds_from_the_next_request_on() {
    let (old, known_old) = key("app");
    let (new, known_new) = key("app");
    let book = |known| Book {
        keys: ApiKeys::new(vec![known]),
        ..Book::default()
    };
    let source = source(book(known_old));
    assert!(admit(&source, Shown::Token(&old)).is_ok());
    source.replace(book(known_new));
    assert!(admit(&source, Shown::Token(&old)).is_err());
    assert!(admit(&source, Shown::Token(&new)).is_ok());
}

#[test]
fn only_a_jwt_could_have_to_wait_for_keys() {
    let keys = Keys::secret("a secret of a login, long enough for it").unwrap();
    let issuer = Issuer::new(name("jwt"), "i".into(), "a".into(), KeySource::Fixed(keys));
    let source = source(Book {
        issuers: Issuers::new(vec![issuer]),
        ..Book::default()
    });
    for shown in [
        Shown::Nothing,
        Shown::Other,
        Shown::Token("lts_x"),
        Shown::Token("a.b.c"),
    ] {
        assert!(!source.would_wait(shown, CLOCK));
    }
    assert!(matches!(
        admit(&source, Shown::Token("a.b.c")),
        Err(Error::NotAccepted(_))
    ));
}
