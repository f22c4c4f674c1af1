//! Tables that fit the terminal: columns that can do with less are cut, the least important ones left out. What is not
//! read on a terminal gets everything, at full width.

use unicode_width::UnicodeWidthStr;

/// A cell.
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

    fn length(&self) -> usize {
        self.text.width()
    }
}

/// Between two columns.
const GAP: usize = 2;

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
    cut: Vec<(usize, usize)>,
    left_out: Vec<usize>,
    right: Vec<usize>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(header: &[&str]) -> Self {
        let header = header.iter().copied().map(Cell::new).collect();
        Self { header, rows: Vec::new(), cut: Vec::new(), left_out: Vec::new(), right: Vec::new() }
    }

    /// Columns that may be cut where it is narrow, the first one first, and how wide each must be to say something yet.
    pub(crate) fn cut(self, columns: &[(usize, usize)]) -> Self {
        Self { cut: columns.to_vec(), ..self }
    }

    /// Columns that may be left out where that is not enough, the first one first.
    pub(crate) fn leave_out(self, columns: &[usize]) -> Self {
        Self { left_out: columns.to_vec(), ..self }
    }

    /// Columns of numbers, which stand to the right.
    pub(crate) fn right(self, columns: &[usize]) -> Self {
        Self { right: columns.to_vec(), ..self }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The table as text, within `width` if that is possible.
    pub(crate) fn render(&self, width: Option<usize>, colours: bool) -> String {
        let widths = self.widths(width.unwrap_or(usize::MAX));
        let mut out = String::new();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let Some(width) = *width else { continue };
                if !line.is_empty() {
                    line.extend(std::iter::repeat_n(' ', GAP));
                }
                let text = cut(&cell.text, width);
                let padding = std::iter::repeat_n(' ', width.saturating_sub(text.width()));
                let right = self.right.contains(&column);
                if right {
                    line.extend(padding.clone());
                }
                match cell.colour.filter(|_| colours) {
                    Some(colour) => line.push_str(&format!("\x1b[{colour}m{text}\x1b[0m")),
                    None => line.push_str(&text),
                }
                if !right {
                    line.extend(padding);
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    /// Width of each column; `None` for those that are left out.
    fn widths(&self, most: usize) -> Vec<Option<usize>> {
        let longest = |column: usize| {
            let rows = self.rows.iter().filter_map(|row| row.get(column));
            rows.chain(self.header.get(column)).map(Cell::length).max().unwrap_or(0)
        };
        let mut widths: Vec<Option<usize>> =
            (0..self.header.len()).map(|column| Some(longest(column))).collect();
        let mut left_out = self.left_out.iter();
        loop {
            // Cut on trial: when a column has to go all the same, the others get what it had.
            let mut trial = widths.clone();
            for (column, least) in &self.cut {
                let over = total(&trial).saturating_sub(most);
                if let Some(Some(width)) = trial.get_mut(*column) {
                    *width = width.saturating_sub(over).max((*least).min(*width));
                }
            }
            if total(&trial) <= most {
                return trial;
            }
            match left_out.next() {
                Some(column) => {
                    if let Some(width) = widths.get_mut(*column) {
                        *width = None;
                    }
                }
                None => return trial,
            }
        }
    }
}

fn total(widths: &[Option<usize>]) -> usize {
    let shown = widths.iter().flatten();
    shown.clone().sum::<usize>() + GAP * shown.count().saturating_sub(1)
}

/// As much of a text as fits, with a mark that there is more.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut cut = String::new();
    // Characters are not as wide together as one by one.
    for c in text.chars() {
        cut.push(c);
        if cut.width() >= width {
            cut.pop();
            break;
        }
    }
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> Table {
        let mut table = Table::new(&["ID", "STATE", "IMAGE"]).cut(&[(2, 8)]).leave_out(&[1]);
        table.row(vec![
            Cell::new("sb-1"),
            Cell::new("running").coloured("32"),
            Cell::new("registry.example/very/long:tag"),
        ]);
        table.row(vec![Cell::new("sb-22"), Cell::new("error"), Cell::new("host\x1b[31m")]);
        table
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(
            table().render(None, false),
            "ID     STATE    IMAGE\nsb-1   running  registry.example/very/long:tag\nsb-22  error    host\u{fffd}[31m\n"
        );
    }

    #[test]
    fn what_can_do_with_less_is_cut_before_anything_is_left_out() {
        let text = table().render(Some(30), false);
        assert!(text.contains("running  registry.exam…"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 30), "{text}");
        let text = table().render(Some(20), false);
        assert_eq!(text, "ID     IMAGE\nsb-1   registry.exa…\nsb-22  host\u{fffd}[31m\n");
        // Not even that much: what is left is as narrow as it goes.
        assert_eq!(table().render(Some(3), false).lines().nth(1), Some("sb-1   registr…"));
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let text = table().render(None, true);
        assert!(text.contains("\x1b[32mrunning\x1b[0m  registry"), "{text}");
    }

    #[test]
    fn numbers_stand_to_the_right() {
        let mut table = Table::new(&["N", "M"]).right(&[0, 1]);
        table.row(vec![Cell::new("100").coloured("31"), Cell::new("7")]);
        assert_eq!(table.render(None, false), "  N  M\n100  7\n");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(cut("漢字漢字", 8), "漢字漢字");
        assert_eq!(cut("漢字漢字", 7), "漢字漢…");
        assert_eq!(cut("漢字漢字", 6), "漢字…");
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_it_may_be(
            cells in proptest::collection::vec(proptest::collection::vec("\\PC{0,20}", 3), 0..5),
            width in 30..80usize,
        ) {
            let mut table = Table::new(&["A", "B", "C"]).cut(&[(2, 8), (1, 8)]).leave_out(&[2, 1]);
            for row in cells {
                table.row(row.into_iter().map(Cell::new).collect());
            }
            for line in table.render(Some(width), false).lines() {
                prop_assert!(line.width() <= width);
            }
        }
    }
}
