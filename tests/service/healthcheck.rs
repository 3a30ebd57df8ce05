//! `healthcheck`, which containers run beside the service, with the same settings.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use crate::client::Address;
use crate::process::{PROGRAM, Service, run_to_exit};
use crate::settings::Settings;

#[test]
fn a_service_that_is_well_is_found_wherever_it_listens() {
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
        let exit = run_to_exit(&["healthcheck"], &beside(&service, bind));
        assert_eq!(exit.code, Some(0), "{bind} {exit:?}");
        assert_eq!(exit.stdout + &exit.stderr, "", "{bind}");
    }
}

#[test]
fn the_older_name_of_the_port_is_read_too() {
    let service = Service::start(&Settings::complete().set("LIVEKIT_JWT_BIND", ":0"));
    let Address::Tcp(address) = service.address() else {
        panic!("{:?}", service.address());
    };
    let settings = Settings::none().set("LIVEKIT_JWT_PORT", address.port().to_string());
    assert_eq!(run_to_exit(&["healthcheck"], &settings).code, Some(0));
}

#[test]
fn the_forerunner_s_name_for_it_works() {
    let service = Service::start(&Settings::complete());
    let settings = beside(&service, "127.0.0.1:0");
    let ended = Command::new(PROGRAM)
        .arg0("/lk-jwt-service-healthcheck")
        .env_clear()
        .envs(settings.variables())
        .status();
    assert_eq!(ended.unwrap().code(), Some(0));
}

#[test]
fn a_service_that_is_gone_is_not_well() {
    let mut service = Service::start(&Settings::complete());
    let settings = beside(&service, "127.0.0.1:0");
    service.kill();
    let exit = run_to_exit(&["healthcheck"], &settings);
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(exit.stderr.contains("cannot be reached"), "{exit:?}");
}

#[test]
fn a_service_that_says_something_else_or_nothing_is_not_well() {
    let broken = &b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"[..];
    for (answer, complaint) in [
        (Some(broken), "expected a healthy answer"),
        (Some(b"HTTP/1.1 200"), "expected a healthy answer"),
        (Some(b""), "expected a healthy answer"),
        (
            Some(b"SSH-2.0-OpenSSH_9.2\r\n"),
            "expected a healthy answer",
        ),
        // nothing at all: the check gives up by itself
        (None, "does not answer"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bind = listener.local_addr().unwrap().to_string();
        let other = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            match answer {
                Some(answer) => stream.write_all(answer).unwrap(),
                // until the check has gone
                None => drop(stream.read(&mut [0; 1024])),
            }
        });
        let exit = run_to_exit(
            &["healthcheck"],
            &Settings::none().set("LIVEKIT_JWT_BIND", bind),
        );
        other.join().unwrap();
        assert_eq!(exit.code, Some(1), "{answer:?} {exit:?}");
        assert!(exit.stderr.contains(complaint), "{answer:?} {exit:?}");
    }
}

#[test]
fn a_wrong_bind_is_named() {
    let settings = Settings::none().set("LIVEKIT_JWT_BIND", "nonsense");
    let exit = run_to_exit(&["healthcheck"], &settings);
    assert_eq!(exit.code, Some(78), "{exit:?}");
    assert!(exit.stderr.contains("LIVEKIT_JWT_BIND"), "{exit:?}");
}

/// What the check is told: the settings of the service, with the port that it got.
fn beside(service: &Service, bind: &str) -> Settings {
    let bind = match service.address() {
        Address::Tcp(address) => bind.replace(":0", &format!(":{}", address.port())),
        Address::Unix(_) => bind.to_owned(),
    };
    Settings::none().set("LIVEKIT_JWT_BIND", bind)
}
