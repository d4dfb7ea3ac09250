//! The sandbox of a server: what its process can never do again, whoever should come to command it. The
//! keeper, which talks to nobody, is outside.
//!
//! Landlock lets it make, move and remove no file but its own socket, and have nothing to do with TCP. It
//! leaves reading, writing and executing alone: what is kept lies anywhere. Nor must it be asked to watch
//! over truncating and over the ioctls of devices: whether those are allowed is written into a file when
//! it is opened, and holds for whoever gets it, so that clients could not truncate what was opened
//! anew for them (`what_is_opened_anew_in_the_sandbox_is_no_less_for_its_clients`).
//!
//! A filter has the kernel answer ENOSYS to every system call but those in the tables here; a library that
//! has a newer one takes the older one then. Each is there for the server itself, or for what it becomes
//! where its keeper has died: a process that it clones, in the same sandbox, which executes this program
//! to keep from then on. That one starts the servers to come, the next version, and `getent`, all in this
//! sandbox: a policy whose names are looked up over a network does not load then, and the rules before
//! stay in force.
//!
//! Whatever the kernel lacks of it is left out.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use landlock::{
    AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, make_bitflags,
};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
mod calls;

/// Shuts this thread in, and all that it makes. To be called while there is no other, and before this
/// server needs any descriptor: what this opens it closes.
///
/// Tells whether Landlock is to be tried again: where an earlier server has left no number free.
pub(crate) fn enter(own: &Own<'_>) -> bool {
    let is_confined = confine(own);
    match filter_calls() {
        Ok(()) => tracing::debug!("the server's system calls are filtered"),
        Err(error) => tracing::info!("the server's system calls are not filtered: {error:#}"),
    }
    is_confined
}

/// What a server needs beyond what is open.
pub(crate) struct Own<'a> {
    /// Where its socket stands, which it removes at its end.
    pub(crate) folder: Option<&'a Path>,
    /// Whether the service manager is told over an abstract socket.
    pub(crate) has_abstract_manager: bool,
}

/// Has Landlock confine this thread, and all that it makes. Whether it could be done.
pub(crate) fn confine(own: &Own<'_>) -> bool {
    match restrict(own) {
        Ok(status) => {
            tracing::debug!(?status, "the server is confined by Landlock");
            true
        }
        // As many layers as there can be, and so confined already; or for lack of a number.
        Err(error) => {
            tracing::info!("the server is not confined by Landlock: {error:#}");
            false
        }
    }
}

fn restrict(own: &Own<'_>) -> Result<RulesetStatus> {
    const CHANGES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
        RemoveDir | RemoveFile | MakeChar | MakeDir | MakeReg | MakeSock | MakeFifo | MakeBlock
            | MakeSym | Refer
    });
    let mut rules = Ruleset::default()
        .handle_access(CHANGES)?
        .handle_access(make_bitflags!(AccessNet::{BindTcp | ConnectTcp}))?;
    if !own.has_abstract_manager {
        rules = rules.scope(Scope::AbstractUnixSocket)?;
    }
    let mut rules = rules.create()?;
    if let Some(folder) = own.folder {
        let folder = PathFd::new(folder)?;
        rules = rules.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn filter_calls() -> Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let arch = std::env::consts::ARCH.try_into()?;
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules()?, refused, SeccompAction::Allow, arch)?;
    let program = BpfProgram::try_from(filter).context("making the filter")?;
    Ok(apply_filter(&program)?)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn filter_calls() -> Result<()> {
    anyhow::bail!("there is no filter for this kind of processor")
}

