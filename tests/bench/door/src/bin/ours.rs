//! The gate, and tiny_http behind it: as the service has it.

use std::process::ExitCode;

use door::{WORKERS, Work};
use livekit_token_service::internal::event_loop;
use livekit_token_service::internal::{ServerLimits, ListenSocket, RequestClass};
use livekit_token_service::internal::MAX_BODY_BYTES;
use livekit_token_service::internal::SystemdNotifier;
use tiny_http::Response;

fn main() -> ExitCode {
    let work = Work::default();
    let served = door::listen().map(|listener| {
        event_loop::serve(
            vec![Listener::Tcp(listener)],
            WORKERS,
            ServerLimits::default(),
            |_head| RequestClass {
                outbound: false,
                body: MAX_BODY_BYTES,
                counted: true,
            },
            move |request| work.answer_tiny(request),
            || Response::empty(500).boxed(),
            |_stats| SystemdNotifier::none(),
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
