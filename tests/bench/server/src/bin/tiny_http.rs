//! tiny_http alone, as its documentation shows: threads that take requests from it.

use std::error::Error;
use std::thread;

use bench_server::{Handlers, WORKERS};
use tiny_http::{Header, Response, Server};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let server = Server::from_listener(bench_server::listen()?, None)?;
    let handlers = Handlers::default();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Ok(mut request) = server.recv() {
                    let mut body = Vec::with_capacity(request.body_length().unwrap_or(0));
                    let (status, body) = match request.as_reader().read_to_end(&mut body) {
                        Ok(_) => handlers.respond(request.method().as_str(), request.url(), &body),
                        Err(_) => (400, Vec::new()),
                    };
                    let mut response = Response::from_data(body).with_status_code(status);
                    if let Ok(json) = Header::from_bytes("Content-Type", "application/json") {
                        response.add_header(json);
                    }
                    // an error is that of a client that has closed its connection
                    let _ = request.respond(response);
                }
            });
        }
    });
    Ok(())
}
