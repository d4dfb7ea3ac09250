//! What no compiler checks: the walls between the crates, the sizes of files, and that the documents
//! tell of what is there. The licences of what we use are deny.toml's.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn no_crate_depends_on_what_its_wall_keeps_out() {
    let walls = [
        ("proto", vec!["tokio", "tracing", "anyhow", "clap", "fdstash-stash"]),
        ("daemon/stash", vec!["tokio", "tracing", "anyhow", "rustix", "libc", "serde", "sendfd"]),
        ("daemon", vec!["nix", "sendfd", "serde_json"]),
        ("client", vec!["fdstashd", "fdstash-stash", "tracing"]),
        // Its licence fits what only makes something here.
        ("client/c", vec!["cbindgen"]),
    ];

    for (folder, kept_out) in walls {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        let dependencies = section(&manifest, "[dependencies]");
        for name in kept_out {
            let there = dependencies.iter().any(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
            });
            assert!(!there, "{folder} depends on {name}");
        }
    }
}

#[test]
fn the_stash_depends_on_the_wire_and_nothing_else() {
    let manifest = read(&root().join("daemon/stash/Cargo.toml"));

    assert_eq!(section(&manifest, "[dependencies]"), ["fdstash-proto.workspace = true"]);
}

#[test]
fn words_stand_only_in_the_files_that_may_have_them() {
    // The word, where to look, and the files that may have it.
    let rules: [(&str, &str, &[&str]); 11] = [
        ("rustix", "proto/src", &["socket.rs"]),
        ("sendfd", "proto/src", &["socket.rs"]),
        (
            "unsafe {",
            "daemon/src",
            &[
                "bundle.rs",
                "heart.rs",
                "inherited.rs",
                "mapped.rs",
                "own.rs",
                "peer.rs",
                "polled.rs",
                "process.rs",
                "spare.rs",
            ],
        ),
        ("unsafe {", "daemon/stash/src", &[]),
        ("unsafe {", "client/c/src", &["lib.rs"]),
        ("unsafe {", "client/src", &["kcmp.rs"]),
        (
            "libc::",
            "daemon/src",
            &[
                "bundle.rs",
                "calls.rs",
                "inspect.rs",
                "own.rs",
                "peer.rs",
                "process.rs",
                "sandbox.rs",
                "spare.rs",
            ],
        ),
        ("anyhow", "client/src/core.rs", &[]),
        // The wire is proto's; QEMU's, and what is not of the interface, has the command.
        (
            "serde_json",
            "client/src",
            &[
                "attach.rs",
                "detach.rs",
                "doctor.rs",
                "description.rs",
                "descriptor.rs",
                "foreign.rs",
                "nodes.rs",
                "plan.rs",
                "qmp.rs",
                "reopen.rs",
                "show.rs",
                "status.rs",
                "virsh.rs",
                "words.rs",
            ],
        ),
        // Locks of descriptions, and the database of users, which rustix has not.
        ("use nix", "client/src", &["policy.rs", "locks.rs", "names.rs"]),
        ("std::thread", "daemon/stash/src", &[]),
    ];

    for (word, place, allowed) in rules {
        for file in rust_files(&root().join(place)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let code = code_of(&read(&file));
            let may = allowed.contains(&name.as_str());
            assert!(may || !code.contains(word), "{} says {word:?}", file.display());
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_where_none_is_needed() {
    for file in ["proto/src/lib.rs", "daemon/stash/src/lib.rs", "client/src/lib.rs"] {
        assert!(read(&root().join(file)).contains("#![forbid(unsafe_code)]"), "{file}");
    }
    for file in ["daemon/src/main.rs", "client/src/bin/fdstash/main.rs"] {
        assert!(read(&root().join(file)).contains("#![deny(unsafe_code)]"), "{file}");
    }
}

#[test]
fn a_long_file_says_in_its_head_why_it_is_one_thing() {
    for file in all_source_files() {
        let text = read(&file);
        let lines = text.lines().count();
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(
            lines <= 400 || head.contains("one file"),
            "{} has {lines} lines, and its head does not say why it is one file",
            file.display()
        );
    }
}

#[test]
fn the_code_map_has_every_file() {
    let map = read(&root().join("ARCHITECTURE.md"));
    assert!(map.lines().count() < 200, "ARCHITECTURE.md has 200 lines or more");

    for folder in ["proto/src", "daemon/stash/src", "daemon/src", "client/c/src"] {
        for file in rust_files(&root().join(folder)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let known = name == "lib.rs" || map.contains(&format!("{name}`"));
            assert!(known, "ARCHITECTURE.md does not tell of {}", file.display());
        }
    }
}

#[test]
fn only_the_workspace_says_which_rust_is_needed() {
    let manifests =
        ["proto", "daemon", "daemon/stash", "client", "client/c", "tests", "tests/reference"];

    for folder in manifests {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        assert!(manifest.contains("rust-version.workspace = true"), "{folder}");
    }
}

#[test]
fn the_readme_names_commands_that_there_are() {
    let readme = read(&root().join("README.md"));
    let makefile = read(&root().join("Makefile"));

    for target in ["demo", "demo-qemu", "test", "install", "uninstall"] {
        assert!(readme.contains(&format!("make {target}")));
        assert!(makefile.contains(&format!("\n{target}:")));
    }
    for line in readme.lines().filter_map(|line| line.split("](").nth(1)) {
        let path = line.split(')').next().unwrap_or_default();
        let elsewhere = path.starts_with("http");
        assert!(elsewhere || root().join(path).exists(), "README.md points at {path}");
    }
}

#[test]
fn the_units_are_such_as_systemd_reads_without_complaint() {
    // What earlier ones do not know and leave out, which is what the units want of them.
    const NEW: [&str; 2] = ["notify-reload", "FileDescriptorStorePreserve"];
    for (manager, from) in [("--system", "systemd"), ("--user", "systemd/user")] {
        let folder = tempfile::tempdir().unwrap();
        let units = ["fdstashd.socket", "fdstashd.service"].map(|unit| folder.path().join(unit));
        for unit in &units {
            // There is no daemon in the place where the packages will put it.
            let name = unit.file_name().unwrap();
            let text =
                read(&root().join(from).join(name)).replace("/usr/bin/fdstashd", "/bin/true");
            fs::write(unit, text).unwrap();
        }

        let mut verify = Command::new("systemd-analyze");
        // A user's manager has a folder of its own, or it verifies nothing.
        verify.args(["verify", manager]).args(units).env("XDG_RUNTIME_DIR", folder.path());
        let verified = verify.output();

        let Ok(said) = verified else {
            return println!("skipped: systemd-analyze cannot be run here");
        };
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        let ours: BTreeSet<&str> = text
            .lines()
            .filter(|line| line.contains("fdstashd") && !NEW.iter().any(|new| line.contains(new)))
            .collect();
        assert!(ours.is_empty() && said.status.success(), "{text}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
}

/// The lines of a manifest's section.
fn section<'a>(manifest: &'a str, title: &str) -> Vec<&'a str> {
    manifest
        .lines()
        .skip_while(|line| *line != title)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// A file without its comments.
fn code_of(text: &str) -> String {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

fn all_source_files() -> Vec<PathBuf> {
    let folders =
        ["proto/src", "daemon/src", "daemon/stash/src", "client/src", "client/c/src", "tests/kit"];
    folders.iter().flat_map(|folder| rust_files(&root().join(folder))).collect()
}

/// The Rust files at a path or below it.
fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut files = Vec::new();
    let folder = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for path in folder.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
