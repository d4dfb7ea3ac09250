//! [`Inbox`] and [`Outbox`]: NUL-terminated messages and the descriptors beside them, bounded.
//!
//! Descriptors queue in the order of their arrival, and each message takes as many as it names. By
//! convention the descriptors of a message travel in the `sendmsg` that has its first byte; many
//! messages may share one. Neither box owns a socket, and neither waits.

use std::collections::VecDeque;

use memchr::memchr;

use crate::{
    MAX_DESCRIPTORS, Name,
    call::{self, Incoming},
    reply::{self, Answer, Expect},
};

/// The most bytes of one message from a client, its NUL included.
pub const MAX_MESSAGE: usize = 1 << 20;

/// The most bytes of one message from the daemon that a client reads: a List without `more` is one
/// message, and sd-varlink reads no longer one either.
const MAX_ANSWER: usize = 16 << 20;

/// The most descriptors that wait for a message to name them: those of a message that is not whole
/// yet, those of the `sendmsg` that its rest comes with, and those of the one behind it, which the
/// same read as the rest may reach.
const MAX_WAITING: usize = 3 * MAX_DESCRIPTORS;

/// How a peer broke the protocol, so that nothing is left but to close its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Hangup {
    /// A message is longer than the reader allows.
    #[error("a message of more than {limit} bytes")]
    MessageTooLong {
        /// What it allows.
        limit: usize,
    },
    /// A message is no Varlink call.
    #[error("a message that is no Varlink call")]
    NotACall,
    /// A message is no Varlink reply, or not the one that was due.
    #[error("a message that is not the reply that was due")]
    NotAReply,
    /// Descriptors came that no message names.
    #[error("descriptors that no message names")]
    UnnamedDescriptors,
    /// The reader had no room for all descriptors that were sent, so some are gone
    /// (`MSG_CTRUNC`).
    #[error("descriptors that found no room here and are lost")]
    DescriptorsLost,
    /// The connection ended within a message.
    #[error("the connection ended within a message")]
    EndWithinMessage,
}

/// The descriptors that have come and that no message has named yet, in the order of their arrival.
pub(crate) struct Supply<F>(pub(crate) VecDeque<F>);

impl<F> Supply<F> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first `count` of them, or all that there are.
    pub(crate) fn drain(&mut self, count: usize) -> impl Iterator<Item = F> {
        self.0.drain(..count.min(self.0.len()))
    }

    /// As many as `order` has, each in the place where its number stands in `order`. None, and
    /// nothing is taken, unless so many are there and each number from 0 on stands there once.
    pub(crate) fn take_ordered(&mut self, order: &[usize]) -> Option<Vec<F>> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if order.len() > self.len() || !sorted.into_iter().eq(0..order.len()) {
            return None;
        }
        let mut fds: Vec<Option<F>> = self.0.drain(..order.len()).map(Some).collect();
        order.iter().map(|&index| fds[index].take()).collect()
    }
}

/// What has been read from a peer and is not yet understood. Owns the descriptors that came.
pub struct Inbox<F> {
    buffer: Vec<u8>,
    /// Where the first message that is not yet understood begins.
    start: usize,
    /// Up to where there is no NUL after `start`.
    scanned: usize,
    supply: Supply<F>,
    limit: usize,
}

impl<F> Inbox<F> {
    /// An inbox for calls.
    #[must_use]
    pub fn for_calls() -> Self {
        Self::with_limit(MAX_MESSAGE)
    }

    /// An inbox for replies.
    #[must_use]
    pub fn for_replies() -> Self {
        Self::with_limit(MAX_ANSWER)
    }

