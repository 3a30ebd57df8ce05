//! Every state with every event; [`simulation`] tries random sequences.

mod simulation;

use super::*;
use crate::livekit::id::{ParticipantIdentity, RoomName};

pub(super) const TIMEOUT: Duration = Duration::from_secs(100);
pub(super) const START: UnixMillis = UnixMillis::from_millis(1_000_000_000);

pub(super) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn sid(name: &str) -> Option<ParticipantSid> {
    Some(ParticipantSid::new(name.into()).unwrap())
}

pub(super) fn key() -> ParticipantKey {
    ParticipantKey {
        room: RoomName::new("room".into()).unwrap(),
        identity: ParticipantIdentity::new("alice".into()).unwrap(),
    }
}

pub(super) fn leave(timeout: Duration, check: Option<Duration>) -> Leave {
    let user = UserId::parse("@alice:hs").unwrap();
    let request = DelegationRequest {
        delay_id: DelayId::parse("syd_1").unwrap(),
        timeout,
    };
    Leave::new(key(), user, request, LeaveId(0x1234_5678), check, START)
}

fn joined(name: &str) -> LeaveEvent {
    LeaveEvent::Connected(sid(name))
}

fn left(name: &str) -> LeaveEvent {
    LeaveEvent::Disconnected {
        sid: sid(name),
        replaced: false,
    }
}

fn replaced(name: &str) -> LeaveEvent {
    LeaveEvent::Disconnected {
        sid: sid(name),
        replaced: true,
    }
}

fn finished(
    action: DelayedEventAction,
    outcome: DelayedEventOutcome,
    started_at: UnixMillis,
) -> LeaveEvent {
    LeaveEvent::CallFinished {
        action,
        outcome,
        started_at,
    }
}

fn failed() -> DelayedEventOutcome {
    DelayedEventOutcome::Failed("no answer".into())
}

/// A leave in the named state at [`START`].
fn leave_in_state(state: &str) -> Leave {
    let mut leave = leave(TIMEOUT, None);
    let events: &[LeaveEvent] = match state {
        "waiting" => &[],
        "aborted" => &[LeaveEvent::ConnectionAborted(sid("A"))],
        "connected" => &[joined("A")],
        "disconnected" => &[joined("A"), left("A")],
        "ended" => &[LeaveEvent::Replaced],
        other => panic!("{other}"),
    };
    for event in events {
        leave.step(event, START);
    }
    assert_eq!(leave.state_name(), state);
    leave
}

/// Names of the actions, wake-ups apart.
fn action_names(actions: &[LeaveAction]) -> String {
    let names = actions.iter().filter_map(|action| match action {
        LeaveAction::Restart(_) => Some("restart".to_owned()),
        LeaveAction::Send => Some("send".to_owned()),
        LeaveAction::CheckPresence => Some("check".to_owned()),
        LeaveAction::WakeAt(_) => None,
        LeaveAction::Finish(reason) => Some(format!("{reason:?}")),
    });
    names.collect::<Vec<_>>().join(" ")
}

