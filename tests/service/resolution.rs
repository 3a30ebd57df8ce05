//! Server name resolution without privileged ports: the address, the Host header and the SNI for a server name. `tests/e2e` covers
//! well-known and SRV.

use crate::homeserver::{Behaviour, FakeHomeserver, USERINFO};
use crate::setup::{LOOPBACK, TestSetup};
use crate::sfu::SfuBehaviour;

#[test]
fn names_with_a_port_or_an_ip_literal_are_connected_to_directly() {
    for (host, sni) in [
        ("localhost", Some("localhost")),
        ("127.0.0.1", None),
        ("::1", None),
    ] {
        let homeserver = FakeHomeserver::start(host, Behaviour::Correct);
        let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
            settings.set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
        });
        let user = setup.homeserver.user("alice");
        let reply = setup.get_token(&user);
        assert_eq!(reply.status, 200, "{host} {reply:?}");

        let requests = setup.homeserver.requests();
        assert_eq!(requests.len(), 1, "no well-known, no retry: {requests:?}");
        let request = &requests[0].request;
        assert_eq!(request.method, "GET");
        assert_eq!(request.path(), USERINFO);
        assert_eq!(request.header("host"), Some(setup.homeserver.name()));
        assert_eq!(requests[0].sni.as_deref(), sni, "{host}");
    }
}

#[test]
fn a_listed_homeserver_may_have_a_private_address() {
    for host in ["localhost", "127.0.0.1", "::1"] {
        let homeserver = FakeHomeserver::start(host, Behaviour::Correct);
        let name = homeserver.name().to_owned();
        let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
            settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
        });
        let user = setup.homeserver.user("alice");
        assert_eq!(setup.get_token(&user).status, 200, "{host}");
    }
}

#[test]
fn an_override_replaces_resolution() {
    let homeserver = FakeHomeserver::well_behaved().with_name("example.com");
    let overrides = format!(
        "other.example=https://localhost:1,example.com=https://localhost:{}",
        homeserver.port()
    );
    let setup = TestSetup::with(homeserver, SfuBehaviour::Serves, |settings| {
        settings.set("LIVEKIT_FEDERATION_URL_OVERRIDES", overrides)
    });
    let user = setup.homeserver.user("alice");
    assert_eq!(setup.get_token(&user).status, 200);
    let requests = setup.homeserver.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].request.path(), USERINFO);
    assert_eq!(requests[0].sni.as_deref(), Some("localhost"));
}

#[test]
fn an_openid_token_with_special_characters_is_escaped_in_the_query() {
    let setup = TestSetup::restricted();
    let mut user = setup.homeserver.user_with_unknown_token("alice");
    user.token.push_str(" &=?#%41+/\u{fc}\r\nX-Smuggled: 1");
    setup.homeserver.set_userinfo(&user.token, &user.id);
    let reply = setup.get_token(&user);
    assert_eq!(reply.status, 200, "{reply:?}");
    let requests = setup.homeserver.requests();
    assert_eq!(requests[0].request.header("x-smuggled"), None);
}
