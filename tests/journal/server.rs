//! A real redis-server of a test's own, and a cable to it that can be pulled.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Far longer than a Redis takes to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running redis-server, ended and cleared away when it is dropped.
pub(crate) struct Server {
    directory: PathBuf,
    arguments: Vec<String>,
    process: Mutex<Child>,
}

impl Server {
    /// One that forgets everything when it ends.
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

    /// Ends it the hard way.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let _ = std::fs::remove_file(self.socket());
    }

    /// Starts it again after [`Self::kill`].
    pub(crate) fn start_again(&self) {
        *self.process.lock().unwrap() = spawn(&self.directory, &self.arguments);
        self.wait();
    }

    /// Lets it stand still, or go on.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.lock().unwrap().id().to_string();
        let status = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// What one command answers, as an administrator would see it.
    pub(crate) fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(format!("unix://{}", self.socket().display())).unwrap();
        let mut connection = client.get_connection().unwrap();
        let mut words = redis::cmd(command[0]);
        words.arg(&command[1..]).query(&mut connection).unwrap()
    }

    /// All replicas are taken for dead, unless they say something.
    pub(crate) fn forget_keepers(&self) {
        let keys: Vec<String> = self.ask(&["KEYS", "lk-jwt:keeper:*"]);
        for key in keys {
            self.ask::<u8>(&["DEL", &key]);
        }
    }

    fn wait(&self) {
        let begin = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            assert!(begin.elapsed() < PATIENCE, "redis-server does not start");
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

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A way to a server that can be cut and mended.
pub(crate) struct Cable {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    streams: Vec<(TcpStream, UnixStream)>,
}

impl Cable {
    pub(crate) fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<State>>::default();
        let (shared, socket) = (Arc::clone(&state), server.socket());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut state = shared.lock().unwrap();
                let Ok(server) = UnixStream::connect(&socket) else {
                    continue;
                };
                if !state.is_cut {
                    let (near, far) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
                    state.streams.push((near, far));
                    join(stream, server);
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
        for (near, far) in state.streams.drain(..) {
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.state.lock().unwrap().is_cut = false;
    }
}

fn join(near: TcpStream, far: UnixStream) {
    let (near_out, far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    thread::spawn(move || {
        copy(near, &far_out);
        let _ = far_out.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        copy(far, &near_out);
        let _ = near_out.shutdown(Shutdown::Both);
    });
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let _ = std::io::copy(&mut from, &mut to);
}
