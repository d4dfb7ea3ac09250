//! What is to be attached, opened by the stash and checked, before QEMU has any of it.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use fdstash::{Access, Handed, Name, Reopening, blocking::Transaction};
use rustix::fs::{FileType, fstat};

use super::Attach;
use crate::{
    Misuse,
    qemu::{header, nodes::Identity, vmdk},
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
}

impl File {
    fn new(handed: Handed<OwnedFd>) -> anyhow::Result<Self> {
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
        Ok(Self { entry, fd, identity: (stat.st_dev, stat.st_ino), driver })
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
struct Needs {
    backing: Option<String>,
    data_file: bool,
    /// The text of a VMDK descriptor, and the names of the extents in it.
    extents: Option<(Vec<u8>, Vec<String>)>,
}

/// A transaction, and what was opened in it.
pub(super) struct Opener<'a> {
    pub transaction: Transaction<'a>,
    pub reopenings: Vec<Reopening>,
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
        let handed = self.transaction.reopen(&self.reopenings[begun..])?;
        handed.into_iter().map(File::new).collect()
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
        let mut plan = Vec::new();
        let (mut data_files, mut extents) = (self.data_files.iter(), self.extents.as_slice());
        for (layer, (file, (format, _))) in files.into_iter().zip(&self.images).enumerate() {
            let name = file.entry.as_str();
            let needs = needs(&file, *format).with_context(|| format!("entry {name:?}"))?;
            self.check_backing(layer, name, needs.backing.as_deref())?;
            let parts = if let Some((text, named)) = needs.extents {
                let (chosen, rest) = choose(&named, extents, name)?;
                extents = rest;
                let openings = chosen.iter().map(|name| self.opening(name, layer)).collect();
                Parts::Extents(text, opener.open(openings)?)
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

    fn reads_only(&self, layer: usize) -> bool {
        layer > 0 || self.read_only.into()
    }

    fn opening(&self, name: &Name, layer: usize) -> Reopening {
        opening(name, self.direct.into(), self.reads_only(layer))
    }

    /// QEMU shows zeroes, without an error, where an image's backing file is missing, and another
    /// image's content where it has none of its own.
    fn check_backing(&self, layer: usize, name: &str, backing: Option<&str>) -> anyhow::Result<()> {
        let is_last = layer + 1 == self.images.len();
        match backing {
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
        Format::Raw => Ok(Needs { backing: None, data_file: false, extents: None }),
        Format::Qcow2 => {
            let header::Qcow2 { backing, has_data_file } = header::qcow2(fd)?;
            Ok(Needs { backing, data_file: has_data_file, extents: None })
        }
        Format::Vmdk => {
            let header::Vmdk { text, is_alone } = header::vmdk(fd)?;
            let backing = vmdk::parent(&text);
            let named = if is_alone { vmdk::extents(&text)? } else { Vec::new() };
            let extents = is_alone.then_some((text, named));
            Ok(Needs { backing, data_file: false, extents })
        }
    }
}

/// The entries of the extents that a descriptor names, in its order, and what is left of those given.
fn choose<'a>(
    named: &[String],
    given: &'a [String],
    image: &str,
) -> anyhow::Result<(Vec<Name>, &'a [String])> {
    let (given, rest) = given.split_at_checked(named.len()).with_context(|| {
        format!("{image:?} has the extents {named:?}: name the entry of each with --extent")
    })?;
    let mut chosen: Vec<Option<&str>> = vec![None; named.len()];
    for (at, text) in given.iter().enumerate() {
        // A name of an entry may have a '=' of its own.
        let by_name = named.iter().enumerate().find_map(|(at, name)| {
            Some((at, text.strip_prefix(name.as_str())?.strip_prefix('=')?))
        });
        let (at, entry) = by_name.unwrap_or((at, text));
        ensure!(chosen[at].is_none(), "two --extent are for {:?}", named[at]);
        chosen[at] = Some(entry);
    }
    let chosen = chosen.into_iter().flatten().map(|name| Ok(Name::new(name)?));
    Ok((chosen.collect::<anyhow::Result<_>>()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_chosen_by_their_order_or_by_the_names_in_the_descriptor() {
        let named = ["a-f1.vmdk", "a-f2.vmdk"].map(str::to_owned);
        let table: [(&[&str], Option<&[&str]>); 6] = [
            (&["x", "y"], Some(&["x", "y"])),
            (&["a-f2.vmdk=y", "a-f1.vmdk=x"], Some(&["x", "y"])),
            (&["x=1", "a-f2.vmdk=y=2"], Some(&["x=1", "y=2"])),
            (&["x"], None),
            (&["a-f1.vmdk=x", "a-f1.vmdk=y"], None),
            (&["x", "a-f1.vmdk=y"], None),
        ];

        for (given, expected) in table {
            let given: Vec<String> = given.iter().map(|&text| text.to_owned()).collect();
            let chosen = choose(&named, &given, "a").ok().map(|(chosen, _)| chosen);
            let chosen = chosen.map(|names| names.iter().map(Name::to_string).collect::<Vec<_>>());
            let expected =
                expected.map(|names| names.iter().map(|&name| name.to_owned()).collect());
            assert_eq!(chosen, expected, "{given:?}");
        }
    }
}
