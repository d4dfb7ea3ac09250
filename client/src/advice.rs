//! What to do about an error, as a clause without a capital or a full stop.

use std::{io, os::unix::fs::FileTypeExt, path::Path};

use fdstash_proto::{MAX_DESCRIPTORS, Refusal};

/// What to do about a refusal, where that is known.
pub(crate) fn on_refusal(refusal: &Refusal) -> Option<String> {
    let advice = match refusal {
        Refusal::NotFound { .. } => {
            "list the entries to see which there are; what may not be used is not shown either"
        }
        Refusal::AlreadyExists { .. } => {
            "close it first, or give without being exclusive to put this in its place"
        }
        Refusal::Busy { .. } => "wait for it, with a time-out, or let the other side finish",
        Refusal::AccessDenied { name, verb } => return Some(on_rights(name, verb)),
        Refusal::ReopenFailed { .. } => "the stash is as it was",
        Refusal::LimitExceeded { limit, .. } => return Some(on_limit(limit)),
        Refusal::NotDurable { .. } => "the daemon's log says more",
        Refusal::InvalidName { .. } => {
            "a name is 1 to 255 printable ASCII characters without ':', once in a call"
        }
        Refusal::InterfaceNotFound { .. }
        | Refusal::MethodNotFound { .. }
        | Refusal::MethodNotImplemented { .. }
        | Refusal::InvalidParameter { .. }
        | Refusal::ExpectedMore => "compare the versions of the daemon and of this program",
        Refusal::PermissionDenied => "that is for root alone",
        Refusal::TransactionState { .. } | Refusal::FileDescriptorMissing { .. } => return None,
    };
    Some(advice.to_owned())
}

/// What can stand against it, and how root sees which rule of the policy decides: the daemon tells nobody
/// else, since a rule may speak of others.
fn on_rights(name: &str, verb: &str) -> String {
    let who = match verb {
        "give" => "the name is another user's, or the policy reserves it: choose another",
        "reopen" => {
            "its giver says how far it may be reopened at most, and with whom it is shared; or a rule of \
             the policy allows it"
        }
        "reopen by path" => {
            "only a rule of the policy that names a directory above the path allows it"
        }
        _ => "its giver says with whom it is shared, or a rule of the policy allows it",
    };
    let (uid, verb) = (rustix::process::geteuid().as_raw(), verb.replace(' ', "-"));
    let name = quoted(name);
    format!("{who}; root sees which: fdstash policy explain --user {uid} {verb} {name}")
}

/// A name as a shell takes it.
fn quoted(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./@+,".contains(&byte);
    if !name.is_empty() && name.bytes().all(is_plain) {
        return name.to_owned();
    }
    format!("'{}'", name.replace('\'', r"'\''"))
}

fn on_limit(limit: &str) -> String {
    let option = match limit {
        "entries" => "--max-entries",
        "connections" => "--max-connections",
        "entriesPerUser" => "--user-entries",
        "connectionsPerUser" => "--user-connections",
        "labelBytesPerUser" => "--user-label-bytes",
        "waitsPerUser" => "--user-waits",
        "watchesPerUser" => "--user-watches",
        "transactionsPerUser" => "--user-transactions",
        "opensPerUser" => "--user-opens",
        "descriptorsPerUser" => "--user-descriptors",
        "bytesPerUser" => "--user-bytes",
        "namesPerTransaction" => "--transaction-names",
        "descriptors" => "limit on open files (LimitNOFILE=)",
        "descriptorsPerMessage" => return "make several calls of it, in one transaction".into(),
        "opens" => return "others' files are being opened: try again".into(),
        _ => return "close what is no longer needed, or have the daemon's limit raised".into(),
    };
    format!("close what is no longer needed, or have root raise fdstashd's {option}")
}

