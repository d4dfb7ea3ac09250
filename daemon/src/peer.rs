//! Who is at the other end of a connection, as the kernel knows it.
//!
//! The kernel has written down the user and all groups when the connection was made, and tells the same
//! ever after (`SO_PEERCRED`, `SO_PEERGROUPS`). A handle on the process (`SO_PEERPIDFD`) is not asked for
//! its groups, since they are those of now: whoever has connected could give up a group that files deny
//! something to, or execute a set-user-ID program, and be somebody else to a connection that is still its
//! own. Nor is a connection that was passed on the new holder's, which would be asked for more by
//! having it. What such a handle would add is that the number of the process is not another's by now;
//! it is only told, for people to look at, and decides nothing.
//!
//! `rustix` has no `SO_PEERGROUPS`, and reads `SO_PEERCRED` into a type in which the process cannot
//! be 0, though it is for a peer that is in no pid namespace of ours; hence `libc`.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    sync::LazyLock,
};

use fdstash_proto::Peer;
use fdstash_stash::{UNMAPPED, Who};

/// The number that the kernel tells for every user who has none in this user namespace, if there can be
/// one: the number of a user all the same, but nobody can tell of whom it is said.
static OVERFLOW_UID: LazyLock<Option<u32>> = LazyLock::new(|| overflow("uid"));

/// The same for groups.
static OVERFLOW_GID: LazyLock<Option<u32>> = LazyLock::new(|| overflow("gid"));

/// What the kernel tells for whoever has no number here, unless `/proc/sys` says something else.
const OVERFLOW: u32 = 65534;

/// The user, groups and process that made the connection, as they were then.
///
/// # Errors
///
/// The kernel's, for what is no connected Unix socket.
pub(crate) fn who(socket: impl AsFd) -> io::Result<Who> {
    let mut credentials = [libc::ucred { pid: 0, uid: 0, gid: 0 }];
    read(&socket, libc::SO_PEERCRED, &mut credentials)?;
    let [libc::ucred { pid, uid, gid }] = credentials;
    let mapped = |id, overflow| if Some(id) == overflow { UNMAPPED } else { id };
    let groups = groups(&socket)?.into_iter().map(|group| mapped(group, *OVERFLOW_GID));
    let peer = Peer { uid: mapped(uid, *OVERFLOW_UID), gid: mapped(gid, *OVERFLOW_GID), pid };
    Ok(Who { peer, groups: groups.collect() })
}

/// Finds out which numbers say nothing of who somebody is, while `/proc` can be read.
pub(crate) fn look_at_namespace() {
    LazyLock::force(&OVERFLOW_UID);
    LazyLock::force(&OVERFLOW_GID);
}

/// Somebody without any right.
pub(crate) fn nobody() -> Who {
    Who { peer: Peer { uid: UNMAPPED, gid: UNMAPPED, pid: 0 }, groups: Vec::new().into() }
}

/// What the kernel tells in the place of a number that it has none for here; nothing, where every
/// user, or group, has one. Without a `/proc` to tell, that is not known.
fn overflow(sort: &str) -> Option<u32> {
    let map = fs::read_to_string(format!("/proc/self/{sort}_map"));
    if map.is_ok_and(|map| is_whole(&map)) {
        return None;
    }
    let told = fs::read_to_string(format!("/proc/sys/kernel/overflow{sort}"));
    Some(told.ok().and_then(|told| told.trim().parse().ok()).unwrap_or(OVERFLOW))
}

/// Whether a map of a user namespace has a number for everybody, as the first one's has. One that has
/// can be made only within one that has.
fn is_whole(map: &str) -> bool {
    let count = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    map.lines().filter_map(count).sum::<u64>() >= u64::from(u32::MAX)
}

fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0; 32];
    loop {
        match read(socket, libc::SO_PEERGROUPS, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // The kernel says how many there are only by refusing fewer.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < 65536 => {
                groups.resize(groups.len() * 2, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Types that the kernel may fill with whatever it wants.
trait Plain: Copy {}
impl Plain for libc::ucred {}
impl Plain for u32 {}

/// Reads a socket option into as many values as there is room for, and tells how many there were.
#[expect(unsafe_code, reason = "getsockopt is nobody's safe function for these options")]
fn read<T: Plain>(socket: &impl AsFd, option: libc::c_int, values: &mut [T]) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(size_of_val(values)).unwrap_or(0);
    #[expect(
        clippy::disallowed_methods,
        reason = "libc takes a number; `socket` outlives the call"
    )]
    let number = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes to `values`, which has them and whose type,
    // being `Plain`, can be any bytes; and a length to `len`.
    let outcome = unsafe {
        libc::getsockopt(number, libc::SOL_SOCKET, option, values.as_mut_ptr().cast(), &raw mut len)
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(len as usize / size_of::<T>())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_where_everybody_has_a_number_nobody_has_none() {
        for (map, expected) in [
            ("         0          0 4294967295\n", true),
            ("0 0 65536\n65536 65536 4294901759\n", true),
            ("0 0 4294967294\n", false),
            ("0 100000 65536\n", false),
            ("0 1000 1\n1 100000 65536\n", false),
            ("", false),
        ] {
            assert_eq!(is_whole(map), expected, "{map:?}");
        }
    }

    #[test]
    fn a_peer_of_our_own_is_us() {
        let (one, _other) = UnixStream::pair().unwrap();

        let who = who(&one).unwrap();

        assert_eq!(who.peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(who.peer.gid, rustix::process::getegid().as_raw());
        assert_eq!(who.peer.pid, i32::try_from(std::process::id()).unwrap());
        let groups: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(who.groups.to_vec(), groups);
    }
}
