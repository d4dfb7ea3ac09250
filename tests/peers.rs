//! The measurement beside others (`examples/peers`), in one short round: that it works, and not how fast
//! anything is.

use std::{fs, process::Command};

use kit::program;

/// The rows of its table.
const ROWS: [&str; 21] = [
    "give, one descriptor, one connection",
    "take",
    "cycle: give, then take",
    "cycle with 300 held, against one",
    "cycle beside 200 connections that say nothing",
    "16 gives sent ahead, each",
    "16 takes sent ahead, each",
    "a connection for each give",
    "253 descriptors in",
    "253 descriptors out",
    "cycles of 8 client processes, in a second",
    "memory for each entry that is held",
    "the command `give`, whole process",
    "the command `take`, whole process",
    "take that is final when it has arrived",
    "cycle with it",
    "reopen of a file",
    "a list of 300",
    "300 watchers told of a change",
    "back after SIGKILL, with 300",
    "upgraded, with 300",
];

#[test]
fn a_measurement_has_a_figure_of_ours_in_every_row() {
    let table = measured(&[]);

    // What the contender cannot do yet.
    for (what, ours) in &table {
        // It takes root to look into a daemon's processes.
        let may_lack = what.starts_with("memory") && !kit::is_root();
        let is_figure = ours.chars().any(|letter| letter.is_ascii_digit());
        assert!(is_figure || (may_lack && ours == "—"), "{what}: {ours:?}");
    }
}

#[test]
fn what_a_contender_cannot_do_is_left_out_of_its_column() {
    let cannot = "echo ready $$ $$; while read line; do echo unsupported; done";

    let table = measured(&["--contender", cannot]);

    let column = |row: &str| {
        let found = table.iter().find(|(what, _)| what.starts_with(row));
        found.map(|(_, ours)| ours.as_str())
    };
    for row in ["give,", "take", "cycle beside", "253 descriptors in", "cycles of 8"] {
        assert_eq!(column(row), Some("—"), "{row}");
    }
    // The others are not the contender's.
    assert!(column("the command `give`").is_some_and(|ours| ours.contains(" ms")));
}

/// The rows of the table that the measurement writes into a file, and our column.
fn measured(more: &[&str]) -> Vec<(String, String)> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("README.md");
    let mark = "<!-- figures, made by `make peers TABLE=README.md` -->";
    let text = format!("# before\n{mark}\n| old |\n<!-- end of figures -->\nafter\n");
    fs::write(&file, text).expect("a file can be written");

    // Who takes part and does not answer must not hold up the tests.
    let mut command = Command::new("timeout");
    command.arg("120").arg(program("examples/peers"));
    command.args(["--rounds", "1", "--slice", "1", "--held", "300", "--table"]).arg(&file);
    let output = command.args(more).output().expect("it can be run");

    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}{complaints}");
    let written = fs::read_to_string(&file).expect("it is still there");
    let table = written.strip_prefix(&format!("# before\n{mark}\n\n"));
    let table = table.and_then(|it| it.strip_suffix("\n<!-- end of figures -->\nafter\n"));
    let table = table.expect("it stands between the marks, and nothing else is changed");
    assert!(said.contains(table), "it prints what it writes: {said}");
    // A date, an empty line, the head, and the line below it.
    let rows: Vec<_> = table.lines().skip(4).map(|line| row(line).expect("a row")).collect();
    assert_eq!(rows.len(), ROWS.len(), "{table}");
    for ((what, _), expected) in rows.iter().zip(ROWS) {
        assert!(what.starts_with(expected), "{what} is not {expected}");
    }
    rows
}

/// What a row is about, and its last cell.
fn row(line: &str) -> Option<(String, String)> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
    Some((cells.next()?.to_owned(), cells.last()?.to_owned()))
}
