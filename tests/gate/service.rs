//! A service in a process of its own, and what it costs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// For the start, and for the end: generous, for CI machines are slow.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Service {
    child: Child,
    /// As in its log: `ADDRESS:PORT` or `unix:PATH`.
    pub(crate) bound: String,
}

impl Service {
    /// The service of `stand.rs`.
    pub(crate) fn stand(settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("stand").envs(settings.iter().copied());
        Self::start(command)
    }

    /// The service that is shipped, as an administrator would start it.
    pub(crate) fn shipped() -> Self {
        Self::start(Self::shipped_command(env!(
            "CARGO_BIN_EXE_livekit-token-service"
        )))
    }

    /// The same with so few descriptors.
    pub(crate) fn shipped_with_descriptors(limit: usize) -> Self {
        let mut command = Self::shipped_command("sh");
        let program = env!("CARGO_BIN_EXE_livekit-token-service");
        command.args(["-c", &format!("ulimit -n {limit} && exec {program}")]);
        Self::start(command)
    }

    fn shipped_command(program: &str) -> Command {
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

    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let log = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, bound)) = line.split_once("listening on ") {
                    let bound = bound.split_whitespace().next().unwrap_or_default();
                    let bound = bound.trim_matches('"');
                    let _ = sender.send(bound.to_owned());
                } else if std::env::var_os("GATE_LOG").is_some() {
                    eprintln!("    | {line}");
                }
            }
        });
        let bound = receiver.recv_timeout(PATIENCE).expect("it listens");
        Self { child, bound }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.bound.parse().expect("an address")
    }

    /// A number in `/proc/PID/status`.
    fn status(&self, name: &str) -> usize {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("it is alive");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        value.expect("a number")
    }

    /// How often its first thread, which is the gate, went to sleep.
    pub(crate) fn switches(&self) -> usize {
        self.status("voluntary_ctxt_switches:")
    }

    pub(crate) fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).map_or(0, Iterator::count)
    }

    /// The most memory it ever had resident, in MiB.
    pub(crate) fn peak_mib(&self) -> f64 {
        self.status("VmHWM:") as f64 / 1024.0
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// Seconds of CPU so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(path).expect("it is alive");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = |index| -> f64 {
            let field = after_name.split_whitespace().nth(index);
            field.and_then(|f| f.parse().ok()).unwrap_or(0.0)
        };
        (ticks(11) + ticks(12)) / 100.0
    }

    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("alive");
    }

    /// Waits for its end, which must come by itself.
    pub(crate) fn ended(&mut self) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return (status, begin.elapsed());
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and the end that must be clean.
    pub(crate) fn stop(mut self) -> Duration {
        self.terminate();
        let (status, time) = self.ended();
        assert!(status.success(), "{status} (signal {:?})", status.signal());
        time
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
