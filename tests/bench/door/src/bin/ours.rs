//! The gate, and tiny_http behind it: as the service has it.

use std::process::ExitCode;

use door::{WORKERS, Work};
use livekit_token_service::server::event_loop;
use livekit_token_service::server::event_loop::{Limits, Listener, Prospect};
use livekit_token_service::server::head::BODY_BYTES;
use livekit_token_service::util::systemd::Supervisor;
use tiny_http::Response;

fn main() -> ExitCode {
    let work = Work::default();
    let served = door::listen().map(|listener| {
        event_loop::serve(
            vec![Listener::Tcp(listener)],
            WORKERS,
            Limits::default(),
            |_head| Prospect {
                outbound: false,
                body: BODY_BYTES,
                counted: true,
            },
            move |request| work.answer_tiny(request),
            || Response::empty(500).boxed(),
            |_stats| Supervisor::none(),
        )
    });
    match served {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error),
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("ours: {error}");
    ExitCode::FAILURE
}
