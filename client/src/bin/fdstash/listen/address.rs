//! [`Address`]: where to listen, as people write it, and a socket that does.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileTypeExt},
    },
    path::{Path, PathBuf, absolute},
    str::FromStr,
};

use rustix::{
    fs::Mode,
    io::Errno,
    net::{
        AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
        getsockname, listen, socket_with,
        sockopt::{set_ipv6_v6only, set_socket_reuseaddr, socket_type},
    },
    process::umask,
};

/// Where to listen, and with which kind of socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// As it was written.
    text: String,
    kind: SocketType,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// This port at all addresses of the machine, of IPv6 and IPv4.
    Everywhere(u16),
    At(SocketAddr),
    /// For IPv6 alone, also where it is all addresses.
    Only6(SocketAddr),
    File(PathBuf),
    Abstract(String),
}

/// What a socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    kind: SocketType,
    to: SocketAddrAny,
}

impl Address {
    /// A socket for it, which is bound to nothing yet.
    pub(super) fn socket(&self) -> io::Result<OwnedFd> {
        let of = |family| socket_with(family, self.kind, SocketFlags::CLOEXEC, None);
        let socket = match &self.place {
            Place::Everywhere(_) => match of(AddressFamily::INET6) {
                // A machine without IPv6.
                Err(Errno::AFNOSUPPORT) => of(AddressFamily::INET)?,
                outcome => outcome?,
            },
            Place::At(address) if address.is_ipv4() => of(AddressFamily::INET)?,
            Place::At(_) | Place::Only6(_) => of(AddressFamily::INET6)?,
            Place::File(_) | Place::Abstract(_) => of(AddressFamily::UNIX)?,
        };
        Ok(socket)
    }

    /// Binds such a socket, and has it listen.
    pub(super) fn bind(
        &self,
        socket: &OwnedFd,
        mode: Option<u32>,
        backlog: Option<i32>,
    ) -> io::Result<Bound> {
        match &self.place {
            Place::Everywhere(port) => self.bind_everywhere(socket, *port)?,
            Place::At(address) => self.bind_inet(socket, *address, false)?,
            Place::Only6(address) => self.bind_inet(socket, *address, true)?,
            Place::File(path) => bind_file(socket, path, mode)?,
            Place::Abstract(name) => {
                bind(socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
            }
        }
        if self.kind != SocketType::DGRAM {
            // The kernel takes the most that it lets (net.core.somaxconn) for more than that.
            listen(socket, backlog.unwrap_or(i32::MAX))?;
        }
        Bound::of(rustix::fd::AsFd::as_fd(socket))
    }

    fn bind_everywhere(&self, socket: &OwnedFd, port: u16) -> io::Result<()> {
        let [six, four] = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)]
            .map(|all| SocketAddr::new(all, port));
        let is_six = rustix::net::sockopt::socket_domain(socket)? == AddressFamily::INET6;
        self.bind_inet(socket, if is_six { six } else { four }, false)
    }

    fn bind_inet(&self, socket: &OwnedFd, to: SocketAddr, only_6: bool) -> io::Result<()> {
        if to.is_ipv6() {
            set_ipv6_v6only(socket, only_6)?;
        }
        // So that connections that end do not keep others from listening here. For UDP it would mean
        // that several may be bound at a time.
        if self.kind == SocketType::STREAM {
            set_socket_reuseaddr(socket, true)?;
        }
        Ok(bind(socket, &to)?)
    }

    /// Whether a socket is bound to it.
    pub(super) fn fits(&self, bound: &Bound) -> bool {
        let inet = SocketAddr::try_from(bound.to.clone()).ok();
        let unix = SocketAddrUnix::try_from(bound.to.clone()).ok();
        let same_port = |port: u16, other: u16| port == 0 || port == other;
        let at = |address: &SocketAddr| {
            inet.is_some_and(|inet| {
                inet.ip() == address.ip() && same_port(address.port(), inet.port())
            })
        };
        let is_there = match &self.place {
            Place::Everywhere(port) => {
                inet.is_some_and(|inet| inet.ip().is_unspecified() && same_port(*port, inet.port()))
            }
            Place::At(address) | Place::Only6(address) => at(address),
            Place::File(path) => {
                unix.is_some_and(|unix| unix.path_bytes() == Some(path.as_os_str().as_bytes()))
            }
            Place::Abstract(name) => {
                unix.is_some_and(|unix| unix.abstract_name() == Some(name.as_bytes()))
            }
        };
        is_there && self.kind == bound.kind
    }

    /// Whether the kernel is to choose a port.
    pub(super) fn has_any_port(&self) -> bool {
        match &self.place {
            Place::Everywhere(port) => *port == 0,
            Place::At(address) | Place::Only6(address) => address.port() == 0,
            Place::File(_) | Place::Abstract(_) => false,
        }
    }

    /// The file of the socket, if it has one.
    pub(super) fn path(&self) -> Option<&Path> {
        if let Place::File(path) = &self.place { Some(path) } else { None }
    }
}

