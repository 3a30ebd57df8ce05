//! The real binary in a cleared environment: started, watched through its log, and ended with the test.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::client::{self, Address, Reply};
use crate::fields;
use crate::settings::{NEVER_LOGGED, Settings};

/// Longer than a start or a refusal to start takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is tested.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_livekit-token-service");
/// `USER_HZ` of Linux, the same on all machines that we know.
const TICKS_PER_SECOND: u64 = 100;
/// How the first segment of every JWT of ours begins (`{"alg":`).
const JWT: &str = "eyJhbGci";

/// A running service. When it is dropped its log must hold no secret.
pub(crate) struct Service {
    child: Child,
    killed: bool,
    address: Address,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    // keeps the files that they name as well
    settings: Settings,
}

impl Service {
    pub(crate) fn start(settings: &Settings) -> Self {
        Self::start_with(&[], settings)
    }

    /// Starts it with arguments and waits until it says where it listens.
    pub(crate) fn start_with(arguments: &[&str], settings: &Settings) -> Self {
        Self::start_by(command(PROGRAM, arguments, settings), settings)
    }

    /// Starts it by a command that becomes the service, with the same process id.
    pub(crate) fn start_by(mut command: Command, settings: &Settings) -> Self {
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let kept = Arc::clone(&log);
        let mut service = Self {
            child,
            killed: false,
            address: Address::Unix("/nowhere".into()),
            log,
            reader: Some(thread::spawn(move || kept.keep(stderr))),
            settings: settings.clone(),
        };
        let line = service.wait_for_words(&["listening", "address", "sfu_url"]);
        let (_, rest) = line.split_once("address").unwrap();
        // logfmt or JSON
        let rest = rest.trim_start_matches(['=', '"', ':']);
        let address = rest.split([' ', '"']).next().unwrap();
        service.address = match address.strip_prefix("unix:") {
            Some(path) => Address::Unix(path.into()),
            None => Address::Tcp(address.parse().unwrap_or_else(|_| panic!("{line}"))),
        };
        service
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        client::post(&self.address, path, body)
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> Reply {
        client::request(&self.address, method, path, b"")
    }

    pub(crate) fn raw(&self, bytes: &[u8]) -> Reply {
        client::raw(&self.address, bytes)
    }

    /// All that it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lines.lock().unwrap().0.join("\n")
    }

    /// The first line with `needle` in it, as soon as it is there.
    pub(crate) fn wait_for_log(&self, needle: &str) -> String {
        self.wait_for_words(&[needle])
    }

    /// The first line with all of `words` in it, as soon as it is there.
    pub(crate) fn wait_for_words(&self, words: &[&str]) -> String {
        self.log
            .wait_for(|line| words.iter().all(|word| line.contains(word)))
            .unwrap_or_else(|| panic!("no line with {words:?} in the log"))
    }

    /// The most memory that it ever held (`VmHWM`), in kB.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The processor time that it has used so far, in user and kernel mode (`utime` and `stime` of proc(5)).
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // the name before it may hold spaces
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }

    /// SIGTERM; [`Service::ended`] has to follow.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGKILL, at any moment; [`Service::ended`] has to follow.
    pub(crate) fn crash(&self) {
        self.signal(Signal::KILL);
    }

    /// Another process with the same settings, when this one has ended.
    pub(crate) fn again(&self) -> Self {
        Self::start(&self.settings)
    }

    /// Has it read its files anew (SIGHUP).
    pub(crate) fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit code with which it ends, which it has to do soon; none after a signal.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
        self.killed = true;
        self.child.wait().unwrap().code()
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        self.killed = true;
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let ended = self.child.try_wait().unwrap();
        let ended = ended.filter(|_| !self.killed);
        self.kill();
        let log = self.log();
        if thread::panicking() {
            eprintln!("--- log of the service at {:?}\n{log}\n---", self.address);
            return;
        }
        assert!(ended.is_none(), "it ended by itself: {ended:?}\n{log}");
        for secret in [NEVER_LOGGED, JWT] {
            if let Some(line) = log.lines().find(|line| line.contains(secret)) {
                panic!("a secret in the log: {line}");
            }
        }
        // SIGKILL may truncate the last line
        let complete = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete.lines().for_each(fields::check_line);
        assert!(
            !log.contains("thread panicked"),
            "the service panicked:\n{log}"
        );
    }
}

/// What a command that ends by itself left behind.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs it until it ends, which it has to do soon, and without a word of a secret.
pub(crate) fn run_to_exit(arguments: &[&str], settings: &Settings) -> Exit {
    let mut child = command(PROGRAM, arguments, settings)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let exit = Exit {
        code: status.and_then(|status| status.code()),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    };
    assert!(status.is_some(), "{arguments:?} did not end: {exit:?}");
    let said = format!("{exit:?}");
    assert!(!said.contains(NEVER_LOGGED), "a secret in {said}");
    exit
}

/// `program` with these arguments, and an environment of nothing but the settings.
pub(crate) fn command(program: &str, arguments: &[&str], settings: &Settings) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(settings.variables())
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn read_all(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    })
}

/// The lines so far, and whether they have ended.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Log {
    fn keep(&self, stderr: impl BufRead) {
        for line in stderr.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            self.lines.lock().unwrap().0.push(line);
            self.grown.notify_all();
        }
        self.lines.lock().unwrap().1 = true;
        self.grown.notify_all();
    }

    fn wait_for(&self, right: impl Fn(&str) -> bool) -> Option<String> {
        let found = |lines: &[String]| lines.iter().find(|line| right(line)).cloned();
        let lines = self.lines.lock().unwrap();
        let (lines, _) = self
            .grown
            .wait_timeout_while(lines, PATIENCE, |(lines, ended)| {
                found(lines).is_none() && !*ended
            })
            .unwrap();
        found(&lines.0)
    }
}
