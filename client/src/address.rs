//! Where the daemon's socket is.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use fdstash_proto::INTERFACE_NAME;

/// The directory of the system's daemon.
const SYSTEM: &str = "/run";

/// Tells which socket `connect` uses: `$FDSTASH_SOCKET`; else, for root,
/// `/run/fdstash/org.fdstash.Stash`; else `fdstash/org.fdstash.Stash` below `$XDG_RUNTIME_DIR`, and
/// the system's where the user has none of their own.
#[must_use]
pub fn default_socket() -> PathBuf {
    choose(|name| env::var_os(name), rustix::process::geteuid().is_root(), Path::exists)
}

fn choose(
    variable: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
    exists: impl Fn(&Path) -> bool,
) -> PathBuf {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(socket) = set("FDSTASH_SOCKET") {
        return socket.into();
    }
    let below = |directory: &Path| directory.join("fdstash").join(INTERFACE_NAME);
    let own = set("XDG_RUNTIME_DIR").filter(|_| !is_root).map(|own| below(Path::new(&own)));
    own.filter(|own| exists(own)).unwrap_or_else(|| below(Path::new(SYSTEM)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_socket_is_used() {
        const SYSTEM: &str = "/run/fdstash/org.fdstash.Stash";
        const OWN: &str = "/run/user/7/fdstash/org.fdstash.Stash";
        let table = [
            // FDSTASH_SOCKET, XDG_RUNTIME_DIR, root, whether there is one of the user's own
            (Some("/tmp/s"), Some("/run/user/7"), false, true, "/tmp/s"),
            (Some("/tmp/s"), None, true, false, "/tmp/s"),
            (Some(""), None, true, false, SYSTEM),
            (None, Some("/run/user/7"), true, true, SYSTEM),
            (None, Some("/run/user/7"), false, true, OWN),
            (None, Some("/run/user/7"), false, false, SYSTEM),
            (None, Some(""), false, true, SYSTEM),
            (None, None, false, true, SYSTEM),
        ];

        for (socket, runtime, is_root, has_own, expected) in table {
            let variable = |name: &str| match name {
                "FDSTASH_SOCKET" => socket.map(OsString::from),
                "XDG_RUNTIME_DIR" => runtime.map(OsString::from),
                _ => None,
            };
            let chosen = choose(variable, is_root, |path| has_own && path == Path::new(OWN));
            assert_eq!(chosen, Path::new(expected), "{socket:?} {runtime:?} {is_root} {has_own}");
        }
    }
}
