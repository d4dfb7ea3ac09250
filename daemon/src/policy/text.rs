//! The step from the text of a policy to rules: strict, and every mistake is told with its line.

use std::{collections::BTreeSet, ops::Range, path::Path, sync::Arc};

use fdstash_proto::Pattern;
use fdstash_stash::{Allow, Origin, Quota, QuotaRule, Reserve, Rules, Verb, Whom};
use toml::Spanned;

use super::{
    form::{AllowText, File, Id, KEYS, QuotaText, ReserveText},
    names::Names,
};

/// Something that should not stand where it stands.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub(crate) struct Mistake {
    file: String,
    line: u32,
    what: String,
}

/// Adds the rules of a text to others.
///
/// # Errors
///
/// The first mistake in it.
pub(crate) fn read(
    path: &str,
    text: &str,
    names: &mut Names,
    rules: &mut Rules,
) -> Result<(), Mistake> {
    let mut reader = Reader { file: path.into(), text, names };
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().unwrap_or(0..0);
        reader.mistake(&at, error.message().replace('\n', ", "))
    })?;
    for rule in file.allow {
        rules.allow.push(reader.allow(rule)?);
    }
    for rule in file.reserve {
        rules.reserve.push(reader.reserve(rule)?);
    }
    for rule in file.quota {
        rules.quota.push(reader.quota(rule)?);
    }
    Ok(())
}

/// A text, and who knows the numbers of the names in it.
struct Reader<'a> {
    file: Arc<str>,
    text: &'a str,
    names: &'a mut Names,
}

