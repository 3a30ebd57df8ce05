//! Settings that open the Matrix endpoints and the general token endpoint, and the log lines about them.

use serde_json::json;

use crate::client::{self, Address};
use crate::homeserver::FakeHomeserver;
use crate::jwt;
use crate::process::{Service, run_to_exit};
use crate::settings::{KEY, SECRET, Settings};
use crate::token_client::{
    APP_KEY, any_request, app_entry, key_hash, policy_settings, request_token,
};

/// The variables of the example server, and a port.
fn example_settings() -> Settings {
    Settings::listening()
        .set("LIVEKIT_URL", "wss://sfu.example.com")
        .set("LIVEKIT_API_KEY", KEY)
        .set("LIVEKIT_API_SECRET", SECRET)
}

fn statuses(service: &Service) -> [u16; 6] {
    [
        "/token",
        "/health",
        "/",
        "/get_token",
        "/sfu/get",
        "/nothing",
    ]
    .map(|path| match path {
        "/health" | "/" => service.request("GET", path).status,
        path => service.post(path, &json!({})).status,
    })
}

#[test]
fn settings_open_endpoints_and_a_closed_endpoint_is_not_found() {
    let matrix = Service::start(&Settings::complete());
    assert_eq!(statuses(&matrix), [404, 404, 404, 400, 400, 404]);
    matrix.wait_for_line_with(&["msg=listening", "matrix=true", "full_access=none"]);
    assert!(!matrix.log().contains("token_endpoint=true"));

    let general = Service::start(&example_settings());
    assert_eq!(statuses(&general), [401, 200, 200, 404, 404, 404]);
    general.wait_for_line_with(&["msg=listening", "token_endpoint=true", "callers=none"]);
    assert!(!general.log().contains("matrix=true"));
    // no warning about settings of Matrix
    assert!(!general.log().contains("HOMESERVERS"), "{}", general.log());

    let both = Service::start(&policy_settings(&app_entry("")));
    assert_eq!(statuses(&both), [401, 200, 200, 400, 400, 404]);
    both.wait_for_line_with(&[
        "msg=listening",
        "matrix=true",
        "token_endpoint=true",
        "callers=app",
    ]);
    for service in [&matrix, &general, &both] {
        assert_eq!(service.request("GET", "/healthz").status, 200);
        assert_eq!(service.request("HEAD", "/healthz").status, 200);
    }
}

#[test]
fn matrix_and_the_general_endpoint_use_different_room_names() {
    let homeserver = FakeHomeserver::well_behaved();
    let service = Service::start(&policy_settings(&app_entry("")));
    let matrix = service.post("/get_token", &homeserver.user("alice").get_token());
    let matrix = jwt::claims(&matrix.jwt(), SECRET);
    let general = request_token(service.address(), APP_KEY, &any_request()).json();
    let general = jwt::claims(general["token"].as_str().unwrap(), SECRET);
    assert_eq!(matrix["iss"], general["iss"]);
    assert_ne!(matrix["video"]["room"], general["video"]["room"]);
}

#[test]
fn without_callers_the_endpoint_names_the_settings_to_add() {
    let service = Service::start(&example_settings());
    for bearer in ["", "x", APP_KEY, "a.b.c"] {
        let reply = request_token(service.address(), bearer, &any_request());
        assert_eq!(reply.status, 401, "{reply:?}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        for setting in [
            "TOKEN_SERVER_API_KEYS",
            "TOKEN_SERVER_JWT_ISSUER",
            "TOKEN_SERVER_POLICY_FILE",
            "TOKEN_SERVER_AUTH",
        ] {
            assert!(detail.contains(setting), "{detail}");
        }
    }
}

#[test]
fn the_variables_of_the_example_server_work_unchanged() {
    let settings = example_settings()
        .set("LIVEKIT_JWT_BIND", "")
        .set("TOKEN_SERVER_PORT", "0")
        .set("CORS_ORIGINS", "https://app.example.com")
        .set("TOKEN_EXPIRY_HOURS", "2")
        .set("TOKEN_SERVER_AUTH", "none");
    let service = Service::start(&settings);
    service.wait_for_line_with(&[
        "level=warn",
        "ANYONE WHO REACHES /token",
        "TOKEN_SERVER_AUTH",
    ]);
    let reply = service.post(
        "/token",
        &json!({"room_name": "room", "participant_name": "me"}),
    );
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("access-control-allow-origin"),
        Some("https://app.example.com")
    );
    let claims = jwt::claims(reply.json()["token"].as_str().unwrap(), SECRET);
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap(),
        7200
    );
}

