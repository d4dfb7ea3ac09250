//! A page, and how it is written: as a manual page, and as Markdown.

use std::fmt::Write;

/// A page of the manual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// What it is called: `fdstash-give`.
    pub name: String,
    /// The section of the manual: 1, 5, 7 or 8.
    pub section: u8,
    /// What it is about, in one line.
    pub about: String,
    /// What stands on it.
    pub blocks: Vec<Block>,
}

/// A part of a page. Text may have `words` between back-ticks, to be typed as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// A section's title.
    Heading(String),
    /// A title within a section.
    Subheading(String),
    /// A paragraph.
    Text(String),
    /// What an option or a word means.
    Term(String, Vec<String>),
    /// Lines that are shown as they are.
    Literal(Vec<String>),
}

impl Page {
    /// The file of the manual page.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.name, self.section)
    }

    /// As a manual page, in the macros of man(7).
    #[must_use]
    pub fn roff(&self) -> String {
        let (name, about) = (self.name.replace('-', "\\-"), escaped(&self.about));
        let title = self.name.to_uppercase();
        let mut out = format!(
            ".\\\" Made by `make reference`; not to be edited.\n\
             .TH \"{title}\" \"{}\" \"\" \"fdstash\" \"fdstash\"\n.nh\n.SH NAME\n{name} \\- {about}\n",
            self.section
        );
        let mut is_below_title = false;
        for block in &self.blocks {
            // Below a title a paragraph begins anyway.
            let begin = if is_below_title { "" } else { ".PP\n" };
            is_below_title = matches!(block, Block::Heading(_) | Block::Subheading(_));
            // Writing to a String does not fail.
            let _ = match block {
                Block::Heading(title) => {
                    writeln!(out, ".SH \"{}\"", escaped(&title.to_uppercase()))
                }
                Block::Subheading(title) => writeln!(out, ".SS \"{}\"", escaped(title)),
                Block::Text(text) => writeln!(out, "{begin}{}", roff_text(text)),
                Block::Term(term, body) => {
                    let body = body.iter().map(|text| roff_text(text)).collect::<Vec<_>>();
                    writeln!(out, ".TP\n\\fB{}\\fR\n{}", escaped(term), body.join("\n.IP\n"))
                }
                Block::Literal(lines) => {
                    let lines = lines.iter().map(|line| at_start(escaped(line)));
                    let lines = lines.collect::<Vec<_>>().join("\n");
                    writeln!(out, "{begin}.RS 4\n.nf\n{lines}\n.fi\n.RE")
                }
            };
        }
        out
    }

    /// As a part of a book.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "<!-- Made by `make reference`; not to be edited. -->\n\n# {}({})\n\n{}\n",
            self.name,
            self.section,
            markdown_text(&self.about)
        );
        for block in &self.blocks {
            let _ = match block {
                Block::Heading(title) => writeln!(out, "\n## {title}"),
                Block::Subheading(title) => writeln!(out, "\n### {title}"),
                Block::Text(text) => writeln!(out, "\n{}", markdown_text(text)),
                Block::Term(term, body) => {
                    let body = body.iter().map(|text| markdown_text(text)).collect::<Vec<_>>();
                    writeln!(out, "\n- `{term}`  \n  {}", body.join("\n\n  "))
                }
                Block::Literal(lines) => writeln!(out, "\n```text\n{}\n```", lines.join("\n")),
            };
        }
        out
    }
}

/// What troff would take for its own language, as what it is. Quotes and hyphens are to be copied out
/// of a page and typed, so they stay ASCII.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '"' => out.push_str("\\(dq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            other => out.push(other),
        }
    }
    out
}

/// A line that begins as a request of troff's does is none.
fn at_start(line: String) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

fn roff_text(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(number, part)| match number % 2 {
        0 => escaped(part),
        _ => format!("\\fB{}\\fR", escaped(part)),
    });
    at_start(parts.collect())
}

fn markdown_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_code = false;
    for character in text.chars() {
        is_code ^= character == '`';
        if !is_code && matches!(character, '*' | '_' | '<' | '>' | '[' | ']' | '\\' | '#') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_markup_is_text_in_either_form() {
        let page = Page {
            name: "a-b".into(),
            section: 1,
            about: "Does 'it'".into(),
            blocks: vec![
                Block::Heading("Examples".into()),
                Block::Literal(vec![".begin 'a\\b' -x".into()]),
                Block::Text("'*' is <any>, say `--x '*'` or $HOME/~".into()),
                Block::Term("--x <Y>".into(), vec!["one".into(), "two".into()]),
            ],
        };

        let (roff, markdown) = (page.roff(), page.markdown());

        assert!(roff.contains("\n.SH NAME\na\\-b \\- Does \\(aqit\\(aq\n.SH \"EXAMPLES\"\n"));
        assert!(roff.contains("\n.nf\n\\&.begin \\(aqa\\eb\\(aq \\-x\n.fi\n"), "{roff}");
        assert!(roff.contains("say \\fB\\-\\-x \\(aq*\\(aq\\fR or $HOME/\\(ti\n"), "{roff}");
        assert!(roff.ends_with(".TP\n\\fB\\-\\-x <Y>\\fR\none\n.IP\ntwo\n"), "{roff}");
        assert!(markdown.contains("\n'\\*' is \\<any\\>, say `--x '*'` or"), "{markdown}");
        assert!(markdown.ends_with("\n- `--x <Y>`  \n  one\n\n  two\n"), "{markdown}");
    }
}
