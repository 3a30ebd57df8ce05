//! The process itself, as every exporter names it (Prometheus, "Writing client libraries").

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Of `/proc`'s times: fixed for programs, whatever the kernel uses itself (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn register(to: &mut Registry) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // the name before it may hold blanks
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let field = |number: usize| -> f64 {
        // numbered as in proc(5), where the state is 3
        fields
            .get(number - 3)
            .and_then(|field| field.parse().ok())
            .unwrap_or_default()
    };
    let cpu = Counter::<f64, AtomicU64>::default();
    cpu.inc_by((field(14) + field(15)) / TICKS_PER_SECOND);
    to.register(
        "process_cpu_seconds",
        "Processor time in user and kernel mode",
        cpu,
    );
    let mut gauge = |name: &str, help: &str, value: f64| {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        to.register(name, help, gauge);
    };
    gauge(
        "process_resident_memory_bytes",
        "Memory that is resident",
        resident_bytes(),
    );
    gauge("process_threads", "Threads", field(20));
    gauge(
        "process_open_fds",
        "Descriptors that are open",
        count_open_fds(),
    );
    gauge(
        "process_start_time_seconds",
        "Start, in seconds since 1970",
        boot_time_seconds() + field(22) / TICKS_PER_SECOND,
    );
}

/// What follows `name` in a file of `/proc`, as a number.
fn read_proc_number(path: &str, name: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.unwrap_or_default()
}

fn resident_bytes() -> f64 {
    read_proc_number("/proc/self/status", "VmRSS:") * 1024.0
}

fn boot_time_seconds() -> f64 {
    read_proc_number("/proc/stat", "btime ")
}

fn count_open_fds() -> f64 {
    fs::read_dir("/proc/self/fd").map_or(0.0, |entries| entries.count() as f64)
}
