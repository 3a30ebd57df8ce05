//! `doctor`: a line for each result, with what to do, and an exit code.

use crate::client::Address;
use crate::homeserver::FakeHomeserver;
use crate::process::{Exit, Service, run_to_exit};
use crate::settings::Settings;
use crate::sfu::{FakeSfu, SfuBehaviour};

fn settings(sfu: &FakeSfu, homeserver: &FakeHomeserver) -> Settings {
    Settings::complete()
        .set("LIVEKIT_URL", sfu.url())
        .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", homeserver.name())
}

/// The last line about a subject.
fn result<'a>(exit: &'a Exit, subject: &str) -> &'a str {
    let mut lines = exit.stdout.lines().rev();
    let line = lines.find(|line| line.get(5..).is_some_and(|line| line.starts_with(subject)));
    line.unwrap_or_else(|| panic!("nothing about {subject} in {exit:?}"))
}

#[test]
fn a_working_deployment_has_no_failures() {
    let (sfu, homeserver) = (
        FakeSfu::start(SfuBehaviour::Serves),
        FakeHomeserver::well_behaved(),
    );
    let settings = settings(&sfu, &homeserver);
    let service = Service::start(&settings);
    let Address::Tcp(address) = service.address() else {
        panic!("no port");
    };
    let exit = run_to_exit(
        &["doctor", &format!("http://{address}/livekit/jwt")],
        &settings,
    );
    assert_eq!(exit.code, Some(0), "{exit:?}");
    let federation = format!("{} federation", homeserver.name());
    for subject in ["settings", "SFU", &federation, "public URL", "CORS"] {
        assert!(result(&exit, subject).starts_with("ok  "), "{exit:?}");
    }
}

#[test]
fn failures_have_what_to_do() {
    let homeserver = FakeHomeserver::well_behaved();
    let other = FakeSfu::start(SfuBehaviour::Responds(
        "401 Unauthorized",
        r#"{"code":"unauthenticated","msg":"invalid API key"}"#,
    ));
    let refused = run_to_exit(&["doctor"], &settings(&other, &homeserver));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let line = result(&refused, "SFU");
    assert!(line.starts_with("FAIL") && line.contains("key"), "{line}");

    let web_page = SfuBehaviour::Succeeds("Content-Type: text/html\r\n", b"<!doctype html>");
    let web_page = FakeSfu::start(web_page);
    let exit = run_to_exit(&["doctor"], &settings(&web_page, &homeserver));
    assert_eq!(exit.code, Some(1), "{exit:?}");
    let line = result(&exit, "SFU");
    assert!(line.starts_with("FAIL"), "{line}");
    assert!(
        line.contains("web page") && line.contains("LIVEKIT_API_URL"),
        "{line}"
    );

    let unused_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", unused_port.local_addr().unwrap());
    drop(unused_port);
    let silent = settings(&other, &homeserver)
        .set("LIVEKIT_API_URL", url.as_str())
        .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", "nowhere.invalid");
    let exit = run_to_exit(&["doctor", &url], &silent);
    assert_eq!(exit.code, Some(1), "{exit:?}");
    for (subject, advice) in [
        ("SFU", "LIVEKIT_API_URL"),
        (
            "nowhere.invalid federation",
            "LIVEKIT_FEDERATION_URL_OVERRIDES",
        ),
        ("public URL", "connection"),
    ] {
        let line = result(&exit, subject);
        assert!(line.starts_with("FAIL") && line.contains(advice), "{line}");
    }
    let wrong = run_to_exit(&["doctor"], &silent.set("LIVEKIT_LOG_LEVEL", "loud"));
    assert_eq!(wrong.code, Some(78), "{wrong:?}");
    assert!(
        result(&wrong, "settings").contains("LIVEKIT_LOG_LEVEL"),
        "{wrong:?}"
    );
}