#[test]
fn every_state_has_an_answer_to_every_event() {
    let (restart, send) = (DelayedEventAction::Restart, DelayedEventAction::Send);
    let present = |sid| LeaveEvent::PresenceChecked(Some(ParticipantPresence::Present(sid)));
    let absent = || LeaveEvent::PresenceChecked(Some(ParticipantPresence::Absent));
    #[rustfmt::skip]
    let table: Vec<(&str, LeaveEvent, &str, &str)> = vec![
        ("waiting", joined("A"), "connected", "restart"),
        ("waiting", LeaveEvent::Connected(None), "connected", "restart"),
        ("waiting", left("A"), "waiting", ""),
        ("waiting", replaced("A"), "waiting", ""),
        ("waiting", LeaveEvent::ConnectionAborted(sid("A")), "aborted", ""),
        ("waiting", LeaveEvent::RoomFinished, "waiting", ""),
        ("waiting", present(sid("A")), "connected", "restart"),
        ("waiting", present(None), "connected", "restart"),
        ("waiting", absent(), "waiting", ""),
        ("waiting", LeaveEvent::PresenceChecked(None), "waiting", ""),
        ("waiting", finished(restart, DelayedEventOutcome::Done, START), "waiting", ""),
        ("waiting", finished(send, DelayedEventOutcome::Done, START), "waiting", ""),
        ("waiting", LeaveEvent::Replaced, "ended", "Replaced"),
        ("waiting", LeaveEvent::Tick, "waiting", ""),
        ("aborted", joined("B"), "connected", "restart"),
        ("aborted", left("A"), "waiting", ""),
        ("aborted", replaced("A"), "aborted", ""),
        ("aborted", LeaveEvent::ConnectionAborted(sid("B")), "aborted", ""),
        ("aborted", LeaveEvent::RoomFinished, "aborted", ""),
        ("aborted", present(sid("B")), "connected", "restart"),
        ("aborted", absent(), "aborted", ""),
        ("aborted", LeaveEvent::PresenceChecked(None), "aborted", ""),
        ("aborted", finished(restart, DelayedEventOutcome::Done, START), "aborted", ""),
        ("aborted", LeaveEvent::Replaced, "ended", "Replaced"),
        ("aborted", LeaveEvent::Tick, "aborted", ""),
        ("connected", joined("A"), "connected", ""),
        ("connected", joined("B"), "connected", ""),
        ("connected", left("A"), "disconnected", "send"),
        ("connected", left("B"), "connected", ""),
        ("connected", replaced("A"), "connected", ""),
        ("connected", LeaveEvent::Disconnected { sid: None, replaced: false }, "connected", ""),
        ("connected", LeaveEvent::ConnectionAborted(sid("B")), "connected", ""),
        ("connected", LeaveEvent::RoomFinished, "connected", ""),
        ("connected", present(sid("A")), "connected", ""),
        ("connected", absent(), "connected", ""),
        ("connected", LeaveEvent::PresenceChecked(None), "connected", ""),
        ("connected", finished(restart, DelayedEventOutcome::Done, START), "connected", ""),
        ("connected", finished(restart, DelayedEventOutcome::NotFound, START), "ended", "AlreadyFinal"),
        ("connected", finished(restart, DelayedEventOutcome::Finalised, START), "ended", "AlreadyFinal"),
        ("connected", finished(restart, DelayedEventOutcome::Rejected(403), START), "ended", "Denied(403)"),
        ("connected", finished(restart, DelayedEventOutcome::RateLimited(None), START), "connected", "restart"),
        ("connected", finished(restart, DelayedEventOutcome::NotAttempted(seconds(1)), START), "connected", "restart"),
        ("connected", finished(restart, failed(), START), "connected", ""),
        ("connected", finished(send, DelayedEventOutcome::Done, START), "connected", ""),
        ("connected", LeaveEvent::Replaced, "ended", "Replaced"),
        ("connected", LeaveEvent::Tick, "connected", ""),
        ("disconnected", joined("B"), "disconnected", ""),
        ("disconnected", left("A"), "disconnected", ""),
        ("disconnected", replaced("A"), "disconnected", ""),
        ("disconnected", LeaveEvent::ConnectionAborted(sid("A")), "disconnected", ""),
        ("disconnected", LeaveEvent::RoomFinished, "disconnected", ""),
        ("disconnected", present(sid("B")), "disconnected", ""),
        ("disconnected", absent(), "disconnected", ""),
        ("disconnected", LeaveEvent::PresenceChecked(None), "disconnected", ""),
        ("disconnected", finished(restart, DelayedEventOutcome::Done, START), "disconnected", ""),
        ("disconnected", finished(restart, DelayedEventOutcome::NotFound, START), "disconnected", ""),
        ("disconnected", finished(send, DelayedEventOutcome::Done, START), "ended", "Sent"),
        ("disconnected", finished(send, DelayedEventOutcome::NotFound, START), "ended", "AlreadyFinal"),
        ("disconnected", finished(send, DelayedEventOutcome::Finalised, START), "ended", "AlreadyFinal"),
        ("disconnected", finished(send, DelayedEventOutcome::Rejected(401), START), "ended", "Denied(401)"),
        ("disconnected", finished(send, DelayedEventOutcome::RateLimited(None), START), "disconnected", "send"),
        ("disconnected", finished(send, DelayedEventOutcome::NotAttempted(seconds(1)), START), "disconnected", "send"),
        ("disconnected", finished(send, failed(), START), "disconnected", ""),
        ("disconnected", LeaveEvent::Replaced, "ended", "Replaced"),
        ("disconnected", LeaveEvent::Tick, "disconnected", ""),
        ("ended", joined("B"), "ended", ""),
        ("ended", left("A"), "ended", ""),
        ("ended", LeaveEvent::ConnectionAborted(sid("A")), "ended", ""),
        ("ended", LeaveEvent::RoomFinished, "ended", ""),
        ("ended", present(sid("A")), "ended", ""),
        ("ended", absent(), "ended", ""),
        ("ended", finished(restart, DelayedEventOutcome::Done, START), "ended", ""),
        ("ended", finished(send, failed(), START), "ended", ""),
        ("ended", LeaveEvent::Replaced, "ended", ""),
        ("ended", LeaveEvent::Tick, "ended", ""),
    ];
    for (before, event, after, expected) in table {
        let mut leave = leave_in_state(before);
        let actions = leave.step(&event, START);
        let got = (leave.state_name(), action_names(&actions));
        assert_eq!(got, (after, expected.to_owned()), "{before}: {event:?}");
    }
}

