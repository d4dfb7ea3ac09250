//! The descriptor of a VMDK image: a text that names the files of its extents.

use std::{io::Write, ops::Range, os::fd::OwnedFd};

use anyhow::{Context, bail, ensure};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, open},
    path::DecInt,
};

/// As much of a name as QEMU reads.
const LONGEST_NAME: usize = 511;

/// The types of extents that QEMU reads. It leaves out what has another.
const TYPES: [&str; 5] = ["FLAT", "SPARSE", "VMFS", "VMFSSPARSE", "SESPARSE"];

/// A line that names an extent, taken apart: `RW 4194304 FLAT "disk-f001.vmdk" 0`.
#[derive(Debug, PartialEq, Eq)]
struct ExtentLine {
    /// What it may be used for.
    access: String,
    /// Where in the text its name stands, between the quotes.
    name: Option<Range<usize>>,
}

/// The names of the files of its extents, in their order.
///
/// # Errors
///
/// If QEMU would read the text in another way, or leave an extent out.
pub(super) fn extents(text: &[u8]) -> anyhow::Result<Vec<String>> {
    let ranges = names(text)?;
    Ok(ranges.into_iter().map(|range| String::from_utf8_lossy(&text[range]).into_owned()).collect())
}

/// The text with those names in the place of its extents', and all else byte for byte as it was.
///
/// # Errors
///
/// If a name cannot be quoted, or there are not as many as extents.
pub(super) fn rewritten(text: &[u8], names: &[String]) -> anyhow::Result<Vec<u8>> {
    let ranges = self::names(text)?;
    ensure!(ranges.len() == names.len(), "it has {} extents, not {}", ranges.len(), names.len());
    let mut rewritten = Vec::with_capacity(text.len());
    let mut copied = 0;
    for (range, name) in ranges.into_iter().zip(names) {
        let is_quotable = !name.is_empty()
            && name.len() <= LONGEST_NAME
            && !name.contains(|c: char| c == '"' || c.is_control());
        ensure!(is_quotable, "{name:?} cannot be quoted in a VMDK descriptor");
        rewritten.extend_from_slice(&text[copied..range.start]);
        rewritten.extend_from_slice(name.as_bytes());
        copied = range.end;
    }
    rewritten.extend_from_slice(&text[copied..]);
    Ok(rewritten)
}

/// The image that it is based on, as the text names it.
pub(super) fn parent(text: &[u8]) -> Option<String> {
    let value = |key: &str| {
        lines(text).find_map(|range| {
            let line = String::from_utf8_lossy(&text[range]).into_owned();
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
        })
    };
    let hint = value("parentFileNameHint");
    let is_based = value("parentCID").is_some_and(|cid| !cid.eq_ignore_ascii_case("ffffffff"));
    hint.or_else(|| is_based.then(|| "?".to_owned()))
}

/// Puts a text into a file without a name, and opens that for writing and for reading: for a node of
/// either kind. QEMU writes into it (a VMDK's content has an identifier that changes with the first
/// write), but nobody can cut it off.
pub(super) fn in_memory(text: &[u8]) -> anyhow::Result<[OwnedFd; 2]> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(memfd_create("fdstash-vmdk", flags)?);
    file.write_all(text)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    let path = format!("/proc/self/fd/{}", DecInt::from_fd(&file).as_str());
    let opened = |access| open(path.as_str(), access | OFlags::CLOEXEC, Mode::empty());
    Ok([opened(OFlags::RDWR)?, opened(OFlags::RDONLY)?])
}

/// Where the names of the extents stand.
fn names(text: &[u8]) -> anyhow::Result<Vec<Range<usize>>> {
    let mut names = Vec::new();
    for range in lines(text) {
        let shown = || String::from_utf8_lossy(&text[range.clone()]).into_owned();
        let read =
            extent_line(text, range.clone()).with_context(|| format!("extent {:?}", shown()))?;
        let Some(line) = read else { continue };
        let Some(name) = line.name else {
            bail!("extent {:?} has no file, and QEMU would leave it out", shown());
        };
        ensure!(line.access == "RW", "extent {:?} is not RW, and QEMU would leave it out", shown());
        names.push(name);
    }
    Ok(names)
}

