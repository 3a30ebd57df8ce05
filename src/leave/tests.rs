//! Every state with every event, and walks at random.

mod walk;

use super::step::LEFT_WAIT;
use super::*;
use crate::livekit::token::{Identity, RoomName};

pub(super) const TIMEOUT: Duration = Duration::from_secs(100);
pub(super) const START: Time = Time(1_000_000_000);

pub(super) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn sid(name: &str) -> Option<Sid> {
    Some(Sid::new(name.into()).unwrap())
}

pub(super) fn key() -> Key {
    Key {
        room: RoomName::new("room".into()).unwrap(),
        identity: Identity::new("alice".into()).unwrap(),
    }
}

pub(super) fn leave(timeout: Duration, check: Option<Duration>) -> Leave {
    let order = Order {
        user: UserId::parse("@alice:hs").unwrap(),
        delay: DelayId::parse("syd_1").unwrap(),
        timeout,
    };
    Leave::new(key(), order, 0x1234_5678, check, START)
}

fn joined(name: &str) -> Event {
    Event::Connected(sid(name))
}

fn left(name: &str) -> Event {
    Event::Disconnected {
        sid: sid(name),
        replaced: false,
    }
}

fn replaced(name: &str) -> Event {
    Event::Disconnected {
        sid: sid(name),
        replaced: true,
    }
}

fn done(deed: Deed, outcome: Outcome, began: Time) -> Event {
    Event::Done(deed, outcome, began)
}

fn failed() -> Outcome {
    Outcome::Failed("no answer".into())
}

/// One in the state of that name, at [`START`].
fn standing(state: &str) -> Leave {
    let mut leave = leave(TIMEOUT, None);
    let events: &[Event] = match state {
        "waiting" => &[],
        "aborted" => &[Event::Aborted(sid("A"))],
        "connected" => &[joined("A")],
        "disconnected" => &[joined("A"), left("A")],
        "ended" => &[Event::Replaced],
        other => panic!("{other}"),
    };
    for event in events {
        leave.step(event, START);
    }
    assert_eq!(leave.standing(), state);
    leave
}