#[test]
fn a_participant_is_waited_for_until_the_delay_or_an_hour_is_over() {
    for (timeout, wait) in [(100, 100), (3 * 3600, 3600)] {
        let mut leave = leave(seconds(timeout), None);
        let early = START + seconds(wait - 1);
        assert_eq!(action_names(&leave.step(&LeaveEvent::Tick, early)), "check");
        let actions = leave.step(&LeaveEvent::Tick, START + seconds(wait));
        assert_eq!(
            (action_names(&actions).as_str(), leave.state_name()),
            ("send", "disconnected")
        );
    }
}

#[test]
fn no_leave_is_sent_for_a_participant_who_never_connected() {
    let mut leave = leave_in_state("aborted");
    let actions = leave.step(&LeaveEvent::Tick, START + TIMEOUT);
    assert!(
        action_names(&actions).contains("NeverConnected"),
        "{actions:?}"
    );
}

#[test]
fn a_restart_follows_at_about_eighty_per_cent_of_the_delay() {
    let mut leave = leave_in_state("connected");
    let started_at = START + seconds(5);
    let actions = leave.step(
        &finished(
            DelayedEventAction::Restart,
            DelayedEventOutcome::Done,
            started_at,
        ),
        started_at + seconds(1),
    );
    let Some(LeaveAction::WakeAt(at)) = actions.last() else {
        panic!("{actions:?}");
    };
    let after = at.duration_since(started_at);
    assert!((seconds(72)..=seconds(80)).contains(&after), "{after:?}");
    assert_eq!(action_names(&leave.step(&LeaveEvent::Tick, *at)), "restart");
}

#[test]
fn a_late_disconnect_of_an_earlier_connection_is_ignored() {
    let mut leave = leave_in_state("connected");
    leave.step(&joined("B"), START);
    assert_eq!(action_names(&leave.step(&left("A"), START)), "");
    assert_eq!(leave.state_name(), "connected");
    assert_eq!(action_names(&leave.step(&left("B"), START)), "send");
}

#[test]
fn webhooks_in_the_wrong_order_have_the_same_result() {
    let mut late = leave(TIMEOUT, None);
    late.step(&left("A"), START);
    assert_eq!(late.state_name(), "waiting");
    assert_eq!(action_names(&late.step(&joined("A"), START)), "send");
    let mut never = leave(TIMEOUT, None);
    never.step(&left("A"), START);
    assert_eq!(
        action_names(&never.step(&LeaveEvent::Tick, START + WAIT_AFTER_LEFT)),
        "send"
    );
}

#[test]
fn a_replaced_connection_is_checked_and_two_absences_count() {
    let mut leave = leave_in_state("connected");
    leave.step(&replaced("A"), START);
    let check_at = START + seconds(2);
    assert_eq!(
        action_names(&leave.step(&LeaveEvent::Tick, check_at)),
        "check"
    );
    let absent = LeaveEvent::PresenceChecked(Some(ParticipantPresence::Absent));
    assert_eq!(action_names(&leave.step(&absent, check_at)), "");
    assert_eq!(
        action_names(&leave.step(&LeaveEvent::Tick, check_at + seconds(2))),
        "check"
    );
    assert_eq!(
        action_names(&leave.step(&absent, check_at + seconds(2))),
        "send"
    );
}

