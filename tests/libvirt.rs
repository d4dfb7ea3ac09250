//! A domain of the real libvirt, on files of the stash that nobody else can open: `docs/libvirt.md`, word by
//! word, and what happens where its words are not followed.
//!
//! Each test has a libvirtd of its own, that of a user's session: it has no rights beyond that user's.

use std::{
    fs,
    os::unix::fs::chown,
    process::{Command, Stdio},
};

use kit::{Host, domain, gift, identity, is_root, name, only, skipped, wait_until};
use rustix::process::{Signal, kill_process};
use serde_json::json;

const MIB: usize = 1 << 20;

#[test]
fn what_the_documents_say_is_what_works() {
    let Some(host) = Host::start() else { return };
    let document = include_str!("../docs/libvirt.md");
    keep_images_without_names(&host);
    fs::write(host.path("vm7.xml"), domain("vm7", &blocks(document, "xml").concat())).unwrap();

    let mut said = String::new();
    for block in blocks(document, "sh") {
        // What gives the files has been done above, before their names were removed.
        let lines: Vec<&str> = block.lines().filter(|line| !line.contains(" give ")).collect();
        said += &host.works(Command::new("sh").args(["-euxc", &here(&host, &lines.join("\n"))]));
    }

    assert!(said.contains("Domain 'vm7' started"), "{said}");
    assert!(said.contains("libvirt-1-storage  vm7-disk0  cached, read-write  direct, read-write"));
    assert!(said.contains("libvirt-1-storage  vm7-disk0  direct, read-write  cached, read-write"));
    assert!(said.contains("libvirt-2-storage  vm7-base   cached, read-only   direct, read-only"));
    assert_eq!(host.files_below("images", "vm7"), files_of_stash(&host, ["vm7-base", "vm7-disk0"]));
    host.export("vm7");
    host.reads(0, MIB, 0xab);
    host.writes("vm7", 2 * MIB, 0xcd);
    host.reads(2 * MIB, 65536, 0xcd);
}

#[test]
fn a_program_in_python_starts_a_domain_as_the_documents_say() {
    let Some(host) = Host::start() else { return };
    let python = kit::python().args(["-c", "import libvirt"]).stderr(Stdio::null()).status();
    if !python.is_ok_and(|status| status.success()) {
        return skipped("Python has no module libvirt");
    }
    keep_images_without_names(&host);
    host.define("vm7", DISK);
    let document = include_str!("../docs/libvirt.md");
    fs::write(host.path("start.py"), here(&host, &blocks(document, "python").concat())).unwrap();

    let take = ["vm7-disk0", "vm7-base", "--fresh", "--fd", "3", "--"];
    host.works(host.fdstash("take").args(take).arg(kit::python().get_program()).arg("start.py"));

    host.export("vm7");
    host.reads(0, MIB, 0xab);
}

#[test]
fn a_disk_is_reopened_again_and_again_while_it_is_used() {
    let Some(host) = Host::start() else { return };
    keep_images_without_names(&host);
    host.define("vm7", DISK);
    host.start_domain("vm7", ENTRIES);
    host.export("vm7");

    for round in 1..=10 {
        let direct = round % 2 == 1;
        let (at, byte) = (round * 65536, u8::try_from(round).unwrap());
        host.writes("vm7", at, byte);
        let word = if direct { "on" } else { "off" };
        let mut reopen = host.qemu("reopen", "vm7");
        let told = host.json(reopen.args(["--direct", word, "--chain", "--json"]));
        assert_eq!(told["nodes"].as_array().map(Vec::len), Some(2), "{told}");

        let status = host.json(host.qemu("status", "vm7").arg("--json"));
        assert_eq!(status["drifts"], json!([]), "{status}");
        for node in status["nodes"].as_array().unwrap() {
            let has = [&node["direct"], &node["keptDirect"], &node["descriptors"]];
            assert_eq!(has, [&json!(direct), &json!(direct), &json!(1)], "{status}");
        }
        host.reads(at, 65536, byte);
        host.reads(MIB - 65536, 65536, 0xab);
    }
    host.virsh("destroy vm7");

    // Nobody has a duplicate of what QEMU had locked. What was written is in the stash's file, and a domain can be started from it again.
    host.start_domain("vm7", ENTRIES);
    host.export("vm7");
    for round in 1..=10 {
        host.reads(round * 65536, 65536, u8::try_from(round).unwrap());
    }
}

