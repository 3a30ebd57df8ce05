use super::*;

const NOW: UnixMillis = UnixMillis::from_millis(1_000_000);
const LATER: Duration = Duration::from_secs(100);

fn server(n: usize) -> ServerName {
    ServerName::parse(&format!("hs{n}")).unwrap()
}

fn restart(serial: u64) -> QueuedAction {
    let deed = DelayedEventAction::Restart;
    QueuedAction {
        serial,
        action: deed,
    }
}

fn send(serial: u64) -> QueuedAction {
    let deed = DelayedEventAction::Send;
    QueuedAction {
        serial,
        action: deed,
    }
}

/// Everything that may begin now.
fn start_all(lanes: &mut CallQueue, now: UnixMillis) -> Vec<(ServerName, QueuedAction)> {
    std::iter::from_fn(|| lanes.start_next(now, |_| true)).collect()
}

fn finish_all(
    lanes: &mut CallQueue,
    calls: &[(ServerName, QueuedAction)],
    outcome: &DelayedEventOutcome,
    began: UnixMillis,
    now: UnixMillis,
) {
    for (server, job) in calls {
        lanes.finish_call(server, job.action, Some(outcome), began, now);
    }
}

/// Lanes that know `server(0)` as one that answers well.
fn healthy_queue() -> CallQueue {
    let mut lanes = CallQueue::default();
    for serial in 0..20 {
        lanes.push(&server(0), restart(serial), NOW);
        let calls = start_all(&mut lanes, NOW);
        assert_eq!(calls.len(), 1);
        finish_all(&mut lanes, &calls, &DelayedEventOutcome::Done, NOW, NOW);
    }
    lanes
}

#[test]
fn sends_go_first_and_restarts_by_their_time() {
    let mut lanes = healthy_queue();
    lanes.push(&server(0), restart(1), NOW + LATER * 2);
    lanes.push(&server(0), restart(2), NOW + LATER);
    lanes.push(&server(0), send(3), NOW);
    let order: Vec<u64> = start_all(&mut lanes, NOW)
        .iter()
        .map(|(_, j)| j.serial)
        .collect();
    assert_eq!(order, [3, 2, 1]);
}

#[test]
fn what_is_not_wanted_any_more_does_not_begin() {
    let mut lanes = healthy_queue();
    lanes.push(&server(0), restart(1), NOW);
    lanes.push(&server(0), send(2), NOW);
    assert_eq!(
        lanes.start_next(NOW, |job| job.action == DelayedEventAction::Restart),
        Some((server(0), restart(1)))
    );
    assert_eq!(lanes.start_next(NOW, |_| true), None);
}

#[test]
fn a_server_shows_that_it_answers_before_it_gets_many_calls() {
    let mut lanes = CallQueue::default();
    for serial in 0..100 {
        lanes.push(&server(0), restart(serial), NOW);
    }
    let mut widths = Vec::new();
    for _ in 0..4 {
        let calls = start_all(&mut lanes, NOW);
        widths.push(calls.len());
        finish_all(&mut lanes, &calls, &DelayedEventOutcome::Done, NOW, NOW);
    }
    assert_eq!(widths, [1, 2, 4, 8]);
    let calls = start_all(&mut lanes, NOW);
    assert_eq!(calls.len(), MAX_PER_SERVER);
    // nothing came back for a while
    finish_all(
        &mut lanes,
        &calls[..8],
        &DelayedEventOutcome::Done,
        NOW,
        NOW,
    );
    assert_eq!(start_all(&mut lanes, NOW + SLOW_AFTER * 2).len(), 1);
    finish_all(
        &mut lanes,
        &calls[8..],
        &DelayedEventOutcome::Failed("silent".into()),
        NOW,
        NOW + SLOW_AFTER * 9,
    );
    assert_eq!(start_all(&mut lanes, NOW + SLOW_AFTER * 9), []);
}

#[test]
fn servers_that_hang_leave_places_to_others() {
    let mut lanes = healthy_queue();
    for n in 1..=100 {
        for serial in 0..10 {
            lanes.push(&server(n), send(serial), NOW);
        }
    }
    let calls = start_all(&mut lanes, NOW);
    assert_eq!(calls.len(), MAX_CALLS_TO_UNKNOWN_SERVERS);
    let silent = DelayedEventOutcome::Failed("silent".into());
    finish_all(&mut lanes, &calls, &silent, NOW, NOW);
    // each has shown what it is, and some others get a turn beside
    assert_eq!(
        start_all(&mut lanes, NOW).len(),
        MAX_CALLS_TO_UNKNOWN_SERVERS + MAX_CALLS_TO_FAILING_SERVERS
    );
    lanes.push(&server(0), send(7), NOW);
    lanes.push(&server(0), restart(8), NOW);
    assert_eq!(
        start_all(&mut lanes, NOW),
        [(server(0), send(7)), (server(0), restart(8))]
    );
}

