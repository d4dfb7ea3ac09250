//! [`Pipeline`]: calls that are sent before the first of them is answered, and what becomes of them when
//! their connection is lost.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fdstash_proto::{
    Call, Clash, Frame, Gift, Handed, MAX_DESCRIPTORS, MAX_MESSAGE, Mode, Name, Refusal, Reply,
    Taking, Ticket,
};

use crate::{
    Error,
    connection::{Connection, Delivery},
    core::Core,
    job::{asked, due, leaves_doubt, lend, put, put_ticket},
    repetition::Repetitions,
    transport::Transport,
};

/// How many bytes of calls are on their way at most, unless it is one call. A socket has room for more,
/// so that sending them never waits for a daemon that waits until its answers are read.
const MOST: usize = 32 << 10;

/// Calls that are sent together, and carried out one after another: each is a call of its own, with an
/// outcome of its own, and those behind one that fails are carried out all the same. They share as few
/// messages and round trips as descriptors allow, 253 each way.
///
/// Descriptors that are given are only borrowed. One call has at most 253 of them, or of names whose
/// descriptors it asks for; more are refused here. [`Client::run`](crate::blocking::Client::run) does
/// all of them, and says what becomes of them where the connection is lost.
///
/// ```no_run
/// use fdstash::{Gift, Outcome, Pipeline, blocking::Client};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut client = Client::connect()?;
/// let image = std::fs::File::open("/var/lib/images/vm7.img")?;
/// let gifts = [Gift::new("vm7-disk0".parse()?, &image)];
///
/// let mut pipeline = Pipeline::new();
/// pipeline.give(&gifts).copy(&["vm7-log".parse()?]).close(&["vm6-disk0".parse()?]);
/// for outcome in client.run(pipeline) {
///     match outcome? {
///         Outcome::Given { replaced } => println!("given, in the place of {replaced:?}"),
///         Outcome::Handed(handed) => println!("{} handed out", handed.len()),
///         Outcome::Closed => println!("closed"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Pipeline<'fd>(Vec<Piped<'fd>>);

/// What one call of a [`Pipeline`] came to.
#[derive(Debug)]
pub enum Outcome {
    /// The descriptors are kept.
    Given {
        /// The names whose old ones made room.
        replaced: Vec<Name>,
    },
    /// What was handed out, in the order of the names, close-on-exec. Whoever has this owns it.
    Handed(Vec<Handed<OwnedFd>>),
    /// The descriptors are kept no more.
    Closed,
}

impl<'fd> Pipeline<'fd> {
    /// One without calls.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps descriptors, as [`Client::give`](crate::blocking::Client::give) does.
    pub fn give<F: AsFd>(&mut self, gifts: &'fd [Gift<F>]) -> &mut Self {
        self.put_gifts(gifts, Clash::Replace)
    }

    /// Keeps descriptors under names that are free, as
    /// [`Client::give_new`](crate::blocking::Client::give_new) does.
    pub fn give_new<F: AsFd>(&mut self, gifts: &'fd [Gift<F>]) -> &mut Self {
        self.put_gifts(gifts, Clash::Refuse)
    }

    /// Takes descriptors out of the stash, which lets go of them with its answer: as
    /// [`Client::take_at_once`](crate::blocking::Client::take_at_once), and with what that gives up.
    pub fn take_at_once(&mut self, names: &[Name]) -> &mut Self {
        self.put_names(names, Taking::Move)
    }

    /// Hands out duplicates, as [`Client::copy`](crate::blocking::Client::copy) does.
    pub fn copy(&mut self, names: &[Name]) -> &mut Self {
        self.put_names(names, Taking::Copy)
    }

    /// Hands out open file descriptions of their own, as
    /// [`Client::copy_fresh`](crate::blocking::Client::copy_fresh) does.
    pub fn copy_fresh(&mut self, names: &[Name]) -> &mut Self {
        self.put_names(names, Taking::Fresh)
    }

    /// Has the daemon close descriptors and forget them.
    pub fn close(&mut self, names: &[Name]) -> &mut Self {
        self.put(Call::Close { names: names.to_vec(), ticket: None }, 0)
    }

    /// How many calls it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn put_gifts<F: AsFd>(&mut self, gifts: &'fd [Gift<F>], clash: Clash) -> &mut Self {
        let call = Call::Give { gifts: gifts.iter().map(lend).collect(), clash, ticket: None };
        self.put(call, gifts.len())
    }

    fn put_names(&mut self, names: &[Name], taking: Taking) -> &mut Self {
        let call = Call::Take { names: names.to_vec(), taking, timeout_usec: 0 };
        self.put(call, names.len())
    }

    fn put(&mut self, call: Call<BorrowedFd<'fd>>, descriptors: usize) -> &mut Self {
        let outcome = (descriptors > MAX_DESCRIPTORS).then(|| {
            let value = MAX_DESCRIPTORS as i64;
            let limit = "descriptorsPerMessage".to_owned();
            Err(Refusal::LimitExceeded { limit, value }.into())
        });
        self.0.push(Piped { call, descriptors, outcome, is_in_doubt: false });
        self
    }
}

/// One call.
#[derive(Debug)]
struct Piped<'fd> {
    call: Call<BorrowedFd<'fd>>,
    /// How many go with it, or with its answer.
    descriptors: usize,
    outcome: Option<Result<Outcome, Error>>,
    /// Whether it was sent, and its answer lost.
    is_in_doubt: bool,
}