#[test]
fn dev_opens_the_endpoint_on_loopback_only() {
    let settings = Settings::none().set("LIVEKIT_JWT_BIND", "127.0.0.1:0");
    let service = Service::start_with(&["--dev"], &settings);
    let Address::Tcp(address) = service.address() else {
        panic!("{:?}", service.address());
    };
    service.wait_for_line_with(&["curl", &format!("http://{address}/token")]);
    let reply = service.post("/token", &json!({}));
    assert_eq!(reply.status, 201, "{reply:?}");
    jwt::claims(reply.json()["token"].as_str().unwrap(), "secret");

    let reachable = Settings::complete().set("LIVEKIT_JWT_BIND", "[::]:0");
    let service = Service::start_with(&["--dev"], &reachable);
    let Address::Tcp(address) = service.address() else {
        panic!("{:?}", service.address());
    };
    let loopback = Address::Tcp(([127, 0, 0, 1], address.port()).into());
    assert_eq!(client::post(&loopback, "/token", &json!({})).status, 401);
}

#[test]
fn the_first_of_several_keys_signs() {
    let old = format!("APIold: {SECRET}");
    let new = "APInew: never-logged-new-secret-of-the-black-box-suite";
    for (keys, issuer) in [
        (format!("{old}, {new}"), "APIold"),
        (format!("{new}\n{old}"), "APInew"),
    ] {
        let settings = Settings::listening()
            .set("LIVEKIT_URL", "wss://sfu.example.com")
            .set("LIVEKIT_KEYS", keys)
            .set("TOKEN_SERVER_AUTH", "none");
        let service = Service::start(&settings);
        let body = service.post("/token", &any_request()).json();
        let token = body["token"].as_str().unwrap();
        let secret = if issuer == "APIold" {
            SECRET
        } else {
            &new[8..]
        };
        assert_eq!(jwt::claims(token, secret)["iss"], issuer);
    }
}

#[test]
fn keygen_prints_a_key_and_its_hash() {
    let generated = run_to_exit(&["keygen", "booking"], &Settings::none());
    assert_eq!(generated.code, Some(0), "{generated:?}");
    let lines: Vec<&str> = generated.stdout.lines().collect();
    let [key, line] = lines[..] else {
        panic!("{generated:?}");
    };
    assert_eq!(
        line,
        format!("booking:{}", key_hash(key).trim_start_matches("sha256:"))
    );
    assert!(!generated.stderr.contains(key) && generated.stderr.contains("TOKEN_SERVER_API_KEYS"));
    let again = run_to_exit(&["keygen", "booking"], &Settings::none());
    assert_ne!(again.stdout, generated.stdout);
    // two keys of one caller
    let both = format!("{line}\n{}", again.stdout.lines().nth(1).unwrap());
    let service = Service::start(&example_settings().set_file("TOKEN_SERVER_API_KEYS_FILE", &both));
    service.wait_for_line_with(&["token_endpoint=true", "callers=booking"]);
    for key in [key, again.stdout.lines().next().unwrap()] {
        assert_eq!(
            request_token(service.address(), key, &any_request()).status,
            201
        );
    }
    for name in ["a b", "", "é"] {
        assert_eq!(
            run_to_exit(&["keygen", name], &Settings::none()).code,
            Some(2)
        );
    }
}

#[test]
fn an_invalid_policy_file_stops_the_start_with_its_line() {
    for (policy, reason) in [
        ("[default]\nroom = ['a']\n", "line 2: unknown field `room`"),
        (
            "[callers.a]\n\ngrants = ['roomAdmin']\n",
            "line 3: roomAdmin is never granted",
        ),
        ("[callers.a\n", "line 1"),
    ] {
        let exit = run_to_exit(&[], &policy_settings(policy));
        assert_eq!(exit.code, Some(78), "{exit:?}");
        assert!(
            exit.stderr.contains("TOKEN_SERVER_POLICY_FILE: expected"),
            "{exit:?}"
        );
        assert!(exit.stderr.contains(reason), "{exit:?}");
        let check = run_to_exit(&["check-config"], &policy_settings(policy));
        assert!(
            check.code == Some(78) && check.stderr.contains(reason),
            "{check:?}"
        );
    }
    let missing = example_settings().set("TOKEN_SERVER_POLICY_FILE", "/nowhere/policy.toml");
    let exit = run_to_exit(&[], &missing);
    assert!(
        exit.code == Some(78) && exit.stderr.contains("/nowhere/policy.toml"),
        "{exit:?}"
    );
}
