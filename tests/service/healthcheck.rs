//! `healthcheck`, which containers run with the settings of the service.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use crate::client::Address;
use crate::process::{PROGRAM, Service, run_to_exit};
use crate::settings::Settings;

#[test]
fn a_healthy_service_is_found_at_any_address() {
    let settings = Settings::complete();
    let socket = format!("unix:{}", settings.path("socket").display());
    let binds = [
        ":0",
        "127.0.0.1:0",
        "0.0.0.0:0",
        "[::]:0",
        "[::1]:0",
        "localhost:0",
        &socket,
    ];
    for bind in binds {
        let service = Service::start(&settings.clone().set("LIVEKIT_JWT_BIND", bind));
        let exit = run_to_exit(&["healthcheck"], &settings_of(&service, bind));
        assert_eq!(exit.code, Some(0), "{bind} {exit:?}");
        assert_eq!(exit.stdout + &exit.stderr, "", "{bind}");
    }
}

#[test]
fn the_older_name_of_the_port_is_read() {
    let service = Service::start(&Settings::complete().set("LIVEKIT_JWT_BIND", ":0"));
    let Address::Tcp(address) = service.address() else {
        panic!("{:?}", service.address());
    };
    let settings = Settings::none().set("LIVEKIT_JWT_PORT", address.port().to_string());
    assert_eq!(run_to_exit(&["healthcheck"], &settings).code, Some(0));
}

#[test]
fn the_program_name_of_lk_jwt_service_works() {
    let service = Service::start(&Settings::complete());
    let settings = settings_of(&service, "127.0.0.1:0");
    let ended = Command::new(PROGRAM)
        .arg0("/lk-jwt-service-healthcheck")
        .env_clear()
        .envs(settings.variables())
        .status();
    assert_eq!(ended.unwrap().code(), Some(0));
}

#[test]
fn a_service_that_has_ended_is_not_healthy() {
    let mut service = Service::start(&Settings::complete());
    let settings = settings_of(&service, "127.0.0.1:0");
    service.kill();
    let exit = run_to_exit(&["healthcheck"], &settings);
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(exit.stderr.contains("cannot connect"), "{exit:?}");
}

#[test]
fn another_response_or_none_is_not_healthy() {
    let broken = &b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"[..];
    for (response, error) in [
        (Some(broken), "expected status 200"),
        (Some(b"HTTP/1.1 200"), "expected status 200"),
        (Some(b""), "expected status 200"),
        (Some(b"SSH-2.0-OpenSSH_9.2\r\n"), "expected status 200"),
        // the check ends by itself
        (None, "no response"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bind = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            match response {
                Some(response) => stream.write_all(response).unwrap(),
                // until the check closes the connection
                None => drop(stream.read(&mut [0; 1024])),
            }
        });
        let exit = run_to_exit(
            &["healthcheck"],
            &Settings::none().set("LIVEKIT_JWT_BIND", bind),
        );
        server.join().unwrap();
        assert_eq!(exit.code, Some(1), "{response:?} {exit:?}");
        assert!(exit.stderr.contains(error), "{response:?} {exit:?}");
    }
}

#[test]
fn a_wrong_address_is_named() {
    let settings = Settings::none().set("LIVEKIT_JWT_BIND", "nonsense");
    let exit = run_to_exit(&["healthcheck"], &settings);
    assert_eq!(exit.code, Some(78), "{exit:?}");
    assert!(exit.stderr.contains("LIVEKIT_JWT_BIND"), "{exit:?}");
}

/// The settings of the service, with the port that it listens on.
fn settings_of(service: &Service, bind: &str) -> Settings {
    let bind = match service.address() {
        Address::Tcp(address) => bind.replace(":0", &format!(":{}", address.port())),
        Address::Unix(_) => bind.to_owned(),
    };
    Settings::none().set("LIVEKIT_JWT_BIND", bind)
}
