//! Durations and sizes as administrators write them: `"30s"`, `"5m"`, `"7d"`, `"50MiB"`.

use std::time::Duration;

/// A whole number and one of `ms`, `s`, `m`, `h`, `d`. The error says what would be accepted.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a duration such as `30s`, `5m`, `1h` or `7d`".to_owned();
    let (number, unit) = split(text).ok_or_else(expected)?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        "h" => Duration::from_secs(number.saturating_mul(60 * 60)),
        "d" => Duration::from_secs(number.saturating_mul(24 * 60 * 60)),
        _ => return Err(expected()),
    };
    if duration > DURATION_MAX { Err("expected at most `3650d`".to_owned()) } else { Ok(duration) }
}

/// A whole number of octets, or of one of `B`, `KiB`, `MiB`, `GiB`, `TiB`.
pub fn size(text: &str) -> Result<u64, String> {
    let expected = || "expected a size such as `512KiB`, `50MiB` or `1GiB`".to_owned();
    let (number, unit) = split(text).ok_or_else(expected)?;
    let factor = match unit {
        "B" => 1,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        "TiB" => 1024 * GIB,
        // Two meanings are in use; the wrong one would be silent.
        "KB" | "MB" | "GB" | "TB" | "kB" => return Err(format!("{}; units of 1024 have an `i`", expected())),
        _ => return Err(expected()),
    };
    number.checked_mul(factor).filter(|octets| *octets <= SIZE_MAX).ok_or("expected at most `1024TiB`".to_owned())
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    // `50 MiB` is as clear as `50MiB`.
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
pub const GIB: u64 = 1024 * MIB;
/// Beyond it arithmetic with times could overflow, and nobody means it.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Fits the data base's signed integers with room to add.
const SIZE_MAX: u64 = 1024 * 1024 * GIB;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604_800), ("1 h", 3600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "5", "m", "5w", "-5m", "+5m", "1.5h", "5M", "3651d", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("3650d").is_ok());
    }

    #[test]
    fn sizes() {
        for (text, octets) in [("0B", 0), ("64KiB", 65_536), ("50MiB", 50 * MIB), ("1 GiB", GIB), ("1024TiB", SIZE_MAX)]
        {
            assert_eq!(size(text), Ok(octets), "{text}");
        }
        for text in ["", "50", "50MB", "MiB", "-1B", "1025TiB", "1.5GiB", "18446744073709551615TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(size("50MB").unwrap_err().contains("have an `i`"));
    }
}
