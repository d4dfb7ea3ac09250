//! The manual pages in `docs/man` and the reference in `docs/reference`, made from what the programs are
//! built of: the arguments of both commands, the interface file, the policy's example. They are kept
//! beside their sources, so that nobody has to build anything to read or install them, and tests
//! compare them: `make reference` renews them.

mod command;
mod interface;
mod page;
mod policy;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

pub use command::command;
pub use interface::interface;
pub use page::{Block, Page};
pub use policy::policy;

/// Compares pages with the files that they are kept in, or, where `FDSTASH_WRITE_REFERENCE` is set,
/// writes these: `docs/man/NAME.SECTION` each, and one `docs/reference/BOOK.md` of all, the first at
/// its top. `is_ours` tells which manual pages there are to be no others of.
///
/// # Panics
///
/// If they differ, or cannot be read or written.
pub fn keep(book: &str, pages: &[Page], is_ours: impl Fn(&str) -> bool) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let markdown = pages.iter().map(Page::markdown).collect::<Vec<_>>().join("\n");
    let mut made = BTreeMap::from([(docs.join("reference").join(format!("{book}.md")), markdown)]);
    for page in pages {
        made.insert(docs.join("man").join(page.file_name()), page.roff());
    }
    let stale = stale(&docs.join("man"), &made, is_ours);
    if env::var_os("FDSTASH_WRITE_REFERENCE").is_some() {
        for (path, text) in &made {
            let folder = path.parent().expect("it is in a folder");
            fs::create_dir_all(folder).expect("a folder can be made");
            fs::write(path, text).expect("a file can be written");
        }
        for path in &stale {
            fs::remove_file(path).expect("a file can be removed");
        }
        return;
    }
    for (path, text) in &made {
        let kept = fs::read_to_string(path).unwrap_or_default();
        assert!(kept == *text, "{} is not up to date: `make reference` renews it", path.display());
    }
    assert!(stale.is_empty(), "{stale:?} are of nothing any more: `make reference` removes them");
}

/// Pages of what there is no longer.
fn stale(
    folder: &Path,
    made: &BTreeMap<PathBuf, String>,
    is_ours: impl Fn(&str) -> bool,
) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let is_stale = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        is_ours(&name) && !made.contains_key(path)
    };
    files.filter(is_stale).collect()
}
