//! Files of sysfs below a root, as far as they are there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most of a file that is read, in bytes: more than a page sysfs gives of nothing but of PCI's vital
/// product data, which has 32 KiB at most.
const MAX_BYTES: u64 = 32 << 10;

/// What sysfs gives at once.
const PAGE: usize = 4096;

pub(super) struct Tree<'a>(&'a Path);

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path) -> Tree<'a> {
        Tree(root)
    }

    /// Where something is.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// What a file holds; `None` if it is not there or can't be read (any more).
    pub(super) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let mut file = File::open(self.path(path)).ok()?;
        let mut page = [0; PAGE];
        // Nearly all is told by one read: what is shorter than a page has ended.
        let first = file.read(&mut page).ok()?;
        let mut bytes = page[..first].to_vec();
        if first == PAGE {
            file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        }
        Some(bytes)
    }

    /// A file's text without white space around it; `None` also if it is empty.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let text = String::from_utf8(self.bytes(path)?).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// What a symbolic link says.
    pub(super) fn link(&self, path: &str) -> Option<PathBuf> {
        fs::read_link(self.path(path)).ok()
    }

    /// What is in a folder, sorted.
    pub(super) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(path))? {
            // One that can't be told is one that is just going.
            names.extend(
                entry
                    .ok()
                    .and_then(|entry| entry.file_name().into_string().ok()),
            );
        }
        names.sort();
        Ok(names)
    }
}