/// Binds to a file, in the place of one that nobody listens at any more.
fn bind_file(socket: &OwnedFd, path: &Path, mode: Option<u32>) -> io::Result<()> {
    let address = SocketAddrUnix::new(path)?;
    remove_dead(path, &address, socket_type(socket)?)?;
    let Some(mode) = mode else {
        return Ok(bind(socket, &address)?);
    };
    // The mode that the kernel makes the file with, less the umask. To change it by its path later could
    // be to change another file, which whoever owns the folder has put there meanwhile.
    rustix::fs::fchmod(socket, Mode::from_raw_mode(mode))?;
    let mask = umask(Mode::empty());
    let outcome = bind(socket, &address);
    umask(mask);
    Ok(outcome?)
}

fn remove_dead(path: &Path, address: &SocketAddrUnix, kind: SocketType) -> io::Result<()> {
    let there = fs::symlink_metadata(path);
    if !there.is_ok_and(|there| there.file_type().is_socket()) {
        return Ok(());
    }
    let probe =
        socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(probe, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        // Somebody listens, or it is of another kind: to bind will fail, and say so.
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Bound {
    /// What a socket is bound to.
    ///
    /// # Errors
    ///
    /// The kernel's, for what is no socket.
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { kind: socket_type(socket)?, to: getsockname(socket)? })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(inet) = SocketAddr::try_from(self.to.clone()) {
            let word = if self.kind == SocketType::DGRAM { "udp" } else { "tcp" };
            return write!(f, "{word}:{inet}");
        }
        let unix = SocketAddrUnix::try_from(self.to.clone()).ok();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let path = unix.as_ref().and_then(|unix| unix.path_bytes().map(text));
        let name = || unix.as_ref()?.abstract_name().map(|name| format!("@{}", text(name)));
        write!(f, "unix:{}", path.or_else(name).unwrap_or_else(|| "no address".into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, rest) = match text.split_once(':') {
            Some((word, rest)) if is_word(word) => (word, rest),
            Some(_) | None if text.starts_with(['/', '@']) => ("unix", text),
            Some(_) | None => ("tcp", text),
        };
        let (kind, place) = match word {
            "tcp" => (SocketType::STREAM, inet(rest)?),
            "tcp4" => (SocketType::STREAM, inet4(rest)?),
            "tcp6" => (SocketType::STREAM, inet6(rest)?),
            "udp" => (SocketType::DGRAM, inet(rest)?),
            "udp4" => (SocketType::DGRAM, inet4(rest)?),
            "udp6" => (SocketType::DGRAM, inet6(rest)?),
            "unix" => (SocketType::STREAM, unix(rest)?),
            "unix-dgram" => (SocketType::DGRAM, unix(rest)?),
            "unix-seqpacket" => (SocketType::SEQPACKET, unix(rest)?),
            _ => {
                return Err(format!(
                    "\"{word}\" is none of tcp, tcp4, tcp6, udp, udp4, udp6, unix, unix-dgram, unix-seqpacket"
                ));
            }
        };
        Ok(Self { text: text.to_owned(), kind, place })
    }
}

/// Whether it says of which kind an address is, and is no part of one.
fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
}