/// What a leave is asked to do beside to wake up.
fn deeds(actions: &[Action]) -> String {
    let words = actions.iter().filter_map(|action| match action {
        Action::Restart(_) => Some("restart".to_owned()),
        Action::Send => Some("send".to_owned()),
        Action::LookUp => Some("look".to_owned()),
        Action::Wake(_) => None,
        Action::Finish(why) => Some(format!("{why:?}")),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn every_state_has_an_answer_to_every_event() {
    let (restart, send) = (Deed::Restart, Deed::Send);
    let here = |sid| Event::LookedUp(Some(Presence::Here(sid)));
    let none = || Event::LookedUp(Some(Presence::NotFound));
    #[rustfmt::skip]
    let table: Vec<(&str, Event, &str, &str)> = vec![
        ("waiting", joined("A"), "connected", "restart"),
        ("waiting", Event::Connected(None), "connected", "restart"),
        ("waiting", left("A"), "waiting", ""),
        ("waiting", replaced("A"), "waiting", ""),
        ("waiting", Event::Aborted(sid("A")), "aborted", ""),
        ("waiting", Event::RoomFinished, "waiting", ""),
        ("waiting", here(sid("A")), "connected", "restart"),
        ("waiting", here(None), "connected", "restart"),
        ("waiting", none(), "waiting", ""),
        ("waiting", Event::LookedUp(None), "waiting", ""),
        ("waiting", done(restart, Outcome::Done, START), "waiting", ""),
        ("waiting", done(send, Outcome::Done, START), "waiting", ""),
        ("waiting", Event::Replaced, "ended", "Replaced"),
        ("waiting", Event::Tick, "waiting", ""),
        ("aborted", joined("B"), "connected", "restart"),
        ("aborted", left("A"), "waiting", ""),
        ("aborted", replaced("A"), "aborted", ""),
        ("aborted", Event::Aborted(sid("B")), "aborted", ""),
        ("aborted", Event::RoomFinished, "aborted", ""),
        ("aborted", here(sid("B")), "connected", "restart"),
        ("aborted", none(), "aborted", ""),
        ("aborted", Event::LookedUp(None), "aborted", ""),
        ("aborted", done(restart, Outcome::Done, START), "aborted", ""),
        ("aborted", Event::Replaced, "ended", "Replaced"),
        ("aborted", Event::Tick, "aborted", ""),
        ("connected", joined("A"), "connected", ""),
        ("connected", joined("B"), "connected", ""),
        ("connected", left("A"), "disconnected", "send"),
        ("connected", left("B"), "connected", ""),
        ("connected", replaced("A"), "connected", ""),
        ("connected", Event::Disconnected { sid: None, replaced: false }, "connected", ""),
        ("connected", Event::Aborted(sid("B")), "connected", ""),
        ("connected", Event::RoomFinished, "connected", ""),
        ("connected", here(sid("A")), "connected", ""),
        ("connected", none(), "connected", ""),
        ("connected", Event::LookedUp(None), "connected", ""),
        ("connected", done(restart, Outcome::Done, START), "connected", ""),
        ("connected", done(restart, Outcome::Gone, START), "ended", "Gone"),
        ("connected", done(restart, Outcome::Finalised, START), "ended", "Gone"),
        ("connected", done(restart, Outcome::Denied(403), START), "ended", "Denied(403)"),
        ("connected", done(restart, Outcome::SlowDown(None), START), "connected", "restart"),
        ("connected", done(restart, Outcome::NotNow(seconds(1)), START), "connected", "restart"),
        ("connected", done(restart, failed(), START), "connected", ""),
        ("connected", done(send, Outcome::Done, START), "connected", ""),
        ("connected", Event::Replaced, "ended", "Replaced"),
        ("connected", Event::Tick, "connected", ""),
        ("disconnected", joined("B"), "disconnected", ""),
        ("disconnected", left("A"), "disconnected", ""),
        ("disconnected", replaced("A"), "disconnected", ""),
        ("disconnected", Event::Aborted(sid("A")), "disconnected", ""),
        ("disconnected", Event::RoomFinished, "disconnected", ""),
        ("disconnected", here(sid("B")), "disconnected", ""),
        ("disconnected", none(), "disconnected", ""),
        ("disconnected", Event::LookedUp(None), "disconnected", ""),
        ("disconnected", done(restart, Outcome::Done, START), "disconnected", ""),
        ("disconnected", done(restart, Outcome::Gone, START), "disconnected", ""),
        ("disconnected", done(send, Outcome::Done, START), "ended", "Sent"),
        ("disconnected", done(send, Outcome::Gone, START), "ended", "Gone"),
        ("disconnected", done(send, Outcome::Finalised, START), "ended", "Gone"),
        ("disconnected", done(send, Outcome::Denied(401), START), "ended", "Denied(401)"),
        ("disconnected", done(send, Outcome::SlowDown(None), START), "disconnected", "send"),
        ("disconnected", done(send, Outcome::NotNow(seconds(1)), START), "disconnected", "send"),
        ("disconnected", done(send, failed(), START), "disconnected", ""),
        ("disconnected", Event::Replaced, "ended", "Replaced"),
        ("disconnected", Event::Tick, "disconnected", ""),
        ("ended", joined("B"), "ended", ""),
        ("ended", left("A"), "ended", ""),
        ("ended", Event::Aborted(sid("A")), "ended", ""),
        ("ended", Event::RoomFinished, "ended", ""),
        ("ended", here(sid("A")), "ended", ""),
        ("ended", none(), "ended", ""),
        ("ended", done(restart, Outcome::Done, START), "ended", ""),
        ("ended", done(send, failed(), START), "ended", ""),
        ("ended", Event::Replaced, "ended", ""),
        ("ended", Event::Tick, "ended", ""),
    ];
    for (before, event, after, expected) in table {
        let mut leave = standing(before);
        let actions = leave.step(&event, START);
        let got = (leave.standing(), deeds(&actions));
        assert_eq!(got, (after, expected.to_owned()), "{before}: {event:?}");
    }
}

#[test]
fn nobody_is_waited_for_longer_than_the_delay_or_an_hour() {
    for (timeout, wait) in [(100, 100), (3 * 3600, 3600)] {
        let mut leave = leave(seconds(timeout), None);
        let early = START + seconds(wait - 1);
        assert_eq!(deeds(&leave.step(&Event::Tick, early)), "look");
        let actions = leave.step(&Event::Tick, START + seconds(wait));
        assert_eq!(
            (deeds(&actions).as_str(), leave.standing()),
            ("send", "disconnected")
        );
    }
}

#[test]
fn who_never_got_in_leaves_nothing_to_send() {
    let mut leave = standing("aborted");
    let actions = leave.step(&Event::Tick, START + TIMEOUT);
    assert!(deeds(&actions).contains("Aborted"), "{actions:?}");
}

#[test]
fn a_restart_follows_at_about_eighty_per_cent_of_the_delay() {
    let mut leave = standing("connected");
    let began = START + seconds(5);
    let actions = leave.step(
        &done(Deed::Restart, Outcome::Done, began),
        began + seconds(1),
    );
    let Some(Action::Wake(at)) = actions.last() else {
        panic!("{actions:?}");
    };
    let after = at.since(began);
    assert!((seconds(72)..=seconds(80)).contains(&after), "{after:?}");
    assert_eq!(deeds(&leave.step(&Event::Tick, *at)), "restart");
}

#[test]
fn a_late_farewell_of_an_older_connection_is_not_theirs() {
    let mut leave = standing("connected");
    leave.step(&joined("B"), START);
    assert_eq!(deeds(&leave.step(&left("A"), START)), "");
    assert_eq!(leave.standing(), "connected");
    assert_eq!(deeds(&leave.step(&left("B"), START)), "send");
}

#[test]
fn news_in_any_order_end_in_the_same_place() {
    let mut late = leave(TIMEOUT, None);
    late.step(&left("A"), START);
    assert_eq!(late.standing(), "waiting");
    assert_eq!(deeds(&late.step(&joined("A"), START)), "send");
    let mut never = leave(TIMEOUT, None);
    never.step(&left("A"), START);
    assert_eq!(deeds(&never.step(&Event::Tick, START + LEFT_WAIT)), "send");
}

#[test]
fn who_is_replaced_is_looked_for_and_two_absences_count() {
    let mut leave = standing("connected");
    leave.step(&replaced("A"), START);
    let look = START + seconds(2);
    assert_eq!(deeds(&leave.step(&Event::Tick, look)), "look");
    let none = Event::LookedUp(Some(Presence::NotFound));
    assert_eq!(deeds(&leave.step(&none, look)), "");
    assert_eq!(deeds(&leave.step(&Event::Tick, look + seconds(2))), "look");
    assert_eq!(deeds(&leave.step(&none, look + seconds(2))), "send");
}

#[test]
fn an_sfu_that_does_not_answer_says_nothing() {
    let mut leave = leave(TIMEOUT, Some(seconds(10)));
    leave.step(&joined("A"), START);
    let mut now = START;
    for _ in 0..20 {
        now = now + seconds(60);
        let began = now;
        leave.step(&Event::Tick, now);
        leave.step(&Event::LookedUp(None), now);
        leave.step(&done(Deed::Restart, Outcome::Done, began), now);
        assert_eq!(leave.standing(), "connected");
    }
}

#[test]
fn a_call_that_fails_is_made_again_until_the_delay_is_over() {
    let mut leave = standing("connected");
    let (mut now, mut calls) = (START, 1);
    loop {
        // not so much as a connection
        let actions = leave.step(&done(Deed::Restart, failed(), now), now);
        let Some(Action::Wake(at)) = actions.last() else {
            break;
        };
        assert!(*at > now);
        now = *at;
        match deeds(&leave.step(&Event::Tick, now)).as_str() {
            "restart" => calls += 1,
            "Expired" => break,
            other => panic!("{other}"),
        }
    }
    assert!((10..60).contains(&calls), "{calls}");
    // a call that began in time may have come off
    assert!(
        (TIMEOUT..=TIMEOUT * 2 + seconds(60)).contains(&now.since(START)),
        "{now:?}"
    );
}

#[test]
fn a_leave_is_sent_for_at_least_a_second_and_at_most_an_hour() {
    let mut short = leave(Duration::from_millis(1), None);
    let actions = short.step(&Event::Tick, START + seconds(1));
    assert_eq!(deeds(&actions), "send");
    let now = START + seconds(1);
    short.step(&done(Deed::Send, failed(), now), now);
    assert_eq!(short.standing(), "disconnected");
    let mut long = leave(MAX_TIMEOUT * 2, None);
    assert_eq!(long.order().timeout, MAX_TIMEOUT);
    long.step(&joined("A"), START);
    long.step(&left("A"), START);
    long.step(&done(Deed::Send, failed(), START), START);
    assert_eq!(
        deeds(&long.step(&Event::Tick, START + seconds(3600))),
        "Expired"
    );
}

#[test]
fn a_record_tells_everything_and_the_broken_one_is_refused() {
    for state in ["waiting", "aborted", "connected", "disconnected"] {
        let leave = standing(state);
        let record = leave.record().unwrap();
        let restored = Leave::restore(key(), &record, None, START)
            .unwrap()
            .unwrap();
        assert_eq!((restored.standing(), restored.id()), (state, leave.id()));
        assert_eq!((&restored.here, &restored.gone), (&leave.here, &leave.gone));
        let much_later = START + seconds(3 * 3600);
        assert_eq!(
            Leave::restore(key(), &record, None, much_later),
            Ok(None),
            "{state}"
        );
        // set back by a year, the clock makes no leave live for a year
        let mut early = Leave::restore(key(), &record, None, Time(1000))
            .unwrap()
            .unwrap();
        let actions = early.step(&Event::Tick, Time(1000) + seconds(1));
        assert!(!actions.is_empty(), "{state}");
        for broken in [
            String::new(),
            "{}".into(),
            record.replace("\"v\":1", "\"v\":2"),
            record.replace("@alice:hs", "alice"),
            record.replace("100000", "0"),
            record.replace("100000", "86400001"),
            record.replace("syd_1", ""),
        ] {
            assert!(
                Leave::restore(key(), &broken, None, START).is_err(),
                "{broken}"
            );
        }
    }
    assert_eq!(standing("ended").record(), None);
}

#[test]
fn who_may_have_connected_meanwhile_is_looked_for_before_their_leave_is_sent() {
    let record = standing("waiting").record().unwrap();
    let record = record.replace("100000", "86400000");
    let now = START + seconds(2 * 3600);
    let mut leave = Leave::restore(key(), &record, None, now).unwrap().unwrap();
    assert_eq!(deeds(&leave.step(&Event::Tick, now)), "look");
    let here = Event::LookedUp(Some(Presence::Here(sid("A"))));
    assert_eq!(deeds(&leave.step(&here, now)), "restart");
}
