//! Points in time as RFC 3339 writes them: in UTC, to the nanosecond.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time from 1970 to 9999. Prints as `2026-11-21T23:59:59.123456789Z`, always 30
/// characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Since 1970, without leap seconds.
    seconds: u64,
    nanoseconds: u32,
}

/// The text is not a timestamp as [`Timestamp`] prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a timestamp looks like 2026-11-21T23:59:59.123456789Z")]
pub struct InvalidTimestamp;

const SECONDS_PER_DAY: u64 = 86_400;

/// 9999-12-31T23:59:59, after which a year has five digits.
const MAX_SECONDS: u64 = 253_402_300_799;

impl Timestamp {
    pub fn now() -> Timestamp {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    /// A clock that is set outside the range gives its nearest end.
    fn from(time: SystemTime) -> Timestamp {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: since.as_secs().min(MAX_SECONDS),
            nanoseconds: since.subsec_nanos(),
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.seconds / SECONDS_PER_DAY);
        let second_of_day = self.seconds % SECONDS_PER_DAY;
        let (hour, minute, second) = (
            second_of_day / 3600,
            second_of_day / 60 % 60,
            second_of_day % 60,
        );
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z",
            self.nanoseconds
        )
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Timestamp, InvalidTimestamp> {
        let number = |from: usize, to: usize| -> Result<u64, InvalidTimestamp> {
            let digits = text
                .get(from..to)
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            digits
                .and_then(|digits| digits.parse().ok())
                .ok_or(InvalidTimestamp)
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        let nanoseconds = number(20, 29)? as u32; // Nine digits fit.
        if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day)
        {
            return Err(InvalidTimestamp);
        }
        let second_of_day = hour * 3600 + minute * 60 + second;
        let timestamp = Timestamp {
            seconds: days_until(year, month, day) * SECONDS_PER_DAY + second_of_day,
            nanoseconds,
        };
        // Numbers out of range and wrong punctuation do not print as they were read.
        if timestamp.to_string() == text {
            Ok(timestamp)
        } else {
            Err(InvalidTimestamp)
        }
    }
}

// Both conversions count years from March, so that the leap day is the last of its year, and then
// months are 153 days in every five: 31, 30, 31, 30, 31, twice, and what is left of the year.
// `RATA_DIE` shifts the count to 1970.

/// Days from 0000-03-01 to 1970-01-01.
const RATA_DIE: u64 = 719_468;

/// Days in 400 years, after which the calendar repeats.
const DAYS_PER_ERA: u64 = 146_097;

/// Year, month and day that are so many days after 1970-01-01.
fn date_of(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + RATA_DIE;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    // Takes out the leap days: one in 4 years, none in 100, one in 400.
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_from_march + 2) / 5 + 1;
    let month = if months_from_march < 10 {
        months_from_march + 3
    } else {
        months_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to a date, which is not before it.
fn days_until(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let months_from_march = (month + 9) % 12;
    let day_of_year = (153 * months_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * DAYS_PER_ERA + day_of_era - RATA_DIE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64, nanoseconds: u32) -> Timestamp {
        Timestamp {
            seconds,
            nanoseconds,
        }
    }

    #[test]
    fn prints_known_dates() {
        // From `date -u -d @N --rfc-3339=seconds`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_795_305_599, "2026-11-21T23:59:59.000000007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007Z"),
            (MAX_SECONDS, "9999-12-31T23:59:59.000000007Z"),
        ] {
            assert_eq!(at(seconds, 7).to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_timestamp() {
        let good = "2026-11-21T23:59:59.123456789Z";
        assert!(good.parse::<Timestamp>().is_ok());
        for wrong in [
            "",
            "2026-11-21",
            "2026-11-21T23:59:59Z",
            "2026-02-29T00:00:00.000000000Z",
            "2026-13-01T00:00:00.000000000Z",
            "2026-00-01T00:00:00.000000000Z",
            "2026-11-00T00:00:00.000000000Z",
            "2026-11-21T24:00:00.000000000Z",
            "2026-11-21T23:60:00.000000000Z",
            "1969-12-31T23:59:59.000000000Z",
            "2026-11-21 23:59:59.123456789Z",
            "2026-11-21T23:59:59.123456789+",
            "+026-11-21T23:59:59.123456789Z",
            "2026-11-21T23:59:59.12345678éZ",
            &format!("{good}Z"),
        ] {
            assert_eq!(
                wrong.parse::<Timestamp>(),
                Err(InvalidTimestamp),
                "{wrong:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_prints(seconds in 0..=MAX_SECONDS, nanoseconds in 0..1_000_000_000_u32) {
            let time = at(seconds, nanoseconds);
            prop_assert_eq!(time.to_string().parse(), Ok(time));
            prop_assert_eq!(time.to_string().len(), 30);
        }

        #[test]
        fn never_panics_on_text(text in "\\PC{0,40}") {
            let _ = text.parse::<Timestamp>();
        }
    }
}
