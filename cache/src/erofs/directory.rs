//! A directory as the kernel searches it: entries by name, in blocks that each hold their entries
//! and then the names.

use super::format::{BLOCK, DIRENT, put_dirent};
use crate::manifest::{EntryIndex, EntryKind, Manifest};

/// One name in a directory, and what it stands for.
type Named<'a> = (&'a [u8], EntryIndex);

/// The blocks of a directory, in order: each the names that are in it.
pub(super) struct Blocks<'a> {
    manifest: &'a Manifest,
    children: &'a [EntryIndex],
    /// `.` and `..`, as far as they have not come yet.
    dots: &'a [&'static [u8]],
    directory: EntryIndex,
    parent: EntryIndex,
}

/// How long a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measure {
    pub(super) bytes: u64,
    /// Names of it: its own in its parent, `.`, and `..` in each directory in it.
    pub(super) links: u32,
}

const DOTS: [&[u8]; 2] = [b".", b".."];

impl<'a> Blocks<'a> {
    pub(super) fn of(manifest: &'a Manifest, directory: EntryIndex) -> Blocks<'a> {
        let entry = manifest.entry(directory);
        Blocks {
            manifest,
            children: manifest.children(directory),
            dots: &DOTS,
            directory,
            parent: entry.map_or(EntryIndex::ROOT, |entry| entry.parent),
        }
    }

    /// The next name, by the order of their bytes; it is only taken by [`Blocks::take`].
    fn peek(&self) -> Option<Named<'a>> {
        let child = self.children.first().map(|&child| {
            let name = self.manifest.entry(child).map_or(&b""[..], |e| e.name);
            (name, child)
        });
        let dot = self.dots.first().map(|&dot| {
            let stands_for = match dot {
                b"." => self.directory,
                _ => self.parent,
            };
            (dot, stands_for)
        });
        match (child, dot) {
            (Some(child), Some(dot)) if child.0 < dot.0 => Some(child),
            (child, dot) => dot.or(child),
        }
    }

    fn take(&mut self, named: Named<'a>) {
        match self.dots.first() {
            Some(&dot) if dot == named.0 => self.dots = &self.dots[1..],
            _ => self.children = &self.children[1..],
        }
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Vec<Named<'a>>;

    fn next(&mut self) -> Option<Vec<Named<'a>>> {
        let (mut block, mut used) = (Vec::new(), 0);
        while let Some(named) = self.peek() {
            used += DIRENT + named.0.len();
            if used > BLOCK {
                break;
            }
            self.take(named);
            block.push(named);
        }
        (!block.is_empty()).then_some(block)
    }
}

fn used(block: &[Named<'_>]) -> usize {
    block.iter().map(|(name, _)| DIRENT + name.len()).sum()
}

/// How long a directory is, whose every block but the last is a whole one.
pub(super) fn measure(manifest: &Manifest, directory: EntryIndex) -> Measure {
    let (mut before, mut last) = (0, 0u64);
    for block in Blocks::of(manifest, directory) {
        before += last.div_ceil(BLOCK as u64) * BLOCK as u64;
        last = used(&block) as u64;
    }
    let children = manifest.children(directory).iter();
    let directories = children
        .filter_map(|&child| manifest.entry(child))
        .filter(|child| child.kind == EntryKind::Directory)
        .count();
    Measure {
        bytes: before + last,
        // At most as many as there are entries, whose indices are u32.
        links: (directories as u32).saturating_add(2),
    }
}

/// Appends a block, without what pads it. `nid` tells an entry's inode number.
pub(super) fn put_block(
    out: &mut Vec<u8>,
    manifest: &Manifest,
    block: &[Named<'_>],
    nid: impl Fn(EntryIndex) -> u32,
) {
    let mut name_at = block.len() * DIRENT;
    for &(name, stands_for) in block {
        let kind = manifest.entry(stands_for).map(|entry| entry.kind);
        let kind = kind.unwrap_or(EntryKind::Directory);
        put_dirent(out, nid(stands_for), name_at, &kind);
        name_at += name.len();
    }
    for (name, _) in block {
        out.extend_from_slice(name);
    }
}
