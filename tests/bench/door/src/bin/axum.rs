//! axum on tokio's threads, one for each core.

use std::io;
use std::sync::Arc;

use ::axum::Router;
use ::axum::body::Bytes;
use ::axum::extract::State;
use ::axum::http::{StatusCode, header};
use ::axum::response::IntoResponse;
use ::axum::routing::{get, post};
use door::Work;
use tokio::net::TcpListener;

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = door::listen()?;
        listener.set_nonblocking(true)?;
        let routes = Router::new()
            .route("/healthz", get(healthz))
            .route("/sign", post(sign))
            .with_state(Arc::new(Work::default()));
        ::axum::serve(TcpListener::from_std(listener)?, routes).await
    })
}

async fn healthz(State(work): State<Arc<Work>>) -> impl IntoResponse {
    reply(work.answer("GET", "/healthz", &[]))
}

async fn sign(State(work): State<Arc<Work>>, body: Bytes) -> impl IntoResponse {
    reply(work.answer("POST", "/sign", &body))
}

fn reply((status, body): (u16, Vec<u8>)) -> impl IntoResponse {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], body)
}
