//! A service behind the real gate whose work is only to tell what arrived and to take its time. It is a fake because the
//! real endpoints neither echo nor sleep.

use livekit_token_service::internal::{
    HttpRequest, HttpResponse, Listener, MAX_BODY_BYTES, RequestClass, RequestHead, RequestRefusal,
    Server, ServerLimits, ServerStats, Service, SystemdNotifier,
};
use sha2::{Digest, Sha256};
use signal_hook::consts::SIGTERM;
use std::env;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

const MAX_LARGE_BODY_BYTES: usize = 16 << 20;

/// Settings: `STAND_BIND`, `STAND_WORKERS`, `STAND_TRUSTED` (networks, comma separated), `STAND_CONNECTIONS`,
/// `STAND_PER_ADDRESS`, `STAND_WORK_MS`.
pub(crate) fn run() -> ExitCode {
    let bind = env::var("STAND_BIND").unwrap_or("127.0.0.1:0".into());
    let listener = match bind.strip_prefix("unix:") {
        Some(path) => Listener::bind_unix(path.as_ref()),
        None => Listener::bind_tcp(&[bind.parse().expect("address")]),
    };
    let listener = listener.expect("bind");
    let address = listener.to_string();
    // clients of other loopback addresses stand for those of the Internet
    let mut limits = ServerLimits {
        limit_private_addresses: true,
        ..ServerLimits::default()
    };
    if let Ok(trusted) = env::var("STAND_TRUSTED") {
        let networks = trusted.split(',').filter(|network| !network.is_empty());
        limits.trusted_proxies = networks.map(|n| n.parse().expect("network")).collect();
    }
    let number = |name: &str| -> Option<usize> { env::var(name).ok()?.parse().ok() };
    limits.max_connections = number("STAND_CONNECTIONS").unwrap_or(limits.max_connections);
    limits.max_connections_per_address =
        number("STAND_PER_ADDRESS").unwrap_or(limits.max_connections_per_address);
    if let Some(time) = number("STAND_WORK_MS") {
        limits.work_timeout = Duration::from_millis(time as u64);
    }
    let (shutdown, signals) = UnixStream::pair().expect("pipe");
    signal_hook::low_level::pipe::register(SIGTERM, signals).expect("signal");
    let server = Server {
        listeners: vec![listener],
        service: Arc::new(Stand),
        worker_count: number("STAND_WORKERS").unwrap_or(16),
        limits,
        stats: Arc::new(ServerStats::default()),
        notifier: SystemdNotifier::disabled(),
        shutdown,
    };
    match server.run(|| eprintln!("listening on {address}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Stand;

impl Service for Stand {
    type Context = ();

    const ALLOWED_HEADERS: &'static [&'static str] = &["Host", "Authorization"];

    fn classify(&self, _listener: usize, head: &RequestHead<'_>) -> RequestClass<()> {
        RequestClass {
            outbound: head.target().starts_with("/outbound"),
            max_body_bytes: match head.target() {
                "/echo/large" => MAX_LARGE_BODY_BYTES,
                _ => MAX_BODY_BYTES,
            },
            address_limited: true,
            context: (),
        }
    }

    /// `/healthz`, `/echo`, `/outbound/MS` and `/local/MS` (sleep), `/big/BYTES`, `/panic`.
    fn respond(&self, request: &HttpRequest<'_, ()>) -> HttpResponse {
        let mut parts = request.target.split('/').skip(1);
        let kind = parts.next().unwrap_or_default();
        let number = parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        match kind {
            "healthz" => answer(200, "ok".into()),
            "outbound" | "local" => {
                sleep(Duration::from_millis(number));
                answer(200, format!("slept {number}"))
            }
            "big" => answer(200, "x".repeat(number as usize)),
            "panic" => panic!("asked for"),
            "echo" => answer(200, echo(request)),
            _ => answer(404, "unknown".into()),
        }
    }

    fn refuse(&self, refusal: RequestRefusal) -> HttpResponse {
        answer(refusal.status(), refusal.message().to_owned())
    }
}

/// What tiny_http has understood: method, target, length and hash of the body, then client and fields.
fn echo(request: &HttpRequest<'_, ()>) -> String {
    let hash = Sha256::digest(request.body);
    let mut text = format!(
        "{} {} {}",
        request.method,
        request.target,
        request.body.len()
    );
    text += &format!(
        " {:02x}{:02x}{:02x}{:02x}\n",
        hash[0], hash[1], hash[2], hash[3]
    );
    text += &format!("client: {}\n", request.origin.client);
    for name in ["Host", "Authorization", "Cookie", "X-Forwarded-For"] {
        for value in request.header_values(name) {
            text += &format!("{name}: {value}\n");
        }
    }
    text
}

fn answer(status: u16, text: String) -> HttpResponse {
    HttpResponse {
        status,
        headers: Vec::new(),
        body: text.into_bytes(),
    }
}
