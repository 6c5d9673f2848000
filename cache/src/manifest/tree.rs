//! Finding one's way by names.

use super::assemble::Body;
use super::{EntryIndex, Manifest};

impl Manifest {
    /// What a directory holds, sorted by name; nothing for what is no directory. An entry's place
    /// in this slice never changes, so it can serve as a directory offset.
    pub fn children(&self, directory: EntryIndex) -> &[EntryIndex] {
        match self
            .records
            .get(directory.0 as usize)
            .map(|record| &record.body)
        {
            Some(&Body::Directory {
                children_at,
                children,
            }) => &self.children[children_at as usize..][..children as usize],
            _ => &[],
        }
    }

    /// The entry called `name` in `directory`, in time logarithmic in the directory's size.
    pub fn lookup(&self, directory: EntryIndex, name: &[u8]) -> Option<EntryIndex> {
        let children = self.children(directory);
        let at = children
            .binary_search_by(|child| self.name(&self.records[child.0 as usize]).cmp(name))
            .ok()?;
        Some(children[at])
    }

    /// The entry at a path below the root, `/` between names; the root for the empty path.
    pub fn find(&self, path: &[u8]) -> Option<EntryIndex> {
        if path.is_empty() {
            return Some(EntryIndex::ROOT);
        }
        path.split(|&byte| byte == b'/')
            .try_fold(EntryIndex::ROOT, |directory, name| {
                self.lookup(directory, name)
            })
    }

    /// An entry's path below the root, without a slash at its beginning; empty for the root and
    /// for an index that is none.
    pub fn path(&self, index: EntryIndex) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = index.0 as usize;
        // A parent's index is always smaller than its children's, so this ends.
        while let Some(record) = self.records.get(at).filter(|_| at != 0) {
            names.push(self.name(record));
            at = record.parent as usize;
        }
        names.reverse();
        names.join(&b'/')
    }
}