#[test]
fn a_reopen_that_fails_leaves_the_domain_its_files() {
    let Some(host) = Host::start() else { return };
    keep_images_without_names(&host);
    host.define("vm7", DISK);
    host.start_domain("vm7", ENTRIES);
    host.export("vm7");
    let had = host.files_below("images", "vm7");
    let mut client = host.daemon.client();
    let [disk] = client.take(&[name("vm7-disk0")]).unwrap().try_into().unwrap();
    let direct = |host: &Host| host.fails(host.qemu("reopen", "vm7").args(["--direct", "on"]));

    let gone = direct(&host);
    let another = kit::file(host.path("another"), "another disk");
    client.give(&[gift("vm7-disk0", another)]).unwrap();
    let differs = direct(&host);
    client.give(&[gift("vm7-disk0", disk.fd)]).unwrap();
    let read_only = host.fails(host.qemu("reopen", "vm7").args(["--read-only", "on"]));
    let unknown = host.fails(host.qemu("reopen", "vm7").args(["--name", "disk0=vm7-disk0"]));

    assert!(gone.contains("there is no entry \"vm7-disk0\""), "{gone}");
    if is_root() {
        assert!(differs.contains("entry \"vm7-disk0\" has another file"), "{differs}");
    }
    assert!(read_only.contains("for libvirt to say"), "{read_only}");
    assert!(unknown.contains("node \"disk0\" is no file of this image"), "{unknown}");
    assert_eq!(host.files_below("images", "vm7"), had);
    host.reads(0, MIB, 0xab);
    host.works(host.qemu("reopen", "vm7").args(["--direct", "on"]));
    host.reads(0, MIB, 0xab);
}

#[test]
fn a_domain_that_is_not_there_or_has_ended_is_told() {
    let Some(host) = Host::start() else { return };
    keep_images_without_names(&host);
    let nowhere = host.fails(host.qemu("reopen", "vm7").args(["--direct", "on"]));
    host.define("vm7", DISK);
    let inactive = host.fails(host.qemu("reopen", "vm7").args(["--direct", "on"]));
    host.start_domain("vm7", ENTRIES);
    host.works(host.qemu("reopen", "vm7").args(["--direct", "on"]));
    kill_process(host.process("vm7"), Signal::KILL).unwrap();
    wait_until(kit::SOON, || host.virsh("domstate vm7").contains("shut off"));
    let dead = host.fails(host.qemu("reopen", "vm7").args(["--direct", "off"]));
    host.works(host.fdstash("reopen").args(["vm7-disk0", "--direct", "off"]));
    // No lock of its files has outlived it.
    host.start_domain("vm7", ENTRIES);

    assert!(nowhere.contains("failed to get domain 'vm7'"), "{nowhere}");
    assert!(inactive.contains("domain is not running"), "{inactive}");
    assert!(dead.contains("domain is not running"), "{dead}");
}

#[test]
fn a_qemu_that_does_not_answer_is_not_waited_for() {
    let Some(host) = Host::start() else { return };
    keep_images_without_names(&host);
    host.define("vm7", DISK);
    host.start_domain("vm7", ENTRIES);
    host.export("vm7");
    let qemu = host.process("vm7");

    kill_process(qemu, Signal::STOP).unwrap();
    let unanswered =
        host.fails(host.qemu("reopen", "vm7").args(["--direct", "on", "--limit", "1"]));
    kill_process(qemu, Signal::CONT).unwrap();

    assert!(unanswered.contains("QEMU has not answered query-fdsets within 1s"), "{unanswered}");
    host.reads(0, MIB, 0xab);
    host.works(host.qemu("reopen", "vm7").args(["--direct", "on"]));
    host.reads(0, MIB, 0xab);
}

