//! What is to be attached, opened by the stash and checked, before QEMU has any of it.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use fdstash::{Access, Entry, Handed, Name, Refusal, Reopening, blocking::Transaction};
use rustix::fs::{FileType, fstat};

use super::{
    Attach,
    check::{check_backing_file, check_extent, warn_of_raw},
};
use crate::{
    Misuse,
    qemu::{
        header,
        nodes::Identity,
        vmdk::{self, Extent},
    },
};

/// The formats whose headers are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Raw,
    Qcow2,
    Vmdk,
}

impl Format {
    pub(super) fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

/// `FORMAT=NAME`.
pub(super) fn image(text: &str) -> Result<(Format, Name), String> {
    let (format, name) = text.split_once('=').ok_or("it is FORMAT=NAME")?;
    let format = Format::from_str(format, false).map_err(|_| {
        let known = Format::value_variants().iter().map(|format| format.driver());
        format!("known formats are {}", known.collect::<Vec<_>>().join(", "))
    })?;
    Ok((format, Name::new(name).map_err(|bad| bad.to_string())?))
}

/// A file that QEMU is to get.
pub(super) struct File {
    pub entry: Name,
    pub fd: OwnedFd,
    pub identity: Identity,
    /// The driver of its node.
    pub driver: &'static str,
    /// The path that it had when it was given to the stash, if that is known.
    pub target: Option<String>,
}

impl File {
    /// Of what was handed out, which is what was listed: so its giver is the one who was looked at.
    fn new(handed: Handed<OwnedFd>, kept: &[Entry]) -> anyhow::Result<Self> {
        let Handed { name: entry, fd } = handed;
        let stat = fstat(&fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_block_device = kind == FileType::BlockDevice;
        ensure!(
            is_block_device || kind == FileType::RegularFile,
            "entry {:?} is no file and no block device: {kind:?}",
            entry.as_str()
        );
        let driver = if is_block_device { "host_device" } else { "file" };
        let identity = (stat.st_dev, stat.st_ino);
        // Another file may stand under the name by now than when it was listed.
        let is_it = |kept: &&Entry| kept.name == entry && (kept.device, kept.inode) == identity;
        let listed = kept.iter().find(is_it).with_context(|| {
            format!("another file was put under {:?} meanwhile: do it again", entry.as_str())
        })?;
        let target = listed.target.clone();
        Ok(Self { entry, fd, identity, driver, target })
    }
}

/// One image of the chain.
pub(super) struct Planned {
    pub node: String,
    pub format: Format,
    pub read_only: bool,
    pub file: File,
    pub parts: Parts,
}

/// The other files of an image.
pub(super) enum Parts {
    None,
    /// Its external data file.
    Data(File),
    /// The extents that its descriptor, which is this text, names.
    Extents(Vec<u8>, Vec<File>),
}

/// What a header says of other files.
#[derive(Default)]
pub(super) struct Needs {
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    data_file: bool,
    /// The text of a VMDK descriptor, and the extents in it.
    extents: Option<(Vec<u8>, Vec<Extent>)>,
}

/// The entry of an extent.
struct Chosen {
    name: Name,
    /// Whether only its place among the others says which extent it has.
    by_position: bool,
}

/// A transaction, and what was opened in it.
pub(super) struct Opener<'a> {
    pub transaction: Transaction<'a>,
    pub reopenings: Vec<Reopening>,
    /// What the stash keeps.
    pub kept: &'a [Entry],
    /// Whose files may be attached.
    pub trusted: &'a [u32],
}

impl Opener<'_> {
    fn open(&mut self, reopenings: Vec<Reopening>) -> anyhow::Result<Vec<File>> {
        let begun = self.reopenings.len();
        self.reopenings.extend(reopenings);
        for (at, reopening) in self.reopenings.iter().enumerate() {
            if self.reopenings[..at].iter().any(|earlier| earlier.name == reopening.name) {
                return Err(
                    Misuse("an entry is named twice: each node has a file of its own").into()
                );
            }
        }
        self.check_givers(&self.reopenings[begun..])?;
        let handed = self.transaction.reopen(&self.reopenings[begun..]);
        let handed = handed.map_err(|error| self.with_access(error))?;
        handed.into_iter().map(|handed| File::new(handed, self.kept)).collect()
    }
}

