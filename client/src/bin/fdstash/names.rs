//! Users and groups by their names, where this machine knows them.

use nix::unistd::{Gid, Group, Uid, User};

use crate::words::plain;

/// As `alice (uid 1000)`.
pub(crate) fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("{} (uid {uid})", plain(&user.name)),
        Ok(None) | Err(_) => format!("uid {uid}"),
    }
}

/// As `kvm (gid 109)`.
pub(crate) fn group(gid: u32) -> String {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => format!("group {} (gid {gid})", plain(&group.name)),
        Ok(None) | Err(_) => format!("gid {gid}"),
    }
}
