//! Whether anybody has written to a file since it was laid out: by what no program can set back.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use super::Parents;
use crate::manifest::{EntryIndex, EntryKind, Manifest};

/// A file's inode, its length and the time of its last change. The kernel sets that time with every
/// write and every change of the other times (inode(7), `st_ctime`); no call gives it another.
#[derive(Hash)]
struct Stamp {
    inode: u64,
    len: i64,
    changed: (i64, i64),
}

/// What the files of a tree were like when each was laid out. A file without a stamp has yet to be.
///
/// Of a stamp its keyed hash is kept, so that a million files take 8 MB: two stamps of one file that differ
/// have the same once in 2^64 times, and nobody can look for such a pair without the key.
#[derive(Debug, Default)]
pub(in crate::store) struct Stamps {
    /// By entry; of entries past its end there is none.
    taken: Vec<Option<NonZeroU64>>,
    key: RandomState,
}

impl Stamps {
    pub(in crate::store) fn has(&self, file: EntryIndex) -> bool {
        self.of(file).is_some()
    }

    fn of(&self, file: EntryIndex) -> Option<NonZeroU64> {
        self.taken.get(file.0 as usize).copied().flatten()
    }

    /// The file is to be laid out again.
    pub(in crate::store) fn forget(&mut self, file: EntryIndex) {
        if let Some(taken) = self.taken.get_mut(file.0 as usize) {
            *taken = None;
        }
    }

    fn hash(&self, stamp: &Stamp) -> NonZeroU64 {
        // Zero, which stands for none, is one.
        NonZeroU64::new(self.key.hash_one(stamp)).unwrap_or(NonZeroU64::MIN)
    }

    /// Takes the stamps of those files that have none, and says which they are. Asks for each, and
    /// blocks.
    pub(in crate::store) fn take(
        &mut self,
        tree: BorrowedFd<'_>,
        manifest: &Manifest,
    ) -> io::Result<Vec<EntryIndex>> {
        let mut parents = Parents::new(tree);
        self.taken.resize(manifest.len() as usize, None);
        let mut taken = Vec::new();
        for file in files(manifest)
            .filter(|&file| !self.has(file))
            .collect::<Vec<_>>()
        {
            let stamp = stamp(&mut parents, manifest, file)?;
            self.taken[file.0 as usize] = Some(self.hash(&stamp));
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
            let now = now.map(|stamp| self.hash(&stamp));
            if now.is_none() || now != self.of(file) {
                self.forget(file);
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