impl<T: Transport> Core<T> {
    /// Does all of them, and each once, however often the connection is lost.
    pub(crate) async fn run_pipeline(
        &mut self,
        Pipeline(mut calls): Pipeline<'_>,
    ) -> Vec<Result<Outcome, Error>> {
        let mut next_ticket = self.tickets.series();
        for Piped { call, .. } in &mut calls {
            let ticket = leaves_doubt(call).then(&mut next_ticket);
            put_ticket(call, ticket.as_ref());
        }
        drop(next_ticket);
        let mut repetitions = Repetitions::new();
        let mut last = None;
        while let Err(error) = self.try_pipeline(&mut calls).await {
            if let Err(error) = repetitions.after::<T>(error).await {
                last = Some(error);
                break;
            }
        }
        let outcomes = calls.into_iter().map(|piped| {
            let may_be_done = piped.is_in_doubt && leaves_doubt(&piped.call);
            // The first without an answer tells why, if there is more to tell than that it was lost.
            let mut why = || last.take().filter(|error| !may_be_done && !is_lost(error));
            piped
                .outcome
                .unwrap_or_else(|| Err(why().unwrap_or(Error::ConnectionLost { may_be_done })))
        });
        outcomes.collect()
    }

    async fn try_pipeline(&mut self, calls: &mut [Piped<'_>]) -> Result<(), Error> {
        if calls.iter().all(|call| call.outcome.is_some()) {
            return Ok(());
        }
        let mut connection = self.take_connection().await?;
        let outcome = connection.run(calls).await;
        self.put_back(connection);
        outcome
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error, Error::ConnectionLost { .. })
}

impl<T: Transport> Connection<T> {
    async fn run(&mut self, calls: &mut [Piped<'_>]) -> Result<(), Error> {
        self.end_doubt(calls).await?;
        let mut message = Frame { bytes: Vec::new(), fds: Vec::new() };
        loop {
            let mut batch = next_batch(calls, &mut message);
            if batch.is_empty() {
                return Ok(());
            }
            let delivery = self.send(&message).await?;
            // Of what was cut short, the calls at its beginning may be whole.
            batch.iter_mut().for_each(|piped| piped.is_in_doubt = delivery != Delivery::Nothing);
            for piped in batch {
                let outcome = self.outcome(&piped.call, delivery).await?;
                piped.outcome = Some(outcome);
            }
        }
    }

    /// The outcome of the call that is due the next answer. The connection's failure is this one's.
    async fn outcome(
        &mut self,
        call: &Call<BorrowedFd<'_>>,
        delivery: Delivery,
    ) -> Result<Result<Outcome, Error>, Error> {
        let asked = asked(call);
        let answer = match self.answer(due(call).0, &asked, delivery).await {
            Err(Error::NoRoom) => return Ok(Err(Error::NoRoom)),
            answer => answer?,
        };
        let reply = match answer.outcome {
            Ok(reply) if !answer.continues => self.checked(reply, &asked)?,
            Ok(_) => return Err(self.broken()),
            Err(refused) => return Ok(Err(refused.into())),
        };
        match reply {
            Reply::Given { replaced } => Ok(Ok(Outcome::Given { replaced })),
            Reply::Handed(handed) => Ok(Ok(Outcome::Handed(handed))),
            Reply::Done => Ok(Ok(Outcome::Closed)),
            Reply::Listed(_)
            | Reply::Notice(_)
            | Reply::Statistics(_)
            | Reply::Explained(_)
            | Reply::Info(_)
            | Reply::Description(_) => Err(self.broken()),
        }
    }

    /// Finds out which calls had been carried out when their connection was lost. The daemon remembers
    /// the last ticket of a connection: what came after that was not done. What came before it was done
    /// or refused, and its answer is lost.
    async fn end_doubt(&mut self, calls: &mut [Piped<'_>]) -> Result<(), Error> {
        let mut is_done = false;
        for piped in calls.iter_mut().rev() {
            if !piped.is_in_doubt || piped.outcome.is_some() {
                continue;
            }
            if is_done {
                let may_be_done = leaves_doubt(&piped.call);
                piped.outcome = Some(Err(Error::ConnectionLost { may_be_done }));
                continue;
            }
            // A done one stays in doubt: by its ticket it is answered when it is sent again.
            is_done = match piped.call.ticket() {
                Some(ticket) => self.has_done(ticket).await?,
                None => false,
            };
            piped.is_in_doubt = is_done;
        }
        Ok(())
    }

    /// Whether the daemon has done a call, of which this says nothing but its ticket.
    async fn has_done(&mut self, ticket: &Ticket) -> Result<bool, Error> {
        match self.tell(Call::Commit { ticket: Some(ticket.clone()) }).await {
            Ok(()) => Ok(true),
            Err(Error::Refused(Refusal::TransactionState { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Puts as many of the next calls into a message as may be on their way together.
fn next_batch<'a, 'fd>(
    calls: &'a mut [Piped<'fd>],
    message: &mut Frame<BorrowedFd<'fd>>,
) -> Vec<&'a mut Piped<'fd>> {
    message.bytes.clear();
    message.fds.clear();
    let (mut batch, mut descriptors) = (Vec::new(), 0);
    for piped in calls {
        if piped.outcome.is_some() {
            continue;
        }
        let begin = message.bytes.len();
        descriptors += piped.descriptors;
        if begin > 0 && descriptors > MAX_DESCRIPTORS {
            break;
        }
        let fds = message.fds.len();
        put(message, &piped.call, Mode::Once);
        let len = message.bytes.len();
        let is_too_long = len - begin > MAX_MESSAGE;
        if is_too_long || (begin > 0 && len > MOST) {
            message.bytes.truncate(begin);
            message.fds.truncate(fds);
        }
        if is_too_long {
            piped.outcome = Some(Err(Error::CallTooLong { limit: MAX_MESSAGE }));
        } else if message.bytes.len() == begin {
            break;
        } else {
            batch.push(piped);
        }
    }
    batch
}
