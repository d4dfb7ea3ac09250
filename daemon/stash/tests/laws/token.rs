//! [`Token`]: what the histories stash in the place of descriptors.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

/// Stands for a descriptor: it has a number, and its end is noticed.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) number: u64,
    ledger: Rc<Ledger>,
}

/// What became of each token.
#[derive(Debug, Default)]
pub(crate) struct Ledger(RefCell<Book>);

#[derive(Debug, Default)]
struct Book {
    last: u64,
    alive: BTreeSet<u64>,
    /// Given up by the stash, to be closed.
    closed: BTreeSet<u64>,
    /// Opened for a peer, whose they are.
    handed_over: BTreeSet<u64>,
    faults: Vec<String>,
}

impl Ledger {
    /// The number for a new token.
    pub(crate) fn number(&self) -> u64 {
        let mut book = self.0.borrow_mut();
        book.last += 1;
        book.last
    }

    /// Makes the token of a number.
    pub(crate) fn token(self: &Rc<Self>, number: u64) -> Token {
        self.0.borrow_mut().alive.insert(number);
        Token { number, ledger: Rc::clone(self) }
    }

    /// Takes note that the stash gives up its hold of a token.
    pub(crate) fn close(&self, number: u64) {
        let mut book = self.0.borrow_mut();
        if !book.closed.insert(number) {
            book.faults.push(format!("{number} is closed twice"));
        }
        if book.handed_over.contains(&number) {
            book.faults.push(format!("{number} is closed, but is a peer's"));
        }
    }

    /// Takes note that a token is a peer's, who drops it.
    pub(crate) fn hand_over(&self, number: u64) {
        self.0.borrow_mut().handed_over.insert(number);
    }

    /// The tokens that somebody holds, but for those that nobody is left to hold but who borrowed
    /// them.
    pub(crate) fn alive(&self, is_borrowed: impl Fn(u64) -> bool) -> BTreeSet<u64> {
        let book = self.0.borrow();
        let lent = |number: u64| book.closed.contains(&number) && is_borrowed(number);
        book.alive.iter().copied().filter(|number| !lent(*number)).collect()
    }

    /// What has happened to tokens that must not.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.0.borrow().faults.clone()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let mut book = self.ledger.0.borrow_mut();
        let number = self.number;
        book.alive.remove(&number);
        if !book.closed.contains(&number) && !book.handed_over.contains(&number) {
            book.faults.push(format!("{number} was dropped without a word"));
        }
    }
}
