//! tiny_http alone, as its documentation says: threads that take requests from it.

use std::error::Error;
use std::thread;

use door::{WORKERS, Work};
use tiny_http::Server;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let server = Server::from_listener(door::listen()?, None)?;
    let work = Work::default();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Ok(mut request) = server.recv() {
                    let answer = work.answer_tiny(&mut request);
                    // whoever does not take it has gone
                    let _ = request.respond(answer);
                }
            });
        }
    });
    Ok(())
}
