//! Durations in the grammar that the API has always used: `30m`, `1h30m`, `1.5h`, `127.4ms`, bare `0`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr, time::Duration};

/// A duration, possibly negative, as the wire and configuration files spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct WireDuration {
    nanos: i64,
}

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration {0:?}: use a number and a unit, as in 30s, 5m or 1h30m")]
pub struct DurationError(String);

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl WireDuration {
    /// A duration from whole nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self { nanos }
    }

    /// Nanoseconds, negative for a negative duration.
    pub const fn as_nanos(self) -> i64 {
        self.nanos
    }

    /// The duration, or `None` when negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.nanos).ok().map(Duration::from_nanos)
    }
}

impl From<Duration> for WireDuration {
    fn from(duration: Duration) -> Self {
        Self { nanos: i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX) }
    }
}

impl FromStr for WireDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let bad = || DurationError(text.chars().take(64).collect());
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(bad());
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
            total = total.checked_add(scaled(number, i128::from(scale)).ok_or_else(bad)?).ok_or_else(bad)?;
            rest = tail;
        }
        let signed = if negative { -total } else { total };
        i64::try_from(signed).map(|nanos| Self { nanos }).map_err(|_| bad())
    }
}

/// `number` (digits with at most one point) times `scale`, cut to whole nanoseconds.
fn scaled(number: &str, scale: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 19 {
        return None;
    }
    let mut value = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()? } * scale;
    let mut place = scale;
    for digit in fraction.bytes() {
        place /= 10;
        value += i128::from(digit - b'0') * place;
    }
    Some(value)
}

impl fmt::Display for WireDuration {
    /// The largest units that fit, trailing zeros cut: `1h0m0s`, `1.5s`, `127.4ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos.unsigned_abs();
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        let fraction = |value: u64, scale: u64| {
            let (whole, part) = (value / scale, value % scale);
            if part == 0 {
                return whole.to_string();
            }
            let width = scale.ilog10() as usize;
            format!("{whole}.{}", format!("{part:0width$}").trim_end_matches('0'))
        };
        match nanos {
            0 => f.write_str("0s"),
            n if n < 1_000 => write!(f, "{n}ns"),
            n if n < 1_000_000 => write!(f, "{}µs", fraction(n, 1_000)),
            n if n < 1_000_000_000 => write!(f, "{}ms", fraction(n, 1_000_000)),
            n => {
                let minutes = n / 60_000_000_000;
                let seconds = fraction(n % 60_000_000_000, 1_000_000_000);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => write!(f, "{seconds}s"),
                    (0, m) => write!(f, "{m}m{seconds}s"),
                    (h, m) => write!(f, "{h}h{m}m{seconds}s"),
                }
            }
        }
    }
}

impl Serialize for WireDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WireDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nanos(text: &str) -> i64 {
        text.parse::<WireDuration>().unwrap().as_nanos()
    }

    #[test]
    fn reads_what_clients_write() {
        assert_eq!(nanos("30m"), 1_800_000_000_000);
        assert_eq!(nanos("1h30m"), 5_400_000_000_000);
        assert_eq!(nanos("1.5h"), nanos("1h30m"));
        assert_eq!(nanos("-2s"), -2_000_000_000);
        assert_eq!(nanos("0"), 0);
        assert_eq!(nanos(".5s"), 500_000_000);
        assert_eq!(nanos("300us"), 300_000);
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "30", "m", "1d", "1h-2m", "1..2s", "9999999999h", "1 s", ".s", "+"] {
            assert!(text.parse::<WireDuration>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn writes_the_largest_units_that_fit() {
        for (value, text) in [
            (0, "0s"),
            (999, "999ns"),
            (1_500, "1.5µs"),
            (127_400_000, "127.4ms"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m0s"),
            (86_400_000_000_000, "24h0m0s"),
            (-1_500_000_000, "-1.5s"),
        ] {
            assert_eq!(WireDuration::from_nanos(value).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn text_and_value_agree(value in any::<i64>().prop_filter("abs exists", |v| *v != i64::MIN)) {
            let duration = WireDuration::from_nanos(value);
            prop_assert_eq!(duration.to_string().parse::<WireDuration>().unwrap(), duration);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<WireDuration>();
        }
    }
}
