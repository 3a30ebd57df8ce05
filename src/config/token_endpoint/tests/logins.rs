//! Logins: what belongs to one, and how they are told apart.

use super::*;
use crate::token::jwt::KeySource;

#[test]
fn a_login_needs_issuer_audience_and_one_source_of_keys() {
    let complete = [
        ("TOKEN_SERVER_JWT_ISSUER", "https://login.example.com"),
        ("TOKEN_SERVER_JWT_AUDIENCE", "livekit"),
        ("TOKEN_SERVER_JWT_SECRET", SECRET),
    ];
    let callers = server(&complete).callers;
    assert_eq!(callers.summary(), "jwt");
    let rules = &callers.policies[&name("jwt")];
    assert_eq!(rules.identities, [NamePattern::equal_to_claim("sub")]);
    let [issuer, audience, secret] = complete;
    let by_mail = server(&[
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
        server(&[issuer, audience, url]).callers.issuers[0].keys,
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
            &["TOKEN_SERVER_JWT_KEYS: expected one of"],
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
fn logins_can_be_told_apart_and_are_few() {
    let login = |name: &str, audience: &str| {
        format!(
            "[callers.{name}]\njwt = {{ issuer = 'i', audience = '{audience}', keys = 'https://login.example.com/' }}\n"
        )
    };
    let refused = |text: &str| {
        let file = TempFile::new("policy.toml", text);
        errors(&[("TOKEN_SERVER_POLICY_FILE", file.path())])
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
    let few = TempFile::new("policy.toml", &(login("one", "a") + &login("two", "b")));
    assert_eq!(
        server(&[("TOKEN_SERVER_POLICY_FILE", few.path())])
            .callers
            .issuers
            .len(),
        2
    );
}
