//! Pages of a command, out of what clap knows of it.

use clap::{Arg, Command};

use crate::{Block, Page};

/// The page of a command, and behind it those of its subcommands that are shown, as theirs of the
/// programs that `see_also` names.
#[must_use]
pub fn command(mut root: Command, section: u8, see_also: &[&str]) -> Vec<Page> {
    root.build();
    let mut pages = Vec::new();
    add(&root, None, section, see_also, &mut pages);
    pages
}

fn add(
    command: &Command,
    above: Option<&str>,
    section: u8,
    see_also: &[&str],
    pages: &mut Vec<Page>,
) {
    let name = page_name(command);
    let (prose, sections) = split(&text(command.get_after_help()));
    let mut blocks = vec![Block::Heading("Synopsis".into()), usage(command)];
    blocks.push(Block::Heading("Description".into()));
    let about = text(command.get_long_about().or(command.get_about()));
    blocks.extend(split(&about).0);
    blocks.extend(prose);
    options(command, &mut blocks);
    let is_shown = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    let shown = || command.get_subcommands().filter(is_shown);
    if shown().next().is_some() {
        blocks.push(Block::Heading("Commands".into()));
        for verb in shown() {
            let term = format!("{}({section})", page_name(verb));
            blocks.push(Block::Term(term, vec![text(verb.get_about())]));
        }
    }
    blocks.extend(sections);
    blocks.push(Block::Heading("See also".into()));
    let own = format!("{name}({section})");
    let mut others: Vec<_> = above.map(|above| format!("{above}({section})")).into_iter().collect();
    for &other in see_also {
        if other != own && !others.iter().any(|known| known == other) {
            others.push(other.to_owned());
        }
    }
    blocks.push(Block::Text(others.join(", ")));
    pages.push(Page { name: name.clone(), section, about: text(command.get_about()), blocks });
    for verb in shown() {
        add(verb, Some(&name), section, see_also, pages);
    }
}

fn page_name(command: &Command) -> String {
    command.get_display_name().unwrap_or(command.get_name()).to_owned()
}

fn usage(command: &Command) -> Block {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").lines();
    Block::Literal(usage.map(|line| line.trim().to_owned()).collect())
}

fn options(command: &Command, blocks: &mut Vec<Block>) {
    let shown = || command.get_arguments().filter(|arg| !arg.is_hide_set());
    let (plain, headed): (Vec<_>, Vec<_>) =
        shown().partition(|arg| arg.get_help_heading().is_none());
    for (title, args) in [
        ("Arguments", plain.iter().filter(|arg| arg.is_positional()).collect::<Vec<_>>()),
        ("Options", plain.iter().filter(|arg| !arg.is_positional()).collect()),
    ] {
        if !args.is_empty() {
            blocks.push(Block::Heading(title.into()));
            blocks.extend(args.iter().map(|arg| option(arg)));
        }
    }
    let mut title = None;
    for arg in headed {
        if title != arg.get_help_heading() {
            title = arg.get_help_heading();
            blocks.extend(title.map(|title| Block::Heading(title.into())));
        }
        blocks.push(option(arg));
    }
}

fn option(arg: &Arg) -> Block {
    // clap writes it as in a usage line, with its brackets.
    let words = arg.to_string();
    let term = match arg.get_short().filter(|_| arg.get_long().is_some()) {
        Some(short) => format!("-{short}, {words}"),
        None => words,
    };
    let mut help = text(arg.get_long_help().or(arg.get_help()));
    let has_values = arg.get_action().takes_values();
    if has_values && !arg.is_hide_default_value_set() && !arg.get_default_values().is_empty() {
        let values = arg.get_default_values().iter().map(|value| value.to_string_lossy());
        help.push_str(&format!(" [default: {}]", values.collect::<Vec<_>>().join(", ")));
    }
    let possible = arg.get_possible_values();
    if has_values && !possible.is_empty() && !arg.is_hide_possible_values_set() {
        let values = possible.iter().filter(|value| !value.is_hide_set());
        let values = values.map(|value| value.get_name().to_owned()).collect::<Vec<_>>();
        help.push_str(&format!(" [possible values: {}]", values.join(", ")));
    }
    Block::Term(term, help.split("\n\n").map(joined).collect())
}

