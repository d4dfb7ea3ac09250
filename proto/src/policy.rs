//! The terms of who may do what.

use serde::{Deserialize, Serialize};

/// What somebody wants of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Put another in its place.
    Give,
    /// Have it, and end the stash's hold.
    Take,
    /// Have it as well.
    Copy,
    /// End the stash's hold.
    Close,
    /// Have its file opened anew.
    Reopen,
    /// Have another file opened in its place, by path.
    ReopenByPath,
    /// Know of it.
    List,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Give,
        Self::Take,
        Self::Copy,
        Self::Close,
        Self::Reopen,
        Self::ReopenByPath,
        Self::List,
    ];

    /// The word that AccessDenied has for it, and the policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Give => "give",
            Self::Take => "take",
            Self::Copy => "copy",
            Self::Close => "close",
            Self::Reopen => "reopen",
            Self::ReopenByPath => "reopen by path",
            Self::List => "list",
        }
    }
}

/// What is said to who wants something of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It may not do this, but may know of the entry.
    Denied,
    /// For this peer there is no such entry.
    Hidden,
}

/// What a verdict comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is root.
    Root,
    /// It is the entry's giver's user.
    Giver,
    /// The giver shares the entry with it.
    Share,
    /// A rule lets it.
    Allow,
    /// A rule keeps the name for somebody: for it, or for others.
    Reserve,
    /// The name is free.
    Free,
    /// Nothing lets it.
    Nothing,
}

/// What the policy says to somebody, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whether it may.
    pub verdict: Verdict,
    /// Why, or why not.
    pub reason: Reason,
    /// In which file the rule stands that decides, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// In which line of it, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}
