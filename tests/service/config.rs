//! Settings, `check-config`, `--help` and `--version`.

use crate::client::{self, Address};
use crate::process::{Service, run_to_exit};
use crate::settings::{KEY, SECRET, Settings};
use crate::setup::User;

/// `EX_CONFIG` of sysexits.h: the systemd unit does not restart the service then.
const WRONG_SETTING: Option<i32> = Some(78);

#[test]
fn a_wrong_setting_ends_the_start_and_is_named() {
    for (name, value) in [
        ("LIVEKIT_URL", "ftp://sfu.example.com"),
        ("LIVEKIT_URL", "sfu.example.com"),
        ("LIVEKIT_URL", "wss://"),
        ("LIVEKIT_API_URL", "nonsense"),
        ("LIVEKIT_JWT_BIND", "nonsense"),
        ("LIVEKIT_JWT_BIND", "127.0.0.1:99999"),
        ("LIVEKIT_ALLOWED_NETWORKS", "10.0.0.0/33"),
        ("LIVEKIT_DENIED_NETWORKS", "all"),
        ("LIVEKIT_TOKEN_LIFETIME_SECONDS", "59"),
        ("LIVEKIT_TOKEN_LIFETIME_SECONDS", "86401"),
        ("LIVEKIT_TOKEN_LIFETIME_SECONDS", "1h"),
        ("LIVEKIT_OPENID_CACHE_SECONDS", "301"),
        ("LIVEKIT_OPENID_CACHE_SECONDS", "-1"),
        ("LIVEKIT_REMOTE_USERS_MAY_PUBLISH", "maybe"),
        ("LIVEKIT_CAN_UPDATE_OWN_METADATA", "maybe"),
        ("LIVEKIT_FEDERATION_URL_OVERRIDES", "example.com"),
        ("LIVEKIT_FEDERATION_URL_OVERRIDES", "example.com=ftp://x"),
        ("LIVEKIT_CA_FILE", "/nonexistent/ca.pem"),
        ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "https://example.com"),
        (
            "LIVEKIT_FULL_ACCESS_HOMESERVERS",
            "example.com,*.example.com",
        ),
    ] {
        for command in [&[][..], &["serve"], &["check-config"]] {
            let exit = run_to_exit(command, &Settings::complete().set(name, value));
            assert_eq!(exit.code, WRONG_SETTING, "{name}={value} {exit:?}");
            let error = format!("{name}: expected");
            assert!(exit.stderr.contains(&error), "{name}={value} {exit:?}");
            assert!(exit.stderr.contains("found"), "{name}={value} {exit:?}");
        }
    }
}

#[test]
fn a_missing_setting_ends_the_start_and_is_named() {
    for name in ["LIVEKIT_URL", "LIVEKIT_KEY", "LIVEKIT_SECRET"] {
        for settings in [
            Settings::complete().unset(name),
            // an empty value counts as not set
            Settings::complete().set(name, ""),
        ] {
            let exit = run_to_exit(&[], &settings);
            assert_eq!(exit.code, WRONG_SETTING, "{name} {exit:?}");
            assert!(exit.stderr.contains(name), "{name} {exit:?}");
        }
    }
    let exit = run_to_exit(&[], &Settings::none());
    assert_eq!(exit.code, WRONG_SETTING, "{exit:?}");
}

#[test]
fn an_older_name_of_the_address_beside_it_is_an_error() {
    for older in ["LIVEKIT_JWT_PORT", "LK_JWT_PORT", "TOKEN_SERVER_PORT"] {
        let exit = run_to_exit(&[], &Settings::complete().set(older, "8080"));
        assert_eq!(exit.code, WRONG_SETTING, "{exit:?}");
        assert!(exit.stderr.contains(older), "{exit:?}");
        assert!(exit.stderr.contains("LIVEKIT_JWT_BIND"), "{exit:?}");
    }
}

#[test]
fn older_names_of_the_port_work_with_a_warning() {
    for older in ["LIVEKIT_JWT_PORT", "LK_JWT_PORT", "TOKEN_SERVER_PORT"] {
        let settings = Settings::complete()
            .unset("LIVEKIT_JWT_BIND")
            .set(older, "0");
        let service = Service::start(&settings);
        assert_eq!(service.request("GET", "/healthz").status, 200);
        let warning = service.wait_for_log(older);
        assert!(warning.contains("level=warn"), "{warning}");
        assert!(warning.contains("LIVEKIT_JWT_BIND"), "{warning}");
    }
}

#[test]
fn variables_of_kubernetes_are_ignored_with_a_warning() {
    let service = Service::start(
        &Settings::complete()
            .set("LIVEKIT_JWT_PORT", "tcp://10.0.0.1:8080")
            .set("LIVEKIT_JWT_SERVICE_HOST", "10.0.0.1")
            .set("LIVEKIT_JWT_PORT_8080_TCP_ADDR", "10.0.0.1"),
    );
    let warning = service.wait_for_log("LIVEKIT_JWT_PORT");
    assert!(warning.contains("level=warn"), "{warning}");
    let log = service.log();
    assert!(!log.contains("LIVEKIT_JWT_SERVICE_HOST"));
    assert!(!log.contains("LIVEKIT_JWT_PORT_8080_TCP_ADDR"));
}

#[test]
fn an_unknown_name_draws_a_warning_with_the_nearest_setting() {
    for (wrong, meant) in [
        (
            "LIVEKIT_FULL_ACCESS_HOMESERVER",
            "LIVEKIT_FULL_ACCESS_HOMESERVERS",
        ),
        ("LIVEKIT_SECRETFILE", "LIVEKIT_SECRET_FILE"),
        ("LK_JWT_PROT", "LK_JWT_PORT"),
    ] {
        let service = Service::start(&Settings::complete().set(wrong, "1"));
        let warning = service.wait_for_log("did you mean");
        assert!(warning.contains("level=warn"), "{warning}");
        assert!(warning.contains(wrong), "{warning}");
        let (_, suggestion) = warning.split_once("did you mean").unwrap();
        assert!(suggestion.contains(meant), "{warning}");
    }
}

