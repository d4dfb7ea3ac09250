//! What people write about QEMU: nodes, and their options.

use fdstash::Name;
use serde_json::Value;

use super::nodes::Options;

/// QEMU's limit.
const LONGEST_NODE: usize = 31;

/// A node's name, as QEMU takes it.
pub(super) fn node(text: &str) -> Result<String, String> {
    let begins_well = text.starts_with(|first: char| first.is_ascii_alphabetic());
    let fits = |other: char| other.is_ascii_alphanumeric() || "-._".contains(other);
    if !begins_well || !text.chars().all(fits) {
        return Err("a node's name is a letter, and then letters, digits, '-', '.' and '_'".into());
    }
    if text.len() > LONGEST_NODE {
        return Err(format!("QEMU takes node names of at most {LONGEST_NODE} characters"));
    }
    Ok(text.to_owned())
}

/// `NODE=NAME`: a node, and the entry that has its file.
pub(super) fn named(text: &str) -> Result<(String, Name), String> {
    let (node_name, entry) = text.split_once('=').ok_or("it is NODE=NAME")?;
    Ok((node(node_name)?, Name::new(entry).map_err(|bad| bad.to_string())?))
}

/// An option of a node, or of all file nodes: `[NODE.]KEY=VALUE`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    key: String,
    value: Value,
}

impl Setting {
    /// Reads one. `true`, `false` and whole numbers are such to QEMU; all else is text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // What the command itself decides, and changes.
        const OURS: [&str; 6] =
            ["driver", "node-name", "filename", "read-only", "auto-read-only", "cache.direct"];
        let (key, value) = text.split_once('=').ok_or("it is [NODE.]KEY=VALUE")?;
        let is_ours = |ours: &&&str| key == **ours || key.ends_with(&format!(".{ours}"));
        if let Some(ours) = OURS.iter().find(is_ours) {
            return Err(format!("{ours} is not for an option to say"));
        }
        let number = value.parse().ok().map(|number: i64| Value::from(number));
        let truth = value.parse().ok().map(|truth: bool| Value::from(truth));
        let value = truth.or(number).unwrap_or_else(|| value.into());
        Ok(Self { key: key.to_owned(), value })
    }

    /// The node that it names, among these.
    fn node<'a>(&self, nodes: &[&'a str]) -> Option<&'a str> {
        let named =
            |node: &&&str| self.key.strip_prefix(**node).is_some_and(|rest| rest.starts_with('.'));
        nodes.iter().filter(named).copied().max_by_key(|node| node.len())
    }
}

/// Puts those settings among a node's options that are for it: those that name it, and, if it is a
/// file node, those that name none of `nodes`.
pub(super) fn apply(
    settings: &[Setting],
    node: &str,
    is_file: bool,
    nodes: &[&str],
    options: &mut Options,
) {
    for setting in settings {
        match setting.node(nodes) {
            Some(named) if named == node => {
                set(options, &setting.key[node.len() + 1..], setting.value.clone());
            }
            None if is_file => set(options, &setting.key, setting.value.clone()),
            Some(_) | None => {}
        }
    }
}

/// Sets an option, whose key is a path of members.
pub(super) fn set(options: &mut Options, key: &str, value: Value) {
    let Some((member, rest)) = key.split_once('.') else {
        options.insert(key.to_owned(), value);
        return;
    };
    let inner = options.entry(member).or_insert_with(|| Options::new().into());
    if let Value::Object(inner) = inner {
        set(inner, rest, value);
    }
}

/// Options as `drive_add` takes them: `key=value`, joined by commas, members with their path.
///
/// # Errors
///
/// If one could be read as something else.
pub(super) fn line(options: &Options) -> anyhow::Result<String> {
    let mut words = Vec::new();
    collect(&mut words, "", options)?;
    Ok(words.join(","))
}

fn collect(words: &mut Vec<String>, path: &str, options: &Options) -> anyhow::Result<()> {
    for (key, value) in options {
        let path = format!("{path}{key}");
        let text = match value {
            Value::Object(inner) => {
                collect(words, &format!("{path}."), inner)?;
                continue;
            }
            Value::Bool(true) => "on".to_owned(),
            Value::Bool(false) => "off".to_owned(),
            Value::String(text) => text.clone(),
            Value::Null | Value::Number(_) | Value::Array(_) => value.to_string(),
        };
        // The monitor for people takes its line apart by spaces and quotes, and then by commas and '='.
        let is_plain = |c: char| c.is_ascii_graphic() && !"\"'\\".contains(c);
        let has_plain_key = path.chars().all(|c| is_plain(c) && c != ',' && c != '=');
        if !has_plain_key || !text.chars().all(is_plain) {
            anyhow::bail!("QEMU's drive_add cannot be told the option {path}={text:?}");
        }
        words.push(format!("{path}={}", text.replace(',', ",,")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_nodes_name_is_one_that_qemu_takes() {
        for good in ["disk0", "d", "libvirt-1-storage", "a.b_c"] {
            assert_eq!(node(good).as_deref(), Ok(good));
        }
        for bad in ["", "0disk", "-d", "a,b", "a b", "#block123", &"x".repeat(32)] {
            assert!(node(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_option_goes_to_the_node_that_it_names_or_to_every_file() {
        let settings =
            ["aio=native", "disk0.lazy-refcounts=true", "disk0-file.cache.no-flush=false", "n=7"]
                .map(|text| Setting::parse(text).unwrap());
        let nodes = ["disk0", "disk0-file", "disk0-backing1-file"];
        let options = |node: &str, is_file| {
            let mut options = Options::new();
            apply(&settings, node, is_file, &nodes, &mut options);
            Value::from(options)
        };

        assert_eq!(options("disk0", false), json!({"lazy-refcounts": true}));
        assert_eq!(
            options("disk0-file", true),
            json!({"aio": "native", "cache": {"no-flush": false}, "n": 7})
        );
        assert_eq!(options("disk0-backing1-file", true), json!({"aio": "native", "n": 7}));
    }

    #[test]
    fn options_become_a_line_of_the_monitor_for_people() {
        let options = |value: Value| value.as_object().unwrap().clone();

        let good =
            options(json!({"a": true, "file": {"cache": {"direct": false}, "n": 7}, "t": "x,y"}));
        assert_eq!(line(&good).unwrap(), "a=on,file.cache.direct=off,file.n=7,t=x,,y");
        for bad in [json!({"a": "x y"}), json!({"a": "\""}), json!({"a,b": "x"}), json!({"a": "ä"})]
        {
            assert!(line(&options(bad.clone())).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_command_decides_is_no_option() {
        for text in ["filename=/x", "disk0-file.read-only=true", "cache.direct=true", "aio"] {
            assert!(Setting::parse(text).is_err(), "{text}");
        }
    }
}