#[test]
fn restarts_never_take_the_last_places() {
    let mut lanes = CallQueue::default();
    for n in 0..10 {
        for _ in 0..12 {
            lanes.push(&server(n), send(0), NOW);
            let calls = start_all(&mut lanes, NOW);
            finish_all(&mut lanes, &calls, &DelayedEventOutcome::Done, NOW, NOW);
        }
    }
    for n in 0..10 {
        for serial in 0..20 {
            lanes.push(&server(n), restart(serial), NOW);
        }
    }
    assert_eq!(start_all(&mut lanes, NOW).len(), MAX_CONCURRENT_RESTARTS);
    for n in 0..10 {
        for serial in 0..20 {
            lanes.push(&server(n), send(serial), NOW);
        }
    }
    let sends = start_all(&mut lanes, NOW);
    assert_eq!(sends.len(), MAX_CONCURRENT_CALLS - MAX_CONCURRENT_RESTARTS);
    // each server has its turn
    let mut servers: Vec<_> = sends.iter().map(|(server, _)| server.as_str()).collect();
    servers.sort_unstable();
    servers.dedup();
    assert_eq!(
        servers.len(),
        MAX_CONCURRENT_CALLS - MAX_CONCURRENT_RESTARTS
    );
}

#[test]
fn a_server_that_is_called_too_fast_is_left_alone_as_a_whole() {
    let mut lanes = healthy_queue();
    for serial in 0..20 {
        lanes.push(&server(0), restart(serial), NOW);
    }
    let calls = start_all(&mut lanes, NOW);
    let wait = Duration::from_secs(2);
    let slow = DelayedEventOutcome::RateLimited(Some(wait));
    // all of one round, which counts once
    finish_all(&mut lanes, &calls, &slow, NOW, NOW);
    lanes.push(&server(0), send(99), NOW);
    assert_eq!(start_all(&mut lanes, NOW), []);
    let opens = lanes.next_start_at(NOW).unwrap();
    assert_eq!(opens.duration_since(NOW), wait + MIN_PACING_INTERVAL);
    // then a send, and one restart at a time at the pace that the server has named
    assert_eq!(
        start_all(&mut lanes, opens),
        [(server(0), send(99)), (server(0), restart(10))]
    );
    let done = (server(0), restart(10));
    finish_all(
        &mut lanes,
        &[done],
        &DelayedEventOutcome::Done,
        opens,
        opens,
    );
    assert_eq!(start_all(&mut lanes, opens), []);
    assert!(lanes.next_start_at(opens).unwrap() <= opens + wait);
}

/// A bucket of one token a second that holds five, as Synapse has it.
#[test]
fn a_limit_is_used_to_the_full() {
    let mut lanes = healthy_queue();
    let (mut now, mut tokens, mut done, mut refused) = (NOW, 5.0_f64, 0, 0);
    let mut filled = now;
    for serial in 0..1000 {
        lanes.push(&server(0), restart(serial), NOW);
    }
    while now < NOW + Duration::from_secs(300) {
        for (server, job) in start_all(&mut lanes, now) {
            tokens = (tokens + now.duration_since(filled).as_secs_f64()).min(5.0);
            filled = now;
            if tokens >= 1.0 {
                tokens -= 1.0;
                done += 1;
                lanes.finish_call(
                    &server,
                    job.action,
                    Some(&DelayedEventOutcome::Done),
                    now,
                    now,
                );
            } else {
                refused += 1;
                let wait = Duration::from_secs_f64(1.0 - tokens);
                let outcome = DelayedEventOutcome::RateLimited(Some(wait));
                lanes.finish_call(&server, job.action, Some(&outcome), now, now);
                lanes.push(&server, job, NOW);
            }
        }
        now = lanes
            .next_start_at(now)
            .unwrap_or(now + MIN_PACING_INTERVAL);
    }
    assert!(done >= 285, "{done} done, {refused} refused");
    assert!(refused <= done / 3, "{done} done, {refused} refused");
}

#[test]
fn what_cannot_be_called_now_is_not_tried_at_once() {
    let mut lanes = healthy_queue();
    lanes.push(&server(0), restart(1), NOW);
    let calls = start_all(&mut lanes, NOW);
    finish_all(
        &mut lanes,
        &calls,
        &DelayedEventOutcome::NotAttempted(Duration::ZERO),
        NOW,
        NOW,
    );
    lanes.push(&server(0), restart(1), NOW);
    assert_eq!(start_all(&mut lanes, NOW), []);
    assert_eq!(lanes.next_start_at(NOW), Some(NOW + MIN_RETRY_DELAY));
}

#[test]
fn servers_without_calls_are_not_remembered_for_ever() {
    let mut lanes = CallQueue::default();
    for n in 0..MAX_IDLE_SERVERS * 2 {
        lanes.push(&server(n), restart(0), NOW);
        let calls = start_all(&mut lanes, NOW);
        finish_all(&mut lanes, &calls, &DelayedEventOutcome::Done, NOW, NOW);
    }
    assert!(lanes.servers.len() <= MAX_IDLE_SERVERS + 1 && lanes.round_robin.is_empty());
    assert_eq!(
        (
            lanes.in_flight,
            lanes.restarts_in_flight,
            lanes.failing_in_flight,
            lanes.unknown_in_flight
        ),
        (0, 0, 0, 0)
    );
}

#[test]
fn who_was_never_asked_has_less_time_to_keep_others_waiting() {
    let mut lanes = CallQueue::default();
    assert_eq!(lanes.call_timeout(&server(1)), FIRST_CALL_TIMEOUT);
    lanes.push(&server(1), send(1), NOW);
    let calls = start_all(&mut lanes, NOW);
    assert_eq!(lanes.call_timeout(&server(1)), FIRST_CALL_TIMEOUT);
    finish_all(
        &mut lanes,
        &calls,
        &DelayedEventOutcome::Failed("late".into()),
        NOW,
        NOW,
    );
    assert_eq!(lanes.call_timeout(&server(1)), CALL_TIMEOUT);
    assert_eq!(healthy_queue().call_timeout(&server(0)), CALL_TIMEOUT);
}
