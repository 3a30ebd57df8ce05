//! The program: all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    livekit_token_service::run()
}
