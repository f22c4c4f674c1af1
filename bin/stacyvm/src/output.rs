//! What commands print: lines, tables, JSON. A reader that goes away ends the command without a word.

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
    let stdout = rustix::stdio::stdout();
    if !isatty(stdout) {
        return None;
    }
    tcgetwinsize(stdout).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// A cell of a table.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    colour: Option<&'static str>,
}

impl Cell {
    /// A cell without colour. Control characters are replaced, so that no name can drive the terminal.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text: String = text.into();
        Self {
            text: text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
            colour: None,
        }
    }

    /// What it holds.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The same cell in a colour (an SGR number).
    pub(crate) fn coloured(self, colour: &'static str) -> Self {
        Self { colour: Some(colour), ..self }
    }
}

/// A table: columns as wide as their widest cell. With a `width`, the column `flexible` is cut so that lines fit.
pub(crate) fn table(
    header: &[&str],
    rows: &[Vec<Cell>],
    flexible: usize,
    width: Option<usize>,
    colours: bool,
) -> String {
    let length = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = header.iter().map(|name| length(name)).collect();
    for row in rows {
        for (column, cell) in widths.iter_mut().zip(row) {
            *column = (*column).max(length(&cell.text));
        }
    }
    let total = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
    if let (Some(width), Some(column)) = (width, widths.get_mut(flexible)) {
        *column = column.saturating_sub(total.saturating_sub(width)).max(8);
    }
    let mut out = String::new();
    let header: Vec<Cell> = header.iter().copied().map(Cell::new).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let text = cut(&cell.text, *width);
            let padding = if index + 1 == row.len() { 0 } else { width + 2 - length(&text) };
            match cell.colour.filter(|_| colours) {
                Some(colour) => line.push_str(&format!("\x1b[{colour}m{text}\x1b[0m")),
                None => line.push_str(&text),
            }
            line.extend(std::iter::repeat_n(' ', padding));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![
                Cell::new("sb-1"),
                Cell::new("running").coloured("32"),
                Cell::new("registry.example/very/long:tag"),
            ],
            vec![Cell::new("sb-22"), Cell::new("error"), Cell::new("host\x1b[31m")],
        ]
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(
            table(&["ID", "STATE", "IMAGE"], &rows(), 2, None, false),
            "ID     STATE    IMAGE\nsb-1   running  registry.example/very/long:tag\nsb-22  error    host\u{fffd}[31m\n"
        );
    }

    #[test]
    fn the_flexible_column_gives_way() {
        let table = table(&["ID", "STATE", "IMAGE"], &rows(), 2, Some(30), false);
        assert!(table.lines().all(|line| line.chars().count() <= 30), "{table}");
        assert!(table.contains("registry.exam…"), "{table}");
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let table = table(&["ID", "STATE", "IMAGE"], &rows(), 2, None, true);
        assert!(table.contains("\x1b[32mrunning\x1b[0m  registry"), "{table}");
    }
}
