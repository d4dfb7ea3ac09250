//! A stream socket as Linux has it, in memory: which bytes and which descriptors each read brings.
//!
//! The tests of the codec run on it, and `the_model_reads_as_the_kernel_does` (socket.rs) holds it
//! to the kernel.

use std::collections::VecDeque;

/// What has been sent and not yet been read; `F` stands for a descriptor.
pub(crate) struct Stream<F> {
    /// As the kernel keeps them: what was sent at once stays together, and is never joined with
    /// what was sent later.
    pieces: VecDeque<Piece<F>>,
}

struct Piece<F> {
    bytes: VecDeque<u8>,
    fds: Vec<F>,
}

impl<F> Stream<F> {
    pub(crate) fn new() -> Self {
        Self { pieces: VecDeque::new() }
    }

    /// One `sendmsg`. A long one is kept in several pieces, of which the first has the descriptors.
    pub(crate) fn send(&mut self, bytes: &[u8], fds: Vec<F>) {
        /// What the kernel takes in one piece is more; the smaller ones of here are met more often.
        const LONGEST: usize = 4096;

        let mut fds = Some(fds);
        for bytes in bytes.chunks(LONGEST) {
            let fds = fds.take().unwrap_or_default();
            self.pieces.push_back(Piece { bytes: bytes.iter().copied().collect(), fds });
        }
    }

    /// One `recvmsg` of at most `most` bytes. It ends after a piece that brought descriptors, and
    /// not before one; the descriptors come with the first byte that is read of their piece.
    pub(crate) fn read(&mut self, most: usize) -> (Vec<u8>, Vec<F>) {
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        while let Some(piece) = self.pieces.front_mut() {
            let count = piece.bytes.len().min(most - bytes.len());
            if count == 0 {
                break;
            }
            bytes.extend(piece.bytes.drain(..count));
            fds.append(&mut piece.fds);
            if piece.bytes.is_empty() {
                self.pieces.pop_front();
            }
            if !fds.is_empty() {
                break;
            }
        }
        (bytes, fds)
    }
}
