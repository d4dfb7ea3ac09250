//! The page of the interface, out of its file: its comments, and its declarations as they are.

use crate::{Block, Page};

/// The page of an interface whose file's text this is.
///
/// # Panics
///
/// If it has no line that names the interface.
#[must_use]
pub fn interface(text: &str) -> Page {
    let (head, body) = text.split_once("\ninterface ").expect("the file names its interface");
    let (name, body) = body.split_once('\n').expect("declarations follow");
    let mut blocks = vec![Block::Heading("Description".into())];
    blocks.extend(paragraphs(&head.lines().collect::<Vec<_>>()));
    let all = declarations(body);
    for (title, word) in [("Methods", "method "), ("Types", "type "), ("Errors", "error ")] {
        blocks.push(Block::Heading(title.into()));
        for declared in all.iter().filter(|declared| declared.lines[0].starts_with(word)) {
            blocks.push(Block::Subheading(declared.names(word)));
            blocks.extend(paragraphs(&declared.comment));
            blocks
                .push(Block::Literal(declared.lines.iter().map(|&line| line.to_owned()).collect()));
        }
    }
    blocks.extend(around(name));
    let about = "the Varlink interface of fdstashd".to_owned();
    Page { name: name.trim().to_owned(), section: 7, about, blocks }
}

/// What is declared under one comment.
struct Declared<'a> {
    comment: Vec<&'a str>,
    lines: Vec<&'a str>,
}

impl Declared<'_> {
    fn names(&self, word: &str) -> String {
        let names = self.lines.iter().filter_map(|line| line.strip_prefix(word));
        let names = names.filter_map(|rest| rest.split([' ', '(']).next());
        names.collect::<Vec<_>>().join(", ")
    }
}

fn declarations(body: &str) -> Vec<Declared<'_>> {
    let mut all: Vec<Declared<'_>> = Vec::new();
    let mut is_apart = true;
    for line in body.lines() {
        let is_comment = line.starts_with('#');
        // A comment between declarations that stand together begins the next one, as do errors each.
        is_apart |= is_comment && all.last().is_some_and(|last| !last.lines.is_empty());
        is_apart |=
            line.starts_with("error ") && all.last().is_some_and(|last| !last.lines.is_empty());
        if line.is_empty() {
            is_apart = true;
            continue;
        }
        if is_apart {
            all.push(Declared { comment: Vec::new(), lines: Vec::new() });
            is_apart = false;
        }
        if let Some(last) = all.last_mut() {
            if is_comment { last.comment.push(line) } else { last.lines.push(line) }
        }
    }
    all.retain(|declared| !declared.lines.is_empty());
    all
}

/// Comment lines as paragraphs.
pub(crate) fn paragraphs(comment: &[&str]) -> Vec<Block> {
    let lines = comment.iter().map(|line| line.trim_start_matches('#').trim());
    let text = lines.collect::<Vec<_>>().join("\n");
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty());
    paragraphs.map(|paragraph| Block::Text(paragraph.replace('\n', " "))).collect()
}

/// What the file does not say: where the interface is served.
fn around(name: &str) -> Vec<Block> {
    let term = |path: String, what: &str| Block::Term(path, vec![what.to_owned()]);
    let literal = |line: String| Block::Literal(vec![line]);
    vec![
        Block::Heading("Files".into()),
        term(format!("/run/fdstash/{name}"), "The socket of the system's daemon."),
        term(format!("$XDG_RUNTIME_DIR/fdstash/{name}"), "That of a user's own."),
        Block::Heading("Examples".into()),
        literal(format!("varlinkctl introspect /run/fdstash/{name} {name}")),
        literal(format!("varlinkctl call --more /run/fdstash/{name} {name}.List '{{}}'")),
        Block::Heading("See also".into()),
        Block::Text("fdstash(1), fdstash-policy(5), fdstashd(8), varlinkctl(1)".into()),
    ]
}
