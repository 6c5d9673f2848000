//! What a dataset version is: every path with its size, mode and time, and how the bytes are cut
//! into chunks.
//!
//! A [`Manifest`] is immutable and made from a listing, once. Its encoding is canonical, so equal
//! listings of an origin have equal digests on every node, and its digest names the version. How files are cut
//! into chunks follows from the entries alone (see [`layout`]) and is not part of the encoding.

mod assemble;
mod build;
mod encode;
pub mod layout;
mod place;
mod same;
#[cfg(test)]
mod tests;
mod tree;

use std::borrow::Cow;
use std::ops::Range;

use crate::digest::Digest;
use crate::origin::{ObjectIdentity, Timestamp};

use assemble::{Body, Record};
use layout::Layout;
pub use place::Place;

/// A chunk holds at most this many bytes.
pub const CHUNK_BYTES: usize = 4 << 20;

/// The longest name of one entry, in bytes (Linux's `NAME_MAX`).
pub const MAX_NAME_BYTES: usize = 255;
/// The longest path and the longest symlink target, in bytes (Linux's `PATH_MAX` less its zero).
pub const MAX_PATH_BYTES: usize = 4095;
/// The largest encoded manifest that is accepted, in bytes.
pub const MAX_ENCODED_BYTES: usize = 2 << 30;
/// The most chunks a version may have: 1 PiB of full ones.
pub const MAX_CHUNKS: u32 = 1 << 28;

/// Which entry of a manifest: its place in path order, the root being 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(pub u32);

impl EntryIndex {
    /// The root directory.
    pub const ROOT: EntryIndex = EntryIndex(0);
}

/// An immutable dataset version. See the module's description.
#[derive(Debug)]
pub struct Manifest {
    /// In path order (a directory before what it holds, siblings by name), the root first.
    records: Vec<Record>,
    /// Names, symlink targets and identities, back to back.
    text: Vec<u8>,
    /// Each directory's children, by name; the directories' records say which part is theirs.
    children: Vec<EntryIndex>,
    layout: Layout,
    /// See [`Place::of_version`].
    place: Digest,
    digest: Digest,
    totals: Totals,
}

/// What a version holds in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files.
    pub files: u64,
    /// Directories, the root left out.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// One entry, borrowed from its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its place in the manifest.
    pub index: EntryIndex,
    /// The directory that holds it; the root holds itself.
    pub parent: EntryIndex,
    /// Its name as bytes, often but not always UTF-8; empty for the root.
    pub name: &'a [u8],
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permission bits, at most `0o7777`.
    pub mode: u16,
    /// When it was last modified.
    pub mtime: Timestamp,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A directory.
    Directory,
    /// A file of `size` bytes.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A symbolic link; the target is the link's text, which may point anywhere or nowhere.
    Symlink {
        /// What the link says.
        target: &'a [u8],
    },
}

/// A part of a file that is a part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The file.
    pub entry: EntryIndex,
    /// Where the part begins in the file.
    pub file_offset: u64,
    /// Where the part begins in the chunk.
    pub chunk_offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// Where a chunk's bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Small files, together.
    Pack,
    /// A part of one large file.
    Part {
        /// The file.
        entry: EntryIndex,
        /// Where the chunk begins in the file, a multiple of [`CHUNK_BYTES`].
        file_offset: u64,
    },
}

/// Why bytes are not a manifest, or a listing cannot be one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Nothing to read in it.
    #[error("the dataset is empty: no file was listed; check the origin's path or prefix")]
    Empty,
    /// A path no dataset may have.
    #[error("entry {path:?}: {why}: leave it out of the dataset, or rename it at the origin")]
    Path {
        /// The path, invalid UTF-8 replaced.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than a version can hold.
    #[error("the dataset has more than {limit} {what}: split it into several datasets")]
    TooLarge {
        /// The bound.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// Not a manifest, or damaged.
    #[error(
        "not a manifest of this version of trackbed, or damaged: {why} at byte {at}: fetch it again, or register the dataset again"
    )]
    Malformed {
        /// What is wrong.
        why: &'static str,
        /// Where, in bytes from the beginning.
        at: usize,
    },
    /// The bytes are a different version's.
    #[error("manifest {expected} was asked for, and these bytes are {found}: fetch it elsewhere")]
    OtherDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
}

impl Manifest {
    /// The version's name: the digest of [`Manifest::encode`].
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the version holds in all.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many entries there are, the root included: their indices are all below this.
    pub fn len(&self) -> u32 {
        // The assembler refuses more than u32::MAX entries.
        self.records.len() as u32
    }

    /// Never: there is always the root, and a manifest without a file is refused.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The entry at `index`, if there is one.
    pub fn entry(&self, index: EntryIndex) -> Option<Entry<'_>> {
        let record = self.records.get(index.0 as usize)?;
        let kind = match record.body {
            Body::Directory { .. } => EntryKind::Directory,
            Body::File { size, .. } => EntryKind::File { size },
            Body::Symlink { at, len } => EntryKind::Symlink {
                target: self.text(at, usize::from(len)),
            },
        };
        Some(Entry {
            index,
            parent: EntryIndex(record.parent),
            name: self.name(record),
            kind,
            mode: record.mode,
            mtime: record.mtime(),
        })
    }

    /// All entries in path order, the root first.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.len()).filter_map(|index| self.entry(EntryIndex(index)))
    }

    /// What tells a file's listed content from later ones; `None` for what is no file.
    pub fn identity(&self, index: EntryIndex) -> Option<ObjectIdentity> {
        let record = self.records.get(index.0 as usize)?;
        match record.body {
            Body::File { identity, .. } => Some(encode::read_identity(
                &self.text[identity as usize..],
                record.mtime(),
            )),
            _ => None,
        }
    }

    /// The chunks that hold a file's bytes: those of its own, or the pack that it shares; none for what has
    /// no bytes.
    pub fn chunks_of(&self, entry: EntryIndex) -> Range<u32> {
        let size = self.file_size(entry);
        let first = self.locate(entry, 0);
        let last = self.locate(entry, size.saturating_sub(1));
        match (first, last) {
            (Some(first), Some(last)) => first.chunk..last.chunk + 1,
            _ => 0..0,
        }
    }

    /// Memory the manifest takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.records.capacity() * size_of::<Record>()
            + self.text.capacity()
            + self.children.capacity() * size_of::<EntryIndex>()
            + self.layout.memory_bytes()
    }

    fn name(&self, record: &Record) -> &[u8] {
        self.text(record.name_at, usize::from(record.name_len))
    }

    fn text(&self, at: u32, len: usize) -> &[u8] {
        &self.text[at as usize..][..len]
    }
}

/// A path as people read it.
pub fn shown(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}
