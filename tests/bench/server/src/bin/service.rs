//! The event loop with tiny_http behind it, as in the service.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bench_server::{Handlers, WORKERS};
use livekit_token_service::internal::{
    HttpRequest, HttpResponse, Listener, MAX_BODY_BYTES, RequestClass, RequestHead, RequestRefusal,
    Server, ServerLimits, ServerStats, Service, SystemdNotifier,
};

struct BenchService(Handlers);

impl Service for BenchService {
    type Context = ();

    const ALLOWED_HEADERS: &'static [&'static str] = &["Content-Type"];

    fn classify(&self, _listener: usize, _head: &RequestHead<'_>) -> RequestClass<()> {
        RequestClass {
            outbound: false,
            max_body_bytes: MAX_BODY_BYTES,
            address_limited: true,
            context: (),
        }
    }

    fn respond(&self, request: &HttpRequest<'_, ()>) -> HttpResponse {
        let (status, body) = self
            .0
            .respond(request.method, request.target, request.body);
        HttpResponse {
            status,
            headers: vec![("Content-Type", "application/json".into())],
            body,
        }
    }

    fn refuse(&self, refusal: RequestRefusal) -> HttpResponse {
        HttpResponse {
            status: refusal.status(),
            ..HttpResponse::default()
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // never closed: the bench kills the server
    let (shutdown, _sender) = UnixStream::pair()?;
    let server = Server {
        listeners: vec![Listener::Tcp(bench_server::listen()?)],
        service: Arc::new(BenchService(Handlers::default())),
        worker_count: WORKERS,
        limits: ServerLimits::default(),
        stats: Arc::new(ServerStats::default()),
        notifier: SystemdNotifier::disabled(),
        shutdown,
    };
    Ok(server.run(|| {})?)
}
