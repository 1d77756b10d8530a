//! Times and sizes as people read them, in the words of Podman and Docker.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Seconds since 1970 as records have them, for those who count with a sign.
pub fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// How long ago a moment was, which is given in seconds since 1970.
pub fn ago(moment: i64) -> String {
    let seconds = Timestamp::now().as_second().saturating_sub(moment);
    format!("{} ago", duration(u64::try_from(seconds).unwrap_or(0)))
}

/// A moment, in seconds since 1970, as Go prints times.
pub fn moment(seconds: i64) -> String {
    let at = Timestamp::from_second(seconds).unwrap_or_default();
    let at = at.to_zoned(TimeZone::UTC);
    at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()
}

/// A time as Go prints it: `1h2m3.5s`, `250ms`.
pub fn go_duration(time: Duration) -> String {
    let fraction = |whole: u64, rest: u32, digits: usize, unit: &str| match rest {
        0 => format!("{whole}{unit}"),
        rest => {
            let text = format!("{whole}.{rest:0digits$}");
            format!("{}{unit}", text.trim_end_matches('0'))
        }
    };
    let (seconds, nanos) = (time.as_secs(), time.subsec_nanos());
    match (seconds, nanos) {
        (0, 0) => "0s".to_owned(),
        (0, ..1000) => format!("{nanos}ns"),
        (0, ..1_000_000) => fraction((nanos / 1000).into(), nanos % 1000, 3, "\u{b5}s"),
        (0, _) => fraction((nanos / 1_000_000).into(), nanos % 1_000_000, 6, "ms"),
        (..60, _) => fraction(seconds, nanos, 9, "s"),
        (..3600, _) => format!("{}m{}", seconds / 60, fraction(seconds % 60, nanos, 9, "s")),
        _ => {
            let (minutes, hours) = (seconds / 60 % 60, seconds / 3600);
            format!(
                "{hours}h{minutes}m{}",
                fraction(seconds % 60, nanos, 9, "s")
            )
        }
    }
}

/// How long ago something was.
pub fn duration(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const WEEK: u64 = 7 * DAY;
    const MONTH: u64 = 30 * DAY;
    const YEAR: u64 = 365 * DAY;
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        MINUTE..120 => "About a minute".to_owned(),
        120..HOUR => format!("{} minutes", seconds / MINUTE),
        // The nearest hour decides.
        _ if (seconds + HOUR / 2) / HOUR == 1 => "About an hour".to_owned(),
        _ if seconds < 2 * DAY => format!("{} hours", (seconds + HOUR / 2) / HOUR),
        _ if seconds < 2 * WEEK => format!("{} days", seconds / DAY),
        _ if seconds < 2 * MONTH => format!("{} weeks", seconds / WEEK),
        _ if seconds < 2 * YEAR => format!("{} months", seconds / MONTH),
        _ => format!("{} years", seconds / YEAR),
    }
}

/// Bytes in units of 1000, with three digits.
pub fn size(bytes: u64) -> String {
    let (text, unit) = scaled(bytes, 3);
    format!("{text} {unit}")
}

/// The same as Podman has it in some places: with four digits, and no space.
pub fn size_in_digits(bytes: u64) -> String {
    let (text, unit) = scaled(bytes, 4);
    text + unit
}

/// Bytes in the largest unit that leaves a digit before the point, with so many digits in all.
fn scaled(bytes: u64, digits: usize) -> (String, &'static str) {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 1000.0 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    // One more before the point is one less behind it, after rounding.
    let half = |behind: usize| 0.5 / 10f64.powi(i32::try_from(behind).unwrap_or(0));
    let behind = match scaled {
        scaled if scaled + half(digits - 1) < 10.0 => digits - 1,
        scaled if scaled + half(digits - 2) < 100.0 => digits - 2,
        _ => digits - 3,
    };
    let text = format!("{scaled:.behind$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    (text, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_have_four_digits() {
        let sizes = [0, 999, 1000, 503_800, 12_345_678, 25_281_234_567, 9_999_900];
        let sizes = sizes.map(size_in_digits);
        let expected = ["0B", "999B", "1kB", "503.8kB", "12.35MB", "25.28GB", "10MB"];
        assert_eq!(sizes, expected);
    }

    #[test]
    fn times_are_printed_as_go_prints_them() {
        let shown = [
            0,
            7,
            1_500,
            250_000_000,
            2_052_310_932,
            60_000_000_000,
            3_723_500_000_000,
        ]
        .map(|nanos| go_duration(Duration::from_nanos(nanos)));
        let expected = [
            "0s",
            "7ns",
            "1.5\u{b5}s",
            "250ms",
            "2.052310932s",
            "1m0s",
            "1h2m3.5s",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn durations_have_one_unit() {
        let day = 24 * 3600;
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (2 * 3600, "2 hours"),
            (47 * 3600, "47 hours"),
            (2 * day, "2 days"),
            (14 * day, "2 weeks"),
            (60 * day, "2 months"),
            (800 * day, "2 years"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn moments_are_printed_as_by_go() {
        assert_eq!(moment(1_704_164_645), "2024-01-02 03:04:05 +0000 UTC");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (1_987_662, "1.99 MB"),
            (12_345_678, "12.3 MB"),
            (123_456_789, "123 MB"),
            (5_000_000_000, "5 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