/// For each system call that is let through, the conditions of which one must hold; none, if it may
/// have any arguments.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn rules() -> Result<BTreeMap<i64, Vec<seccompiler::SeccompRule>>> {
    use calls::{ALLOWED, CLOSED, IF_NOT, IF_ONE_OF};
    use seccompiler::{
        SeccompCmpArgLen::{Dword, Qword},
        SeccompCmpOp::{Eq, MaskedEq},
        SeccompCondition, SeccompRule,
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    for (call, argument, values) in IF_ONE_OF {
        for value in *values {
            let condition = SeccompCondition::new(*argument, Dword, Eq, *value)?;
            rules.entry(*call).or_default().push(SeccompRule::new(vec![condition])?);
        }
    }
    for (call, argument, flags) in IF_NOT {
        let condition = SeccompCondition::new(*argument, Qword, MaskedEq(*flags), 0)?;
        rules.entry(*call).or_default().push(SeccompRule::new(vec![condition])?);
    }
    // It can be closed to others of its user, and not be opened to them.
    let closed = CLOSED.map(|(argument, value)| SeccompCondition::new(argument, Dword, Eq, value));
    let closed = SeccompRule::new(closed.into_iter().collect::<Result<_, _>>()?)?;
    rules.entry(libc::SYS_prctl).or_default().push(closed);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, process::Command, thread};

    use rustix::{
        fs::{CWD, MemfdFlags, Mode, OFlags, chmod, ftruncate, memfd_create, openat},
        io::Errno,
        net::{AddressFamily, SocketType, socket},
        process::{DumpableBehavior, set_dumpable_behavior},
    };

    use super::*;

    /// Does something on a thread of its own, which is not to be left as it was.
    fn on_a_thread<R: Send>(act: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| scope.spawn(act).join().unwrap())
    }

    fn open(path: &Path, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
        openat(CWD, path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
    }

    #[test]
    fn landlock_lets_it_change_what_is_there_and_remove_its_own_socket_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (folder.path().join("own"), folder.path().join("other"));
        for folder in [&own, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("file"), "content").unwrap();
        }

        on_a_thread(|| {
            let confined = restrict(&Own { folder: Some(&own), has_abstract_manager: false });
            if confined.unwrap() == RulesetStatus::NotEnforced {
                return println!("skipped: the kernel has no Landlock");
            }

            let file = open(&other.join("file"), OFlags::RDWR).unwrap();
            assert_eq!(ftruncate(&file, 3), Ok(()));
            fs::File::from(file).write_all(b"new").unwrap();
            let denied = |outcome: std::io::Result<()>| {
                let errno = outcome.err().and_then(|error| error.raw_os_error());
                assert_eq!(errno, Some(libc::EACCES));
            };
            denied(fs::write(other.join("new"), ""));
            denied(fs::write(own.join("new"), ""));
            denied(fs::create_dir(own.join("new")));
            denied(fs::rename(other.join("file"), other.join("renamed")));
            denied(fs::remove_file(other.join("file")));
            fs::remove_file(own.join("file")).unwrap();
            assert_eq!(fs::read(other.join("file")).unwrap(), b"new");
        });
    }

    #[test]
    fn the_filter_lets_through_what_a_server_does_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "content").unwrap();

        on_a_thread(|| {
            if let Err(error) = filter_calls() {
                return println!("skipped: {error:#}");
            }

            assert!(open(&path, OFlags::RDWR | OFlags::APPEND | OFlags::DIRECTORY).is_err());
            assert_eq!(ftruncate(open(&path, OFlags::RDWR).unwrap(), 3), Ok(()));
            assert!(memfd_create("memory", MemfdFlags::CLOEXEC).is_ok());
            assert!(socket(AddressFamily::UNIX, SocketType::STREAM, None).is_ok());
            assert_eq!(thread::spawn(|| 7).join().unwrap(), 7);
            assert!(Command::new("true").status().unwrap().success());
            assert_eq!(fs::read(&path).unwrap(), b"con");
            let closed = set_dumpable_behavior(DumpableBehavior::NotDumpable);
            assert_eq!(closed, Ok(()));
            for (what, outcome) in [
                ("making a file", open(&folder.path().join("new"), OFlags::CREATE).map(drop)),
                ("truncating one", open(&path, OFlags::RDWR | OFlags::TRUNC).map(drop)),
                ("a nameless one", open(folder.path(), OFlags::RDWR | OFlags::TMPFILE).map(drop)),
                ("another's mode", chmod(&path, Mode::RUSR)),
                ("a network", socket(AddressFamily::INET, SocketType::STREAM, None).map(drop)),
                ("opening it to others", set_dumpable_behavior(DumpableBehavior::Dumpable)),
            ] {
                assert_eq!(outcome, Err(Errno::NOSYS), "{what}");
            }
        });
    }

    #[test]
    fn the_sandbox_is_entered_again_by_what_is_in_it() {
        on_a_thread(|| {
            let own = Own { folder: None, has_abstract_manager: true };
            // More often than Landlock has layers.
            for _ in 0..20 {
                enter(&own);
            }
            assert!(Command::new("true").status().unwrap().success());
        });
    }
}