/// The line's extent, if it names one.
fn extent_line(text: &[u8], range: Range<usize>) -> anyhow::Result<Option<ExtentLine>> {
    let line = &text[range.clone()];
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let access = words.next().unwrap_or_default();
    if ![&b"RW"[..], b"RDONLY", b"NOACCESS"].contains(&access) {
        return Ok(None);
    }
    let access = String::from_utf8_lossy(access).into_owned();
    let Some(first) = line.iter().position(|&byte| byte == b'"') else {
        return Ok(Some(ExtentLine { access, name: None }));
    };
    let rest = &line[first + 1..];
    let length = rest.iter().position(|&byte| byte == b'"').context("its quote does not end")?;
    let before = String::from_utf8_lossy(&line[..first]).into_owned();
    let before: Vec<&str> = before.split_ascii_whitespace().collect();
    let [_, sectors, kind] = before[..] else {
        bail!("before its name do not stand access, sectors and type");
    };
    let has_sectors = sectors.parse::<u64>().is_ok_and(|sectors| sectors > 0);
    ensure!(has_sectors, "it has no number of sectors");
    ensure!(TYPES.contains(&kind), "QEMU would leave out what has the type {kind:?}");
    ensure!((1..=LONGEST_NAME).contains(&length), "QEMU reads names of 1 to {LONGEST_NAME} bytes");
    let behind = String::from_utf8_lossy(&rest[length + 1..]).into_owned();
    let is_offset = |word: &str| word.parse::<u64>().is_ok();
    // Workstation writes more than the offset behind the name of a device.
    let is_plain = behind.is_empty() || behind.starts_with(|c: char| c.is_ascii_whitespace());
    let is_plain = is_plain && behind.split_ascii_whitespace().next().is_none_or(is_offset);
    ensure!(is_plain, "behind its name stands neither an offset nor nothing");
    let start = range.start + first + 1;
    Ok(Some(ExtentLine { access, name: Some(start..start + length) }))
}

/// The lines of a text, without what ends them. It ends before its first zero, as it does for QEMU,
/// which fills it up with zeroes.
fn lines(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    text[..end].split_inclusive(|&byte| byte == b'\n').map(move |line| {
        let range = start..start + line.strip_suffix(b"\n").unwrap_or(line).len();
        start += line.len();
        range
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_names_of_the_extents_are_read_in_their_order() {
        let table: [(&str, &[&str]); 6] = [
            (
                "RW 4194304 FLAT \"v-f001.vmdk\" 0\nRW 2 FLAT \"v f002.vmdk\" 0\n",
                &["v-f001.vmdk", "v f002.vmdk"],
            ),
            ("# RW 1 FLAT \"no\" 0\r\n\tRW 1 SPARSE \"a=b,c\"\r\n", &["a=b,c"]),
            ("RW 9 VMFS \"ä.vmdk\"", &["ä.vmdk"]),
            ("RWX 1 FLAT \"x\" 0\nddb.x = \"RW\"\n", &[]),
            ("RW 1 FLAT \"a\" 0\n\0\0\nRW 1 FLAT \"b\" 0\n", &["a"]),
            ("", &[]),
        ];

        for (text, expected) in table {
            assert_eq!(extents(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_qemu_would_read_in_another_way_is_refused() {
        let table = [
            ("RW 1 FLAT \"a", "does not end"),
            ("RW 1 FLAT \"a\"b\" 0", "neither an offset nor nothing"),
            ("RW 1 FLAT \"a\"0", "neither an offset nor nothing"),
            ("RW 1 \"a\" 0", "access, sectors and type"),
            ("RW x FLAT \"a\" 0", "no number of sectors"),
            ("RW 0 FLAT \"a\" 0", "no number of sectors"),
            ("RW 1 VMFSRDM \"a\" 0", "leave out"),
            ("RW 1 FLAT \"\" 0", "names of 1 to 511 bytes"),
            ("RDONLY 1 FLAT \"a\" 0", "is not RW"),
            ("RW 1 ZERO", "has no file"),
        ];

        for (text, expected) in table {
            let error = format!("{:#}", extents(text.as_bytes()).unwrap_err());
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_quoted_is_refused() {
        for name in ["", "a\"b", "a\nb", "a\rb", &"x".repeat(512)] {
            assert!(rewritten(b"RW 1 FLAT \"a\" 0\n", &[name.to_owned()]).is_err(), "{name:?}");
        }
        assert!(rewritten(b"RW 1 FLAT \"a\" 0\n", &[]).is_err());
    }

    #[test]
    fn what_it_is_based_on_is_told() {
        assert_eq!(parent(b"CID=1\nparentCID=ffffffff\n"), None);
        assert_eq!(parent(b"parentCID=12345678\n").as_deref(), Some("?"));
        let text = b"parentCID=12345678\nparentFileNameHint=\"base.vmdk\"\n";
        assert_eq!(parent(text).as_deref(), Some("base.vmdk"));
    }

    proptest! {
        #[test]
        fn every_quoted_name_round_trips(
            old in prop::collection::vec("[^\"\\p{C}]{1,60}", 1..6),
            new in "[^\"\\p{C}]{1,120}",
            around in "(#[a-z \"]{0,20}\r?\n){0,3}",
        ) {
            let line = |name: &String| format!("RW 128 FLAT \"{name}\" 0\n{around}");
            let text = around.clone() + &old.iter().map(line).collect::<String>();
            let news: Vec<String> = (0..old.len()).map(|at| format!("{new}{at}")).collect();

            prop_assert_eq!(extents(text.as_bytes()).unwrap(), old.clone());
            let there = rewritten(text.as_bytes(), &news).unwrap();
            prop_assert_eq!(extents(&there).unwrap(), news);
            prop_assert_eq!(rewritten(&there, &old).unwrap(), text.as_bytes());
        }

        #[test]
        fn no_text_is_too_strange(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = extents(&text);
            let _ = parent(&text);
        }
    }
}