/// Without the colours of a terminal.
fn text(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

/// The paragraphs of a help text, and its sections: those begin with their title and a colon. Indented
/// lines are shown as they are.
fn split(text: &str) -> (Vec<Block>, Vec<Block>) {
    let (mut prose, mut sections) = (Vec::new(), Vec::new());
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        match title(paragraph) {
            Some((title, rest)) => {
                sections.push(Block::Heading(title.to_owned()));
                sections.extend(paragraph_blocks(rest));
            }
            // What is indented goes on with the section before it.
            None if paragraph.starts_with(' ') && !sections.is_empty() => {
                sections.extend(paragraph_blocks(paragraph));
            }
            None => prose.extend(paragraph_blocks(paragraph)),
        }
    }
    (prose, sections)
}

fn title(paragraph: &str) -> Option<(&str, &str)> {
    let (title, rest) = paragraph.split_once(':')?;
    let is_title = title.starts_with(|first: char| first.is_ascii_uppercase())
        && title.len() <= 20
        && title.chars().all(|letter| letter.is_ascii_alphabetic() || letter == ' ')
        && rest.starts_with([' ', '\n']);
    is_title.then_some((title, rest.trim_start_matches(['\n'])))
}

fn paragraph_blocks(paragraph: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (number, line) in paragraph.lines().enumerate() {
        // Of a title's own line only the one blank behind the colon is left.
        let is_literal = line.starts_with("  ");
        let line = line.trim_end();
        match (blocks.last_mut(), is_literal) {
            (Some(Block::Literal(lines)), true) => lines.push(line.to_owned()),
            (Some(Block::Text(text)), false) => {
                text.push(' ');
                text.push_str(line.trim_start());
            }
            (_, true) => blocks.push(Block::Literal(vec![line.to_owned()])),
            (_, false) if number == 0 && line.is_empty() => {}
            (_, false) => blocks.push(Block::Text(line.trim_start().to_owned())),
        }
    }
    for block in &mut blocks {
        let Block::Literal(lines) = block else { continue };
        let indents = lines.iter().map(|line| line.len() - line.trim_start().len());
        let least = indents.min().unwrap_or_default();
        *lines =
            lines.iter().map(|line| line.get(least..).unwrap_or_default().to_owned()).collect();
    }
    blocks
}

fn joined(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_help_text_comes_to_prose_and_sections() {
        let text =
            "Examples:\n  # one\n  a b\n    c\n\nIt does\nthis:\n  x\n\nExit codes: 0 done,\n1 not";

        let (prose, sections) = split(text);

        let literal =
            |lines: &[&str]| Block::Literal(lines.iter().map(ToString::to_string).collect());
        assert_eq!(prose, [Block::Text("It does this:".into()), literal(&["x"])]);
        assert_eq!(
            sections,
            [
                Block::Heading("Examples".into()),
                literal(&["# one", "a b", "  c"]),
                Block::Heading("Exit codes".into()),
                Block::Text("0 done, 1 not".into()),
            ]
        );
    }

    #[test]
    fn a_command_has_a_page_and_each_of_its_verbs_one() {
        let verb = Command::new("do")
            .about("Do it")
            .arg(Arg::new("NAME").required(true))
            .arg(Arg::new("how").long("how").short('w').help("How").value_parser(["well", "so"]));
        let hidden = Command::new("secret").hide(true);

        let pages = command(
            Command::new("x").about("Does").subcommand(verb).subcommand(hidden),
            1,
            &["x(1)", "y(8)"],
        );

        assert_eq!(pages.iter().map(Page::file_name).collect::<Vec<_>>(), ["x.1", "x-do.1"]);
        let verb = &pages[1].blocks;
        assert!(verb.contains(&Block::Literal(vec!["x do [OPTIONS] <NAME>".into()])), "{verb:?}");
        let how = "How [possible values: well, so]".to_owned();
        assert!(verb.contains(&Block::Term("-w, --how <how>".into(), vec![how])), "{verb:?}");
        assert_eq!(verb.last(), Some(&Block::Text("x(1), y(8)".into())));
    }
}
