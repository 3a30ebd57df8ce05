//! Metrics of the process in Prometheus' text format (OpenMetrics): counters since the start, in one place for the whole process.
//!
//! Label values are constants of this program, so that their number is bounded: no user, room, server or address.

use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Prefix of the names, but for those of the process.
const PREFIX: &str = "livekit_token_service";
/// Upper bounds of the durations, in seconds: from a response out of memory to the longest deadline.
const DURATION_BUCKETS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Ticks per second of `/proc`'s times (`USER_HZ`), which do not depend on the kernel's own.
const TICKS_PER_SECOND: f64 = 100.0;

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

/// Counts a response.
pub(crate) fn count_request(endpoint: &'static str, status: u16, duration: Duration) {
    let labels = RequestLabels { endpoint, status };
    METRICS.requests.get_or_create(&labels).inc();
    let durations = METRICS
        .request_duration
        .get_or_create(&[("endpoint", endpoint)]);
    durations.observe(duration.as_secs_f64());
}

/// Counts an issued access token by the part of the service that has issued it, and by its access to rooms.
pub(crate) fn count_token_issued(source: &'static str, access: &'static str) {
    METRICS
        .tokens_issued
        .count([("source", source), ("access", access)]);
}

/// Counts a refused request.
pub(crate) fn count_refusal(reason: &'static str) {
    METRICS.requests_refused.count([("reason", reason)]);
}

/// Counts a call to another server.
pub(crate) fn count_upstream_request(kind: &'static str, outcome: &'static str) {
    METRICS
        .upstream_requests
        .count([("kind", kind), ("outcome", outcome)]);
}

/// Counts a lookup in a cache.
pub(crate) fn count_cache_lookup(cache: &'static str, hit: bool) {
    let result = if hit { "hit" } else { "miss" };
    METRICS
        .cache_lookups
        .count([("cache", cache), ("result", result)]);
}

/// Counts an event of a delegated leave.
pub(crate) fn count_delegated_leave_event(event: &'static str) {
    METRICS.delegated_leave_events.count([("event", event)]);
}

/// Counts an event of a participant of application-service mode.
pub(crate) fn count_participant_event(event: &'static str) {
    METRICS.participant_events.count([("event", event)]);
}

/// Counts a webhook of the SFU.
pub(crate) fn count_webhook(outcome: &'static str) {
    METRICS.webhooks.count([("outcome", outcome)]);
}

/// Sets the result of the last request for `/readyz`.
pub(crate) fn set_ready(ready: bool) {
    METRICS.ready.get_or_create(&[]).set(ready.into());
}

/// Values that other parts of the service hold.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MetricsSnapshot {
    /// Open connections of clients.
    pub(crate) connections: u64,
    pub(crate) connections_limit: u64,
    /// Connections closed in favour of new ones.
    pub(crate) connections_evicted: u64,
    /// Connections closed without reading a request.
    pub(crate) connections_rejected: u64,
    /// Requests that the event loop has answered because of load.
    pub(crate) requests_shed: u64,
    /// Requests that the event loop has refused as malformed.
    pub(crate) requests_malformed: u64,
    pub(crate) delegated_leaves: u64,
    /// Participants of application-service mode.
    pub(crate) tracked_participants: u64,
    /// Delay of the membership checks of those who are in calls, in seconds.
    pub(crate) participant_check_lag_seconds: u64,
}

