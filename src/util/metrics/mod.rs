//! What an operator can count on: numbers since the start of the process, kept in one place for all of it as the log is.
//!
//! Labels are words of this program, never of its callers, so that their number is bounded: no user, room, server or address.

mod process;

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// What all names begin with.
const PREFIX: &str = "livekit_token_service";
/// Upper bounds of the durations, in seconds: from an answer out of memory to the end of all budgets.
const DURATION_BUCKETS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

/// A request was answered.
pub(crate) fn count_request(endpoint: &'static str, status: u16, took: Duration) {
    let labels = RequestLabels { endpoint, status };
    METRICS.requests.get_or_create(&labels).inc();
    let labels = EndpointLabels { endpoint };
    METRICS
        .request_duration
        .get_or_create(&labels)
        .observe(took.as_secs_f64());
}

/// A token was handed out: which door it came from, and what it may do.
pub(crate) fn count_token_issued(source: &'static str, access: &'static str) {
    METRICS
        .tokens
        .get_or_create(&TokenLabels { source, access })
        .inc();
}

/// A caller was refused, for this kind of reason.
pub(crate) fn count_refusal(reason: &'static str) {
    METRICS
        .refusals
        .get_or_create(&RefusalLabels { reason })
        .inc();
}

/// A caller was told to come again later, by this limit.
pub(crate) fn count_rate_limited(limit: &'static str) {
    METRICS
        .rate_limited
        .get_or_create(&LimitLabels { limit })
        .inc();
}

/// Another server was asked for something.
pub(crate) fn count_upstream_request(kind: &'static str, outcome: &'static str) {
    METRICS
        .upstream
        .get_or_create(&UpstreamLabels { kind, outcome })
        .inc();
}

/// Something was looked for in memory.
pub(crate) fn count_cache_lookup(cache: &'static str, found: bool) {
    let result = if found { "hit" } else { "miss" };
    METRICS
        .cache_lookups
        .get_or_create(&CacheLabels { cache, result })
        .inc();
}

/// Something has become of a delegated leave.
pub(crate) fn count_delegated_leave_event(event: &'static str) {
    METRICS
        .delegated_leave_events
        .get_or_create(&EventLabels { event })
        .inc();
}

/// Something has become of a guest of application-service mode, or of a look at one.
pub(crate) fn count_participant_event(event: &'static str) {
    METRICS
        .participant_events
        .get_or_create(&EventLabels { event })
        .inc();
}

/// An SFU's webhook came.
pub(crate) fn count_webhook(outcome: &'static str) {
    METRICS
        .webhooks
        .get_or_create(&OutcomeLabels { outcome })
        .inc();
}

/// What `/readyz` was answered.
pub(crate) fn set_ready(ready: bool) {
    METRICS.ready.get_or_create(&[]).set(ready.into());
}

/// Numbers that others keep, as they are now.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MetricsSnapshot {
    /// Connections of clients that are open.
    pub connections: u64,
    /// Connections that there is room for.
    pub connections_limit: u64,
    /// Connections closed to make room for others, since the start.
    pub connections_evicted: u64,
    /// Connections closed at once, since the start.
    pub connections_rejected: u64,
    /// Requests that the gate has answered because of load, since the start.
    pub requests_shed: u64,
    /// Requests that the gate has answered because of what they were, since the start.
    pub requests_malformed: u64,
    /// Delegated leaves that are kept.
    pub delegated_leaves: u64,
    /// Guests of application-service mode who are kept.
    pub tracked_participants: u64,
    /// Seconds that those of them who are in calls are looked at too late.
    pub participant_check_lag_seconds: u64,
}

