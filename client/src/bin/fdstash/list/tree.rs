//! Names with a `/` in them, as a tree.

use std::collections::BTreeMap;

use fdstash::Entry;

use crate::words::quoted;

/// What stands below one part of a name.
#[derive(Default)]
struct Node<'a> {
    entry: Option<&'a Entry>,
    below: BTreeMap<&'a str, Node<'a>>,
}

/// Tells the lines of a tree, from top to bottom: what stands in the place of the name, and the entry,
/// if there is one of just that name. Parts that lead to one other alone stand on its line.
pub(super) fn tree<'a>(entries: &'a [Entry], mut line: impl FnMut(String, Option<&'a Entry>)) {
    let mut root = Node::default();
    for entry in entries {
        let parts = entry.name.as_str().split('/');
        let node = parts.fold(&mut root, |node, part| node.below.entry(part).or_default());
        node.entry = Some(entry);
    }
    for (part, node) in &root.below {
        lines(part, node, "", "", &mut line);
    }
}

/// `before` stands before the node's own line, `indent` before those below it.
fn lines<'a>(
    part: &str,
    node: &Node<'a>,
    before: &str,
    indent: &str,
    line: &mut impl FnMut(String, Option<&'a Entry>),
) {
    let only = node.below.iter().next().filter(|_| node.below.len() == 1 && node.entry.is_none());
    if let Some((next, below)) = only {
        return lines(&format!("{part}/{next}"), below, before, indent, line);
    }
    let folder = if node.entry.is_none() { "/" } else { "" };
    line(format!("{before}{}{folder}", quoted(part)), node.entry);
    let last = node.below.len();
    for (number, (next, below)) in node.below.iter().enumerate() {
        let (branch, rest) =
            if number + 1 == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines(next, below, &format!("{indent}{branch}"), &format!("{indent}{rest}"), line);
    }
}
