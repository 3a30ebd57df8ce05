//! The service as a process: the real binary in an empty environment, with its log, killed at the end of the test.

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

/// Deadline for a start, an exit or a log line. Only a hang misses it, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The binary under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_livekit-token-service");
/// `USER_HZ` of Linux, the same on all common machines.
const TICKS_PER_SECOND: u64 = 100;
/// Start of the first segment of every JWT of the service: `{"alg":` in base64.
const JWT_PREFIX: &str = "eyJhbGci";

/// A running service. When it is dropped, its log is checked: no secret, no panic, nothing but fields.
pub(crate) struct Service {
    child: Child,
    /// Whether the test ended the process.
    expected_exit: bool,
    address: Address,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    // holds the files that the settings name as well
    settings: Settings,
}

impl Service {
    pub(crate) fn start(settings: &Settings) -> Self {
        Self::start_with(&[], settings)
    }

    /// Starts the service with arguments, and waits until it logs its address.
    pub(crate) fn start_with(arguments: &[&str], settings: &Settings) -> Self {
        Self::start_command(command(PROGRAM, arguments, settings), settings)
    }

    /// Starts the service by a command that execs it.
    pub(crate) fn start_command(mut command: Command, settings: &Settings) -> Self {
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let reader_log = Arc::clone(&log);
        let mut service = Self {
            child,
            expected_exit: false,
            address: Address::Unix("/nowhere".into()),
            log,
            reader: Some(thread::spawn(move || reader_log.read(stderr))),
            settings: settings.clone(),
        };
        let line = service.wait_for_line_with(&["listening", "address", "sfu_url"]);
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

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lines.lock().unwrap().0.join("\n")
    }

    /// Waits for a line that contains `needle`, and returns the first one.
    pub(crate) fn wait_for_log(&self, needle: &str) -> String {
        self.wait_for_line_with(&[needle])
    }

    /// Waits for a line that contains all of `words`, and returns the first one.
    pub(crate) fn wait_for_line_with(&self, words: &[&str]) -> String {
        self.log
            .wait_for(|line| words.iter().all(|word| line.contains(word)))
            .unwrap_or_else(|| panic!("no line with {words:?} in the log"))
    }

    /// Peak resident memory (`VmHWM`) in kB.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Processor time so far, in user and kernel mode (`utime` and `stime` of proc(5)).
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // the process name before it may contain spaces
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }

    /// Sends SIGTERM; [`Service::wait_for_exit`] has to follow.
    pub(crate) fn send_sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL; [`Service::wait_for_exit`] has to follow.
    pub(crate) fn send_sigkill(&self) {
        self.signal(Signal::KILL);
    }

    /// Starts another process with the same settings, after this one has ended.
    pub(crate) fn restart(&self) -> Self {
        Self::start(&self.settings)
    }

    /// Sends SIGHUP: the service reloads its settings.
    pub(crate) fn reload(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end of the process. Returns the exit code; `None` after a signal.
    pub(crate) fn wait_for_exit(&mut self) -> Option<i32> {
        let deadline = Instant::now() + TIMEOUT;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the service does not exit");
            thread::sleep(Duration::from_millis(5));
        }
        self.expected_exit = true;
        self.child.wait().unwrap().code()
    }

    /// Kills the process and reads the rest of its log.
    pub(crate) fn kill(&mut self) {
        self.expected_exit = true;
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
        let ended = ended.filter(|_| !self.expected_exit);
        self.kill();
        let log = self.log();
        if thread::panicking() {
            eprintln!("--- log of the service at {:?}\n{log}\n---", self.address);
            return;
        }
        assert!(ended.is_none(), "the service exited: {ended:?}\n{log}");
        for secret in [NEVER_LOGGED, JWT_PREFIX] {
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

/// Result of a command that ended by itself.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command of the binary to its end. Panics if the output contains a secret.
pub(crate) fn run_to_exit(arguments: &[&str], settings: &Settings) -> Exit {
    let mut child = command(PROGRAM, arguments, settings)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let deadline = Instant::now() + TIMEOUT;
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
    let output = format!("{exit:?}");
    assert!(!output.contains(NEVER_LOGGED), "a secret in {output}");
    exit
}

/// `program` with these arguments, and only the settings in its environment.
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

/// Lines of stderr.
#[derive(Default)]
struct Log {
    /// The lines so far, and whether stderr is closed.
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Log {
    fn read(&self, stderr: impl BufRead) {
        for line in stderr.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            self.lines.lock().unwrap().0.push(line);
            self.grown.notify_all();
        }
        self.lines.lock().unwrap().1 = true;
        self.grown.notify_all();
    }

    fn wait_for(&self, matches: impl Fn(&str) -> bool) -> Option<String> {
        let found = |lines: &[String]| lines.iter().find(|line| matches(line)).cloned();
        let lines = self.lines.lock().unwrap();
        let (lines, _) = self
            .grown
            .wait_timeout_while(lines, TIMEOUT, |(lines, closed)| {
                found(lines).is_none() && !*closed
            })
            .unwrap();
        found(&lines.0)
    }
}
