//! Sizes, modes and durations, as options and instructions have them.

/// In octal digits, as `chmod(1)` takes it.
pub fn mode(text: &str) -> Result<u32, &'static str> {
    let read = u32::from_str_radix(text, 8).ok();
    read.filter(|mode| *mode <= 0o7777)
        .ok_or("expected a mode in octal digits, as 0755")
}

/// Bytes, as `64m`, `1g` or `512`.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(0),
        "k" | "kb" => Some(10),
        "m" | "mb" => Some(20),
        "g" | "gb" => Some(30),
        _ => None,
    };
    let read = digits.parse::<u64>().ok().zip(shift);
    read.and_then(|(number, shift)| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("size {text:?}: expected bytes, as 65536, 64k, 64m or 1g"))
}

/// Go's durations, as `1h2m3.5s`, in nanoseconds.
pub fn duration(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "expected a duration, as 30s, 1m30s or 500ms";
    const UNITS: [(&str, f64); 6] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 60e9),
        ("h", 3600e9),
    ];
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, tail) = rest.split_at(end.ok_or(EXPECTED)?);
        let number: f64 = number.parse().map_err(|_| EXPECTED)?;
        let end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit = UNITS.iter().find(|(name, _)| *name == unit);
        nanos += number * unit.ok_or(EXPECTED)?.1;
        rest = tail;
    }
    match text.is_empty() {
        true => Err(EXPECTED),
        false => Ok(nanos as u64),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_go_s() {
        assert_eq!(duration("30s"), Ok(30_000_000_000));
        assert_eq!(duration("1m30s"), Ok(90_000_000_000));
        assert_eq!(duration("1.5ms"), Ok(1_500_000));
        assert_eq!(duration("0"), Ok(0));
        for wrong in ["", "3", "s", "1d", "1m3", "-1s", "1..2s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("755"), Ok(0o755));
        assert_eq!(mode("04711"), Ok(0o4711));
        for wrong in ["", "u+x", "8", "77777"] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("64k"), Ok(64 << 10));
        assert_eq!(size("1GB"), Ok(1 << 30));
        for wrong in ["", "m", "1t", "-1", "99999999999g", "1.5m"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = (duration(&text), mode(&text), size(&text));
        }
    }
}