#[test]
fn a_chain_that_is_cut_in_the_description_is_told_by_the_status() {
    let Some(host) = Host::start() else { return };
    keep_images_without_names(&host);
    let (above, rest) = DISK.split_once("<backingStore").unwrap();
    let (_, below) = rest.split_once("</backingStore>").unwrap();

    // Where nothing is said of it, libvirt looks into the image, and for a file at the path.
    host.define("vm7", &format!("{above}{below}"));
    let associate = "dom-fd-associate vm7 vm7-disk0 0; start vm7";
    let take = ["vm7-disk0", "--fresh", "--", "virsh", associate];
    let unsaid = host.fails(host.fdstash("take").args(take));
    host.virsh("undefine vm7");
    // Where it is said that there is nothing, libvirt believes it.
    host.define("vm7", &format!("{above}<backingStore/>{below}"));
    host.start_domain("vm7", [ENTRIES[0]]);

    assert!(unsaid.contains("Cannot access backing file '/images/base.raw'"), "{unsaid}");
    host.export("vm7");
    host.reads(0, MIB, 0);
    let status = host.works(&mut host.qemu("status", "vm7"));
    assert!(status.contains("stands on \"base.raw\", and QEMU has no image below it"), "{status}");
}

#[test]
fn a_group_may_be_called_otherwise_than_the_entry() {
    let Some(host) = Host::start() else { return };
    keep_images_without_names(&host);
    let disk = DISK.replace("fdgroup='vm7-disk0'", "fdgroup='pool:7'");
    host.define("vm7", &disk);
    host.start_domain("vm7", [("vm7-disk0", "pool:7"), ("vm7-base", "vm7-base")]);
    let named = |entry: &str| {
        let mut reopen = host.qemu("reopen", "vm7");
        reopen.args(["--direct", "on", "--name", &format!("libvirt-1-storage={entry}")]);
        reopen
    };

    let other = kit::file(host.path("another"), "another disk");
    host.daemon.client().give(&[gift("another", other)]).unwrap();

    let unknown = host.works(&mut host.qemu("status", "vm7"));
    let unnamed = host.fails(host.qemu("reopen", "vm7").args(["--direct", "on"]));
    let misnamed = host.fails(&mut named("another"));
    let reopened = host.works(&mut named("vm7-disk0"));
    let unnamed_again = host.fails(host.qemu("reopen", "vm7").args(["--direct", "off"]));

    assert!(unknown.contains("vm7-base"), "{unknown}");
    assert!(!unknown.contains("pool"), "{unknown}");
    assert!(unnamed.contains("--name libvirt-1-storage=NAME"), "{unnamed}");
    if is_root() {
        assert!(misnamed.contains("entry \"another\" has another file"), "{misnamed}");
    }
    assert!(reopened.contains("vm7-disk0  cached, read-write  direct, read-write"), "{reopened}");
    assert_eq!(unnamed_again, unnamed, "QEMU's word for it is not taken");
}

