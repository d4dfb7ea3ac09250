//! A reader of Varlink interface files, as far as the two of this crate go. It panics at what it
//! does not know, so that nothing of a file goes unread.

use std::{
    collections::{BTreeMap, VecDeque},
    iter,
};

/// What an interface file says.
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) types: BTreeMap<String, Type>,
    pub(crate) methods: BTreeMap<String, Method>,
    pub(crate) errors: BTreeMap<String, Vec<Field>>,
}

pub(crate) struct Method {
    pub(crate) input: Vec<Field>,
    pub(crate) output: Vec<Field>,
}

#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) kind: Type,
    /// The comment above it.
    pub(crate) doc: String,
}

/// A type; a type's name has given way to what it stands for.
#[derive(Debug, Clone)]
pub(crate) enum Type {
    Bool,
    Int,
    Text,
    Enum(Vec<String>),
    Struct(Vec<Field>),
    Optional(Box<Type>),
    Array(Box<Type>),
    Map(Box<Type>),
}

impl Interface {
    /// Reads a file, in which a type stands before its first use.
    pub(crate) fn read(text: &str) -> Self {
        let mut reader =
            Reader { tokens: tokens(text), doc: String::new(), types: BTreeMap::new() };
        reader.take("interface");
        let name = reader.word();
        let (mut methods, mut errors) = (BTreeMap::new(), BTreeMap::new());
        while let Some(what) = reader.next() {
            let name = reader.word();
            let before = match what.as_str() {
                "type" => {
                    let kind = reader.structure();
                    reader.types.insert(name.clone(), kind).is_some()
                }
                "method" => {
                    let input = reader.fields();
                    reader.take("-");
                    reader.take(">");
                    let output = reader.fields();
                    methods.insert(name.clone(), Method { input, output }).is_some()
                }
                "error" => errors.insert(name.clone(), reader.fields()).is_some(),
                _ => panic!("neither type nor method nor error: {what}"),
            };
            assert!(!before, "{name} stands there twice");
        }
        Self { name, types: reader.types, methods, errors }
    }
}

impl Field {
    pub(crate) fn is_optional(&self) -> bool {
        matches!(self.kind, Type::Optional(_))
    }

    /// The words that its comment has in quotes.
    pub(crate) fn quoted(&self) -> Vec<&str> {
        self.doc.split('"').skip(1).step_by(2).collect()
    }
}

impl Type {
    /// The fields of an object, or of each of several.
    pub(crate) fn fields(&self) -> Option<&[Field]> {
        match self {
            Self::Struct(fields) => Some(fields),
            Self::Optional(of) | Self::Array(of) => of.fields(),
            Self::Bool | Self::Int | Self::Text | Self::Enum(_) | Self::Map(_) => None,
        }
    }
}

struct Reader {
    tokens: VecDeque<String>,
    /// The comment above what comes next.
    doc: String,
    types: BTreeMap<String, Type>,
}

impl Reader {
    fn peek(&mut self) -> &str {
        while let Some(comment) = self.tokens.front().and_then(|token| token.strip_prefix('#')) {
            self.doc += comment;
            self.tokens.pop_front();
        }
        self.tokens.front().map_or("", String::as_str)
    }

    fn next(&mut self) -> Option<String> {
        self.peek();
        self.doc.clear();
        self.tokens.pop_front()
    }

    fn word(&mut self) -> String {
        let word = self.next().expect("a word");
        assert!(word.starts_with(|first: char| first.is_ascii_alphabetic()), "a word, not {word}");
        word
    }

    fn take(&mut self, token: &str) {
        assert_eq!(self.next().as_deref(), Some(token));
    }

    fn takes(&mut self, token: &str) -> bool {
        let is = self.peek() == token;
        if is {
            self.take(token);
        }
        is
    }

    fn fields(&mut self) -> Vec<Field> {
        let Type::Struct(fields) = self.structure() else { panic!("words where fields belong") };
        fields
    }

    /// What stands in parentheses: fields, or the words of an enum.
    fn structure(&mut self) -> Type {
        self.take("(");
        let (mut fields, mut words) = (Vec::new(), Vec::new());
        while !self.takes(")") {
            self.peek();
            let doc = self.doc.clone();
            let name = self.word();
            if self.takes(":") {
                fields.push(Field { name, kind: self.kind(), doc });
            } else {
                words.push(name);
            }
            assert!(self.takes(",") || self.peek() == ")");
        }
        assert!(fields.is_empty() || words.is_empty(), "fields among words");
        if words.is_empty() { Type::Struct(fields) } else { Type::Enum(words) }
    }

    fn kind(&mut self) -> Type {
        if self.takes("?") {
            return Type::Optional(Box::new(self.kind()));
        }
        if self.takes("[") {
            let is_map = self.takes("string");
            self.take("]");
            let of = Box::new(self.kind());
            return if is_map { Type::Map(of) } else { Type::Array(of) };
        }
        if self.peek() == "(" {
            return self.structure();
        }
        match self.word().as_str() {
            "bool" => Type::Bool,
            "int" => Type::Int,
            "string" => Type::Text,
            name => self.types.get(name).cloned().unwrap_or_else(|| panic!("no type {name}")),
        }
    }
}

/// Words, single marks, and comments from their `#` on.
fn tokens(text: &str) -> VecDeque<String> {
    let mut tokens = VecDeque::new();
    for line in text.lines() {
        let (line, comment) = line.split_at(line.find('#').unwrap_or(line.len()));
        let mut rest = line.trim();
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
            let end = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else {
                first.len_utf8()
            };
            tokens.push_back(rest[..end].to_owned());
            rest = rest[end..].trim_start();
        }
        tokens.extend(iter::once(comment).filter(|comment| !comment.is_empty()).map(str::to_owned));
    }
    tokens
}