/// The line that starts the unit that would listen at a socket, if that is installed.
pub(crate) fn unit_for(socket: &Path) -> Option<&'static str> {
    const SYSTEMS: [&str; 4] = [
        "/etc/systemd/system/fdstashd.socket",
        "/usr/local/lib/systemd/system/fdstashd.socket",
        "/usr/lib/systemd/system/fdstashd.socket",
        "/lib/systemd/system/fdstashd.socket",
    ];
    const USERS: [&str; 3] = [
        "/etc/systemd/user/fdstashd.socket",
        "/usr/local/lib/systemd/user/fdstashd.socket",
        "/usr/lib/systemd/user/fdstashd.socket",
    ];
    let is_installed = |places: &[&str]| places.iter().any(|place| Path::new(place).exists());
    if socket.starts_with("/run/fdstash") && is_installed(&SYSTEMS) {
        return Some("systemctl start fdstashd.socket");
    }
    let is_own = socket.starts_with("/run/user") && socket.parent()?.ends_with("fdstash");
    (is_own && is_installed(&USERS)).then_some("systemctl --user start fdstashd.socket")
}

/// What to do where nobody can be reached; `unit` is the line that starts one, if there is a unit.
pub(crate) fn on_reaching(socket: &Path, error: &io::Error, unit: Option<&str>) -> String {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return "the socket's mode and the directories above it decide who may connect".into();
    }
    let ended = if error.kind() == io::ErrorKind::ConnectionRefused {
        if !std::fs::metadata(socket).is_ok_and(|file| file.file_type().is_socket()) {
            return "that is no socket: say with --socket or $FDSTASH_SOCKET which one it is"
                .into();
        }
        "the daemon that was there has ended: "
    } else {
        ""
    };
    match unit {
        Some(start) => format!("{ended}start one with `{start}`"),
        None => format!("{ended}start one with `fdstashd --socket {}`", socket.display()),
    }
}

/// What to do where the kernel has not sent a message.
pub(crate) fn on_sending(error: &io::Error) -> Option<String> {
    let errno = rustix::io::Errno::from_io_error(error)?;
    // unix(7): descriptors that are sent and not yet received count against the sender's limit.
    (errno == rustix::io::Errno::TOOMANYREFS).then(|| {
        format!(
            "this user has too many descriptors on their way: give fewer than {MAX_DESCRIPTORS} \
             at once, or raise the limit (ulimit -n)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_is_told_how_root_sees_the_rule() {
        let uid = rustix::process::geteuid().as_raw();
        let advice = |name: &str, verb: &str| {
            let refusal = Refusal::AccessDenied { name: name.into(), verb: verb.into() };
            on_refusal(&refusal).unwrap()
        };

        for (name, verb, end) in [
            ("disk", "copy", "copy disk"),
            ("vm7/disk", "give", "give vm7/disk"),
            ("it's a *", "reopen by path", r"reopen-by-path 'it'\''s a *'"),
        ] {
            let end = format!("root sees which: fdstash policy explain --user {uid} {end}");
            assert!(advice(name, verb).ends_with(&end), "{}", advice(name, verb));
        }
    }

    #[test]
    fn what_starts_a_daemon_is_what_is_there() {
        let gone = io::Error::from(rustix::io::Errno::NOENT);
        let refused = io::Error::from(rustix::io::Errno::CONNREFUSED);
        let unit = Some("systemctl start fdstashd.socket");
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("x");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let by_hand = format!("start one with `fdstashd --socket {}`", socket.display());

        let start = |error, unit| on_reaching(&socket, error, unit);

        assert_eq!(start(&gone, unit), "start one with `systemctl start fdstashd.socket`");
        assert_eq!(start(&gone, None), by_hand);
        assert_eq!(
            start(&refused, None),
            format!("the daemon that was there has ended: {by_hand}")
        );
        assert!(on_reaching(folder.path(), &refused, None).starts_with("that is no socket"));
        assert_eq!(unit_for(Path::new("/tmp/stash")), None);
    }
}