#[test]
fn a_disk_keeps_the_options_that_libvirt_has_given_it() {
    let Some(host) = Host::start() else { return };
    keep_images_without_names(&host);
    let disk = DISK.replace("type='qcow2'/>", "type='qcow2' cache='none' io='native'/>");
    host.define("vm7", &disk);
    host.works(host.fdstash("reopen").args(["vm7-disk0", "vm7-base", "--direct", "on"]));
    host.start_domain("vm7", ENTRIES);
    host.export("vm7");

    for word in ["off", "on"] {
        host.works(host.qemu("reopen", "vm7").args(["--direct", word, "--chain"]));
        // QEMU does not tell them of a node, but would not have taken another aio.
        let sets = host.monitor("vm7", &json!({ "execute": "query-fdsets" })).to_string();
        let given = |option: &str| sets.matches(option).count();
        assert_eq!(given(r#"\"aio\":\"native\""#), 2, "{sets}");
        // libvirt 12.8 has no node of a format above a raw file, and 9.0 has one.
        assert_ne!(given(r#"\"discard\":\"unmap\""#), 0, "{sets}");
        host.reads(0, MIB, 0xab);
    }
    let other = ["--name", "libvirt-1-storage=vm7-disk0", "--option", "aio=threads"];
    let refused = host.fails(host.qemu("reopen", "vm7").args(["--direct", "off"]).args(other));

    assert!(refused.contains("Cannot change the option 'aio'"), "{refused}");
    let status = host.json(host.qemu("status", "vm7").arg("--json"));
    assert_eq!(status["drifts"], json!([]), "{status}");
}

#[test]
fn a_disk_that_libvirt_has_opened_itself_is_refused() {
    let Some(host) = Host::start() else { return };
    let image = host.path("own.raw");
    fs::write(&image, vec![0xab; MIB]).unwrap();
    if is_root() {
        chown(&image, Some(Host::USER), Some(Host::USER)).unwrap();
    }
    let source = format!("<source file='{}'/>", image.display());
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/>{source}
         <target dev='vda' bus='virtio'/></disk>"
    );
    host.define("vm7", &disk);
    host.virsh("start vm7");

    let refused = host.fails(host.qemu("reopen", "vm7").args(["--direct", "on"]));

    assert!(refused.contains("by its path, and QEMU cannot change that"), "{refused}");
    assert!(refused.contains("fdgroup"), "{refused}");
}

/// Each entry, and its group.
const ENTRIES: [(&str, &str); 2] = [("vm7-disk0", "vm7-disk0"), ("vm7-base", "vm7-base")];

/// As in the documents.
const DISK: &str = "
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2'/>
  <source file='/images/vm7.qcow2' fdgroup='vm7-disk0'/>
  <backingStore type='file'>
    <format type='raw'/>
    <source file='/images/base.raw' fdgroup='vm7-base'/>
    <backingStore/>
  </backingStore>
  <target dev='vda' bus='virtio'/>
</disk>";

/// The blocks of a document that are in a language.
fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    let blocks: Vec<&str> =
        document.split(&begin).skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty(), "there is something in {language}");
    blocks
}

/// A text of the documents, for the libvirt that is here.
fn here(host: &Host, text: &str) -> String {
    text.replace("qemu:///system", &host.uri())
}

/// Gives a qcow2 image over a raw one, whose first MiB is of 0xab, and removes the files' names.
fn keep_images_without_names(host: &Host) {
    let images = host.path("images");
    fs::create_dir(&images).expect("it can be");
    let mut content = vec![0; 8 * MIB];
    content[..MIB].fill(0xab);
    fs::write(images.join("base.raw"), content).expect("it can be");
    let overlay = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", "vm7.qcow2"];
    host.works(Command::new("qemu-img").args(overlay).current_dir(&images));
    let gives = blocks(include_str!("../docs/libvirt.md"), "sh")[0];
    let gives: Vec<&str> = gives.lines().filter(|line| line.contains(" give ")).collect();
    assert_eq!(gives.len(), 2, "the documents give both");
    let mut shell = Command::new("sh");
    host.works(shell.args(["-euxc", &gives.join("\n")]).current_dir(&images));
    fs::remove_dir_all(images).expect("it can be");
}

/// Which files the stash keeps.
fn files_of_stash<const N: usize>(host: &Host, entries: [&str; N]) -> Vec<(u64, u64)> {
    let mut client = host.daemon.client();
    let copies = entries.map(|entry| only(client.copy(&[name(entry)]).expect("it can be")));
    let mut files = copies.map(identity).to_vec();
    files.sort_unstable();
    files
}
