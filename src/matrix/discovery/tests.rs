//! Every row of the resolution table, from what is known to where to connect. `tests/e2e` walks the same rows on a real network.

use super::*;

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

fn known(delegated: Option<&str>, service: SrvService, targets: &[(&str, u16)]) -> FederationFacts {
    let now = Instant::now();
    let mut known = FederationFacts::default();
    known.well_known.record(
        match delegated {
            Some(to) => WellKnownResult::Found(name(to), Duration::from_secs(3600)),
            None => WellKnownResult::Absent("404".into()),
        },
        WELL_KNOWN_BACKOFF,
        now,
    );
    let targets = targets
        .iter()
        .map(|(host, port)| SrvTarget {
            host: (*host).into(),
            port: *port,
        })
        .collect();
    known.srv = Some(CachedSrv {
        name: "x".into(),
        service,
        targets,
        fresh_until: now + Duration::from_secs(60),
        valid_until: now + Duration::from_secs(60),
    });
    known
}

/// host:port, certificate name, Host header
fn shown(found: &ResolvedServer) -> Vec<(String, String, &str)> {
    let line = |route: &HttpRoute| {
        let tls = route.tls.as_ref().unwrap().to_string();
        (format!("{}:{}", route.host, route.port), tls)
    };
    found
        .routes
        .iter()
        .map(|r| (line(r).0, line(r).1, &*r.authority))
        .collect()
}

fn row(connect: &str, tls: &str, host: &'static str) -> (String, String, &'static str) {
    (connect.into(), tls.into(), host)
}

#[test]
fn names_with_an_address_or_a_port_need_no_look_up() {
    for (server, connect, tls) in [
        ("192.0.2.1", "192.0.2.1:8448", "192.0.2.1"),
        ("192.0.2.1:1", "192.0.2.1:1", "192.0.2.1"),
        ("[2001:db8::1]", "[2001:db8::1]:8448", "[2001:db8::1]"),
        ("[2001:db8::1]:1", "[2001:db8::1]:1", "[2001:db8::1]"),
        ("example.org:443", "example.org:443", "example.org"),
    ] {
        let found = resolve_explicit(&name(server), Trust::Unlisted, "");
        assert_eq!(shown(&found), [row(connect, tls, server)]);
    }
}

#[test]
fn a_delegated_name_is_what_the_certificate_and_the_host_header_name() {
    use SrvService::{Absent, DeprecatedMatrix, MatrixFed};
    let srv = [("target.net", 1234)];
    for (delegated, service, expected) in [
        (
            Some("192.0.2.1"),
            Absent,
            row("192.0.2.1:8448", "192.0.2.1", "192.0.2.1"),
        ),
        (Some("[::1]:1"), Absent, row("[::1]:1", "[::1]", "[::1]:1")),
        (
            Some("b.org:443"),
            Absent,
            row("b.org:443", "b.org", "b.org:443"),
        ),
        (
            Some("b.org"),
            MatrixFed,
            row("target.net:1234", "b.org", "b.org"),
        ),
        (
            Some("b.org"),
            DeprecatedMatrix,
            row("target.net:1234", "b.org", "b.org"),
        ),
        (Some("b.org"), Absent, row("b.org:8448", "b.org", "b.org")),
        (
            Option::None,
            MatrixFed,
            row("target.net:1234", "a.org", "a.org"),
        ),
        (
            Option::None,
            DeprecatedMatrix,
            row("target.net:1234", "a.org", "a.org"),
        ),
        (Option::None, Absent, row("a.org:8448", "a.org", "a.org")),
    ] {
        let known = known(
            delegated,
            service,
            if service == Absent { &[] } else { &srv },
        );
        assert_eq!(
            shown(&resolve_from_facts(&name("a.org"), &known, Trust::Unlisted)),
            [expected]
        );
    }
}

#[test]
fn srv_targets_are_names_and_few() {
    let target = |(host, port): &(&str, u16)| SrvTarget {
        host: (*host).into(),
        port: *port,
    };
    let odd = [
        ("", 0),
        ("10.0.0.1", 8448),
        ("a:1", 2),
        ("127.1", 8448),
        ("t.org", 0),
        ("under_score.org", 1),
    ];
    assert_eq!(usable_targets(odd.iter().map(target).collect()), []);
    let many = [("t.org", 1); 10];
    assert_eq!(
        usable_targets(many.iter().map(target).collect()).len(),
        MAX_SRV_TARGETS
    );
    // a service that is decidedly not there
    let nowhere = known(None, SrvService::MatrixFed, &[]);
    assert!(
        resolve_from_facts(&name("a.org"), &nowhere, Trust::Unlisted)
            .routes
            .is_empty()
    );
}

#[test]
fn records_that_still_hold_outlive_a_dns_failure() {
    let now = Instant::now();
    let mut known = known(None, SrvService::MatrixFed, &[("t.org", 1)]);
    let old = known.srv.take().unwrap();
    // nobody answers before a deadline that has passed
    let kept = lookup_services("x", Some(old.clone()), now);
    assert_eq!(
        (kept.service, &kept.targets),
        (SrvService::MatrixFed, &old.targets)
    );
    let gone = CachedSrv {
        valid_until: now,
        ..old
    };
    let lost = lookup_services("x", Some(gone), now);
    assert_eq!((lost.service, lost.targets), (SrvService::Absent, vec![]));
}

#[test]
fn only_a_server_name_is_a_delegation() {
    let read = |body: &str| parse_server_well_known(body.as_bytes());
    assert_eq!(
        read(r#"{"m.server":"b.org:443","x":1}"#),
        Ok(name("b.org:443"))
    );
    for body in [
        "",
        "{}",
        "[]",
        r#"{"m.server":1}"#,
        r#"["b.org"]"#,
        r#"{"m.server":""}"#,
        r#"{"m.server":"https://b.org"}"#,
        r#"{"m.server":"127.1"}"#,
    ] {
        assert!(read(body).is_err(), "{body}");
    }
}
