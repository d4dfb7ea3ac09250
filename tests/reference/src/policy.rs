//! The page of the policy, out of the example that is installed, which tells of every word.

use crate::{Block, Page, interface::paragraphs};

/// The page of the policy whose example's text this is: comments, in which what is indented by more than
/// one blank is shown as it is, and rules that are commented out. A section is about the rule that it
/// ends with.
#[must_use]
pub fn policy(example: &str) -> Page {
    let mut blocks = vec![Block::Heading("Description".into())];
    let mut last = None;
    for section in example.split("\n\n") {
        let rule = section.lines().find_map(|line| line.strip_prefix("#[["));
        let rule = rule.and_then(|rest| rest.split("]]").next());
        if let Some(rule) = rule.filter(|&rule| last != Some(rule)) {
            blocks.push(Block::Heading(format!("[[{rule}]]")));
            last = Some(rule);
        }
        for paragraph in section.split("\n#\n") {
            blocks.extend(lines_of(paragraph));
        }
    }
    let term = |path: &str, what: &str| Block::Term(path.into(), vec![what.into()]);
    blocks.extend([
        Block::Heading("Files".into()),
        term("/etc/fdstash/policy.toml", "The policy of the system's daemon, if it is there."),
        term("/etc/fdstash/policy.d/*.toml", "What is added to it, in the order of the names."),
        Block::Heading("See also".into()),
        Block::Text("fdstash-policy-explain(1), fdstash(1), fdstashd(8)".into()),
    ]);
    let about = "who may do what to which entries of fdstashd, and how much".to_owned();
    Page { name: "fdstash-policy".into(), section: 5, about, blocks }
}

/// What kind a line of the example is of, and what of it is shown.
fn lines_of(paragraph: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in paragraph.lines() {
        let Some(words) = line.strip_prefix("# ").filter(|words| !words.starts_with(' ')) else {
            blocks.extend(paragraphs(&comment));
            comment.clear();
            let shown = line.trim_start_matches('#').strip_prefix("   ");
            let shown = shown.unwrap_or(line.trim_start_matches('#')).to_owned();
            match blocks.last_mut() {
                Some(Block::Literal(lines)) => lines.push(shown),
                Some(_) | None => blocks.push(Block::Literal(vec![shown])),
            }
            continue;
        };
        comment.push(words);
    }
    blocks.extend(paragraphs(&comment));
    blocks
}
