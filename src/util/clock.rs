//! Wall-clock time and deadlines.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// RFC 3339 in UTC: whole seconds, or milliseconds with a precision of three. (`httpdate` has HTTP's format only.)
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timestamp(pub(crate) SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = since_unix_epoch(self.0);
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        match f.precision() {
            Some(3) => write!(f, ".{:03}Z", since.subsec_millis()),
            _ => f.write_str("Z"),
        }
    }
}

/// Time since 1970; zero for a clock that was never set.
pub(crate) fn since_unix_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970.
pub(crate) fn unix_seconds_now() -> u64 {
    since_unix_epoch(SystemTime::now()).as_secs()
}

/// Milliseconds since 1970.
pub(crate) fn unix_millis_now() -> u64 {
    u64::try_from(since_unix_epoch(SystemTime::now()).as_millis()).unwrap_or(u64::MAX)
}

/// The time left until `deadline`; `None` once it has passed.
pub(crate) fn time_left(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

/// Calendar date (year, month, day) of a day since 1970. The years of the computation begin in March, so that the leap day is a year's last.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // 719468 days from 0000-03-01 to 1970-01-01; 146097 days in 400 years
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // five months have 153 days, from March on
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis)
    }

    #[test]
    fn dates_around_leap_days_and_ends_of_centuries() {
        for (seconds, date) in [
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_709_164_800, "2024-02-29"),
            (1_735_603_200, "2024-12-31"),
            (1_735_689_600, "2025-01-01"),
            (4_107_456_000, "2100-02-28"),
            (4_107_542_400, "2100-03-01"),
            (253_402_214_400, "9999-12-31"),
        ] {
            assert_eq!(
                format!("{:.3}", Timestamp(at(seconds, 999))),
                format!("{date}T00:00:00.999Z")
            );
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Timestamp(before).to_string(), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn every_day_of_two_centuries_has_the_next_date() {
        let lengths = |year: u64| {
            let leap =
                year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
            [
                31,
                if leap { 29 } else { 28 },
                31,
                30,
                31,
                30,
                31,
                31,
                30,
                31,
                30,
                31,
            ]
        };
        let mut days = 0;
        for year in 1970..2170 {
            for (month, length) in (1..).zip(lengths(year)) {
                for day in 1..=length {
                    assert_eq!(civil_from_days(days), (year, month, day));
                    days += 1;
                }
            }
        }
    }
}