#[test]
fn url_key_and_secret_are_enough_and_a_warning_says_what_is_restricted() {
    let service = Service::start(&Settings::complete());
    let line = service.wait_for_log("LIVEKIT_FULL_ACCESS_HOMESERVERS");
    assert!(line.contains("restricted"), "{line}");
}

#[test]
fn an_address_without_host_is_all_addresses_of_both_families() {
    let service = Service::start(&Settings::complete().set("LIVEKIT_JWT_BIND", ":0"));
    let Address::Tcp(address) = service.address() else {
        panic!("{:?}", service.address());
    };
    for ip in ["127.0.0.1", "::1"] {
        let address =
            Address::Tcp((ip.parse::<std::net::IpAddr>().unwrap(), address.port()).into());
        assert_eq!(
            client::request(&address, "GET", "/healthz", b"").status,
            200,
            "{ip}"
        );
    }
}

#[test]
fn loopback_addresses_of_both_families_work() {
    for bind in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
        let service = Service::start(&Settings::complete().set("LIVEKIT_JWT_BIND", bind));
        assert_eq!(service.request("GET", "/healthz").status, 200, "{bind}");
    }
}

#[test]
fn a_unix_socket_left_by_a_crash_is_replaced() {
    let settings = Settings::complete();
    let path = settings.path("socket");
    let settings = settings.set("LIVEKIT_JWT_BIND", format!("unix:{}", path.display()));
    let mut first = Service::start(&settings);
    assert_eq!(first.request("GET", "/healthz").status, 200);
    first.kill();
    assert!(path.exists());
    let second = Service::start(&settings);
    assert_eq!(second.request("GET", "/healthz").status, 200);
    let reply = second.post("/get_token", &User::new("alice", "[::1]").get_token());
    assert_eq!(reply.status, 401);
}

#[test]
fn check_config_prints_values_and_masks_secrets() {
    let settings = Settings::complete()
        .unset("LIVEKIT_SECRET")
        .set_file("LIVEKIT_SECRET_FROM_FILE", &format!("{SECRET}\n"))
        .set("LIVEKIT_LOCAL_HOMESERVERS", "example.com other.example");
    let exit = run_to_exit(&["check-config"], &settings);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    for text in [
        "wss://sfu.example.com",
        "LIVEKIT_LOCAL_HOMESERVERS",
        "LIVEKIT_SECRET_FROM_FILE",
        "example.com",
        "other.example",
        "127.0.0.1:0",
        KEY,
    ] {
        assert!(exit.stdout.contains(text), "{text} {exit:?}");
    }
}

#[test]
fn errors_do_not_show_secrets() {
    for (name, value) in [
        ("LIVEKIT_KEYS", SECRET),
        ("LIVEKIT_KEYS", &format!("{SECRET}:")),
        (
            "LIVEKIT_URL",
            &format!("wss://user:{SECRET}@sfu.example.com"),
        ),
    ] {
        let settings = Settings::complete()
            .unset("LIVEKIT_KEY")
            .unset("LIVEKIT_SECRET")
            .set(name, value);
        let exit = run_to_exit(&[], &settings);
        assert_eq!(exit.code, WRONG_SETTING, "{exit:?}");
    }
}

#[test]
fn livekit_ca_file_has_to_contain_certificates() {
    let settings = Settings::complete().set_file("LIVEKIT_CA_FILE", "127.0.0.1 localhost\n");
    for command in [&[][..], &["check-config"], &["--dev"]] {
        let exit = run_to_exit(command, &settings);
        assert_eq!(exit.code, WRONG_SETTING, "{command:?} {exit:?}");
        let error = "LIVEKIT_CA_FILE: expected";
        assert!(exit.stderr.contains(error), "{command:?} {exit:?}");
    }
}

#[test]
fn unusable_authorities_of_other_programs_are_ignored() {
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        let complete = Settings::complete();
        let missing_path = complete.path("nowhere");
        let missing = complete.clone().set(name, missing_path.to_str().unwrap());
        let unusable = [missing, complete.set_file(name, "127.0.0.1 localhost\n")];
        for settings in unusable {
            let exit = run_to_exit(&["check-config"], &settings);
            assert_eq!(exit.code, Some(0), "{exit:?}");
            let output = exit.stdout + &exit.stderr;
            assert!(output.contains(&format!("{name} is ignored")), "{output}");
            let service = Service::start(&settings);
            assert_eq!(service.request("GET", "/healthz").status, 200);
            service.wait_for_line_with(&["level=warn", name, "is ignored"]);
            assert!(!service.log().contains("LIVEKIT_CA_FILE"));
        }
    }
}

#[test]
fn help_and_version_need_no_settings() {
    let exit = run_to_exit(&["--help"], &Settings::none());
    assert_eq!(exit.code, Some(0), "{exit:?}");
    for text in ["serve", "check-config", "--dev", "LIVEKIT_URL"] {
        assert!(exit.stdout.contains(text), "{text} {exit:?}");
    }
    let exit = run_to_exit(&["--version"], &Settings::none());
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stdout.contains(env!("CARGO_PKG_VERSION")), "{exit:?}");
    let exit = run_to_exit(&["--nonsense"], &Settings::complete());
    assert!(exit.code.is_some_and(|code| code != 0), "{exit:?}");
    assert!(exit.stderr.contains("--nonsense"), "{exit:?}");
}
