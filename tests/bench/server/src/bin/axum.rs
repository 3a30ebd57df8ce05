//! axum on tokio's threads, one for each core.

use std::io;
use std::sync::Arc;

use ::axum::Router;
use ::axum::body::Bytes;
use ::axum::extract::State;
use ::axum::http::{StatusCode, header};
use ::axum::response::IntoResponse;
use ::axum::routing::{get, post};
use bench_server::Handlers;
use tokio::net::TcpListener;

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = bench_server::listen()?;
        listener.set_nonblocking(true)?;
        let routes = Router::new()
            .route("/healthz", get(healthz))
            .route("/sign", post(sign))
            .with_state(Arc::new(Handlers::default()));
        ::axum::serve(TcpListener::from_std(listener)?, routes).await
    })
}

async fn healthz(State(handlers): State<Arc<Handlers>>) -> impl IntoResponse {
    response(handlers.respond("GET", "/healthz", &[]))
}

async fn sign(State(handlers): State<Arc<Handlers>>, body: Bytes) -> impl IntoResponse {
    response(handlers.respond("POST", "/sign", &body))
}

fn response((status, body): (u16, Vec<u8>)) -> impl IntoResponse {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], body)
}
