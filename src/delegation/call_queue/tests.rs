use super::*;

const NOW: UnixMillis = UnixMillis::from_millis(1_000_000);
const LATER: Duration = Duration::from_secs(100);

fn server(n: usize) -> ServerName {
    ServerName::parse(&format!("hs{n}")).unwrap()
}

fn restart(serial: u64) -> QueuedAction {
    QueuedAction {
        serial,
        action: DelayedEventAction::Restart,
    }
}

fn send(serial: u64) -> QueuedAction {
    QueuedAction {
        serial,
        action: DelayedEventAction::Send,
    }
}

/// Starts all calls that may start.
fn start_all(queue: &mut CallQueue, now: UnixMillis) -> Vec<(ServerName, QueuedAction)> {
    std::iter::from_fn(|| queue.start_next(now, |_| true)).collect()
}

fn finish_all(
    queue: &mut CallQueue,
    calls: &[(ServerName, QueuedAction)],
    outcome: &DelayedEventOutcome,
    started_at: UnixMillis,
    now: UnixMillis,
) {
    for (server, queued) in calls {
        queue.finish_call(server, queued.action, Some(outcome), started_at, now);
    }
}

/// A queue in which `server(0)` has answered many calls.
fn healthy_queue() -> CallQueue {
    let mut queue = CallQueue::default();
    for serial in 0..20 {
        queue.push(&server(0), restart(serial), NOW);
        let calls = start_all(&mut queue, NOW);
        assert_eq!(calls.len(), 1);
        finish_all(&mut queue, &calls, &DelayedEventOutcome::Done, NOW, NOW);
    }
    queue
}

#[test]
fn sends_go_first_and_restarts_by_deadline() {
    let mut queue = healthy_queue();
    queue.push(&server(0), restart(1), NOW + LATER * 2);
    queue.push(&server(0), restart(2), NOW + LATER);
    queue.push(&server(0), send(3), NOW);
    let order: Vec<u64> = start_all(&mut queue, NOW)
        .iter()
        .map(|(_, queued)| queued.serial)
        .collect();
    assert_eq!(order, [3, 2, 1]);
}

#[test]
fn a_call_that_is_no_longer_needed_is_dropped() {
    let mut queue = healthy_queue();
    queue.push(&server(0), restart(1), NOW);
    queue.push(&server(0), send(2), NOW);
    assert_eq!(
        queue.start_next(NOW, |queued| queued.action == DelayedEventAction::Restart),
        Some((server(0), restart(1)))
    );
    assert_eq!(queue.start_next(NOW, |_| true), None);
}

#[test]
fn concurrency_to_a_server_grows_with_its_successes() {
    let mut queue = CallQueue::default();
    for serial in 0..100 {
        queue.push(&server(0), restart(serial), NOW);
    }
    let mut batches = Vec::new();
    for _ in 0..4 {
        let calls = start_all(&mut queue, NOW);
        batches.push(calls.len());
        finish_all(&mut queue, &calls, &DelayedEventOutcome::Done, NOW, NOW);
    }
    assert_eq!(batches, [1, 2, 4, 8]);
    let calls = start_all(&mut queue, NOW);
    assert_eq!(calls.len(), MAX_PER_SERVER);
    // two calls are still running after a while
    finish_all(
        &mut queue,
        &calls[..8],
        &DelayedEventOutcome::Done,
        NOW,
        NOW,
    );
    assert_eq!(start_all(&mut queue, NOW + SLOW_AFTER * 2).len(), 1);
    finish_all(
        &mut queue,
        &calls[8..],
        &DelayedEventOutcome::Failed("silent".into()),
        NOW,
        NOW + SLOW_AFTER * 9,
    );
    assert_eq!(start_all(&mut queue, NOW + SLOW_AFTER * 9), []);
}

#[test]
fn servers_that_hang_do_not_block_the_others() {
    let mut queue = healthy_queue();
    for n in 1..=100 {
        for serial in 0..10 {
            queue.push(&server(n), send(serial), NOW);
        }
    }
    let calls = start_all(&mut queue, NOW);
    assert_eq!(calls.len(), MAX_CALLS_TO_UNKNOWN_SERVERS);
    let silent = DelayedEventOutcome::Failed("silent".into());
    finish_all(&mut queue, &calls, &silent, NOW, NOW);
    // failing servers have their own limit, and more unknown ones start beside
    assert_eq!(
        start_all(&mut queue, NOW).len(),
        MAX_CALLS_TO_UNKNOWN_SERVERS + MAX_CALLS_TO_FAILING_SERVERS
    );
    queue.push(&server(0), send(7), NOW);
    queue.push(&server(0), restart(8), NOW);
    assert_eq!(
        start_all(&mut queue, NOW),
        [(server(0), send(7)), (server(0), restart(8))]
    );
}

#[test]
fn some_concurrency_is_reserved_for_sends() {
    let mut queue = CallQueue::default();
    for n in 0..10 {
        for _ in 0..12 {
            queue.push(&server(n), send(0), NOW);
            let calls = start_all(&mut queue, NOW);
            finish_all(&mut queue, &calls, &DelayedEventOutcome::Done, NOW, NOW);
        }
    }
    for n in 0..10 {
        for serial in 0..20 {
            queue.push(&server(n), restart(serial), NOW);
        }
    }
    assert_eq!(start_all(&mut queue, NOW).len(), MAX_CONCURRENT_RESTARTS);
    for n in 0..10 {
        for serial in 0..20 {
            queue.push(&server(n), send(serial), NOW);
        }
    }
    let sends = start_all(&mut queue, NOW);
    assert_eq!(sends.len(), MAX_CONCURRENT_CALLS - MAX_CONCURRENT_RESTARTS);
    // round robin: one send for each server
    let mut servers: Vec<_> = sends.iter().map(|(server, _)| server.as_str()).collect();
    servers.sort_unstable();
    servers.dedup();
    assert_eq!(
        servers.len(),
        MAX_CONCURRENT_CALLS - MAX_CONCURRENT_RESTARTS
    );
}

