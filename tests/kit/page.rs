//! A page of the documents: its blocks, and how each is tried, as a comment before it says that no
//! reader sees. `tests/book.rs` says what the words of such a comment are.

use std::fs;

use crate::below;

/// A page.
#[derive(Debug)]
pub struct Page {
    /// Where it stands, below the source's folder.
    pub path: String,
    /// The programs without which it cannot be tried, or `root`.
    pub needs: Vec<String>,
    /// Its blocks, in order.
    pub blocks: Vec<Block>,
}

/// What stands between two fences.
#[derive(Debug)]
pub struct Block {
    /// Where it begins, with its page.
    pub place: String,
    /// What stands behind the fence.
    pub language: String,
    /// How it is tried.
    pub tried: Tried,
    /// Its lines.
    pub text: String,
}

/// How a block is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// By the page's shell, which has run the blocks before it.
    Shell,
    /// By that shell, but only where there is this program.
    Where(String),
    /// By that shell; its one command must fail.
    Refused,
    /// By a shell of its own that goes on while the next blocks are run.
    Background,
    /// In a systemd with fdstash installed and running.
    InSystemd,
    /// There; its one command must fail.
    RefusedInSystemd,
    /// In the source's folder, in a systemd where nothing is installed yet.
    ToInstall,
    /// Written to this file; where the path is absolute, of that systemd.
    File(String),
    /// It is what the block before it writes.
    Said,
    /// These files of the source do what it says.
    RanBy(Vec<String>),
    /// Nothing says so.
    Untold,
}

impl Page {
    /// Reads one.
    ///
    /// # Panics
    ///
    /// If it is not there, or a comment in it says what nobody understands.
    #[must_use]
    pub fn read(path: &str) -> Self {
        let text = fs::read_to_string(below(path)).expect("a page is there");
        let mut page = Self { path: path.to_owned(), needs: Vec::new(), blocks: Vec::new() };
        let mut told = Told::default();
        let mut lines = text.lines().enumerate();
        while let Some((at, line)) = lines.next() {
            let place = format!("{path}:{}", at + 1);
            if let Some(language) = line.trim_start().strip_prefix("```") {
                assert!(line.starts_with("```"), "{place}: an indented block is not tried");
                let text = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
                let text = text.map(|line| format!("{line}\n")).collect();
                let tried = told.next.take().or_else(|| told.all.clone());
                let tried = tried.unwrap_or_else(|| by_language(language));
                page.blocks.push(Block { place, language: language.to_owned(), tried, text });
                continue;
            }
            assert!(told.next.is_none(), "{place}: here is no block");
            if let Some(comment) = line.strip_prefix("<!-- test: ") {
                let comment = comment.strip_suffix(" -->").expect("a comment ends with its line");
                page.heed(comment, place, &mut told);
            }
        }
        page
    }

    /// Sees to what a comment says.
    fn heed(&mut self, comment: &str, place: String, told: &mut Told) {
        if let Some(needs) = comment.strip_prefix("needs ") {
            self.needs = needs.split(' ').map(str::to_owned).collect();
        } else if let Some(commands) = comment.strip_prefix("on a machine with ") {
            let (language, text) = ("sh".to_owned(), format!("{commands}\n"));
            self.blocks.push(Block { place, language, tried: Tried::InSystemd, text });
        } else if let Some(of) = comment.strip_prefix("with ") {
            let (file, other) = of.split_once(" of ").expect("a file is of a page");
            let tried = Tried::File(file.to_owned());
            let found = Self::read(other).blocks.into_iter().find(|block| block.tried == tried);
            self.blocks.push(found.unwrap_or_else(|| panic!("{place}: {other} has no {file}")));
        } else if let Some(comment) = comment.strip_prefix("all ") {
            told.all = Some(tried(comment, &place));
        } else {
            told.next = Some(tried(comment, &place));
        }
    }
}

/// What comments have said of blocks that follow.
#[derive(Default)]
struct Told {
    next: Option<Tried>,
    all: Option<Tried>,
}

fn by_language(language: &str) -> Tried {
    match language {
        "sh" => Tried::Shell,
        "text" => Tried::Said,
        _ => Tried::Untold,
    }
}

fn tried(comment: &str, place: &str) -> Tried {
    let words: Vec<&str> = comment.split(' ').collect();
    match words[..] {
        ["where", "there", "is", program] => Tried::Where(program.to_owned()),
        ["refused"] => Tried::Refused,
        ["refused", "in", "systemd"] => Tried::RefusedInSystemd,
        ["in", "the", "background"] => Tried::Background,
        ["in", "systemd"] => Tried::InSystemd,
        ["to", "install"] => Tried::ToInstall,
        ["file", path] => Tried::File(path.to_owned()),
        ["ran", "by", ref files @ ..] => {
            Tried::RanBy(files.iter().map(|&file| file.to_owned()).collect())
        }
        _ => panic!("{place}: nobody knows what {comment:?} means"),
    }
}
