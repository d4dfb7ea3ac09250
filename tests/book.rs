//! The README and the book in `docs/`: every command in them is run, in order, by somebody who has nothing
//! but the page; what they say is written is compared with what is; and every link leads somewhere.
//!
//! A page has blocks of commands (`sh`) and of what those write (`text`: each line must come, in this
//! order; `...` stands for anything, a number for any number). All else is said by a comment before a
//! block, or for the whole page:
//!
//! | comment | what becomes of the block |
//! | --- | --- |
//! | `<!-- test: in the background -->` | its commands go on while the next block is run, as in a second terminal |
//! | `<!-- test: refused -->` | its one command must fail, as the page says |
//! | `<!-- test: in systemd -->` | it is run in a real systemd of the page's own, with fdstash installed and running, since it must not touch that of this machine; `refused in systemd` as above |
//! | `<!-- test: on a machine with COMMANDS -->` | these are run in that systemd, since the reader's machine has what they make |
//! | `<!-- test: to install -->` | it is run in a real systemd where only the source is, since it installs |
//! | `<!-- test: file PATH -->` | it is written to this file; below the folder in which the page's commands are run, or, from `/` on, in that systemd |
//! | `<!-- test: with FILE of PAGE -->` | there is a file already, as another page has it |
//! | `<!-- test: where there is PROGRAM -->` | it is run where there is one that the machines of the tests need not have |
//! | `<!-- test: ran by FILE... -->` | other tests do what it says, since it takes more than a shell, or longer than a test may; that this is true is checked too |
//! | `<!-- test: all ran by FILE... -->` | so are all blocks of the page |
//! | `<!-- test: needs PROGRAM... -->` | the page is left out where one of them is not there; `make test` installs them |

use std::{collections::BTreeSet, ffi::OsStr, fs, path::Path, process::Command};

use kit::{Block, Page, Reader, Tried, below};

#[test]
fn the_commands_of_the_readme_work() {
    follow("README.md");
}

#[test]
fn the_commands_of_the_tutorial_work() {
    follow("docs/tutorial.md");
}

#[test]
fn the_commands_for_qemu_work() {
    follow("docs/qemu.md");
}

#[test]
fn the_commands_for_restarts_work() {
    follow("docs/zero-downtime.md");
}

#[test]
fn the_commands_for_moving_work() {
    follow("docs/moving.md");
}

#[test]
fn the_commands_for_operators_work() {
    follow("docs/operators.md");
}

#[test]
fn the_commands_for_servers_that_crash_work() {
    follow("docs/recovery.md");
}

#[test]
fn the_commands_for_logs_work() {
    follow("docs/logs.md");
}

#[test]
fn the_commands_for_rust_work() {
    follow("docs/rust.md");
}

#[test]
fn the_commands_for_containers_work() {
    follow("docs/containers.md");
}

#[test]
fn the_commands_for_a_policy_work() {
    follow("docs/policy.md");
}

#[test]
fn the_commands_for_installing_it_work() {
    follow("docs/install.md");
}

#[test]
fn every_page_is_followed_that_has_commands() {
    let here = fs::read_to_string(below("tests/book.rs")).unwrap();
    for page in pages() {
        let is_run = |block: &Block| !matches!(block.tried, Tried::RanBy(_) | Tried::Said);
        let is_followed = here.contains(&format!("follow(\"{}\")", page.path));
        assert_eq!(is_followed, page.blocks.iter().any(is_run), "{}", page.path);
    }
}

#[test]
fn every_block_is_tried_and_what_is_said_of_it_is_true() {
    for page in pages() {
        for block in &page.blocks {
            let is_commands = block.language == "sh";
            match &block.tried {
                Tried::Untold => panic!("{}: nothing says how it is tried", block.place),
                Tried::RanBy(files) => check_ran_by(&page, block, files),
                Tried::File(_) => assert!(!is_commands, "{}: these are commands", block.place),
                Tried::Said => assert_eq!(block.language, "text", "{}", block.place),
                Tried::Shell
                | Tried::Where(_)
                | Tried::Refused
                | Tried::Background
                | Tried::InSystemd
                | Tried::RefusedInSystemd
                | Tried::ToInstall => assert!(is_commands, "{}: no commands", block.place),
            }
        }
    }
}

#[test]
fn make_test_installs_what_the_pages_need() {
    let makefile = fs::read_to_string(below("Makefile")).unwrap();
    let test = makefile.split("\ntest:").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
    let installed: BTreeSet<&str> = test.split_whitespace().collect();

    for page in pages() {
        for program in page.needs {
            let is_seen_to = program == "root"
                || program.starts_with("cargo")
                || installed.contains(program.as_str());
            assert!(is_seen_to, "{} needs {program}, which make test does not install", page.path);
        }
    }
}