#[test]
fn a_rate_limit_pauses_all_calls_to_the_server() {
    let mut queue = healthy_queue();
    for serial in 0..20 {
        queue.push(&server(0), restart(serial), NOW);
    }
    let calls = start_all(&mut queue, NOW);
    let wait = Duration::from_secs(2);
    let slow = DelayedEventOutcome::RateLimited(Some(wait));
    // calls that ran together count once
    finish_all(&mut queue, &calls, &slow, NOW, NOW);
    queue.push(&server(0), send(99), NOW);
    assert_eq!(start_all(&mut queue, NOW), []);
    let resumes_at = queue.next_start_at(NOW).unwrap();
    assert_eq!(resumes_at.duration_since(NOW), wait + MIN_PACING_INTERVAL);
    // then a send, and one restart at a time at the pace that the server named
    assert_eq!(
        start_all(&mut queue, resumes_at),
        [(server(0), send(99)), (server(0), restart(10))]
    );
    let done = (server(0), restart(10));
    finish_all(
        &mut queue,
        &[done],
        &DelayedEventOutcome::Done,
        resumes_at,
        resumes_at,
    );
    assert_eq!(start_all(&mut queue, resumes_at), []);
    assert!(queue.next_start_at(resumes_at).unwrap() <= resumes_at + wait);
}

/// A token bucket of five with one token a second, as in Synapse.
#[test]
fn a_rate_limit_is_used_fully() {
    let mut queue = healthy_queue();
    let (mut now, mut tokens, mut done, mut refused) = (NOW, 5.0_f64, 0, 0);
    let mut filled = now;
    for serial in 0..1000 {
        queue.push(&server(0), restart(serial), NOW);
    }
    while now < NOW + Duration::from_secs(300) {
        for (server, queued) in start_all(&mut queue, now) {
            tokens = (tokens + now.duration_since(filled).as_secs_f64()).min(5.0);
            filled = now;
            if tokens >= 1.0 {
                tokens -= 1.0;
                done += 1;
                queue.finish_call(
                    &server,
                    queued.action,
                    Some(&DelayedEventOutcome::Done),
                    now,
                    now,
                );
            } else {
                refused += 1;
                let wait = Duration::from_secs_f64(1.0 - tokens);
                let outcome = DelayedEventOutcome::RateLimited(Some(wait));
                queue.finish_call(&server, queued.action, Some(&outcome), now, now);
                queue.push(&server, queued, NOW);
            }
        }
        now = queue
            .next_start_at(now)
            .unwrap_or(now + MIN_PACING_INTERVAL);
    }
    assert!(done >= 285, "{done} done, {refused} refused");
    assert!(refused <= done / 3, "{done} done, {refused} refused");
}

#[test]
fn a_call_that_was_not_attempted_is_retried_after_a_pause() {
    let mut queue = healthy_queue();
    queue.push(&server(0), restart(1), NOW);
    let calls = start_all(&mut queue, NOW);
    finish_all(
        &mut queue,
        &calls,
        &DelayedEventOutcome::NotAttempted(Duration::ZERO),
        NOW,
        NOW,
    );
    queue.push(&server(0), restart(1), NOW);
    assert_eq!(start_all(&mut queue, NOW), []);
    assert_eq!(queue.next_start_at(NOW), Some(NOW + MIN_RETRY_DELAY));
}

#[test]
fn the_number_of_idle_servers_is_bounded() {
    let mut queue = CallQueue::default();
    for n in 0..MAX_IDLE_SERVERS * 2 {
        queue.push(&server(n), restart(0), NOW);
        let calls = start_all(&mut queue, NOW);
        finish_all(&mut queue, &calls, &DelayedEventOutcome::Done, NOW, NOW);
    }
    assert!(queue.servers.len() <= MAX_IDLE_SERVERS + 1 && queue.round_robin.is_empty());
    assert_eq!(
        (
            queue.in_flight,
            queue.restarts_in_flight,
            queue.failing_in_flight,
            queue.unknown_in_flight
        ),
        (0, 0, 0, 0)
    );
}

#[test]
fn the_first_call_to_a_server_has_a_shorter_timeout() {
    let mut queue = CallQueue::default();
    assert_eq!(queue.call_timeout(&server(1)), FIRST_CALL_TIMEOUT);
    queue.push(&server(1), send(1), NOW);
    let calls = start_all(&mut queue, NOW);
    assert_eq!(queue.call_timeout(&server(1)), FIRST_CALL_TIMEOUT);
    finish_all(
        &mut queue,
        &calls,
        &DelayedEventOutcome::Failed("late".into()),
        NOW,
        NOW,
    );
    assert_eq!(queue.call_timeout(&server(1)), CALL_TIMEOUT);
    assert_eq!(healthy_queue().call_timeout(&server(0)), CALL_TIMEOUT);
}
