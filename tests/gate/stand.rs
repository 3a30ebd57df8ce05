//! A service behind the real gate whose work is only to tell what arrived and to take its time. It is a fake because the
//! real endpoints neither echo nor sleep.

use livekit_token_service::internal::SystemdNotifier;
use livekit_token_service::internal::event_loop;
use livekit_token_service::internal::{ListenSocket, RequestClass, ServerLimits};
use livekit_token_service::internal::{MAX_BODY_BYTES, MAX_LARGE_BODY_BYTES};
use sha2::{Digest, Sha256};
use std::env;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;
use tiny_http::{Request, Response, ResponseBox};

/// Settings: `STAND_BIND`, `STAND_WORKERS`, `STAND_TRUSTED` (networks, comma separated), `STAND_CONNECTIONS`,
/// `STAND_PER_ADDRESS`, `STAND_WORK_MS`.
pub(crate) fn run() -> ExitCode {
    let bind = env::var("STAND_BIND").unwrap_or("127.0.0.1:0".into());
    let (listener, address) = match bind.strip_prefix("unix:") {
        Some(path) => {
            let listener = std::os::unix::net::UnixListener::bind(path).expect("bind");
            (ListenSocket::Unix(listener), bind)
        }
        None => {
            let listener = std::net::TcpListener::bind(bind).expect("bind");
            let address = listener.local_addr().expect("address").to_string();
            (ListenSocket::Tcp(listener), address)
        }
    };
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
    let served = event_loop::serve(
        vec![listener],
        number("STAND_WORKERS").unwrap_or(16),
        limits,
        |head| RequestClass {
            outbound: head.target().starts_with("/outbound"),
            max_body_bytes: match head.target() {
                "/echo/large" => MAX_LARGE_BODY_BYTES,
                _ => MAX_BODY_BYTES,
            },
            address_limited: true,
        },
        handle,
        || answer(500, "panicked".into()),
        |_| {
            eprintln!("listening on {address}");
            SystemdNotifier::disabled()
        },
    );
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// `/healthz`, `/echo`, `/outbound/MS` and `/local/MS` (sleep), `/big/BYTES`, `/panic`.
fn handle(request: &mut Request) -> ResponseBox {
    let target = request.url().to_owned();
    let mut parts = target.split('/').skip(1);
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
        "echo" => {
            let mut body = Vec::new();
            request.as_reader().read_to_end(&mut body).expect("body");
            answer(200, echo(request, &body))
        }
        _ => answer(404, "unknown".into()),
    }
}

/// What tiny_http has understood: method, target, length and hash of the body, then the fields.
fn echo(request: &Request, body: &[u8]) -> String {
    let hash = Sha256::digest(body);
    let mut text = format!("{} {} {}", request.method(), request.url(), body.len());
    text += &format!(
        " {:02x}{:02x}{:02x}{:02x}\n",
        hash[0], hash[1], hash[2], hash[3]
    );
    for header in request.headers() {
        text += &format!("{}: {}\n", header.field, header.value);
    }
    text
}

fn answer(status: u16, text: String) -> ResponseBox {
    Response::from_string(text).with_status_code(status).boxed()
}