/// All of it in Prometheus' text format (OpenMetrics).
pub(crate) fn encode(now: &MetricsSnapshot) -> String {
    let mut registry = Registry::default();
    process::register(&mut registry);
    let ours = registry.sub_registry_with_prefix(PREFIX);
    METRICS.register(ours);
    register_snapshot(now, ours);
    let mut text = String::with_capacity(8192);
    // a String takes whatever it is given
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TokenLabels {
    source: &'static str,
    access: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusalLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CacheLabels {
    cache: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EventLabels {
    event: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

#[derive(Debug)]
struct Metrics {
    requests: Family<RequestLabels, Counter>,
    request_duration: Family<EndpointLabels, Histogram, fn() -> Histogram>,
    tokens: Family<TokenLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    rate_limited: Family<LimitLabels, Counter>,
    upstream: Family<UpstreamLabels, Counter>,
    cache_lookups: Family<CacheLabels, Counter>,
    delegated_leave_events: Family<EventLabels, Counter>,
    participant_events: Family<EventLabels, Counter>,
    webhooks: Family<OutcomeLabels, Counter>,
    /// Of no labels, and absent until somebody has asked.
    ready: Family<[(&'static str, &'static str); 0], Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            request_duration: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            tokens: Family::default(),
            refusals: Family::default(),
            rate_limited: Family::default(),
            upstream: Family::default(),
            cache_lookups: Family::default(),
            delegated_leave_events: Family::default(),
            participant_events: Family::default(),
            webhooks: Family::default(),
            ready: Family::default(),
        }
    }
}

impl Metrics {
    fn register(&self, to: &mut Registry) {
        to.register("requests", "Requests answered", self.requests.clone());
        to.register(
            "request_duration_seconds",
            "From the complete request to the answer",
            self.request_duration.clone(),
        );
        to.register("tokens", "LiveKit tokens handed out", self.tokens.clone());
        to.register("denied", "Callers refused", self.refusals.clone());
        to.register(
            "rate_limited",
            "Callers told to come again later",
            self.rate_limited.clone(),
        );
        to.register(
            "upstream_requests",
            "Calls to homeservers, the SFU and key servers",
            self.upstream.clone(),
        );
        to.register(
            "cache_lookups",
            "Look-ups in memory before such calls",
            self.cache_lookups.clone(),
        );
        to.register(
            "leaves",
            "What became of delegated leaves",
            self.delegated_leave_events.clone(),
        );
        to.register(
            "guests",
            "What became of guests of application-service mode, and of looks at them",
            self.participant_events.clone(),
        );
        to.register(
            "ready",
            "What the last /readyz was answered: 1 is ready",
            self.ready.clone(),
        );
        to.register("webhooks", "Webhooks of the SFU", self.webhooks.clone());
    }
}

fn register_snapshot(now: &MetricsSnapshot, to: &mut Registry) {
    let build = Family::<BuildLabels, Gauge>::default();
    let version = env!("CARGO_PKG_VERSION");
    build.get_or_create(&BuildLabels { version }).set(1);
    // a gauge: the older format knows no info
    to.register("build_info", "What runs here", build);
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        to.register(name, help, gauge);
    };
    gauge("connections", "Connections of clients", now.connections);
    gauge(
        "connections_limit",
        "Connections that there is room for",
        now.connections_limit,
    );
    gauge(
        "leaves_kept",
        "Delegated leaves that are kept",
        now.delegated_leaves,
    );
    gauge(
        "guests_kept",
        "Guests of application-service mode",
        now.tracked_participants,
    );
    gauge(
        "guests_lag_seconds",
        "How much too late those of them who are in calls are looked at",
        now.participant_check_lag_seconds,
    );
    let mut counter = |name: &str, help: &str, value: u64| {
        let counter = Counter::<u64, AtomicU64>::default();
        counter.inc_by(value);
        to.register(name, help, counter);
    };
    counter(
        "connections_evicted",
        "Connections closed to make room for others",
        now.connections_evicted,
    );
    counter(
        "connections_turned_away",
        "Connections closed at once: no room, or too many of one address",
        now.connections_rejected,
    );
    counter(
        "requests_shed",
        "Requests answered with 429, 503 or 504 before they reached a worker",
        now.requests_shed,
    );
    counter(
        "requests_malformed",
        "Requests refused because of what they were",
        now.requests_malformed,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted_and_named() {
        count_request("get_token", 200, Duration::from_millis(3));
        count_request("get_token", 200, Duration::from_millis(30));
        count_token_issued("matrix", "full");
        count_upstream_request("openid", "timeout");
        count_cache_lookup("openid", false);
        let now = MetricsSnapshot {
            connections: 7,
            ..MetricsSnapshot::default()
        };
        let text = encode(&now);
        for line in [
            r#"livekit_token_service_requests_total{endpoint="get_token",status="200"} 2"#,
            r#"livekit_token_service_request_duration_seconds_bucket{le="0.005",endpoint="get_token"} 1"#,
            r#"livekit_token_service_tokens_total{source="matrix",access="full"} 1"#,
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
    fn dashboard_and_alerts_name_what_there_is() {
        count_request("other", 200, Duration::ZERO);
        count_token_issued("other", "full");
        count_refusal("busy");
        count_rate_limited("get_token");
        count_upstream_request("other", "ok");
        count_cache_lookup("other", true);
        count_delegated_leave_event("sent");
        count_participant_event("removed");
        count_webhook("new");
        set_ready(true);
        let text = encode(&MetricsSnapshot::default());
        let known: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        for file in ["contrib/grafana.json", "contrib/alerts.yml"] {
            let file = std::fs::read_to_string(file).unwrap();
            let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let mut named = 0;
            for name in file.split(|c| !letter(c)) {
                if name.starts_with("livekit_token_service_") || name.starts_with("process_") {
                    named += 1;
                    assert!(known.contains(&name), "{name}");
                }
            }
            assert!(named > 5, "only {named} names");
        }
    }
}