    fn with_limit(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, scanned: 0, supply: Supply(VecDeque::new()), limit }
    }

    /// Takes in what one read gave: its bytes, and the descriptors that came with them, which it
    /// owns from here on. To be called when the messages of the last read have all been asked for.
    ///
    /// # Errors
    ///
    /// [`Hangup::UnnamedDescriptors`] if descriptors are left that no message named: either more
    /// than could still be named, or some when the next ones come and nothing of a message stands
    /// between them. To go on would be to guess whose they are.
    pub fn feed(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = F>) -> Result<(), Hangup> {
        let stranded = self.is_stranded();
        let waiting = self.supply.len();
        self.supply.0.extend(fds);
        let came = self.supply.len() > waiting;
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
        if (came && stranded) || self.supply.len() > MAX_WAITING {
            return Err(Hangup::UnnamedDescriptors);
        }
        Ok(())
    }

    /// What has come and is not yet understood: bytes, and the descriptors that came with them.
    /// Another inbox that is fed both goes on from there.
    pub fn unread(&self) -> (&[u8], impl Iterator<Item = &F>) {
        (&self.buffer[self.start..], self.supply.0.iter())
    }

    /// How many bytes the next message has, its NUL included, if it is whole.
    ///
    /// # Errors
    ///
    /// [`Hangup::MessageTooLong`] if it is.
    pub fn next_len(&mut self) -> Result<Option<usize>, Hangup> {
        Ok(self.find_end()?.map(|end| end + 1 - self.start))
    }

    /// The next whole message, as a call.
    ///
    /// # Errors
    ///
    /// A [`Hangup`] if what stands there is no call, or too long to be one.
    pub fn next_call(&mut self) -> Result<Option<Incoming<F>>, Hangup> {
        let Some(end) = self.find_end()? else { return Ok(None) };
        let call = call::read(&self.buffer[self.start..end], &mut self.supply);
        self.step_over(end);
        call.map(Some)
    }

    /// The next whole message, as a reply to the call that is `due` one.
    ///
    /// # Errors
    ///
    /// A [`Hangup`] if what stands there is no such reply, or too long to be one.
    pub fn next_reply(&mut self, due: Expect) -> Result<Option<Answer<F>>, Hangup> {
        self.next_reply_to(due, &[])
    }

    /// As [`Inbox::next_reply`], of a call that has asked for these names: a name that stands in the
    /// reply where it stands there shares its text.
    ///
    /// # Errors
    ///
    /// As [`Inbox::next_reply`].
    pub fn next_reply_to(
        &mut self,
        due: Expect,
        asked: &[Name],
    ) -> Result<Option<Answer<F>>, Hangup> {
        let Some(end) = self.find_end()? else { return Ok(None) };
        let reply = reply::read(&self.buffer[self.start..end], due, asked, &mut self.supply);
        self.step_over(end);
        reply.map(Some)
    }

    /// How many bytes have come that are not yet understood.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Whether nothing has come that is not yet understood.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len() && self.supply.0.is_empty()
    }

    /// Whether descriptors wait here though nothing of a message does. The rest of their `sendmsg`
    /// may be about to come; if it does not, nobody named them.
    #[must_use]
    pub fn is_stranded(&self) -> bool {
        self.start == self.buffer.len() && !self.supply.0.is_empty()
    }

    /// Takes out every descriptor that no message has named, for their closing.
    pub fn take_unnamed(&mut self) -> Vec<F> {
        self.supply.0.drain(..).collect()
    }

    fn find_end(&mut self) -> Result<Option<usize>, Hangup> {
        let from = self.scanned.max(self.start);
        let end = memchr(0, &self.buffer[from..]).map(|at| from + at);
        self.scanned = end.unwrap_or(self.buffer.len());
        let len = end.map_or(self.buffer.len() - self.start, |end| end + 1 - self.start);
        if len > self.limit || (end.is_none() && len == self.limit) {
            return Err(Hangup::MessageTooLong { limit: self.limit });
        }
        Ok(end)
    }

    fn step_over(&mut self, end: usize) {
        self.start = end + 1;
        self.scanned = self.start;
        if self.start == self.buffer.len() {
            // What a burst needed is given back, so that a quiet connection is a small one.
            if self.buffer.capacity() > 64 << 10 {
                self.buffer = Vec::new();
            }
            self.buffer.clear();
            self.start = 0;
            self.scanned = 0;
        }
    }
}

/// One message on its way out, NUL included, and the descriptors beside it, which it owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<F> {
    /// The message.
    pub bytes: Vec<u8>,
    /// Its descriptors, in the order in which it names them.
    pub fds: Vec<F>,
}

/// What waits to be sent to a peer. Owns the descriptors until their bytes are on the way.
///
/// `T` goes with each message, and comes back when the message has left.
pub struct Outbox<F, T = ()> {
    frames: VecDeque<(Frame<F>, T)>,
    /// How much of the first message has left.
    sent: usize,
    /// How many bytes are yet to leave.
    waiting: usize,
}

