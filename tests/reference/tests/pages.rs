//! The pages that are made of files are what these say.

use std::{fs, path::Path, process::Command};

use fdstash_reference::{Block, interface, keep, policy};

#[test]
fn the_reference_of_the_interface_is_what_its_file_says() {
    let text = source("proto/org.fdstash.Stash.varlink");

    let page = interface(&text);

    // Nothing that is declared is left out.
    let lines = page.blocks.iter().filter_map(|block| match block {
        Block::Literal(lines) => Some(lines),
        Block::Heading(_) | Block::Subheading(_) | Block::Text(_) | Block::Term(..) => None,
    });
    let shown: Vec<&String> = lines.flatten().collect();
    let (_, declared) = text.split_once("\ninterface org.fdstash.Stash\n").unwrap();
    for line in declared.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        assert!(shown.iter().any(|shown| *shown == line), "{line}");
    }
    keep("interface", &[page], |name| name.ends_with(".7"));
}

#[test]
fn the_reference_of_the_policy_is_what_its_example_says() {
    let page = policy(&source("systemd/policy.toml"));

    keep("policy", &[page], |name| name.ends_with(".5"));
}

#[test]
fn every_manual_page_is_such_as_man_shows_without_complaint() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man");
    let pages = fs::read_dir(folder).unwrap().map(|page| page.unwrap().path());
    let checked = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(pages).output();

    let Ok(checked) = checked else { return println!("skipped: mandoc cannot be run here") };
    let said = String::from_utf8(checked.stdout).unwrap();
    // A date would change them with nothing else.
    let complaints = said.lines().filter(|line| !line.contains("missing date"));
    assert_eq!(complaints.collect::<Vec<_>>(), [""; 0]);
}

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    fs::read_to_string(path).expect("the source can be read")
}