impl Opener<'_> {
    /// Names are one space for all users, and whoever gives first has the name: so a guest's disk is not
    /// what anybody gave.
    fn check_givers(&self, reopenings: &[Reopening]) -> anyhow::Result<()> {
        for entry in self.kept {
            let is_wanted = reopenings.iter().any(|reopening| reopening.name == entry.name);
            let uid = entry.giver.uid;
            ensure!(
                !is_wanted || self.trusted.contains(&uid),
                "entry {:?} was given by uid {uid}, who is neither you nor root: if it is to be so, say \
                 --trust {uid}",
                entry.name.as_str()
            );
        }
        Ok(())
    }

    /// Says of an entry that may only be read that it may, where it was to be written.
    fn with_access(&self, error: fdstash::Error) -> anyhow::Error {
        let refused = match error.refusal() {
            Some(Refusal::AccessDenied { name, .. }) => {
                self.kept.iter().find(|kept| kept.name.as_str() == name)
            }
            Some(_) | None => None,
        };
        let is_read_only = |kept: &&Entry| !kept.may_reopen.covers(Access::ReadWrite);
        let told = refused.filter(is_read_only).map(|kept| {
            format!(
                "entry {:?} is kept for reading only: say --read-only on, or give it with --may-reopen \
                 read-write",
                kept.name.as_str()
            )
        });
        let error = anyhow::Error::new(error);
        if let Some(told) = told { error.context(told) } else { error }
    }
}

/// Asks for a descriptor as QEMU wants it for a node: of exactly that access, and from QEMU 9.1 on with
/// exactly that `O_DIRECT`. For a node that is only read the stash keeps all the access that it has, so
/// that it can be written again without anybody's rights on the file.
pub(in crate::qemu) fn opening(name: &Name, direct: bool, read_only: bool) -> Reopening {
    let (access, hand_out) =
        if read_only { (None, Some(Access::Read)) } else { (Some(Access::ReadWrite), None) };
    Reopening { direct: Some(direct), access, hand_out, ..Reopening::new(name.clone()) }
}

impl Attach {
    /// Has the stash open the files, and refuses what would show a guest something else than the image.
    pub(super) fn plan(&self, opener: &mut Opener<'_>) -> anyhow::Result<Vec<Planned>> {
        let images = self.images.iter().enumerate();
        let openings = images.map(|(layer, (_, name))| self.opening(name, layer)).collect();
        let files = opener.open(openings)?;
        let targets: Vec<_> = files.iter().map(|file| file.target.clone()).collect();
        let mut plan = Vec::new();
        let (mut data_files, mut extents) = (self.data_files.iter(), self.extents.as_slice());
        for (layer, (file, (format, _))) in files.into_iter().zip(&self.images).enumerate() {
            let name = file.entry.as_str();
            let needs = needs(&file, *format).with_context(|| format!("entry {name:?}"))?;
            self.check_backing(layer, name, &needs)?;
            if let Some(((format, below), target)) =
                self.images.get(layer + 1).zip(targets.get(layer + 1))
            {
                check_backing_file(name, &needs, *format, below, target.as_deref())?;
            }
            let parts = if let Some((text, named)) = needs.extents {
                let is_entry =
                    |text: &str| opener.kept.iter().any(|kept| kept.name.as_str() == text);
                let (chosen, rest) = choose(&named, extents, name, is_entry)?;
                extents = rest;
                let files = self.extents(opener, layer, &text, &named, &chosen)?;
                Parts::Extents(text, files)
            } else if needs.data_file {
                let data = data_files.next().with_context(|| {
                    format!(
                        "the data of {name:?} is in a file of its own: name it with --data-file"
                    )
                })?;
                let data = opener.open(vec![self.opening(data, layer)])?.pop();
                data.map_or(Parts::None, Parts::Data)
            } else {
                Parts::None
            };
            let node = match layer {
                0 => self.target.node.clone(),
                _ => format!("{}-backing{layer}", self.target.node),
            };
            let read_only = self.reads_only(layer);
            plan.push(Planned { node, format: *format, read_only, file, parts });
        }
        if data_files.next().is_some() || !extents.is_empty() {
            return Err(Misuse("a --data-file or an --extent is left that no image has").into());
        }
        Ok(plan)
    }

    /// The files of a VMDK image's extents.
    fn extents(
        &self,
        opener: &mut Opener<'_>,
        layer: usize,
        text: &[u8],
        named: &[Extent],
        chosen: &[Chosen],
    ) -> anyhow::Result<Vec<File>> {
        let openings = chosen.iter().map(|chosen| self.opening(&chosen.name, layer)).collect();
        let files = opener.open(openings)?;
        for ((extent, file), chosen) in named.iter().zip(&files).zip(chosen) {
            check_extent(extent, file, chosen.by_position, vmdk::has_whole_files(text))?;
        }
        Ok(files)
    }

    fn reads_only(&self, layer: usize) -> bool {
        layer > 0 || self.read_only.into()
    }

    fn opening(&self, name: &Name, layer: usize) -> Reopening {
        opening(name, self.direct.into(), self.reads_only(layer))
    }

