//! Points in time as RFC 3339 writes them: in UTC, to the nanosecond.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

/// A point in time from 1970 to 9999. Prints as `2026-11-21T23:59:59.123456789Z`, always 30
/// characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

/// The text is not a timestamp as [`Timestamp`] prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a timestamp looks like 2026-11-21T23:59:59.123456789Z")]
pub struct InvalidTimestamp;

impl Timestamp {
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Seconds since 1970.
    pub fn as_second(self) -> i64 {
        self.0.as_second()
    }
}

impl From<SystemTime> for Timestamp {
    /// A clock that is set outside the range gives its nearest end.
    fn from(time: SystemTime) -> Self {
        let time = jiff::Timestamp::try_from(time).unwrap_or(match time < SystemTime::UNIX_EPOCH {
            true => jiff::Timestamp::MIN,
            false => jiff::Timestamp::MAX,
        });
        Self(time.max(jiff::Timestamp::UNIX_EPOCH))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.9}", self.0)
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        let timestamp = Self(text.parse().map_err(|_| InvalidTimestamp)?);
        // There are other ways to write a time, and other years.
        match timestamp.0 >= jiff::Timestamp::UNIX_EPOCH && timestamp.to_string() == text {
            true => Ok(timestamp),
            false => Err(InvalidTimestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// The last whole second.
    const MAX_SECONDS: u64 = 253_402_207_200;

    fn at(seconds: u64, nanoseconds: u32) -> Timestamp {
        (SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds)).into()
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
            (MAX_SECONDS, "9999-12-30T22:00:00.000000007Z"),
        ] {
            assert_eq!(at(seconds, 7).to_string(), text);
        }
    }

    #[test]
    fn a_clock_out_of_range_gives_the_nearest_end() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(86_400 * 365 * 20_000);
        assert_eq!(Timestamp::from(before), at(0, 0));
        let just_before = SystemTime::UNIX_EPOCH - Duration::from_nanos(1);
        assert_eq!(Timestamp::from(just_before), at(0, 0));
        assert_eq!(at(MAX_SECONDS + 100_000, 5), at(MAX_SECONDS, 999_999_999));
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