#[test]
fn every_page_of_the_book_is_in_its_summary() {
    let summary = fs::read_to_string(below("docs/SUMMARY.md")).unwrap();

    for page in pages() {
        let Some(name) = page.path.strip_prefix("docs/") else { continue };
        let is_there = name == "SUMMARY.md" || summary.contains(&format!("({name})"));
        assert!(is_there, "docs/SUMMARY.md has no {name}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(below(&page.path)).unwrap();
        let folder = Path::new(&page.path).parent().unwrap();
        for target in links(&text) {
            if target.contains("://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { Path::new(&page.path) } else { &folder.join(path) };
            let there = below(path.to_str().unwrap());
            assert!(there.exists(), "{} links to {target}, which is not there", page.path);
            let is_installed = path.starts_with("docs") || path.components().count() == 1;
            assert!(is_installed, "{} links to {target}, which is not installed", page.path);
            if !anchor.is_empty() && path.extension().is_some_and(|it| it == "md") {
                let anchors = anchors(&fs::read_to_string(there).unwrap());
                assert!(anchors.contains(anchor), "{} links to {target}: {anchors:?}", page.path);
            }
        }
    }
}

/// Does all that a page says.
#[track_caller]
fn follow(path: &str) {
    let page = Page::read(path);
    let Some(mut reader) = Reader::of(&page) else { return };
    for block in &page.blocks {
        reader.does(block);
    }
    reader.ends();
}

/// Every page that the source has.
fn pages() -> Vec<Page> {
    let mut paths: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"].map(str::to_owned).into();
    paths.push("python/README.md".to_owned());
    let mut folders = vec!["docs".to_owned()];
    while let Some(folder) = folders.pop() {
        for file in fs::read_dir(below(&folder)).expect("a folder").flatten() {
            let path = format!("{folder}/{}", file.file_name().to_string_lossy());
            if file.path().is_dir() {
                folders.push(path);
            } else if path.ends_with(".md") {
                paths.push(path);
            }
        }
    }
    paths.iter().map(|path| Page::read(path)).collect()
}

/// Sees that files do what a block says: one reads the block out of the page; or each of its lines stands
/// in one, or is a target of the Makefile which runs what one of them runs.
fn check_ran_by(page: &Page, block: &Block, files: &[String]) {
    let texts: Vec<String> = files
        .iter()
        .map(|file| {
            fs::read_to_string(below(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
        })
        .collect();
    // The page itself, where this is a link to it.
    let page = fs::canonicalize(below(&page.path)).expect("a page is there");
    let name = page.file_name().and_then(OsStr::to_str).expect("a page has a name");
    let fence = [format!("```{}", block.language), format!("\"{}\"", block.language)];
    let reads_it =
        |text: &String| text.contains(name) && fence.iter().any(|fence| text.contains(fence));
    // What a demonstration writes, its test looks at.
    if block.language == "text" || texts.iter().any(reads_it) {
        return;
    }
    for line in block.text.lines() {
        let line = line.split("  #").next().unwrap_or_default();
        let target = line.trim().strip_prefix("make ").and_then(|rest| rest.split(' ').next());
        let does_it = |text: &String| {
            squeeze(text).contains(&squeeze(line))
                || target.is_some_and(|target| runs_as_make_does(text, target))
        };
        let is_done = texts.iter().any(does_it);
        assert!(is_done, "{}: {files:?} do not do this: {line}", block.place);
    }
}

/// Whether a test runs the program that a target of the Makefile does.
fn runs_as_make_does(test: &str, target: &str) -> bool {
    // What make says to other makes is not for this one.
    let mut make = Command::new("make");
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let told =
        make.args(["--dry-run", target]).current_dir(below("")).output().expect("make can be run");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let mut words = told.split_whitespace();
    let example = words.find_map(|word| word.split_once("/examples/"));
    example.is_some_and(|(_, program)| test.contains(&format!("\"examples/{program}\"")))
}

/// A text without what stands between its words.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect()
}

/// Where the links of a page lead, but for those in its blocks.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    let targets = prose.flat_map(|text| text.split("](").skip(1));
    targets.filter_map(|rest| rest.split([')', ' ']).next()).collect()
}

/// The anchors of a page's headings, as forges and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.split("```").step_by(2).flat_map(str::lines);
    let headings = headings.filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let line = line.trim_start_matches('#').trim().to_lowercase();
            let kept = line.chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it));
            kept.map(|it| if it == ' ' { '-' } else { it }).collect()
        })
        .collect()
}
