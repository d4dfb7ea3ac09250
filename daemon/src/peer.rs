//! Who is at the other end of a connection, as the kernel knows it.
//!
//! `rustix` has no `SO_PEERGROUPS`, and reads `SO_PEERCRED` into a type in which the process cannot
//! be 0, though it is for a peer that is in no pid namespace of ours; hence `libc`.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use fdstash_proto::Peer;
use fdstash_stash::Who;

/// The user, groups and process that made the connection, as they were then.
///
/// # Errors
///
/// The kernel's, for what is no connected Unix socket.
pub(crate) fn who(socket: impl AsFd) -> io::Result<Who> {
    let mut credentials = [libc::ucred { pid: 0, uid: 0, gid: 0 }];
    read(&socket, libc::SO_PEERCRED, &mut credentials)?;
    let [libc::ucred { pid, uid, gid }] = credentials;
    Ok(Who { peer: Peer { uid, gid, pid }, groups: groups(&socket)?.into() })
}

/// Somebody without any right.
pub(crate) fn nobody() -> Who {
    Who { peer: Peer { uid: u32::MAX, gid: u32::MAX, pid: 0 }, groups: Vec::new().into() }
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
