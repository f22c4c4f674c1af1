//! What commands print: lines, JSON, and how wide and colourful it may be. A reader that goes away ends the command without a word.

use crate::{failure::Result, terminal};
use rustix::termios::{isatty, tcgetwinsize};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// One line on standard output.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

/// Text on standard output, as it is.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// A JSON value on standard output, indented.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    line(text)
}

/// A JSON value on standard output, on one line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string(value).map_err(io::Error::other)?)
}

/// A note on standard error.
pub(crate) fn note(text: impl std::fmt::Display) {
    // Notes are a courtesy: a standard error that is gone must not end the command.
    let end = if terminal::is_taken() { "\r\n" } else { "\n" };
    let _ = write!(io::stderr().lock(), "{text}{end}");
}

/// Colours are wanted on standard output: it is a terminal, and nobody said no.
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && colours_allowed()
}

/// `NO_COLOR` is not set.
pub(crate) fn colours_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns of the terminal on standard output, if it is one.
pub(crate) fn width() -> Option<usize> {
    size().map(|(columns, _)| columns)
}

/// Columns and lines of the terminal on standard output, if it is one.
pub(crate) fn size() -> Option<(usize, usize)> {
    let stdout = rustix::stdio::stdout();
    if !isatty(stdout) {
        return None;
    }
    let size = tcgetwinsize(stdout).ok()?;
    Some((usize::from(size.ws_col), usize::from(size.ws_row)))
        .filter(|(columns, lines)| *columns > 0 && *lines > 0)
}

/// How long a time is, in its two largest units: `3d 4h`, `12s`.
pub(crate) fn span(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let largest = units.iter().position(|(_, unit)| seconds >= *unit).unwrap_or(units.len() - 1);
    let mut left = seconds;
    let mut parts = Vec::new();
    for (name, unit) in units.iter().skip(largest).take(2) {
        let number = left / unit;
        left %= unit;
        if number > 0 || parts.is_empty() {
            parts.push(format!("{number}{name}"));
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (7200, "2h"),
            (90_061, "1d 1h"),
            (86_460, "1d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
