//! What the text of a policy may look like; what it means is told in `text.rs`.

use std::fmt;

use fdstash_stash::Quota;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

/// What a rule on quotas can bound.
pub(super) const KEYS: [&str; 11] = [
    "entries",
    "connections",
    "label_bytes",
    "waits",
    "watches",
    "transactions",
    "opens",
    "descriptors",
    "bytes",
    "transaction_names",
    "idle_transaction",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) allow: Vec<Spanned<AllowText>>,
    #[serde(default)]
    pub(super) reserve: Vec<Spanned<ReserveText>>,
    #[serde(default)]
    pub(super) quota: Vec<Spanned<QuotaText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AllowText {
    #[serde(default)]
    pub(super) users: Vec<Spanned<Id>>,
    #[serde(default)]
    pub(super) groups: Vec<Spanned<Id>>,
    pub(super) names: Vec<Spanned<String>>,
    pub(super) verbs: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) below: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReserveText {
    #[serde(default)]
    pub(super) users: Vec<Spanned<Id>>,
    #[serde(default)]
    pub(super) groups: Vec<Spanned<Id>>,
    pub(super) names: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuotaText {
    pub(super) users: Option<Vec<Spanned<Id>>>,
    pub(super) groups: Option<Vec<Spanned<Id>>>,
    entries: Option<u32>,
    connections: Option<u32>,
    label_bytes: Option<u32>,
    waits: Option<u32>,
    watches: Option<u32>,
    transactions: Option<u32>,
    opens: Option<u32>,
    descriptors: Option<u32>,
    bytes: Option<u32>,
    transaction_names: Option<u32>,
    /// In seconds.
    idle_transaction: Option<u32>,
}

impl QuotaText {
    /// What it bounds.
    pub(super) fn quota(&self) -> Quota<Option<u64>> {
        let idle = self.idle_transaction.map(|seconds| u64::from(seconds) * 1_000_000);
        Quota {
            entries: self.entries.map(u64::from),
            connections: self.connections.map(u64::from),
            label_bytes: self.label_bytes.map(u64::from),
            waits: self.waits.map(u64::from),
            watches: self.watches.map(u64::from),
            transactions: self.transactions.map(u64::from),
            opens: self.opens.map(u64::from),
            descriptors: self.descriptors.map(u64::from),
            bytes: self.bytes.map(u64::from),
            names: self.transaction_names.map(u64::from),
            idle_usec: idle,
        }
    }
}

/// A user or a group.
pub(super) enum Id {
    Number(u32),
    Name(String),
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl de::Visitor<'_> for Either {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name, or a number from 0 to 4294967294")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Id, E> {
                // The highest is nobody's, and says "leave it as it is" to the kernel.
                let number = u32::try_from(number).ok().filter(|number| *number != u32::MAX);
                number
                    .map(Id::Number)
                    .ok_or_else(|| E::custom("expected a number from 0 to 4294967294"))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Id, E> {
                Ok(Id::Name(name.to_owned()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}
