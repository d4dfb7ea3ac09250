//! Aligned columns for people.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

/// Of the last column so much is shown at least, where others can be left out for it.
const LAST: usize = 24;

/// The columns' names and the rows below them.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// Which columns can be left out where the lines are too long, the first of them first.
    dispensable: Vec<String>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        let rows = vec![header.iter().map(|&name| name.to_owned()).collect()];
        Self { rows, dispensable: Vec::new() }
    }

    /// Adds a row with a cell for each column; an empty one shows as `-`.
    pub(crate) fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Leaves these columns out, the first of them first, where the lines are too long for the terminal.
    pub(crate) fn may_leave_out(&mut self, columns: &[&str]) {
        self.dispensable = columns.iter().map(|&name| name.to_owned()).collect();
    }

    /// Writes the lines; where there is a width, that of a terminal, they are cut there, and the names of
    /// the columns stand out.
    pub(crate) fn write(&self, out: &mut impl Write, width: Option<usize>) -> io::Result<()> {
        self.write_in(out, width, width.is_some() && may_colour())
    }

    fn write_in(
        &self,
        out: &mut impl Write,
        width: Option<usize>,
        is_bold: bool,
    ) -> io::Result<()> {
        let columns = self.columns(width);
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, longest) in &columns {
                let cell = row.get(*column).map_or("", String::as_str);
                line.push_str(&format!("{cell:<longest$}  "));
            }
            let line = cut(line.trim_end(), width);
            if is_bold && number == 0 {
                writeln!(out, "\x1b[1m{line}\x1b[0m")?;
            } else {
                writeln!(out, "{line}")?;
            }
        }
        Ok(())
    }

    /// The columns that are shown, and how wide each is.
    fn columns(&self, width: Option<usize>) -> Vec<(usize, usize)> {
        let mut columns: Vec<_> = self.widths().into_iter().enumerate().collect();
        let Some(width) = width else { return columns };
        let length = |columns: &[(usize, usize)]| {
            let last = columns.last().map_or(0, |(_, longest)| (*longest).min(LAST));
            let others = columns.iter().rev().skip(1).map(|(_, longest)| longest + 2);
            others.sum::<usize>() + last
        };
        let title = |column: usize| self.rows.first().and_then(|header| header.get(column));
        for name in &self.dispensable {
            if length(&columns) > width {
                columns.retain(|(column, _)| title(*column) != Some(name));
            }
        }
        columns
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

/// Whether a terminal may be sent colours: <https://no-color.org>, and what a terminal says of itself.
pub(crate) fn may_colour() -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && env::var_os("TERM").is_some_and(|term| term != "dumb")
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

    #[test]
    fn what_can_be_done_without_makes_room_where_lines_are_too_long() {
        let mut table = table_of(&[["a", "regular", "/a/very/long/way"]]);
        table.may_leave_out(&["KIND"]);

        assert_eq!(written(&table, Some(22)), "NAME  TARGET\na     /a/very/long/way\n");
        assert!(written(&table, Some(40)).contains("regular"));
        assert!(written(&table, None).contains("regular"));
    }

    #[test]
    fn only_a_header_stands_out() {
        let mut out = Vec::new();
        table_of(&[["a", "b", "c"]]).write_in(&mut out, Some(80), true).unwrap();

        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "\x1b[1mNAME  KIND  TARGET\x1b[0m\na     b     c\n");
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
        table.write_in(&mut out, width, false).unwrap();
        String::from_utf8(out).unwrap()
    }
}
