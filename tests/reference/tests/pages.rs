//! The pages that are made of files are what these say.

use std::{fs, path::Path};

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

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    fs::read_to_string(path).unwrap()
}
