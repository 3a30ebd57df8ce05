//! Hostile homeservers: each login ends in time with the usual 401, memory stays bounded, and users of other homeservers are served
//! meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::certificate::Presents;
use crate::client::{self, Reply};
use crate::homeserver::{Behaviour, FakeHomeserver};
use crate::process::Service;
use crate::settings::Settings;
use crate::setup::User;
use crate::sfu::{FakeSfu, SfuBehaviour};
use crate::silent_listener::SilentListener;

/// Longest time until the refusal. Clients give up after about 30 s; the service's own budget is 15 s.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Pause between two requests for one unlisted homeserver, which has a rate limit.
const PAUSE: Duration = Duration::from_millis(200);
/// Growth of memory in kB caused by all hostile homeservers: their responses have 100 MB each, and the limit of a body is 64 KiB.
const MAX_MEMORY_KB: u64 = 30 * 1024;
/// A response head without end.
const ENDLESS_HEAD: Behaviour = Behaviour::Endless(
    "HTTP/1.1 200 OK\r\n",
    "X-Filler: and one more, and one more, and one more\r\n",
);
/// Bytes of one response that may leave the fake, socket buffers included.
const MAX_BYTES_SENT: u64 = 16 * 1024 * 1024;

#[test]
fn logins_at_hostile_homeservers_are_refused_in_time_while_others_are_served() {
    let listener = SilentListener::on("127.0.0.1");
    let hostile = hostile_homeservers(&listener);
    let listed = FakeHomeserver::well_behaved();
    let unlisted = FakeHomeserver::start("127.0.200.1", Behaviour::Correct);
    let sfu = FakeSfu::start(SfuBehaviour::Serves);
    let service = Service::start(
        &Settings::complete()
            .set("LIVEKIT_URL", sfu.url())
            .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", listed.name())
            // not the listener's 127.0.0.1; one /24 for each homeserver, as calls to a subnet are limited
            .set(
                "LIVEKIT_ALLOWED_NETWORKS",
                "127.0.8.0/21 127.0.16.0/20 127.0.200.0/24",
            ),
    );
    let refusal = service.post(
        "/get_token",
        &listed.user_with_unknown_token("mallory").get_token(),
    );
    assert_eq!(
        refusal.status_and_errcode(),
        (401, "M_UNAUTHORIZED".to_owned())
    );
    for server in [&listed, &unlisted] {
        let reply = service.post("/get_token", &server.user("first").get_token());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let memory_before = service.peak_memory();

    let attacks_done = AtomicBool::new(false);
    let (replies, served) = thread::scope(|scope| {
        let attacks: Vec<_> = hostile
            .iter()
            .map(|(name, server)| {
                let (user, service) = (server.user("alice"), &service);
                scope.spawn(move || (*name, timed_get_token(service, &user)))
            })
            .collect();
        let others = scope.spawn(|| {
            let mut served = 0;
            while !attacks_done.load(Ordering::SeqCst) || served < 10 {
                for server in [&listed, &unlisted] {
                    let reply = service.post("/sfu/get", &server.user("bob").sfu_get());
                    assert_eq!(reply.status, 200, "after {served} requests: {reply:?}");
                    served += 1;
                }
                thread::sleep(PAUSE);
            }
            served
        });
        let replies: Vec<_> = attacks
            .into_iter()
            .map(|attack| attack.join().unwrap())
            .collect();
        attacks_done.store(true, Ordering::SeqCst);
        (replies, others.join().unwrap())
    });
    let growth = service.peak_memory() - memory_before;

    let mut failures = Vec::new();
    for (name, (reply, elapsed)) in &replies {
        eprintln!("{elapsed:>6.1?} {name}");
        let refused =
            matches!(reply, Ok(reply) if reply.status == 401 && reply.body == refusal.body);
        if !refused || *elapsed > MAX_WAIT {
            failures.push(format!("{name}: {elapsed:?} {reply:?}"));
        }
    }
    for (name, server) in &hostile {
        if server.bytes_sent() > MAX_BYTES_SENT {
            failures.push(format!("{name}: {} bytes sent", server.bytes_sent()));
        }
        if server.connections() == 0 {
            failures.push(format!("{name}: no connection"));
        }
    }
    eprintln!(
        "{served} requests for other homeservers served meanwhile; peak memory grew by {growth} kB"
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(growth < MAX_MEMORY_KB, "{growth} kB");
    assert_eq!(
        listener.connections(),
        0,
        "a redirect to loopback was followed"
    );
}

/// A full-access homeserver may be on a private address, but has the same limits of memory and time.
#[test]
fn logins_at_hostile_full_access_homeservers_are_refused_in_time() {
    let servers = [
        FakeHomeserver::start("localhost", Behaviour::HugeBody { announced: false }),
        FakeHomeserver::start("localhost", ENDLESS_HEAD),
        FakeHomeserver::start("localhost", Behaviour::DripsBody),
    ];
    let names: Vec<&str> = servers.iter().map(FakeHomeserver::name).collect();
    let service = Service::start(
        &Settings::complete().set("LIVEKIT_FULL_ACCESS_HOMESERVERS", names.join(",")),
    );
    thread::scope(|scope| {
        for server in &servers {
            let (user, service) = (server.user("alice"), &service);
            scope.spawn(move || {
                // the budget is 25 s; the client's read timeout is 40 s
                let (reply, _) = timed_get_token(service, &user);
                let outcome = reply.map(|reply| reply.status_and_errcode());
                assert_eq!(outcome, Ok((401, "M_UNAUTHORIZED".to_owned())));
            });
        }
    });
    for server in &servers {
        assert!(
            server.bytes_sent() < MAX_BYTES_SENT,
            "{} bytes sent",
            server.bytes_sent()
        );
    }
}

/// Every kind of hostile homeserver with a description, each in its own /24.
fn hostile_homeservers(listener: &SilentListener) -> Vec<(&'static str, FakeHomeserver)> {
    let trap_url = format!("https://127.0.0.1:{}/", listener.port());
    let redirect = |to: &str| {
        Behaviour::FixedResponse("302 Found", format!("Location: {to}\r\n"), "x".repeat(1024))
    };
    let response =
        |status, body: &str| Behaviour::FixedResponse(status, String::new(), body.to_owned());
    let behaviours = [
        (
            "100 MB with Content-Length",
            Behaviour::HugeBody { announced: true },
        ),
        (
            "100 MB without Content-Length",
            Behaviour::HugeBody { announced: false },
        ),
        ("endless head", ENDLESS_HEAD),
        ("head at one byte a second", Behaviour::DripsHead),
        ("body at one byte a second", Behaviour::DripsBody),
        ("no response", Behaviour::NeverResponds),
        ("connection closed at once", Behaviour::ClosesAtOnce),
        ("not HTTP", Behaviour::NotHttp),
        ("redirect to loopback", redirect(&trap_url)),
        (
            "redirect to loopback without TLS",
            redirect(&trap_url.replace("https", "http")),
        ),
        (
            "redirect to the metadata service",
            redirect("http://169.254.169.254/latest"),
        ),
        ("redirect to itself", redirect("?again=1")),
        ("500", response("500 Internal Server Error", "{}")),
        ("200 with HTML", response("200 OK", "<html>welcome</html>")),
        ("200 without sub", response("200 OK", "{}")),
        (
            "200 with a sub that is not a string",
            response("200 OK", r#"{"sub":["@alice:x"]}"#),
        ),
        (
            "200 with deep JSON",
            response("200 OK", &"[".repeat(60_000)),
        ),
        (
            "user of another server",
            response("200 OK", r#"{"sub":"@alice:example.com"}"#),
        ),
        (
            "user id with two colons",
            response("200 OK", r#"{"sub":"@alice:example.com:8448:x"}"#),
        ),
    ];
    let mut hostile: Vec<_> = behaviours
        .into_iter()
        .enumerate()
        .map(|(number, (name, behaviour))| {
            let host = format!("127.0.{}.1", 8 + number);
            (name, FakeHomeserver::start(&host, behaviour))
        })
        .collect();
    let certificates = [
        ("certificate of another name", Presents::Name("127.0.0.1")),
        (
            "self-signed certificate",
            Presents::SelfSigned("127.0.29.1"),
        ),
    ];
    for (number, (name, presents)) in certificates.into_iter().enumerate() {
        let host = format!("127.0.{}.1", 28 + number);
        let server = FakeHomeserver::with_certificate(&host, presents, Behaviour::Correct);
        hostile.push((name, server));
    }
    hostile
}

/// Sends `/get_token`; returns the reply, or the error of the connection, and the time until then.
fn timed_get_token(service: &Service, user: &User) -> (Result<Reply, String>, Duration) {
    let body = user.get_token().to_string();
    let request = client::written("POST", "/get_token", body.as_bytes());
    let start = Instant::now();
    let reply = client::try_raw(service.address(), &request);
    (reply.map_err(|error| error.to_string()), start.elapsed())
}
