//! What to do about what QEMU refuses, by its own words.

use super::qmp::Failure;

/// What to do, where that is known.
pub(crate) fn advice(error: &anyhow::Error) -> Option<String> {
    let Some(Failure::Refused { desc, .. }) = error.downcast_ref() else { return None };
    of_refusal(desc)
}

fn of_refusal(desc: &str) -> Option<String> {
    let says = |words: &str| desc.contains(words);
    if says("Failed to get ") && says("lock") {
        return Some(
            "another program, or another node of this QEMU, has the file open: lslocks shows who; \
             `fdstash locks NAME` shows only locks on what the stash keeps"
                .into(),
        );
    }
    if says("cannot support read-write users") {
        return Some(
            "a device or an export writes to it: remove that first (device_del, block-export-del), or \
             make it one that only reads"
                .into(),
        );
    }
    if says(" in use") || says("is busy") {
        return Some(
            "an export or a device uses it: remove that first (block-export-del; device_del, and wait \
             for DEVICE_DELETED)"
                .into(),
        );
    }
    let option = desc.split_once("Option '")?.1.split_once("' cannot be reset")?.0;
    Some(format!(
        "say what the node was made with, since QEMU does not tell it: --option NODE.{option}=VALUE"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_refuses_is_told_apart_by_its_words() {
        let table = [
            ("Failed to get \"write\" lock", Some("lslocks")),
            ("Failed to get shared \"write\" lock", Some("lslocks")),
            ("Node disk0 is in use", Some("block-export-del")),
            ("Read-only block node 'm' cannot support read-write users", Some("writes to it")),
            ("Option 'aio' cannot be reset to its default value", Some("--option NODE.aio=VALUE")),
            ("Cannot find device='x' nor node-name='x'", None),
        ];

        for (desc, expected) in table {
            let told = of_refusal(desc);
            assert_eq!(told.is_some(), expected.is_some(), "{desc}: {told:?}");
            assert!(told.unwrap_or_default().contains(expected.unwrap_or_default()), "{desc}");
        }
    }
}