    /// QEMU shows zeroes, without an error, where an image's backing file is missing, and another
    /// image's content where it has none of its own.
    fn check_backing(&self, layer: usize, name: &str, needs: &Needs) -> anyhow::Result<()> {
        let is_last = layer + 1 == self.images.len();
        match &needs.backing {
            Some(backing) => ensure!(
                !is_last,
                "{name:?} is an image whose backing file nobody named: it has one, {backing:?}; \
                 give its entry as one more --image"
            ),
            None => ensure!(is_last, "{name:?} has no backing file, and is not the last --image"),
        }
        Ok(())
    }
}

fn needs(file: &File, format: Format) -> anyhow::Result<Needs> {
    let fd = file.fd.as_fd();
    match format {
        Format::Raw => {
            warn_of_raw(file);
            Ok(Needs::default())
        }
        Format::Qcow2 => {
            let header::Qcow2 { backing, backing_format, has_data_file } = header::qcow2(fd)?;
            Ok(Needs { backing, backing_format, data_file: has_data_file, extents: None })
        }
        Format::Vmdk => {
            let header::Vmdk { text, is_alone } = header::vmdk(fd)?;
            let backing = vmdk::parent(&text);
            let named = if is_alone { vmdk::extents(&text)? } else { Vec::new() };
            let extents = is_alone.then_some((text, named));
            Ok(Needs { backing, extents, ..Needs::default() })
        }
    }
}

/// The entries of the extents that a descriptor names, in its order, and what is left of those given.
/// Those that were given by their place are for the extents that were not named, in their order.
fn choose<'a>(
    named: &[Extent],
    given: &'a [String],
    image: &str,
    is_entry: impl Fn(&str) -> bool,
) -> anyhow::Result<(Vec<Chosen>, &'a [String])> {
    let names: Vec<&str> = named.iter().map(|extent| extent.name.as_str()).collect();
    let (given, rest) = given.split_at_checked(names.len()).with_context(|| {
        format!(
            "{image:?} has the extents {names:?}: name the entry of each with --extent FILENAME=NAME"
        )
    })?;
    let mut chosen: Vec<Option<(&str, bool)>> = vec![None; names.len()];
    let mut unnamed = Vec::new();
    for text in given {
        let by_name = names
            .iter()
            .enumerate()
            .find_map(|(at, name)| Some((at, text.strip_prefix(name)?.strip_prefix('=')?)));
        if let Some((at, entry)) = by_name {
            ensure!(chosen[at].is_none(), "two --extent are for {:?}", names[at]);
            chosen[at] = Some((entry, false));
            continue;
        }
        // A name of an entry may have a '=' of its own.
        let unknown = text.rsplit_once('=').filter(|_| !is_entry(text));
        ensure!(
            unknown.is_none(),
            "the descriptor of {image:?} has no extent {:?}; it has {names:?}",
            unknown.unwrap_or_default().0
        );
        unnamed.push(text.as_str());
    }
    let mut unnamed = unnamed.into_iter().map(|entry| (entry, true));
    let chosen = chosen.into_iter().filter_map(|named| named.or_else(|| unnamed.next()));
    let chosen =
        chosen.map(|(name, by_position)| Ok(Chosen { name: Name::new(name)?, by_position }));
    Ok((chosen.collect::<anyhow::Result<_>>()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_chosen_by_their_order_or_by_the_names_in_the_descriptor() {
        let extent = |name: &str| {
            let (name, kind) = (name.to_owned(), "FLAT".to_owned());
            Extent { name, kind, sectors: 1, offset: 0 }
        };
        let named = ["a-f1.vmdk", "a-f2.vmdk"].map(extent);
        let table: [(&[&str], Option<&[&str]>); 8] = [
            (&["x", "y"], Some(&["x", "y"])),
            (&["a-f2.vmdk=y", "a-f1.vmdk=x"], Some(&["x", "y"])),
            (&["x=1", "a-f2.vmdk=y=2"], Some(&["x=1", "y=2"])),
            (&["a-f2.vmdk=y", "x"], Some(&["x", "y"])),
            (&["x", "a-f1.vmdk=y"], Some(&["y", "x"])),
            (&["x"], None),
            (&["a-f1.vmdk=x", "a-f1.vmdk=y"], None),
            (&["x", "a-f3.vmdk=y"], None),
        ];

        for (given, expected) in table {
            let given: Vec<String> = given.iter().map(|&text| text.to_owned()).collect();
            let chosen = choose(&named, &given, "a", |text| text == "x=1").ok();
            let chosen = chosen.map(|(chosen, _)| {
                chosen.iter().map(|chosen| chosen.name.to_string()).collect::<Vec<_>>()
            });
            let expected =
                expected.map(|names| names.iter().map(|&name| name.to_owned()).collect());
            assert_eq!(chosen, expected, "{given:?}");
        }
    }
}
