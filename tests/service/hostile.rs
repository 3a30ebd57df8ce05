//! Hostile homeservers: each is refused in time with the sentence that everyone gets, memory stays flat, and the users of
//! others are served meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::certificate::Presents;
use crate::client::{self, Reply};
use crate::homeserver::{Behaviour, Homeserver};
use crate::process::Service;
use crate::settings::Settings;
use crate::sfu::{Conduct, Sfu};
use crate::stage::User;
use crate::trap::Trap;

/// The budget for strangers is 15 s; the rest is for a slow machine.
const IN_TIME: Duration = Duration::from_secs(20);
/// Between two requests for one stranger's name, which may be asked for ten times a second.
const PACE: Duration = Duration::from_millis(200);
/// What all of them together may cost: their answers have 100 MB each, and the limit of a body is 64 KiB.
const MEMORY_KB: u64 = 30 * 1024;
/// A head that never ends.
const ENDLESS_HEAD: Behaviour = Behaviour::Endless(
    "HTTP/1.1 200 OK\r\n",
    "X-Filler: and one more, and one more, and one more\r\n",
);
/// What the service may take of one answer, with the buffers of two kernels.
const TAKEN: u64 = 16 * 1024 * 1024;

#[test]
fn hostile_homeservers_are_refused_in_time_while_others_are_served() {
    let trap = Trap::on("127.0.0.1");
    let hostile = hostile(&trap);
    let good = Homeserver::honest();
    let stranger = Homeserver::start("127.0.200.1", Behaviour::Honest);
    let sfu = Sfu::start(Conduct::Serves);
    let service = Service::start(
        &Settings::complete()
            .set("LIVEKIT_URL", sfu.url())
            .set("LIVEKIT_FULL_ACCESS_HOMESERVERS", good.name())
            // all but the trap's 127.0.0.1; each has a network of its own, as the places for a network are few
            .set(
                "LIVEKIT_ALLOWED_NETWORKS",
                "127.0.8.0/21 127.0.16.0/20 127.0.200.0/24",
            ),
    );
    let refusal = service.post("/get_token", &good.stranger("mallory").get_token());
    assert_eq!(refusal.verdict(), (401, "M_UNAUTHORIZED".to_owned()));
    for server in [&good, &stranger] {
        let reply = service.post("/get_token", &server.user("warm").get_token());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let before = service.peak_memory();

    let over = AtomicBool::new(false);
    let (verdicts, served) = thread::scope(|scope| {
        let attacks: Vec<_> = hostile
            .iter()
            .map(|(what, server)| {
                let (user, service) = (server.user("alice"), &service);
                scope.spawn(move || (*what, ask(service, &user)))
            })
            .collect();
        let others = scope.spawn(|| {
            let mut served = 0;
            while !over.load(Ordering::SeqCst) || served < 10 {
                for server in [&good, &stranger] {
                    let reply = service.post("/sfu/get", &server.user("bob").sfu_get());
                    assert_eq!(reply.status, 200, "after {served}: {reply:?}");
                    served += 1;
                }
                thread::sleep(PACE);
            }
            served
        });
        let verdicts: Vec<_> = attacks
            .into_iter()
            .map(|attack| attack.join().unwrap())
            .collect();
        over.store(true, Ordering::SeqCst);
        (verdicts, others.join().unwrap())
    });
    let grown = service.peak_memory() - before;

    let mut wrong = Vec::new();
    for (what, (reply, took)) in &verdicts {
        eprintln!("{took:>6.1?} {what}");
        let right = matches!(reply, Ok(reply) if reply.status == 401 && reply.body == refusal.body);
        if !right || *took > IN_TIME {
            wrong.push(format!("{what}: {took:?} {reply:?}"));
        }
    }
    for (what, server) in &hostile {
        if server.sent() > TAKEN {
            wrong.push(format!("{what}: {} bytes taken", server.sent()));
        }
        if server.connections() == 0 {
            wrong.push(format!("{what}: never asked"));
        }
    }
    eprintln!("{served} requests of others served meanwhile; peak memory + {grown} kB");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(grown < MEMORY_KB, "{grown} kB");
    assert_eq!(trap.visits(), 0, "a redirect to loopback was followed");
}

/// A full-access homeserver is trusted with private addresses, not with memory and time.
#[test]
fn a_hostile_full_access_homeserver_is_refused_in_time_too() {
    let servers = [
        Homeserver::start("localhost", Behaviour::HugeBody { announced: false }),
        Homeserver::start("localhost", ENDLESS_HEAD),
        Homeserver::start("localhost", Behaviour::DripsBody),
    ];
    let names: Vec<&str> = servers.iter().map(Homeserver::name).collect();
    let service = Service::start(
        &Settings::complete().set("LIVEKIT_FULL_ACCESS_HOMESERVERS", names.join(",")),
    );
    thread::scope(|scope| {
        for server in &servers {
            let (user, service) = (server.user("alice"), &service);
            scope.spawn(move || {
                let (reply, took) = ask(service, &user);
                let verdict = reply.map(|reply| reply.verdict());
                assert_eq!(verdict, Ok((401, "M_UNAUTHORIZED".to_owned())));
                // their budget is 25 s
                assert!(took < IN_TIME + Duration::from_secs(10), "{took:?}");
            });
        }
    });
    for server in &servers {
        assert!(server.sent() < TAKEN, "{} bytes taken", server.sent());
    }
}

/// All of them, each on an address and in a network of its own, with what they do.
fn hostile(trap: &Trap) -> Vec<(&'static str, Homeserver)> {
    let elsewhere = format!("https://127.0.0.1:{}/", trap.port());
    let redirect =
        |to: &str| Behaviour::Says("302 Found", format!("Location: {to}\r\n"), "x".repeat(1024));
    let says = |status, body: &str| Behaviour::Says(status, String::new(), body.to_owned());
    let behaviours = [
        ("100 MB, announced", Behaviour::HugeBody { announced: true }),
        (
            "100 MB, not announced",
            Behaviour::HugeBody { announced: false },
        ),
        ("a head without end", ENDLESS_HEAD),
        ("a head, a byte a second", Behaviour::DripsHead),
        ("a body, a byte a second", Behaviour::DripsBody),
        ("no answer", Behaviour::NeverAnswers),
        ("closes at once", Behaviour::ClosesAtOnce),
        ("not HTTP", Behaviour::Garbage),
        ("redirects to loopback", redirect(&elsewhere)),
        (
            "redirects to loopback, without TLS",
            redirect(&elsewhere.replace("https", "http")),
        ),
        (
            "redirects to the metadata service",
            redirect("http://169.254.169.254/latest"),
        ),
        ("redirects to itself", redirect("?again=1")),
        ("500", says("500 Internal Server Error", "{}")),
        ("200 with rubbish", says("200 OK", "<html>welcome</html>")),
        ("200 without sub", says("200 OK", "{}")),
        (
            "200 with a sub that is no string",
            says("200 OK", r#"{"sub":["@alice:x"]}"#),
        ),
        ("200 with deep JSON", says("200 OK", &"[".repeat(60_000))),
        (
            "sub of another server",
            says("200 OK", r#"{"sub":"@alice:example.com"}"#),
        ),
        (
            "sub with two colons",
            says("200 OK", r#"{"sub":"@alice:example.com:8448:x"}"#),
        ),
    ];
    let mut hostile: Vec<_> = behaviours
        .into_iter()
        .enumerate()
        .map(|(number, (what, behaviour))| {
            let host = format!("127.0.{}.1", 8 + number);
            (what, Homeserver::start(&host, behaviour))
        })
        .collect();
    let presents = [
        ("certificate of another name", Presents::Name("127.0.0.1")),
        (
            "self-signed certificate",
            Presents::SelfSigned("127.0.29.1"),
        ),
    ];
    for (number, (what, presents)) in presents.into_iter().enumerate() {
        let host = format!("127.0.{}.1", 28 + number);
        let server = Homeserver::presenting(&host, presents, Behaviour::Honest);
        hostile.push((what, server));
    }
    hostile
}

/// Asks, and says how long the answer took; no answer at all is one that a test can judge.
fn ask(service: &Service, user: &User) -> (Result<Reply, String>, Duration) {
    let body = user.get_token().to_string();
    let request = client::written("POST", "/get_token", body.as_bytes());
    let start = Instant::now();
    let reply = client::try_raw(service.address(), &request);
    (reply.map_err(|error| error.to_string()), start.elapsed())
}
