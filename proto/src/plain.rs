//! The plain form of the messages that are sent most, written and read without serde: Give without
//! options, Take, Close, Begin, Commit and Rollback, and what these are answered.
//!
//! Of a message that is in any way otherwise nothing is read here: not one with its fields in another
//! order, with a blank or an escape, or with something to refuse. `call.rs` and `reply.rs` read that
//! with serde, which alone decides what is accepted; and what is read here, serde reads the same
//! (`a_blank_that_serde_passes_over_changes_nothing`).

use crate::{
    Call, Clash, Gift, Handed, INTERFACE_NAME, MAX_DESCRIPTORS, Name, Reply, Taking, Ticket,
    call::twice, codec::Supply, reply::Expect,
};

/// No number has more digits here, so that each fits.
const DIGITS: usize = 18;

/// Reads a call that has the plain form, and takes its descriptors.
pub(crate) fn read_call<F>(bytes: &[u8], supply: &mut Supply<F>) -> Option<Call<F>> {
    let mut text = Text(std::str::from_utf8(bytes).ok()?);
    text.pass(r#"{"method":""#)?;
    text.pass(INTERFACE_NAME)?;
    text.pass(".")?;
    let method = text.string()?;
    text.pass(r#","parameters":{"#)?;
    match method {
        "Give" => text.give(supply),
        "Take" => text.take(),
        "Close" => {
            let names = text.names(r#""names":["#)?;
            let ticket = text.ticket(r#","ticket":""#)?;
            text.end()?;
            twice(&names).is_none().then_some(Call::Close { names, ticket })
        }
        "Begin" => text.end().map(|()| Call::Begin),
        "Commit" => {
            let ticket = text.ticket(r#""ticket":""#)?;
            text.end().map(|()| Call::Commit { ticket })
        }
        "Rollback" => text.end().map(|()| Call::Rollback),
        _ => None,
    }
}

/// Reads the only reply that is `due` a call, where it has the plain form, and takes its descriptors.
/// A name that stands in the same place of `asked` shares its text.
pub(crate) fn read_reply<F>(
    bytes: &[u8],
    due: Expect,
    asked: &[Name],
    supply: &mut Supply<F>,
) -> Option<Reply<F>> {
    let mut text = Text(std::str::from_utf8(bytes).ok()?);
    text.pass(r#"{"parameters":{"#)?;
    match due {
        Expect::Done => text.end().map(|()| Reply::Done),
        Expect::Given => {
            let replaced = text.names(r#""replaced":["#)?;
            text.end().map(|()| Reply::Given { replaced })
        }
        Expect::Handed => {
            let names = text.entries(asked, supply.len())?;
            text.end()?;
            let fds = supply.drain(names.len());
            let handed = names.into_iter().zip(fds).map(|(name, fd)| Handed { name, fd });
            Some(Reply::Handed(handed.collect()))
        }
        Expect::Listed
        | Expect::Notice
        | Expect::Statistics
        | Expect::Explained
        | Expect::Info
        | Expect::Description => None,
    }
}

/// What is yet to be read of a message.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn give<F>(&mut self, supply: &mut Supply<F>) -> Option<Call<F>> {
        let names = self.entries(&[], supply.len().min(MAX_DESCRIPTORS))?;
        let is_exclusive = self.has(r#","exclusive":true"#);
        let ticket = self.ticket(r#","ticket":""#)?;
        self.end()?;
        if twice(&names).is_some() {
            return None;
        }
        let fds = supply.drain(names.len());
        let gifts = names.into_iter().zip(fds).map(|(name, fd)| Gift::new(name, fd)).collect();
        let clash = if is_exclusive { Clash::Refuse } else { Clash::Replace };
        Some(Call::Give { gifts, clash, ticket })
    }

    fn take<F>(&mut self) -> Option<Call<F>> {
        let names = self.names(r#""names":["#)?;
        let taking = match (self.has(r#","copy":true"#), self.has(r#","fresh":true"#)) {
            (false, false) => Taking::Move,
            (true, false) => Taking::Copy,
            (true, true) => Taking::Fresh,
            (false, true) => return None,
        };
        let timeout_usec = if self.has(r#","timeoutUSec":"#) { self.number()? } else { 0 };
        self.end()?;
        let is_plain = names.len() <= MAX_DESCRIPTORS && twice(&names).is_none();
        is_plain.then_some(Call::Take { names, taking, timeout_usec })
    }

    /// Entries with a name each, and the next descriptor.
    fn entries(&mut self, asked: &[Name], most: usize) -> Option<Vec<Name>> {
        self.pass(r#""entries":[{"#)?;
        let mut names = Vec::with_capacity(if asked.is_empty() { most } else { asked.len() });
        while names.len() < most {
            self.pass(r#""name":""#)?;
            let text = self.string()?;
            let known = asked.get(names.len()).filter(|name| name.as_str() == text);
            let name = known.cloned().or_else(|| Name::new(text).ok())?;
            self.pass(r#","fileDescriptor":"#)?;
            if self.number()? != names.len() as u64 {
                return None;
            }
            names.push(name);
            if self.has("}]") {
                return Some(names);
            }
            self.pass("},{")?;
        }
        None
    }

    fn names(&mut self, before: &str) -> Option<Vec<Name>> {
        self.pass(before)?;
        let mut names = Vec::new();
        if self.has("]") {
            return Some(names);
        }
        loop {
            self.pass("\"")?;
            names.push(Name::new(self.string()?).ok()?);
            if self.has("]") {
                return Some(names);
            }
            self.pass(",")?;
        }
    }

    fn ticket(&mut self, before: &str) -> Option<Option<Ticket>> {
        if !self.has(before) {
            return Some(None);
        }
        Ticket::new(self.string()?).ok().map(Some)
    }

    /// The rest of a string without escapes, and its end. What else JSON forbids in one, no name and no
    /// ticket has either.
    fn string(&mut self) -> Option<&'a str> {
        let end = self.0.bytes().position(|byte| matches!(byte, b'"' | b'\\'))?;
        let text = &self.0[..end];
        self.0 = self.0[end..].strip_prefix('"')?;
        Some(text)
    }

    fn number(&mut self) -> Option<u64> {
        let len = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.0.split_at(len);
        if !(1..=DIGITS).contains(&len) || (len > 1 && digits.starts_with('0')) {
            return None;
        }
        self.0 = rest;
        Some(digits.bytes().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
    }

    fn has(&mut self, word: &str) -> bool {
        self.pass(word).is_some()
    }

    fn pass(&mut self, word: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(word)?;
        Some(())
    }

    /// The end of the parameters and of the message.
    fn end(&mut self) -> Option<()> {
        (self.0 == "}}").then_some(())
    }
}

/// Appends entries with a name each, and their descriptors' numbers.
pub(crate) fn write_entries<'a>(bytes: &mut Vec<u8>, names: impl Iterator<Item = &'a Name>) {
    write_list(bytes, names.enumerate(), |bytes, (index, name)| write_entry(bytes, name, index));
}

/// Appends one entry.
pub(crate) fn write_entry(bytes: &mut Vec<u8>, name: &Name, index: usize) {
    bytes.extend_from_slice(br#"{"name":"#);
    write_text(bytes, name.as_str());
    bytes.extend_from_slice(br#","fileDescriptor":"#);
    write_number(bytes, index as u64);
    bytes.push(b'}');
}

/// Appends a list of names.
pub(crate) fn write_names<'a>(bytes: &mut Vec<u8>, names: impl Iterator<Item = &'a Name>) {
    write_list(bytes, names, |bytes, name| write_text(bytes, name.as_str()));
}

/// Appends a list of what `write` appends for each.
pub(crate) fn write_list<T>(
    bytes: &mut Vec<u8>,
    items: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    bytes.push(b'[');
    for (at, item) in items.enumerate() {
        if at > 0 {
            bytes.push(b',');
        }
        write(bytes, item);
    }
    bytes.push(b']');
}

/// Appends a text of printable ASCII, as names and tickets are.
pub(crate) fn write_text(bytes: &mut Vec<u8>, text: &str) {
    let is_special = |byte| matches!(byte, b'"' | b'\\');
    bytes.push(b'"');
    if text.bytes().fold(false, |any, byte| any | is_special(byte)) {
        for byte in text.bytes() {
            bytes.extend(is_special(byte).then_some(b'\\'));
            bytes.push(byte);
        }
    } else {
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.push(b'"');
}

/// Appends a number.
pub(crate) fn write_number(bytes: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number);
    while at == digits.len() || rest > 0 {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    bytes.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use crate::{Mode, call, reply};

    use super::*;

    fn supply() -> Supply<u32> {
        Supply(VecDeque::from([10, 11, 12]))
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn what_is_sent_most_has_the_plain_form() {
        let ticket = || Some(Ticket::new("7f3a.1").unwrap());
        let gifts = || vec![Gift::new(name("a"), 10), Gift::new(name("b"), 11)];
        let names = || vec![name("a"), name("b b")];
        let take = |taking, timeout_usec| Call::Take { names: names(), taking, timeout_usec };
        let calls = [
            Call::Give { gifts: gifts(), clash: Clash::Replace, ticket: ticket() },
            Call::Give { gifts: gifts(), clash: Clash::Refuse, ticket: None },
            take(Taking::Move, 0),
            take(Taking::Copy, 0),
            take(Taking::Fresh, 1_000_000),
            Call::Close { names: names(), ticket: ticket() },
            Call::Begin,
            Call::Commit { ticket: ticket() },
            Call::Commit { ticket: None },
            Call::Rollback,
        ];
        for call in calls {
            let bytes = call::write(call.clone(), Mode::Once).bytes;

            let read = read_call(&bytes[..bytes.len() - 1], &mut supply());

            assert_eq!(read, Some(call));
        }

        let handed = names().into_iter().zip(10..).map(|(name, fd)| Handed { name, fd });
        let replies = [
            (Reply::Done, Expect::Done),
            (Reply::Given { replaced: vec![] }, Expect::Given),
            (Reply::Given { replaced: names() }, Expect::Given),
            (Reply::Handed(handed.collect()), Expect::Handed),
        ];
        for (reply, due) in replies {
            let bytes = reply::write(Ok(reply.clone()), false).bytes;

            let read = read_reply(&bytes[..bytes.len() - 1], due, &[], &mut supply());

            assert_eq!(read, Some(reply));
        }
    }

    #[test]
    fn what_is_left_to_serde_has_lost_no_descriptor() {
        let mut supply = supply();
        for entries in [
            r#"{"name":"a","fileDescriptor":0},{"name":"a","fileDescriptor":1}"#,
            r#"{"name":"a","fileDescriptor":1}"#,
            r#"{"name":"a","fileDescriptor":0,"fresh":true}"#,
            r#"{"name":"a","fileDescriptor":0},{"fileDescriptor":1,"name":"b"}"#,
        ] {
            let give = format!(
                r#"{{"method":"org.fdstash.Stash.Give","parameters":{{"entries":[{entries}]}}}}"#
            );

            assert_eq!(read_call(give.as_bytes(), &mut supply), None, "{entries}");
            assert_eq!(supply.len(), 3, "{entries}");
        }
    }

    #[test]
    fn a_name_that_was_asked_for_shares_its_text() {
        let asked = [name("a"), name("b")];
        let handed = [name("a"), name("c")].map(|name| Handed { name, fd: 10 });
        let bytes = reply::write(Ok(Reply::Handed(handed.into())), false).bytes;

        let read = read_reply(&bytes[..bytes.len() - 1], Expect::Handed, &asked, &mut supply());

        let Some(Reply::Handed(handed)) = read else { panic!("{read:?}") };
        assert_eq!(handed[0].name.as_str().as_ptr(), asked[0].as_str().as_ptr());
        assert_eq!(handed[1].name, name("c"));
    }
}
