//! The real service in a process of its own, and its use of resources.

use crate::client::TIMEOUT;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_livekit-token-service");

pub(crate) struct ServiceProcess {
    child: Child,
    address: SocketAddr,
}

impl ServiceProcess {
    pub(crate) fn start() -> Self {
        Self::spawn(command(PROGRAM))
    }

    pub(crate) fn with_max_connections(max: usize) -> Self {
        let mut command = command(PROGRAM);
        command.env("LIVEKIT_MAX_CONNECTIONS", max.to_string());
        Self::spawn(command)
    }

    pub(crate) fn with_descriptors(limit: usize) -> Self {
        Self::spawn(command_with_descriptors(limit))
    }

    /// Runs the service with so few descriptors that it cannot start.
    pub(crate) fn run_with_descriptors(limit: usize) -> Output {
        command_with_descriptors(limit).output().expect("sh")
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("start");
        let log = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            // reads to the end even if the lines are of no use, so that the service is never blocked
            for line in log.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut log = Vec::new();
        let address = loop {
            match receiver.recv_timeout(TIMEOUT) {
                Ok(line) if line.contains("listening") => {
                    let mut words = line.split(|c: char| c.is_whitespace() || "\"=".contains(c));
                    break words
                        .find_map(|word| word.parse().ok())
                        .expect("an address");
                }
                Ok(line) => log.push(line),
                Err(error) => panic!("{error}; log: {log:#?}"),
            }
        };
        Self { child, address }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A number in `/proc/PID/status`.
    fn status(&self, name: &str) -> usize {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("running");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        value.expect("a number")
    }

    /// How often the main thread, which runs the event loop, went to sleep.
    pub(crate) fn context_switches(&self) -> usize {
        self.status("voluntary_ctxt_switches:")
    }

    pub(crate) fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).map_or(0, Iterator::count)
    }

    /// Peak of the resident memory, in MiB.
    pub(crate) fn peak_mib(&self) -> f64 {
        self.status("VmHWM:") as f64 / 1024.0
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// CPU time so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(path).expect("running");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = |index| -> f64 {
            let field = after_name.split_whitespace().nth(index);
            field.and_then(|f| f.parse().ok()).unwrap_or(0.0)
        };
        (ticks(11) + ticks(12)) / 100.0
    }

    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("running");
    }

    /// Waits until the service has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < TIMEOUT, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGTERM and waits for the clean end.
    pub(crate) fn stop(mut self) {
        self.terminate();
        let status = self.wait();
        assert!(status.success(), "{status} (signal {:?})", status.signal());
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.envs([
        ("LIVEKIT_URL", "ws://localhost:7880"),
        ("LIVEKIT_KEY", "devkey"),
        (
            "LIVEKIT_SECRET",
            "a secret of more than 32 characters, for tests",
        ),
        ("LIVEKIT_JWT_BIND", "127.0.0.1:0"),
    ]);
    command
}

fn command_with_descriptors(limit: usize) -> Command {
    let mut command = command("sh");
    command.args(["-c", &format!("ulimit -n {limit} && exec {PROGRAM}")]);
    command
}
