//! Whether anybody has written to a file since it was laid out: by what no program can set back.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use super::Parents;
use crate::manifest::{EntryIndex, EntryKind, Manifest};

/// A file's inode, its length and the time of its last change. The kernel sets that time with every
/// write and every change of the other times (inode(7), `st_ctime`); no call gives it another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: i64,
    changed: (i64, i64),
}

/// What the files of a tree were like when each was laid out. A file without a stamp has yet to be.
#[derive(Debug, Default)]
pub(in crate::store) struct Stamps(HashMap<EntryIndex, Stamp>);

impl Stamps {
    pub(in crate::store) fn has(&self, file: EntryIndex) -> bool {
        self.0.contains_key(&file)
    }

    /// The file is to be laid out again.
    pub(in crate::store) fn forget(&mut self, file: EntryIndex) {
        self.0.remove(&file);
    }

    /// Takes the stamps of those files that have none, and says which they are. Asks for each, and
    /// blocks.
    pub(in crate::store) fn take(
        &mut self,
        tree: BorrowedFd<'_>,
        manifest: &Manifest,
    ) -> io::Result<Vec<EntryIndex>> {
        let mut parents = Parents::new(tree);
        let mut taken = Vec::new();
        for file in files(manifest)
            .filter(|&file| !self.has(file))
            .collect::<Vec<_>>()
        {
            let stamp = stamp(&mut parents, manifest, file)?;
            self.0.insert(file, stamp);
            taken.push(file);
        }
        Ok(taken)
    }

    /// Drops the stamps of those files that are no longer as they were, and says which they are.
    /// Asks for each, and blocks.
    pub(in crate::store) fn drop_changed(
        &mut self,
        tree: BorrowedFd<'_>,
        manifest: &Manifest,
    ) -> Vec<EntryIndex> {
        let mut parents = Parents::new(tree);
        let mut changed = Vec::new();
        for file in files(manifest) {
            // A file that is gone has changed too.
            let now = stamp(&mut parents, manifest, file).ok();
            if now.is_none() || now != self.0.get(&file).copied() {
                self.0.remove(&file);
                changed.push(file);
            }
        }
        changed
    }
}

fn files(manifest: &Manifest) -> impl Iterator<Item = EntryIndex> {
    let entries = manifest.entries();
    entries
        .filter(|entry| matches!(entry.kind, EntryKind::File { .. }))
        .map(|entry| entry.index)
}

fn stamp(parents: &mut Parents<'_>, manifest: &Manifest, file: EntryIndex) -> io::Result<Stamp> {
    let entry = manifest.entry(file);
    let entry = entry.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let parent = parents.of(manifest, &entry)?;
    let name = OsStr::from_bytes(entry.name);
    let found = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(Stamp {
        inode: found.st_ino,
        len: found.st_size,
        changed: (found.st_ctime, found.st_ctime_nsec),
    })
}
