//! Listener of the fake servers: a loopback port, and a thread for each connection.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// Serves every connection to the returned address until the process ends.
pub(crate) fn listen<S: Send + Sync + 'static, R: 'static>(
    state: &Arc<S>,
    serve: fn(&S, TcpStream) -> R,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::clone(state);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            thread::spawn(move || drop(serve(&state, stream)));
        }
    });
    address
}