impl<F, T> Outbox<F, T> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { frames: VecDeque::new(), sent: 0, waiting: 0 }
    }

    /// Appends a message, and what shall come back when it has left.
    pub fn push(&mut self, frame: Frame<F>, token: T) {
        self.waiting += frame.bytes.len();
        self.frames.push_back((frame, token));
    }

    /// How many bytes are yet to leave.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nothing is yet to leave.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// What the next `sendmsg` shall carry, into `bytes`, which is cleared first, and the descriptors
    /// beside it. A message with descriptors has a `sendmsg` of its own, so that readers that pair
    /// them by position agree with those that count; messages without share one of at most `most`
    /// bytes, or one message.
    pub fn next_send(&self, bytes: &mut Vec<u8>, most: usize) -> &[F] {
        bytes.clear();
        let mut sent = self.sent;
        for (frame, _) in &self.frames {
            let rest = &frame.bytes[sent..];
            let fds: &[F] = if sent == 0 { &frame.fds } else { &[] };
            if !bytes.is_empty() && (!fds.is_empty() || bytes.len() + rest.len() > most) {
                break;
            }
            bytes.extend_from_slice(rest);
            if !fds.is_empty() {
                return fds;
            }
            sent = 0;
        }
        &[]
    }

    /// Takes off what the kernel has accepted, and gives each message that has left to `left`, its
    /// descriptors with it: they are the receiver's too by then.
    pub fn advance(&mut self, mut count: usize, mut left: impl FnMut(Frame<F>, T)) {
        self.waiting -= count.min(self.waiting);
        while let Some((frame, _)) = self.frames.front() {
            let rest = frame.bytes.len() - self.sent;
            if count < rest {
                self.sent += count;
                return;
            }
            count -= rest;
            self.sent = 0;
            if let Some((frame, token)) = self.frames.pop_front() {
                left(frame, token);
            }
        }
    }
}

impl<F, T> Default for Outbox<F, T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Call, Mode};

    use super::*;

    #[test]
    fn descriptors_are_taken_in_the_order_that_is_asked_for_or_not_at_all() {
        let table: [(&[usize], Option<Vec<u32>>); 8] = [
            (&[], Some(vec![])),
            (&[0], Some(vec![10])),
            (&[1, 2, 0], Some(vec![11, 12, 10])),
            (&[0, 1, 2, 3], None),
            (&[1], None),
            (&[0, 0], None),
            (&[0, 2], None),
            (&[usize::MAX], None),
        ];

        for (order, expected) in table {
            let mut supply = Supply(VecDeque::from([10, 11, 12]));

            let taken = supply.take_ordered(order);

            assert_eq!(taken, expected, "{order:?}");
            assert_eq!(supply.len(), 3 - taken.map_or(0, |taken| taken.len()), "{order:?}");
        }
    }

    #[test]
    fn an_inbox_that_has_been_emptied_is_a_small_one() {
        let mut inbox = Inbox::<u32>::for_replies();
        let mut burst = vec![b' '; 1 << 20];
        burst.extend(b"{}\0");

        inbox.feed(&burst, []).unwrap();
        let answer = inbox.next_reply(Expect::Done);

        assert!(matches!(answer, Ok(Some(_))));
        assert!(inbox.buffer.capacity() <= 64 << 10);
    }

    #[test]
    fn an_inbox_that_is_never_quite_empty_does_not_grow() {
        let mut inbox = Inbox::<u32>::for_calls();
        let begin = call::write::<u32>(Call::Begin, Mode::Once).bytes;
        let (first, rest) = begin.split_at(10);
        let from_within_one_to_within_the_next = [rest, first].concat();

        inbox.feed(first, []).unwrap();
        for _ in 0..10 {
            inbox.feed(&from_within_one_to_within_the_next, []).unwrap();
            assert!(inbox.next_call().unwrap().is_some());
            assert_eq!(inbox.next_call(), Ok(None));
        }

        assert_eq!(inbox.buffer.len(), begin.len() + first.len());
    }

    #[test]
    fn no_byte_is_searched_twice_for_the_end_of_a_message() {
        let mut inbox = Inbox::<u32>::for_calls();

        for fed in 1..100 {
            inbox.feed(b" ", []).unwrap();
            assert_eq!(inbox.next_call(), Ok(None));

            assert_eq!(inbox.scanned, fed);
        }
    }
}
