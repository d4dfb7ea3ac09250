//! List, in parts of any size.

use fdstash_proto::{Access, Call, Clash, Flags, Gift, Keeper, Kind, Name, Pattern, Peer};
use fdstash_stash::{ConnectionId, Facts, Inspected, Limits, Now, Stash, Who};
use proptest::{collection, prelude::*};

proptest! {
    #[test]
    fn the_parts_of_a_list_are_whole_and_in_the_order_of_the_names(
        names in collection::btree_map("[ab]{1,4}", 1u32..3, 0..30),
        pattern in "[ab*?]{0,4}",
        most in 1usize..6,
    ) {
        let pattern = Pattern::new(&pattern).unwrap();
        let limits = Limits::new(30, 3, 40);
        let mut stash = Stash::new(limits, Keeper::Nobody);
        let [root, first, second] = [0, 1, 2].map(|uid| stash.connect(who(uid)).unwrap());
        for (name, uid) in &names {
            give(&mut stash, if *uid == 1 { first } else { second }, name);
        }

        for (by, sees) in [(root, None), (first, Some(1)), (second, Some(2))] {
            let parts = parts(&stash, by, &pattern, most);

            let seen = names.iter().filter(|(_, uid)| sees.is_none_or(|sees| sees == **uid));
            let names = seen.map(|(name, _)| Name::new(name).unwrap());
            let matching: Vec<_> = names.filter(|name| pattern.matches(name)).collect();
            prop_assert!(parts.iter().all(|part| part.len() <= most));
            prop_assert_eq!(parts.concat(), matching);
        }
    }
}

/// The names that a connection is shown, part by part.
fn parts(stash: &Stash<()>, by: ConnectionId, pattern: &Pattern, most: usize) -> Vec<Vec<Name>> {
    let mut parts = Vec::new();
    let mut after = None;
    loop {
        let (listed, last) = stash.list(by, pattern, after.as_ref(), most);
        parts.push(listed.into_iter().map(|listed| listed.entry.name).collect());
        match last {
            Some(_) => after = last,
            None => return parts,
        }
    }
}

fn give(stash: &mut Stash<()>, by: ConnectionId, name: &str) {
    let facts = Facts {
        kind: Kind::Regular,
        access: Access::Read,
        flags: Flags::NONE,
        device: 1,
        inode: 1,
        target: None,
    };
    let gift = Gift::new(Name::new(name).expect("a name"), Inspected { fd: (), facts });
    let call = Call::Give { gifts: vec![gift], clash: Clash::Refuse, ticket: None };
    stash.call(by, call, Now { boot_usec: 0, wall_usec: 0 });
}

fn who(uid: u32) -> Who {
    Who { peer: Peer { uid, gid: uid, pid: 1 }, groups: [].into() }
}
