//! Every row of the resolution table, from facts to routes. `tests/e2e` covers the same rows on a real network.

use super::*;
use crate::matrix::well_known::WellKnownFailure;

const MINUTE: Duration = Duration::from_secs(60);

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

fn facts(
    delegated: Option<&str>,
    records: Option<(SrvService, &[(&str, u16)])>,
) -> FederationFacts {
    let now = Instant::now();
    let mut facts = FederationFacts::default();
    facts.well_known.record(
        match delegated {
            Some(to) => Ok((name(to), 60 * MINUTE)),
            None => Err(WellKnownFailure::Absent("status 404".into())),
        },
        WELL_KNOWN.retry,
        now,
    );
    match records {
        Some((service, targets)) => {
            let targets = targets
                .iter()
                .map(|(host, port)| (Host::parse(host), *port))
                .collect();
            let records = SrvRecords { service, targets };
            facts.srv.store(records, MINUTE, Duration::ZERO, now);
        }
        None => facts.srv.store_none(MINUTE, now),
    }
    facts
}

/// host:port, certificate name and Host header of each route.
fn endpoints(resolved: &ResolvedServer) -> Vec<(String, String, &str)> {
    resolved
        .routes
        .iter()
        .map(|route| {
            (
                format!("{}:{}", route.host, route.port),
                route.tls.as_ref().unwrap().to_string(),
                &*route.authority,
            )
        })
        .collect()
}

fn endpoint(
    connect: &str,
    certificate: &str,
    host: &'static str,
) -> (String, String, &'static str) {
    (connect.into(), certificate.into(), host)
}

#[test]
fn names_with_an_ip_literal_or_a_port_resolve_to_themselves() {
    for (server, connect, certificate) in [
        ("192.0.2.1", "192.0.2.1:8448", "192.0.2.1"),
        ("192.0.2.1:1", "192.0.2.1:1", "192.0.2.1"),
        ("[2001:db8::1]", "[2001:db8::1]:8448", "[2001:db8::1]"),
        ("[2001:db8::1]:1", "[2001:db8::1]:1", "[2001:db8::1]"),
        ("example.org:443", "example.org:443", "example.org"),
    ] {
        let resolved = resolve_explicit(&name(server), Trust::Unlisted, "");
        assert_eq!(
            endpoints(&resolved),
            [endpoint(connect, certificate, server)]
        );
    }
}

#[test]
fn certificate_and_host_header_have_the_delegated_name() {
    use SrvService::{DeprecatedMatrix, MatrixFed};
    for (delegated, service, expected) in [
        (
            Some("192.0.2.1"),
            None,
            endpoint("192.0.2.1:8448", "192.0.2.1", "192.0.2.1"),
        ),
        (
            Some("[::1]:1"),
            None,
            endpoint("[::1]:1", "[::1]", "[::1]:1"),
        ),
        (
            Some("b.org:443"),
            None,
            endpoint("b.org:443", "b.org", "b.org:443"),
        ),
        (
            Some("b.org"),
            Some(MatrixFed),
            endpoint("target.net:1234", "b.org", "b.org"),
        ),
        (
            Some("b.org"),
            Some(DeprecatedMatrix),
            endpoint("target.net:1234", "b.org", "b.org"),
        ),
        (
            Some("b.org"),
            None,
            endpoint("b.org:8448", "b.org", "b.org"),
        ),
        (
            None,
            Some(MatrixFed),
            endpoint("target.net:1234", "a.org", "a.org"),
        ),
        (
            None,
            Some(DeprecatedMatrix),
            endpoint("target.net:1234", "a.org", "a.org"),
        ),
        (None, None, endpoint("a.org:8448", "a.org", "a.org")),
    ] {
        let records = service.map(|service| (service, &[("target.net", 1234)][..]));
        let facts = facts(delegated, records);
        assert_eq!(
            endpoints(&resolve_from_facts(&name("a.org"), &facts, Trust::Unlisted)),
            [expected]
        );
    }
}

#[test]
fn srv_targets_are_at_most_four_dns_names() {
    let target = |(host, port): &(&str, u16)| SrvTarget {
        host: (*host).into(),
        port: *port,
    };
    let unusable = [
        ("", 0),
        ("10.0.0.1", 8448),
        ("a:1", 2),
        ("127.1", 8448),
        ("t.org", 0),
        ("under_score.org", 1),
    ];
    assert_eq!(usable_targets(unusable.iter().map(target).collect()), []);
    let many = [("t.org", 1); 10];
    assert_eq!(
        usable_targets(many.iter().map(target).collect()).len(),
        MAX_SRV_TARGETS
    );
}

#[test]
fn without_a_usable_srv_target_there_is_no_route() {
    let facts = facts(None, Some((SrvService::MatrixFed, &[])));
    let resolved = resolve_from_facts(&name("a.org"), &facts, Trust::Unlisted);
    assert!(resolved.routes.is_empty());
}

#[test]
fn valid_srv_records_outlive_a_dns_error() {
    let records = SrvRecords {
        service: SrvService::MatrixFed,
        targets: vec![(Host::parse("t.org"), 1)],
    };
    let now = Instant::now();
    let mut srv = CachedValue::default();
    srv.store(records.clone(), MINUTE, Duration::ZERO, now);
    // a lookup with a deadline in the past fails
    lookup_services(&mut srv, "x", now);
    assert_eq!(srv.value(), Some(&records));
    srv.store(records, Duration::ZERO, Duration::ZERO, now);
    lookup_services(&mut srv, "x", now);
    assert_eq!(srv.value(), None);
}

#[test]
fn a_delegation_is_a_valid_server_name() {
    let parse = |body: &str| parse_server_well_known(body.as_bytes());
    assert_eq!(
        parse(r#"{"m.server":"b.org:443","x":1}"#),
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
        assert!(parse(body).is_err(), "{body}");
    }
}
