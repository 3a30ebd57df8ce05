use super::*;

const NOW: Time = Time::from_millis(1_000_000);
const LATER: Duration = Duration::from_secs(100);

fn server(n: usize) -> ServerName {
    ServerName::parse(&format!("hs{n}")).unwrap()
}

fn restart(serial: u64) -> Job {
    let deed = Deed::Restart;
    Job { serial, deed }
}

fn send(serial: u64) -> Job {
    let deed = Deed::Send;
    Job { serial, deed }
}

/// Everything that may begin now.
fn begin(lanes: &mut Lanes, now: Time) -> Vec<(ServerName, Job)> {
    std::iter::from_fn(|| lanes.next(now, |_| true)).collect()
}

fn end(lanes: &mut Lanes, calls: &[(ServerName, Job)], outcome: &Outcome, began: Time, now: Time) {
    for (server, job) in calls {
        lanes.ended(server, job.deed, Some(outcome), began, now);
    }
}

/// Lanes that know `server(0)` as one that answers well.
fn proven() -> Lanes {
    let mut lanes = Lanes::default();
    for serial in 0..20 {
        lanes.push(&server(0), restart(serial), NOW);
        let calls = begin(&mut lanes, NOW);
        assert_eq!(calls.len(), 1);
        end(&mut lanes, &calls, &Outcome::Done, NOW, NOW);
    }
    lanes
}

#[test]
fn sends_go_first_and_restarts_by_their_time() {
    let mut lanes = proven();
    lanes.push(&server(0), restart(1), NOW + LATER * 2);
    lanes.push(&server(0), restart(2), NOW + LATER);
    lanes.push(&server(0), send(3), NOW);
    let order: Vec<u64> = begin(&mut lanes, NOW)
        .iter()
        .map(|(_, j)| j.serial)
        .collect();
    assert_eq!(order, [3, 2, 1]);
}

#[test]
fn what_is_not_wanted_any_more_does_not_begin() {
    let mut lanes = proven();
    lanes.push(&server(0), restart(1), NOW);
    lanes.push(&server(0), send(2), NOW);
    assert_eq!(
        lanes.next(NOW, |job| job.deed == Deed::Restart),
        Some((server(0), restart(1)))
    );
    assert_eq!(lanes.next(NOW, |_| true), None);
}

#[test]
fn a_server_shows_that_it_answers_before_it_gets_many_calls() {
    let mut lanes = Lanes::default();
    for serial in 0..100 {
        lanes.push(&server(0), restart(serial), NOW);
    }
    let mut widths = Vec::new();
    for _ in 0..4 {
        let calls = begin(&mut lanes, NOW);
        widths.push(calls.len());
        end(&mut lanes, &calls, &Outcome::Done, NOW, NOW);
    }
    assert_eq!(widths, [1, 2, 4, 8]);
    let calls = begin(&mut lanes, NOW);
    assert_eq!(calls.len(), PER_SERVER);
    // nothing came back for a while
    end(&mut lanes, &calls[..8], &Outcome::Done, NOW, NOW);
    assert_eq!(begin(&mut lanes, NOW + SLOW * 2).len(), 1);
    end(
        &mut lanes,
        &calls[8..],
        &Outcome::Failed("silent".into()),
        NOW,
        NOW + SLOW * 9,
    );
    assert_eq!(begin(&mut lanes, NOW + SLOW * 9), []);
}

#[test]
fn servers_that_hang_leave_places_to_others() {
    let mut lanes = proven();
    for n in 1..=100 {
        for serial in 0..10 {
            lanes.push(&server(n), send(serial), NOW);
        }
    }
    let calls = begin(&mut lanes, NOW);
    assert_eq!(calls.len(), UNKNOWN);
    let silent = Outcome::Failed("silent".into());
    end(&mut lanes, &calls, &silent, NOW, NOW);
    // each has shown what it is, and some others get a turn beside
    assert_eq!(begin(&mut lanes, NOW).len(), UNKNOWN + FAILING);
    lanes.push(&server(0), send(7), NOW);
    lanes.push(&server(0), restart(8), NOW);
    assert_eq!(
        begin(&mut lanes, NOW),
        [(server(0), send(7)), (server(0), restart(8))]
    );
}

#[test]
fn restarts_never_take_the_last_places() {
    let mut lanes = Lanes::default();
    for n in 0..10 {
        for _ in 0..12 {
            lanes.push(&server(n), send(0), NOW);
            let calls = begin(&mut lanes, NOW);
            end(&mut lanes, &calls, &Outcome::Done, NOW, NOW);
        }
    }
    for n in 0..10 {
        for serial in 0..20 {
            lanes.push(&server(n), restart(serial), NOW);
        }
    }
    assert_eq!(begin(&mut lanes, NOW).len(), RESTARTS);
    for n in 0..10 {
        for serial in 0..20 {
            lanes.push(&server(n), send(serial), NOW);
        }
    }
    let sends = begin(&mut lanes, NOW);
    assert_eq!(sends.len(), PLACES - RESTARTS);
    // each server has its turn
    let mut servers: Vec<_> = sends.iter().map(|(server, _)| server.as_str()).collect();
    servers.sort_unstable();
    servers.dedup();
    assert_eq!(servers.len(), PLACES - RESTARTS);
}