/// All metrics in Prometheus' text format.
pub(crate) fn encode(snapshot: &MetricsSnapshot) -> String {
    let mut registry = Registry::default();
    register_process(&mut registry);
    let service = registry.sub_registry_with_prefix(PREFIX);
    METRICS.register(service);
    register_snapshot(snapshot, service);
    let mut text = String::with_capacity(8192);
    // writing to a String cannot fail
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// Labels of a metric, whose values are all of type text.
type Labels<const N: usize> = [(&'static str, &'static str); N];

#[derive(Debug, Clone, Default)]
struct Counters<const N: usize>(Family<Labels<N>, Counter>);

impl<const N: usize> Counters<N> {
    fn count(&self, labels: Labels<N>) {
        self.0.get_or_create(&labels).inc();
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    status: u16,
}

#[derive(Debug)]
struct Metrics {
    requests: Family<RequestLabels, Counter>,
    request_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    tokens_issued: Counters<2>,
    requests_refused: Counters<1>,
    upstream_requests: Counters<2>,
    cache_lookups: Counters<2>,
    delegated_leave_events: Counters<1>,
    participant_events: Counters<1>,
    webhooks: Counters<1>,
    /// Absent until the first request for `/readyz`.
    ready: Family<Labels<0>, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            request_duration: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            tokens_issued: Counters::default(),
            requests_refused: Counters::default(),
            upstream_requests: Counters::default(),
            cache_lookups: Counters::default(),
            delegated_leave_events: Counters::default(),
            participant_events: Counters::default(),
            webhooks: Counters::default(),
            ready: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers all metrics; the encoder appends `_total` to the names of counters.
    fn register(&self, to: &mut Registry) {
        to.register("requests", "Responses", self.requests.clone());
        to.register(
            "request_duration_seconds",
            "Time from the complete request to the response",
            self.request_duration.clone(),
        );
        to.register(
            "tokens_issued",
            "LiveKit access tokens issued, or relayed from another service",
            self.tokens_issued.0.clone(),
        );
        to.register(
            "requests_refused",
            "Requests refused",
            self.requests_refused.0.clone(),
        );
        to.register(
            "upstream_requests",
            "Calls to homeservers, the SFU and key servers",
            self.upstream_requests.0.clone(),
        );
        to.register(
            "cache_lookups",
            "Cache lookups before such calls",
            self.cache_lookups.0.clone(),
        );
        to.register(
            "delegated_leave_events",
            "Events of delegated leaves",
            self.delegated_leave_events.0.clone(),
        );
        to.register(
            "participant_events",
            "Events of participants of application-service mode",
            self.participant_events.0.clone(),
        );
        to.register("webhooks", "Webhooks of the SFU", self.webhooks.0.clone());
        to.register(
            "ready",
            "Result of the last request for /readyz: 1 if ready",
            self.ready.clone(),
        );
    }
}

fn register_snapshot(snapshot: &MetricsSnapshot, to: &mut Registry) {
    let build = Family::<Labels<1>, Gauge>::default();
    build
        .get_or_create(&[("version", env!("CARGO_PKG_VERSION"))])
        .set(1);
    // a gauge, since the older text format has no info metrics
    to.register("build_info", "Version of the service", build);
    for (name, help, value) in [
        (
            "connections",
            "Open connections of clients",
            snapshot.connections,
        ),
        (
            "connections_limit",
            "Largest number of connections",
            snapshot.connections_limit,
        ),
        (
            "delegated_leaves",
            "Delegated leaves in progress",
            snapshot.delegated_leaves,
        ),
        (
            "tracked_participants",
            "Participants of application-service mode",
            snapshot.tracked_participants,
        ),
        (
            "participant_check_lag_seconds",
            "Delay of the membership checks of participants in calls",
            snapshot.participant_check_lag_seconds,
        ),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        to.register(name, help, gauge);
    }
    for (name, help, value) in [
        (
            "connections_evicted",
            "Connections closed in favour of new ones",
            snapshot.connections_evicted,
        ),
        (
            "connections_rejected",
            "Connections closed at once: too many in all, or of one address",
            snapshot.connections_rejected,
        ),
        (
            "requests_shed",
            "Requests answered with 429, 503 or 504 before they reached a worker",
            snapshot.requests_shed,
        ),
        (
            "requests_malformed",
            "Requests refused as malformed",
            snapshot.requests_malformed,
        ),
    ] {
        let counter = Counter::<u64, AtomicU64>::default();
        counter.inc_by(value);
        to.register(name, help, counter);
    }
}

/// Registers the standard metrics of a process (Prometheus, "Writing client libraries").
fn register_process(to: &mut Registry) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // the process name before the fields may contain blanks
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<&str> = fields.split(' ').collect();
    // numbers as in proc(5), where the first field after the name is 3
    let field = |number: usize| -> f64 {
        let value = fields.get(number - 3).and_then(|field| field.parse().ok());
        value.unwrap_or_default()
    };
    let cpu = Counter::<f64, AtomicU64>::default();
    cpu.inc_by((field(14) + field(15)) / TICKS_PER_SECOND);
    to.register(
        "process_cpu_seconds",
        "Processor time in user and kernel mode",
        cpu,
    );
    let open_fds = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count());
    let boot_time = read_proc_number("/proc/stat", "btime ");
    for (name, help, value) in [
        (
            "process_resident_memory_bytes",
            "Resident memory",
            read_proc_number("/proc/self/status", "VmRSS:") * 1024.0,
        ),
        ("process_threads", "Threads", field(20)),
        ("process_open_fds", "Open file descriptors", open_fds as f64),
        (
            "process_start_time_seconds",
            "Start, in seconds since 1970",
            boot_time + field(22) / TICKS_PER_SECOND,
        ),
    ] {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        to.register(name, help, gauge);
    }
}

/// The number after `name` in a file of `/proc`.
fn read_proc_number(path: &str, name: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_by_their_labels() {
        count_request("get_token", 200, Duration::from_millis(3));
        count_request("get_token", 200, Duration::from_millis(30));
        count_token_issued("matrix", "full");
        count_upstream_request("openid", "timeout");
        count_cache_lookup("openid", false);
        let snapshot = MetricsSnapshot {
            connections: 7,
            ..MetricsSnapshot::default()
        };
        let text = encode(&snapshot);
        for line in [
            r#"livekit_token_service_requests_total{endpoint="get_token",status="200"} 2"#,
            r#"livekit_token_service_request_duration_seconds_bucket{le="0.005",endpoint="get_token"} 1"#,
            r#"livekit_token_service_tokens_issued_total{source="matrix",access="full"} 1"#,
            r#"livekit_token_service_upstream_requests_total{kind="openid",outcome="timeout"} 1"#,
            r#"livekit_token_service_cache_lookups_total{cache="openid",result="miss"} 1"#,
            "livekit_token_service_connections 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        for name in [
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_open_fds ",
            "process_start_time_seconds ",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(name)),
                "{name} in\n{text}"
            );
        }
    }

    #[test]
    fn dashboard_and_alerts_use_existing_metrics() {
        count_request("other", 200, Duration::ZERO);
        count_token_issued("other", "full");
        count_refusal("busy");
        count_upstream_request("other", "ok");
        count_cache_lookup("other", true);
        count_delegated_leave_event("sent");
        count_participant_event("removed");
        count_webhook("accepted");
        set_ready(true);
        let text = encode(&MetricsSnapshot::default());
        let existing: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        for file in ["contrib/grafana.json", "contrib/alerts.yml"] {
            let file = std::fs::read_to_string(file).unwrap();
            let is_name_char = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let mut used = 0;
            for name in file.split(|c| !is_name_char(c)) {
                if name.starts_with("livekit_token_service_") || name.starts_with("process_") {
                    used += 1;
                    assert!(existing.contains(&name), "{name}");
                }
            }
            assert!(used > 5, "only {used} metrics");
        }
    }
}