#[test]
fn an_sfu_that_does_not_answer_changes_nothing() {
    let mut leave = leave(TIMEOUT, Some(seconds(10)));
    leave.step(&joined("A"), START);
    let mut now = START;
    for _ in 0..20 {
        now = now + seconds(60);
        let started_at = now;
        leave.step(&LeaveEvent::Tick, now);
        leave.step(&LeaveEvent::PresenceChecked(None), now);
        leave.step(
            &finished(
                DelayedEventAction::Restart,
                DelayedEventOutcome::Done,
                started_at,
            ),
            now,
        );
        assert_eq!(leave.state_name(), "connected");
    }
}

#[test]
fn a_failed_call_is_retried_until_the_delay_is_over() {
    let mut leave = leave_in_state("connected");
    let (mut now, mut calls) = (START, 1);
    loop {
        let actions = leave.step(&finished(DelayedEventAction::Restart, failed(), now), now);
        let Some(LeaveAction::WakeAt(at)) = actions.last() else {
            break;
        };
        assert!(*at > now);
        now = *at;
        match action_names(&leave.step(&LeaveEvent::Tick, now)).as_str() {
            "restart" => calls += 1,
            "Expired" => break,
            other => panic!("{other}"),
        }
    }
    assert!((10..60).contains(&calls), "{calls}");
    // a call that started in time may have had its effect
    assert!(
        (TIMEOUT..=TIMEOUT * 2 + seconds(60)).contains(&now.duration_since(START)),
        "{now:?}"
    );
}

#[test]
fn a_leave_is_sent_for_at_least_a_second_and_at_most_an_hour() {
    let mut short = leave(Duration::from_millis(1), None);
    let actions = short.step(&LeaveEvent::Tick, START + seconds(1));
    assert_eq!(action_names(&actions), "send");
    let now = START + seconds(1);
    short.step(&finished(DelayedEventAction::Send, failed(), now), now);
    assert_eq!(short.state_name(), "disconnected");
    let mut long = leave(MAX_TIMEOUT * 2, None);
    assert_eq!(long.request().timeout, MAX_TIMEOUT);
    long.step(&joined("A"), START);
    long.step(&left("A"), START);
    long.step(&finished(DelayedEventAction::Send, failed(), START), START);
    assert_eq!(
        action_names(&long.step(&LeaveEvent::Tick, START + seconds(3600))),
        "Expired"
    );
}

#[test]
fn a_record_restores_the_leave_and_an_invalid_one_is_refused() {
    for state in ["waiting", "aborted", "connected", "disconnected"] {
        let leave = leave_in_state(state);
        let record = leave.to_record().unwrap();
        let restored = Leave::restore(key(), &record, None, START)
            .unwrap()
            .unwrap();
        assert_eq!((restored.state_name(), restored.id()), (state, leave.id()));
        assert_eq!(
            (&restored.active_sids, &restored.ended_sids),
            (&leave.active_sids, &leave.ended_sids)
        );
        let much_later = START + seconds(3 * 3600);
        assert_eq!(
            Leave::restore(key(), &record, None, much_later),
            Ok(None),
            "{state}"
        );
        // after the host's clock was set back, the leave does not wait until the recorded time
        let mut early = Leave::restore(key(), &record, None, UnixMillis::from_millis(1000))
            .unwrap()
            .unwrap();
        let actions = early.step(
            &LeaveEvent::Tick,
            UnixMillis::from_millis(1000) + seconds(1),
        );
        assert!(!actions.is_empty(), "{state}");
        for invalid in [
            String::new(),
            "{}".into(),
            record.replace("\"v\":1", "\"v\":2"),
            record.replace("@alice:hs", "alice"),
            record.replace("100000", "0"),
            record.replace("100000", "86400001"),
            record.replace("syd_1", ""),
        ] {
            assert!(
                Leave::restore(key(), &invalid, None, START).is_err(),
                "{invalid}"
            );
        }
    }
    assert_eq!(leave_in_state("ended").to_record(), None);
}

#[test]
fn a_restored_leave_is_sent_only_after_a_presence_check() {
    let record = leave_in_state("waiting").to_record().unwrap();
    let record = record.replace("100000", "86400000");
    let now = START + seconds(2 * 3600);
    let mut leave = Leave::restore(key(), &record, None, now).unwrap().unwrap();
    assert_eq!(action_names(&leave.step(&LeaveEvent::Tick, now)), "check");
    let present = LeaveEvent::PresenceChecked(Some(ParticipantPresence::Present(sid("A"))));
    assert_eq!(action_names(&leave.step(&present, now)), "restart");
}