impl Reader<'_> {
    fn allow(&mut self, rule: Spanned<AllowText>) -> Result<Allow, Mistake> {
        let at = rule.span();
        let AllowText { users, groups, names, verbs, below } = rule.into_inner();
        let whom = self.whom(&at, &users, &groups)?;
        let names = self.names(&at, &names)?;
        if verbs.is_empty() {
            return Err(self.mistake(&at, "verbs is empty: expected at least one verb"));
        }
        let verbs: BTreeSet<_> =
            verbs.iter().map(|verb| self.verb(verb)).collect::<Result<_, _>>()?;
        let by_path = verbs.contains(&Verb::ReopenByPath);
        if by_path == below.is_empty() {
            let what = "\"reopen by path\" and below belong together: expected both or neither";
            return Err(self.mistake(&at, what));
        }
        let below = below.iter().map(|below| self.below(below)).collect::<Result<_, _>>()?;
        Ok(Allow { whom, names, verbs, below, origin: self.origin(&at) })
    }

    fn reserve(&mut self, rule: Spanned<ReserveText>) -> Result<Reserve, Mistake> {
        let at = rule.span();
        let ReserveText { users, groups, names } = rule.into_inner();
        let whom = self.whom(&at, &users, &groups)?;
        let names = self.names(&at, &names)?;
        Ok(Reserve { whom, names, origin: self.origin(&at) })
    }

    fn quota(&mut self, rule: Spanned<QuotaText>) -> Result<QuotaRule, Mistake> {
        let at = rule.span();
        let text = rule.into_inner();
        let whom = match (&text.users, &text.groups) {
            (None, None) => None,
            (users, groups) => {
                let [users, groups] = [users, groups].map(|ids| ids.as_deref().unwrap_or_default());
                Some(self.whom(&at, users, groups)?)
            }
        };
        let quota = text.quota();
        if quota == Quota::all(None) {
            let what = format!("the rule bounds nothing: expected one of {}", KEYS.join(", "));
            return Err(self.mistake(&at, what));
        }
        if quota.idle_usec == Some(0) {
            return Err(self.mistake(&at, "idle_transaction is 0: expected seconds, at least 1"));
        }
        Ok(QuotaRule { whom, quota, origin: self.origin(&at) })
    }

    fn whom(
        &mut self,
        at: &Range<usize>,
        users: &[Spanned<Id>],
        groups: &[Spanned<Id>],
    ) -> Result<Whom, Mistake> {
        if users.is_empty() && groups.is_empty() {
            return Err(self.mistake(at, "the rule is for nobody: expected users or groups"));
        }
        let mut whom = Whom::default();
        for user in users {
            let number = match user.get_ref() {
                Id::Number(number) => Ok(*number),
                Id::Name(name) => self.names.user(name),
            };
            whom.users.insert(number.map_err(|what| self.mistake(&user.span(), what))?);
        }
        for group in groups {
            let number = match group.get_ref() {
                Id::Number(number) => Ok(*number),
                Id::Name(name) => self.names.group(name),
            };
            whom.groups.insert(number.map_err(|what| self.mistake(&group.span(), what))?);
        }
        Ok(whom)
    }

    fn names(&self, at: &Range<usize>, names: &[Spanned<String>]) -> Result<Vec<Pattern>, Mistake> {
        if names.is_empty() {
            return Err(self.mistake(at, "names is empty: expected at least one pattern"));
        }
        let pattern = |text: &Spanned<String>| {
            let is_of_name = |byte| matches!(byte, b' '..=b'~') && byte != b':';
            let text_of = text.get_ref();
            if text_of.is_empty() || !text_of.bytes().all(is_of_name) {
                let what = format!(
                    "no name matches {text_of:?}: expected printable ASCII without ':', and * and ?"
                );
                return Err(self.mistake(&text.span(), what));
            }
            Pattern::new(text_of).map_err(|error| self.mistake(&text.span(), error.to_string()))
        };
        names.iter().map(pattern).collect()
    }

    fn verb(&self, word: &Spanned<String>) -> Result<Verb, Mistake> {
        let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == word.get_ref());
        verb.ok_or_else(|| {
            let verbs = Verb::ALL.map(|verb| format!("{:?}", verb.as_str())).join(", ");
            let what = format!("there is no verb {:?}: expected one of {verbs}", word.get_ref());
            self.mistake(&word.span(), what)
        })
    }

    fn below(&self, below: &Spanned<String>) -> Result<Box<str>, Mistake> {
        let path = Path::new(below.get_ref());
        let is_plain =
            path.is_absolute() && !path.components().any(|part| part.as_os_str() == "..");
        if !is_plain || below.get_ref().contains('\0') {
            let what = format!(
                "{:?} is no directory to open below: expected an absolute path without ..",
                below.get_ref()
            );
            return Err(self.mistake(&below.span(), what));
        }
        Ok(below.get_ref().as_str().into())
    }

    fn origin(&self, at: &Range<usize>) -> Origin {
        Origin { file: Arc::clone(&self.file), line: self.line(at) }
    }

    fn mistake(&self, at: &Range<usize>, what: impl Into<String>) -> Mistake {
        Mistake { file: self.file.to_string(), line: self.line(at), what: what.into() }
    }

    fn line(&self, at: &Range<usize>) -> u32 {
        let before = self.text.as_bytes().get(..at.start).unwrap_or_default();
        let ends = before.iter().filter(|byte| **byte == b'\n').count();
        u32::try_from(ends + 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = r#"
# A comment.
[[allow]]
users = ["root", 1000]
names = ["vm7-*", "a b"]
verbs = ["list", "copy", "reopen", "take", "close", "give"]

[[allow]]
groups = ["root"]
names = ["log/*"]
verbs = ["reopen by path"]
below = ["/var/log/vms"]

[[reserve]]
names = ["vm*"]
users = [64055]

[[quota]]
groups = [50]
entries = 0
idle_transaction = 2

[[quota]]
label_bytes = 4096
"#;

    #[test]
    fn the_example_tells_of_every_rule_key_and_verb() {
        let example = include_str!("../../../systemd/policy.toml");
        // What is expected is told to whoever says something else.
        let expected = |text: &str| {
            let mistake = rules(text).unwrap_err();
            let (_, words) = mistake.split_once("expected ").unwrap();
            let words: Vec<String> =
                words.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            assert!(!words.is_empty(), "{mistake}");
            words
        };

        for rule in expected("nothing = 1") {
            let sections = example.split("\n\n").filter(|it| it.contains(&format!("#[[{rule}]]")));
            let told = sections.collect::<String>();
            for key in expected(&format!("[[{rule}]]\nnothing = 1")) {
                let as_rule = format!("\n#{key} = ");
                let in_words = format!("\n#   {key} ");
                assert!(told.contains(&as_rule) || told.contains(&in_words), "{rule}: {key}");
            }
        }
        for verb in Verb::ALL.map(Verb::as_str) {
            assert!(example.contains(&format!("\n#   {verb} ")), "{verb}");
        }
    }

    fn rules(text: &str) -> Result<Rules, String> {
        let mut rules = Rules::default();
        let mut names = Names::to_be_found();
        read("p.toml", text, &mut names, &mut rules).map_err(|mistake| mistake.to_string())?;
        Ok(rules)
    }

    #[test]
    fn rules_are_read_with_their_lines() {
        let Rules { allow, reserve, quota } = rules(ALL).unwrap();

        let [first, second] = &allow[..] else { panic!("{allow:?}") };
        let [third] = &reserve[..] else { panic!("{reserve:?}") };
        let [fourth, last] = &quota[..] else { panic!("{quota:?}") };
        assert_eq!([&fourth.origin, &last.origin].map(|it| it.line), [18, 23]);
        assert_eq!(fourth.whom, Some(Whom { users: [].into(), groups: [50].into() }));
        assert_eq!(last.whom, None);
        let nothing = Quota::all(None);
        let of_fourth = Quota { entries: Some(0), idle_usec: Some(2_000_000), ..nothing };
        assert_eq!(fourth.quota, of_fourth);
        assert_eq!(last.quota, Quota { label_bytes: Some(4096), ..nothing });
        assert_eq!([&first.origin, &second.origin, &third.origin].map(|it| it.line), [3, 8, 14]);
        assert_eq!(&*first.origin.file, "p.toml");
        assert_eq!(first.whom, Whom { users: [0, 1000].into(), groups: [].into() });
        assert_eq!(second.whom, Whom { users: [].into(), groups: [0].into() });
        assert_eq!(third.whom, Whom { users: [64055].into(), groups: [].into() });
        let names: Vec<_> = first.names.iter().map(Pattern::as_str).collect();
        assert_eq!(names, ["vm7-*", "a b"]);
        assert_eq!(first.verbs.len(), 6);
        assert_eq!(
            (&second.verbs, &*second.below[0]),
            (&[Verb::ReopenByPath].into(), "/var/log/vms")
        );
    }

    #[test]
    fn an_empty_text_has_no_rules() {
        assert_eq!(rules("# nothing\n"), Ok(Rules::default()));
    }

    #[test]
    fn a_mistake_is_told_with_file_and_line_and_what_was_expected() {
        let allow = |line: &str| format!("\n[[allow]]\nnames = [\"a\"]\nusers = [1]\n{line}\n");
        for (text, expected) in [
            ("[[allow]\n".into(), "p.toml:1: "),
            ("x = 1\n".into(), "p.toml:1: unknown field `x`, expected one of `allow`,"),
            (allow("verb = []"), "p.toml:5: unknown field `verb`, expected one of `users`,"),
            (allow(""), "p.toml:2: missing field `verbs`"),
            (allow("verbs = []"), "p.toml:2: verbs is empty: expected at least one verb"),
            (
                allow("verbs = ['list',\n'chown']"),
                "p.toml:6: there is no verb \"chown\": expected one of \"give\",",
            ),
            (allow("verbs = 1"), "p.toml:5: invalid type: integer `1`, expected a sequence"),
            (allow("verbs = ['copy']\nverbs = ['copy']"), "p.toml:6: duplicate key"),
            (
                allow("verbs = ['copy']\nbelow = ['/a']"),
                "p.toml:2: \"reopen by path\" and below belong",
            ),
            (allow("verbs = ['reopen by path']"), "p.toml:2: \"reopen by path\" and below belong"),
            (
                allow("verbs = ['reopen by path']\nbelow = ['a']"),
                "p.toml:6: \"a\" is no directory to open below: expected an absolute path without ..",
            ),
            (
                allow("verbs = ['reopen by path']\nbelow = ['/a/../b']"),
                "p.toml:6: \"/a/../b\" is no directory to open below",
            ),
            (
                "[[reserve]]\nnames = ['a']\n".into(),
                "p.toml:1: the rule is for nobody: expected users or groups",
            ),
            ("[[reserve]]\nnames = []\nusers=[1]\n".into(), "p.toml:1: names is empty"),
            ("[[reserve]]\nusers = [1]\n".into(), "p.toml:1: missing field `names`"),
            (
                "[[reserve]]\nnames = ['a',\n '\u{e4}*']\nusers=[1]\n".into(),
                "p.toml:3: no name matches \"\u{e4}*\": expected printable ASCII",
            ),
            (
                "[[reserve]]\nnames = ['a:b']\nusers=[1]\n".into(),
                "p.toml:2: no name matches \"a:b\"",
            ),
            (
                "[[reserve]]\nnames = ['a']\nusers = [\n  'no-such-user-here',\n]\n".into(),
                "p.toml:4: there is no user \"no-such-user-here\" on this machine",
            ),
            (
                "[[reserve]]\nnames = ['a']\ngroups = ['no-such-group']\n".into(),
                "p.toml:3: there is no group",
            ),
            (
                "[[reserve]]\nnames = ['a']\nusers = ['-x']\n".into(),
                "p.toml:3: there is no user \"-x\"",
            ),
            (
                "[[reserve]]\nnames = ['a']\nusers = ['0']\n".into(),
                "p.toml:3: the number of a user is written without",
            ),
            (
                "[[reserve]]\nnames = ['a']\nusers = [-1]\n".into(),
                "p.toml:3: expected a number from 0 to",
            ),
            (
                "[[reserve]]\nnames = ['a']\nusers = [4294967295]\n".into(),
                "p.toml:3: expected a number from 0",
            ),
            (
                "[[reserve]]\nnames = ['a']\nusers = [1.5]\n".into(),
                "p.toml:3: invalid type: floating point",
            ),
            (
                "[[quota]]\nusers = [1]\n".into(),
                "p.toml:1: the rule bounds nothing: expected one of entries, connections, label_bytes,",
            ),
            (
                "[[quota]]\nusers = []\nentries = 1\n".into(),
                "p.toml:1: the rule is for nobody: expected users or groups",
            ),
            (
                "[[quota]]\nentires = 1\n".into(),
                "p.toml:2: unknown field `entires`, expected one of",
            ),
            (
                "[[quota]]\nentries = -1\n".into(),
                "p.toml:2: invalid value: integer `-1`, expected u32",
            ),
            ("[[quota]]\nentries = '1'\n".into(), "p.toml:2: invalid type: string \"1\""),
            ("[[quota]]\nnames = ['a']\n".into(), "p.toml:2: unknown field `names`"),
            (
                "\n[[quota]]\nidle_transaction = 0\n".into(),
                "p.toml:2: idle_transaction is 0: expected seconds, at least 1",
            ),
            (
                format!("[[reserve]]\nnames = ['{}']\nusers=[1]\n", "a".repeat(600)),
                "p.toml:2: a pattern has at most 511 bytes",
            ),
        ] {
            let said = rules(&text).unwrap_err();

            assert!(said.starts_with(expected), "{text}\n{said}\n{expected}");
        }
    }
}
