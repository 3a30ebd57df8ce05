//! The rows of the resolution table that need no privileged port: where a server name leads, and what is said there.
//! The others (well-known, SRV) are shown in `tests/e2e`.

use crate::homeserver::{Behaviour, Homeserver, USERINFO};
use crate::sfu::Conduct;
use crate::stage::{LOOPBACK, Stage};

#[test]
fn names_with_a_port_and_addresses_are_asked_directly() {
    for (host, sni) in [
        ("localhost", Some("localhost")),
        ("127.0.0.1", None),
        ("::1", None),
    ] {
        let homeserver = Homeserver::start(host, Behaviour::Honest);
        let stage = Stage::with(homeserver, Conduct::Serves, |settings| {
            settings.set("LIVEKIT_ALLOWED_NETWORKS", LOOPBACK)
        });
        let user = stage.homeserver.user("alice");
        let reply = stage.get_token(&user);
        assert_eq!(reply.status, 200, "{host} {reply:?}");

        let seen = stage.homeserver.seen();
        assert_eq!(seen.len(), 1, "no well-known, nothing twice: {seen:?}");
        let request = &seen[0].request;
        assert_eq!(request.method, "GET");
        assert_eq!(request.path(), USERINFO);
        assert_eq!(request.header("host"), Some(stage.homeserver.name()));
        assert_eq!(seen[0].sni.as_deref(), sni, "{host}");
    }
}

#[test]
fn a_listed_homeserver_may_live_on_a_private_address() {
    for host in ["localhost", "127.0.0.1", "::1"] {
        let homeserver = Homeserver::start(host, Behaviour::Honest);
        let name = homeserver.name().to_owned();
        let stage = Stage::with(homeserver, Conduct::Serves, |settings| {
            settings.set("LIVEKIT_FULL_ACCESS_HOMESERVERS", name)
        });
        let user = stage.homeserver.user("alice");
        assert_eq!(stage.get_token(&user).status, 200, "{host}");
    }
}

#[test]
fn an_override_leads_any_name_to_any_address() {
    let homeserver = Homeserver::honest().named("example.com");
    let over = format!(
        "other.example=https://localhost:1,example.com=https://localhost:{}",
        homeserver.port()
    );
    let stage = Stage::with(homeserver, Conduct::Serves, |settings| {
        settings.set("LIVEKIT_FEDERATION_URL_OVERRIDES", over)
    });
    let user = stage.homeserver.user("alice");
    assert_eq!(stage.get_token(&user).status, 200);
    let seen = stage.homeserver.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].request.path(), USERINFO);
    assert_eq!(seen[0].sni.as_deref(), Some("localhost"));
}

#[test]
fn a_token_with_odd_characters_arrives_as_it_is() {
    let stage = Stage::restricted();
    let mut user = stage.homeserver.stranger("alice");
    user.token.push_str(" &=?#%41+/\u{fc}\r\nX-Smuggled: 1");
    stage.homeserver.vouch(&user.token, &user.id);
    let reply = stage.get_token(&user);
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = stage.homeserver.seen();
    assert_eq!(seen[0].request.header("x-smuggled"), None);
}
