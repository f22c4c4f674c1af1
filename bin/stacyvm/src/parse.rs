//! Values of flags.

use stacyvm_types::WireDuration;

/// Memory in MiB: a number of MiB, or a number with `k`, `m`, `g` or `t` (binary; `M`, `MB`, `MiB` are the same), rounded
/// up to whole MiB.
pub(crate) fn memory(text: &str) -> Result<i64, String> {
    let wrong = || format!("\"{text}\" is no amount of memory: use a number of MiB, or 512m, 2g");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes_per_unit: u64 = match unit.trim() {
        "" | "m" | "mb" | "mib" => 1 << 20,
        "k" | "kb" | "kib" => 1 << 10,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let bytes = number.checked_mul(bytes_per_unit).ok_or_else(wrong)?;
    i64::try_from(bytes.div_ceil(1 << 20)).map_err(|_| wrong())
}

/// A whole number of processors, at least one.
pub(crate) fn processors(text: &str) -> Result<i64, String> {
    match text.trim().parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err(format!("\"{text}\" is no number of processors: use a whole number from 1")),
    }
}

/// A duration above zero.
pub(crate) fn duration(text: &str) -> Result<WireDuration, String> {
    let duration: WireDuration =
        text.trim().parse().map_err(|e: stacyvm_types::duration::DurationError| e.to_string())?;
    if duration.as_nanos() > 0 {
        Ok(duration)
    } else {
        Err("use a duration above zero, as in 30s".to_owned())
    }
}

/// A duration of zero or more.
pub(crate) fn timeout(text: &str) -> Result<WireDuration, String> {
    if text.trim() == "0" || text.trim() == "0s" { Ok(WireDuration::default()) } else { duration(text) }
}

/// `NAME=VALUE`, or `NAME` for the value that this process has.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => match std::env::var(text) {
            Ok(value) => (text, value),
            Err(_) => return Err(format!("{text} is not set here: use NAME=VALUE")),
        },
    };
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return Err("use NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_in_every_spelling() {
        for (text, mib) in [
            ("512", 512),
            ("512m", 512),
            ("512MiB", 512),
            ("2g", 2048),
            ("1024k", 1),
            ("1k", 1),
            ("1T", 1 << 20),
        ] {
            assert_eq!(memory(text), Ok(mib), "{text}");
        }
        for text in ["", "m", "-1", "1.5g", "12x", "99999999999999999999", "99999999999999t"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_rest() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(variable("=x").is_err() && variable("STACYVM_NO_SUCH_VARIABLE").is_err());
        assert!(processors("0").is_err() && processors("1.5").is_err());
        assert!(duration("0s").is_err() && duration("-1s").is_err() && duration("30").is_err());
        assert_eq!(timeout("0").unwrap().as_nanos(), 0);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = (memory(&text), processors(&text), duration(&text), timeout(&text));
        }
    }
}
