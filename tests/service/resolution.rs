//! Server name resolution without privileged ports: the address, the Host header and the SNI for a server name. `tests/e2e` covers
//! well-known and SRV.

use crate::homeserver::{Behaviour, Homeserver, USERINFO};
use crate::sfu::SfuBehavior;
use crate::stage::{LOOPBACK, Stage};

#[test]
fn names_with_a_port_or_an_ip_literal_are_connected_to_directly() {
    for (host, sni) in [
        ("localhost", Some("localhost")),
        ("127.0.0.1", None),
        ("::1", None),
    ] {
        let homeserver = Homeserver::start(host, Behaviour::Honest);
        let stage = Stage::with(homeserver, SfuBehavior::Serves, |settings| {
            settings.set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
        });
        let user = stage.homeserver.user("alice");
        let reply = stage.get_token(&user);
        assert_eq!(reply.status, 200, "{host} {reply:?}");

        let requests = stage.homeserver.requests();
        assert_eq!(requests.len(), 1, "no well-known, no retry: {requests:?}");
        let request = &requests[0].request;
        assert_eq!(request.method, "GET");
        assert_eq!(request.path(), USERINFO);
        assert_eq!(request.header("host"), Some(stage.homeserver.name()));
        assert_eq!(requests[0].sni.as_deref(), sni, "{host}");
    }
}

#[test]
fn a_listed_homeserver_may_have_a_private_address() {
    for host in ["localhost", "127.0.0.1", "::1"] {
        let homeserver = Homeserver::start(host, Behaviour::Honest);
        let name = homeserver.name().to_owned();
        let stage = Stage::with(homeserver, SfuBehavior::Serves, |settings| {
            settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
        });
        let user = stage.homeserver.user("alice");
        assert_eq!(stage.get_token(&user).status, 200, "{host}");
    }
}

#[test]
fn an_override_replaces_resolution() {
    let homeserver = Homeserver::honest().with_name("example.com");
    let overrides = format!(
        "other.example=https://localhost:1,example.com=https://localhost:{}",
        homeserver.port()
    );
    let stage = Stage::with(homeserver, SfuBehavior::Serves, |settings| {
        settings.set("LIVEKIT_FEDERATION_URL_OVERRIDES", overrides)
    });
    let user = stage.homeserver.user("alice");
    assert_eq!(stage.get_token(&user).status, 200);
    let requests = stage.homeserver.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].request.path(), USERINFO);
    assert_eq!(requests[0].sni.as_deref(), Some("localhost"));
}

#[test]
fn an_openid_token_with_special_characters_is_escaped_in_the_query() {
    let stage = Stage::restricted();
    let mut user = stage.homeserver.user_with_unknown_token("alice");
    user.token.push_str(" &=?#%41+/\u{fc}\r\nX-Smuggled: 1");
    stage.homeserver.set_userinfo(&user.token, &user.id);
    let reply = stage.get_token(&user);
    assert_eq!(reply.status, 200, "{reply:?}");
    let requests = stage.homeserver.requests();
    assert_eq!(requests[0].request.header("x-smuggled"), None);
}