#[test]
fn a_server_that_is_called_too_fast_is_left_alone_as_a_whole() {
    let mut lanes = proven();
    for serial in 0..20 {
        lanes.push(&server(0), restart(serial), NOW);
    }
    let calls = begin(&mut lanes, NOW);
    let wait = Duration::from_secs(2);
    let slow = Outcome::SlowDown(Some(wait));
    // all of one round, which counts once
    end(&mut lanes, &calls, &slow, NOW, NOW);
    lanes.push(&server(0), send(99), NOW);
    assert_eq!(begin(&mut lanes, NOW), []);
    let opens = lanes.opens(NOW).unwrap();
    assert_eq!(opens.since(NOW), wait + MIN_GAP);
    // then a send, and one restart at a time at the pace that the server has named
    assert_eq!(
        begin(&mut lanes, opens),
        [(server(0), send(99)), (server(0), restart(10))]
    );
    let done = (server(0), restart(10));
    end(&mut lanes, &[done], &Outcome::Done, opens, opens);
    assert_eq!(begin(&mut lanes, opens), []);
    assert!(lanes.opens(opens).unwrap() <= opens + wait);
}

/// A bucket of one token a second that holds five, as Synapse has it.
#[test]
fn a_limit_is_used_to_the_full() {
    let mut lanes = proven();
    let (mut now, mut tokens, mut done, mut refused) = (NOW, 5.0_f64, 0, 0);
    let mut filled = now;
    for serial in 0..1000 {
        lanes.push(&server(0), restart(serial), NOW);
    }
    while now < NOW + Duration::from_secs(300) {
        for (server, job) in begin(&mut lanes, now) {
            tokens = (tokens + now.since(filled).as_secs_f64()).min(5.0);
            filled = now;
            if tokens >= 1.0 {
                tokens -= 1.0;
                done += 1;
                lanes.ended(&server, job.deed, Some(&Outcome::Done), now, now);
            } else {
                refused += 1;
                let wait = Duration::from_secs_f64(1.0 - tokens);
                let outcome = Outcome::SlowDown(Some(wait));
                lanes.ended(&server, job.deed, Some(&outcome), now, now);
                lanes.push(&server, job, NOW);
            }
        }
        now = lanes.opens(now).unwrap_or(now + MIN_GAP);
    }
    assert!(done >= 285, "{done} done, {refused} refused");
    assert!(refused <= done / 3, "{done} done, {refused} refused");
}

#[test]
fn what_cannot_be_called_now_is_not_tried_at_once() {
    let mut lanes = proven();
    lanes.push(&server(0), restart(1), NOW);
    let calls = begin(&mut lanes, NOW);
    end(
        &mut lanes,
        &calls,
        &Outcome::NotNow(Duration::ZERO),
        NOW,
        NOW,
    );
    lanes.push(&server(0), restart(1), NOW);
    assert_eq!(begin(&mut lanes, NOW), []);
    assert_eq!(lanes.opens(NOW), Some(NOW + NOT_NOW));
}

#[test]
fn servers_without_calls_are_not_remembered_for_ever() {
    let mut lanes = Lanes::default();
    for n in 0..MAX_LANES * 2 {
        lanes.push(&server(n), restart(0), NOW);
        let calls = begin(&mut lanes, NOW);
        end(&mut lanes, &calls, &Outcome::Done, NOW, NOW);
    }
    assert!(lanes.lanes.len() <= MAX_LANES + 1 && lanes.turns.is_empty());
    assert_eq!(
        (lanes.busy, lanes.restarting, lanes.failing, lanes.unknown),
        (0, 0, 0, 0)
    );
}

#[test]
fn who_was_never_asked_has_less_time_to_keep_others_waiting() {
    let mut lanes = Lanes::default();
    assert_eq!(lanes.patience(&server(1)), FIRST_CALL);
    lanes.push(&server(1), send(1), NOW);
    let calls = begin(&mut lanes, NOW);
    assert_eq!(lanes.patience(&server(1)), FIRST_CALL);
    end(
        &mut lanes,
        &calls,
        &Outcome::Failed("late".into()),
        NOW,
        NOW,
    );
    assert_eq!(lanes.patience(&server(1)), CALL);
    assert_eq!(proven().patience(&server(0)), CALL);
}
