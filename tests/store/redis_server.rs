//! A redis-server for one test, and a proxy whose connections can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Deadline that only a hang misses.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running redis-server; stopped and removed on drop.
pub(crate) struct RedisServer {
    directory: PathBuf,
    arguments: Vec<String>,
    process: Mutex<Child>,
}

impl RedisServer {
    /// A server without persistence.
    pub(crate) fn start() -> Arc<Self> {
        Self::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Arc<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lts-redis-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let arguments: Vec<_> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let process = Mutex::new(spawn(&directory, &arguments));
        let server = Self {
            directory,
            arguments,
            process,
        };
        server.wait();
        Arc::new(server)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("redis.sock")
    }

    /// Kills the process.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let _ = std::fs::remove_file(self.socket());
    }

    /// Starts the server again after [`Self::kill`].
    pub(crate) fn start_again(&self) {
        *self.process.lock().unwrap() = spawn(&self.directory, &self.arguments);
        self.wait();
    }

    /// Sends a signal, to suspend or resume the process.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.lock().unwrap().id().to_string();
        let status = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// Executes a command.
    pub(crate) fn execute<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(format!("unix://{}", self.socket().display())).unwrap();
        let mut connection = client.get_connection().unwrap();
        let mut words = redis::cmd(command[0]);
        words.arg(&command[1..]).query(&mut connection).unwrap()
    }

    /// Ends the leases of all replicas.
    pub(crate) fn expire_leases(&self) {
        let keys: Vec<String> = self.execute(&["KEYS", "lk-jwt:replica:*"]);
        for key in keys {
            self.execute::<u8>(&["DEL", &key]);
        }
    }

    fn wait(&self) {
        let start = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            assert!(start.elapsed() < DEADLINE, "redis-server does not start");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn spawn(directory: &PathBuf, arguments: &[String]) -> Child {
    let fixed = ["--port", "0", "--save", "", "--unixsocket", "redis.sock"];
    let process = Command::new("redis-server")
        .args(fixed)
        .args(arguments)
        .current_dir(directory)
        .stdout(Stdio::null())
        .spawn();
    process.unwrap_or_else(|error| panic!("redis-server can't be started: {error}"))
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A proxy to a server. Its connections can be cut, and allowed again.
pub(crate) struct RedisProxy {
    port: u16,
    state: Arc<Mutex<ProxyState>>,
}

#[derive(Default)]
struct ProxyState {
    is_cut: bool,
    streams: Vec<(TcpStream, UnixStream)>,
}

impl RedisProxy {
    pub(crate) fn to(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<ProxyState>>::default();
        let (shared, socket) = (Arc::clone(&state), server.socket());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut state = shared.lock().unwrap();
                let Ok(server) = UnixStream::connect(&socket) else {
                    continue;
                };
                if !state.is_cut {
                    let (client_side, server_side) =
                        (stream.try_clone().unwrap(), server.try_clone().unwrap());
                    state.streams.push((client_side, server_side));
                    forward(stream, server);
                }
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        for (client_side, server_side) in state.streams.drain(..) {
            let _ = client_side.shutdown(Shutdown::Both);
            let _ = server_side.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn restore(&self) {
        self.state.lock().unwrap().is_cut = false;
    }
}

fn forward(client_side: TcpStream, server_side: UnixStream) {
    let (client_side_out, server_side_out) = (
        client_side.try_clone().unwrap(),
        server_side.try_clone().unwrap(),
    );
    thread::spawn(move || {
        copy(client_side, &server_side_out);
        let _ = server_side_out.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        copy(server_side, &client_side_out);
        let _ = client_side_out.shutdown(Shutdown::Both);
    });
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let _ = std::io::copy(&mut from, &mut to);
}