fn inet(text: &str) -> Result<Place, String> {
    match text.parse() {
        Ok(port) => Ok(Place::Everywhere(port)),
        Err(_) => address(text).map(Place::At),
    }
}

fn inet4(text: &str) -> Result<Place, String> {
    if let Ok(port) = text.parse() {
        return Ok(Place::At((Ipv4Addr::UNSPECIFIED, port).into()));
    }
    let address = address(text)?;
    let fits = address.is_ipv4().then_some(Place::At(address));
    fits.ok_or_else(|| format!("\"{text}\" is not of IPv4"))
}

fn inet6(text: &str) -> Result<Place, String> {
    if let Ok(port) = text.parse() {
        return Ok(Place::Only6((Ipv6Addr::UNSPECIFIED, port).into()));
    }
    let address = address(text)?;
    let fits = address.is_ipv6().then_some(Place::Only6(address));
    fits.ok_or_else(|| format!("\"{text}\" is not of IPv6"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("\"{text}\" is no PORT, ADDRESS:PORT or [ADDRESS]:PORT, with an address in numbers")
    })
}

fn unix(text: &str) -> Result<Place, String> {
    let place = match text.strip_prefix('@') {
        Some(name) => Place::Abstract(name.to_owned()),
        None if text.is_empty() => return Err("a Unix socket has a /PATH or an @NAME".into()),
        None => Place::File(absolute(text).map_err(|error| error.to_string())?),
    };
    let fits = match &place {
        Place::File(path) => SocketAddrUnix::new(path).is_ok(),
        Place::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()).is_ok(),
        Place::Everywhere(_) | Place::At(_) | Place::Only6(_) => false,
    };
    fits.then_some(place)
        .ok_or_else(|| format!("\"{text}\" is too long for a Unix socket's address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_systemd_and_others_write_it() {
        let at = |text: &str| Place::At(text.parse().unwrap());
        let only = |text: &str| Place::Only6(text.parse().unwrap());
        let table = [
            ("8080", SocketType::STREAM, Place::Everywhere(8080)),
            ("tcp:8080", SocketType::STREAM, Place::Everywhere(8080)),
            ("127.0.0.1:80", SocketType::STREAM, at("127.0.0.1:80")),
            ("[::1]:80", SocketType::STREAM, at("[::1]:80")),
            ("tcp:[::]:80", SocketType::STREAM, at("[::]:80")),
            ("tcp4:80", SocketType::STREAM, at("0.0.0.0:80")),
            ("tcp6:80", SocketType::STREAM, only("[::]:80")),
            ("tcp6:[::1]:80", SocketType::STREAM, only("[::1]:80")),
            ("udp:127.0.0.1:53", SocketType::DGRAM, at("127.0.0.1:53")),
            ("udp6:53", SocketType::DGRAM, only("[::]:53")),
            ("/run/x", SocketType::STREAM, Place::File("/run/x".into())),
            ("unix:/run/x", SocketType::STREAM, Place::File("/run/x".into())),
            ("@x", SocketType::STREAM, Place::Abstract("x".into())),
            ("unix-dgram:@x", SocketType::DGRAM, Place::Abstract("x".into())),
            ("unix-seqpacket:/run/x", SocketType::SEQPACKET, Place::File("/run/x".into())),
        ];

        for (text, kind, place) in table {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.kind, address.place), (kind, place), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_told_why() {
        let long = format!("unix:/{}", "x".repeat(108));
        let table = [
            ("tcp:", "no PORT"),
            ("tcp:localhost:80", "in numbers"),
            ("tcp:1.2.3.4", "no PORT"),
            ("tcp:99999", "no PORT"),
            ("tcp4:[::1]:80", "not of IPv4"),
            ("tcp6:1.2.3.4:80", "not of IPv6"),
            ("sctp:80", "none of tcp"),
            ("localhost:80", "none of tcp"),
            ("unix:", "/PATH"),
            (&long, "too long"),
        ];

        for (text, why) in table {
            let refused = text.parse::<Address>().unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
