//! Aligned columns for people.

use std::io::{self, IsTerminal, Write};

/// The columns' names and the rows below them.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// Adds a row with a cell for each column; an empty one shows as `-`.
    pub(crate) fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Writes the lines, cut at `width`, if there is one.
    pub(crate) fn write(&self, out: &mut impl Write, width: Option<usize>) -> io::Result<()> {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(out, "{}", cut(line.trim_end(), width))?;
        }
        Ok(())
    }

    fn widths(&self) -> Vec<usize> {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let longest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        (0..count).map(longest).collect()
    }
}

/// How many characters fit a line of standard output, if it is a terminal.
pub(crate) fn terminal_width() -> Option<usize> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&out).ok()?;
    Some(usize::from(size.ws_col)).filter(|&columns| columns > 0)
}

fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            let kept = line.chars().take(width.saturating_sub(1));
            kept.chain(['…']).collect()
        }
        Some(_) | None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let table = table_of(&[["a", "regular", "/x"], ["longer", "", "/a/very/long/way"]]);

        assert_eq!(
            written(&table, None),
            "NAME    KIND     TARGET\n\
             a       regular  /x\n\
             longer  -        /a/very/long/way\n"
        );
    }

    #[test]
    fn lines_are_cut_where_a_terminal_would_break_them() {
        let table = table_of(&[["a", "regular", "/a/very/long/way"]]);

        assert_eq!(written(&table, Some(18)), "NAME  KIND     TA…\na     regular  /a…\n");
    }

    fn table_of(rows: &[[&str; 3]]) -> Table {
        let mut table = Table::new(&["NAME", "KIND", "TARGET"]);
        for row in rows {
            table.push(row.map(str::to_owned));
        }
        table
    }

    fn written(table: &Table, width: Option<usize>) -> String {
        let mut out = Vec::new();
        table.write(&mut out, width).unwrap();
        String::from_utf8(out).unwrap()
    }
}
