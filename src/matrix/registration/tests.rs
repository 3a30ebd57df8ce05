use super::*;

fn generated() -> String {
    let server = ServerName::parse("[2001:db8::1]:8448").unwrap();
    generate(
        &server,
        &BaseUrl::parse("http://rtc.internal:8080/").unwrap(),
    )
}

#[test]
fn a_generated_registration_is_valid_and_has_new_tokens() {
    let registration = AppServiceRegistration::parse(&generated()).unwrap();
    assert_eq!(registration.as_token.length(), 64);
    assert_eq!(registration.id.as_deref(), Some("livekit-token-service"));
    assert_ne!(
        registration,
        AppServiceRegistration::parse(&generated()).unwrap()
    );
    assert!(generated().contains(r"regex: '@.*:\[2001:db8::1\]:8448$'"));
    assert!(generated().contains("proxy_url: http://rtc.internal:8080\n"));
}

#[test]
fn other_styles_of_yaml_are_parsed() {
    for text in [
        "{as_token: a, hs_token: b, proxy_prefix: /rtc/livekit/, proxy_url: 'http://x', scopes: [urn:matrix:client:rooms:is_joined]}",
        "---\n\"as_token\": >-\n  a\nhs_token: 'b' # c\nproxy_prefix: rtc/livekit\nproxy_url: http://x\nnamespaces:\n  users: [{regex: a}]\nx: [[1], 2, {a: [b]}, 3]\nscopes:\n- y\n- urn:matrix:client:rooms:is_joined\n...\n",
    ] {
        let registration = AppServiceRegistration::parse(text).unwrap();
        assert!(registration.as_token.matches("a") && registration.hs_token.matches("b"));
    }
}

#[test]
fn a_registration_is_refused_with_what_it_lacks() {
    let good = generated();
    for (from, to, lacks) in [
        ("as_token:", "as_tokem:", "as_token"),
        ("hs_token:", "hs_tokem:", "hs_token"),
        ("hs_token: ", "hs_token: ü", "hs_token"),
        (
            "proxy_prefix: rtc/livekit",
            "proxy_prefix: rtc",
            "proxy_prefix",
        ),
        ("proxy_prefix", "prefix", "proxy_prefix"),
        ("proxy_url", "url2", "proxy_url"),
        ("http://rtc", "rtc", "proxy_url"),
        ("is_joined", "is_jointed", "scopes"),
        ("id: livekit", "as_token: x\nid: livekit", "each key once"),
        ("rate_limited: false", "rate_limited: *x", "YAML"),
        ("rate_limited: false", "rate_limited: [", "YAML"),
        ("rate_limited: false", "? [a]\n: b", "strings"),
        ("id: livekit", "--- 1\n--- 2\nid: livekit", "mapping"),
    ] {
        let text = good.replace(from, to);
        let error = AppServiceRegistration::parse(&text)
            .unwrap_err()
            .to_string();
        assert!(error.contains(lacks), "{to}: {error}");
    }
    let token = "t".repeat(MAX_SHARED_TOKEN_BYTES + 1);
    let long = good.replace("as_token: ", &format!("as_token: {token}"));
    assert!(
        AppServiceRegistration::parse(&long)
            .unwrap_err()
            .0
            .contains("as_token")
    );
    let many: String = (0..300).map(|n| format!("k{n}: v\n")).collect();
    assert!(
        AppServiceRegistration::parse(&many)
            .unwrap_err()
            .0
            .contains("256")
    );
    let scopes = "- s\n".repeat(300);
    assert!(
        AppServiceRegistration::parse(&format!("scopes:\n{scopes}"))
            .unwrap_err()
            .0
            .contains("256")
    );
    for null in ["~", "null", "Null", "NULL"] {
        let text = format!(
            "as_token: a\nhs_token: {null}\nproxy_prefix: rtc/livekit\nproxy_url: http://x\nscopes: [urn:matrix:client:rooms:is_joined]\n"
        );
        assert!(
            AppServiceRegistration::parse(&text)
                .unwrap_err()
                .0
                .contains("hs_token")
        );
    }
    for text in ["", "a", "[]", "a: b\n---\nc: d\n"] {
        assert!(AppServiceRegistration::parse(text).is_err(), "{text:?}");
    }
    let same = "as_token: a\nhs_token: a\nproxy_prefix: rtc/livekit\nproxy_url: http://x\nscopes: [urn:matrix:client:rooms:is_joined]\n";
    assert!(
        AppServiceRegistration::parse(same)
            .unwrap_err()
            .0
            .contains("differs")
    );
}

#[test]
fn a_token_is_compared_in_whole_and_absent_from_debug_output() {
    let token = AppServiceSecret::parse("never-logged").unwrap();
    assert!(token.matches("never-logged") && format!("{token:?}") == "AppServiceSecret(hidden)");
    for other in ["", "n", "never-loggee", "never-logged ", "Never-logged"] {
        assert!(!token.matches(other), "{other:?}");
    }
    for text in ["", "a b", "a\n", "é"] {
        assert_eq!(AppServiceSecret::parse(text), None);
    }
}
