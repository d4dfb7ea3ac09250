//! A client of a Network Block Device server, as small as the tests need it: the fixed newstyle
//! handshake, reads, writes and flushes, one at a time.
//!
//! Numbers and names are those of the protocol's specification (`doc/proto.md` of the `nbd` project).

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use crate::SOON;

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

/// `NBD_FLAG_C_FIXED_NEWSTYLE` and `NBD_FLAG_C_NO_ZEROES`.
const CLIENT_FLAGS: u32 = 1 | 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;

/// The commands of the transmission.
#[derive(Debug, Clone, Copy)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// A connection to one export.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    size: u64,
    cookie: u64,
}

impl Nbd {
    /// Connects to the export of a name.
    ///
    /// # Errors
    ///
    /// If there is no such server or export, or if the server speaks another protocol.
    pub fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        if number(&mut stream)? != GREETING || number(&mut stream)? != OPTION {
            return Err(unexpected("the server does not greet as newstyle NBD does"));
        }
        let mut flags = [0; 2];
        stream.read_exact(&mut flags)?;
        stream.write_all(&CLIENT_FLAGS.to_be_bytes())?;
        let size = go(&mut stream, export)?;
        Ok(Self { stream, size, cookie: 0 })
    }

    /// How large the export is, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills a buffer from an offset on.
    ///
    /// # Errors
    ///
    /// The server's, or the connection's.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.request(Command::Read, offset, buffer.len(), &[])?;
        self.stream.read_exact(buffer)
    }

    /// Writes a buffer from an offset on.
    ///
    /// # Errors
    ///
    /// The server's, or the connection's.
    pub fn write(&mut self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        self.request(Command::Write, offset, buffer.len(), buffer)
    }

    /// Has everything that was written before reach the image's files.
    ///
    /// # Errors
    ///
    /// The server's, or the connection's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(Command::Flush, 0, 0, &[])
    }

    /// Sends a request, and waits for the head of its reply.
    fn request(
        &mut self,
        command: Command,
        offset: u64,
        length: usize,
        data: &[u8],
    ) -> io::Result<()> {
        self.send(command, offset, length, data)?;
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let [magic, error] = [0, 4].map(|at| word_at(&head, at));
        let cookie = (u64::from(word_at(&head, 8)) << 32) | u64::from(word_at(&head, 12));
        if magic != SIMPLE_REPLY || cookie != self.cookie {
            return Err(unexpected("the server's reply is not to what was asked"));
        }
        match i32::try_from(error) {
            Ok(0) => Ok(()),
            // The protocol's error numbers are Linux's.
            Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
            Err(_) => Err(unexpected("the server's error is no number of an error")),
        }
    }

    fn send(
        &mut self,
        command: Command,
        offset: u64,
        length: usize,
        data: &[u8],
    ) -> io::Result<()> {
        self.cookie += 1;
        let length = u32::try_from(length).map_err(|_| unexpected("that is too much at once"))?;
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend(REQUEST.to_be_bytes());
        message.extend([0, 0]);
        message.extend((command as u16).to_be_bytes());
        message.extend(self.cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(length.to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        let _ = self.send(Command::Disconnect, 0, 0, &[]);
    }
}

/// Asks for an export, and waits until the server goes over to the transmission; tells its size.
fn go(stream: &mut UnixStream, export: &str) -> io::Result<u64> {
    let name = export.as_bytes();
    let length = u32::try_from(name.len()).map_err(|_| unexpected("the name is too long"))?;
    let mut option = Vec::new();
    option.extend(OPTION.to_be_bytes());
    option.extend(OPT_GO.to_be_bytes());
    // The name with its length before it, and that no information beyond the size is asked for.
    option.extend((4 + length + 2).to_be_bytes());
    option.extend(length.to_be_bytes());
    option.extend(name);
    option.extend([0, 0]);
    stream.write_all(&option)?;
    let mut size = None;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let kind = word_at(&head, 12);
        let mut data = vec![0; word_at(&head, 16) as usize];
        stream.read_exact(&mut data)?;
        if head[..8] != OPTION_REPLY.to_be_bytes() {
            return Err(unexpected("the server's reply is not to an option"));
        }
        match (kind, size) {
            (REP_ACK, Some(size)) => return Ok(size),
            (REP_INFO, _) if data.len() == 12 && data[..2] == INFO_EXPORT.to_be_bytes() => {
                let high = u64::from(word_at(&data, 2)) << 32;
                size = Some(high | u64::from(word_at(&data, 6)));
            }
            (REP_INFO, _) => {}
            (refused, _) => {
                let why = String::from_utf8_lossy(&data);
                return Err(unexpected(&format!("no export {export:?} ({refused:#x}): {why}")));
            }
        }
    }
}

fn number(stream: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
