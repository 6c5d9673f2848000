//! Where everything of an image lies, before any of it is written.

use super::directory::{self, Measure};
use super::format::{BLOCK, BuildTime, SLOT, SUPERBLOCK_END, inode_len};
use super::place::{Cursor, Placed};
use crate::manifest::layout::SMALL_FILE_BYTES;
use crate::manifest::{Entry, EntryIndex, EntryKind, Manifest};
use crate::origin::Timestamp;

/// The version is too large for an image: inodes are in its first 128 GiB, and it has at most 16 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an EROFS image has its small files in its first 128 GiB and is no larger than 16 TiB: the dataset is larger"
)]
pub struct TooLarge;

/// Where everything of a version's image lies. Takes 4 bytes for each entry of the manifest, and as many
/// for each chunk.
#[derive(Debug)]
pub struct Plan {
    /// Each entry's inode number: where its inode is, in units of 32 bytes.
    pub(super) nids: Vec<u32>,
    pub(super) time: BuildTime,
    /// The first block behind the superblock and the inodes: of directories and links.
    pub(super) directories_at: u32,
    /// The first block of each chunk.
    pub(super) chunks_at: Vec<u32>,
    pub(super) blocks: u32,
}

/// What [`super::metadata`] has of an entry, beside its inode; `None` for small files, which are with
/// their pack.
pub(super) fn in_metadata(manifest: &Manifest, entry: &Entry<'_>) -> Option<Measure> {
    match entry.kind {
        EntryKind::Directory => Some(directory::measure(manifest, entry.index)),
        EntryKind::Symlink { target } => Some(Measure {
            bytes: target.len() as u64,
            links: 1,
        }),
        EntryKind::File { size } if size == 0 || size >= SMALL_FILE_BYTES => Some(Measure {
            bytes: size,
            links: 1,
        }),
        EntryKind::File { .. } => None,
    }
}

/// Places an entry's inode; large files' bytes are all elsewhere.
pub(super) fn place(
    cursor: &mut Cursor,
    entry: &Entry<'_>,
    of: Measure,
    time: BuildTime,
) -> Placed {
    let inode = inode_len(entry, of.bytes, of.links, time);
    match entry.kind {
        EntryKind::File { size } if size >= SMALL_FILE_BYTES => cursor.place(inode, 0),
        _ => cursor.place(inode, of.bytes),
    }
}

fn small(block: u64) -> Result<u32, TooLarge> {
    u32::try_from(block).map_err(|_| TooLarge)
}

fn nid(placed: &Placed) -> Result<u32, TooLarge> {
    small(placed.at / SLOT as u64)
}

impl Plan {
    /// Plans the image of a version. Takes about a tenth of a second for a million entries.
    pub fn of(manifest: &Manifest) -> Result<Plan, TooLarge> {
        let time = BuildTime(usual_time(manifest));
        let mut nids = vec![0; manifest.len() as usize];
        let mut cursor = Cursor::new(SUPERBLOCK_END as u64);
        let mut directory_blocks = 0;
        for entry in manifest.entries() {
            if let Some(measure) = in_metadata(manifest, &entry) {
                let placed = place(&mut cursor, &entry, measure, time);
                nids[entry.index.0 as usize] = nid(&placed)?;
                directory_blocks += u64::from(placed.blocks);
            }
        }
        let directories_at = small(cursor.next_block())?;
        let mut next = u64::from(directories_at) + directory_blocks;
        let mut chunks_at = Vec::with_capacity(manifest.chunks() as usize);
        for chunk in 0..manifest.packs() {
            chunks_at.push(small(next)?);
            let mut cursor = Cursor::new(next * BLOCK as u64);
            let mut whole = 0;
            for extent in manifest.extents(chunk) {
                let Some(entry) = manifest.entry(extent.entry) else {
                    continue;
                };
                let measure = Measure {
                    bytes: extent.len.into(),
                    links: 1,
                };
                let placed = place(&mut cursor, &entry, measure, time);
                nids[extent.entry.0 as usize] = nid(&placed)?;
                whole += u64::from(placed.blocks);
            }
            next = cursor.next_block() + whole;
        }
        for chunk in manifest.packs()..manifest.chunks() {
            chunks_at.push(small(next)?);
            next += u64::from(manifest.chunk_len(chunk)).div_ceil(BLOCK as u64);
        }
        Ok(Plan {
            nids,
            time,
            directories_at,
            chunks_at,
            blocks: small(next)?,
        })
    }

    /// Length of the image, in bytes.
    pub fn image_bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK as u64
    }

    pub(super) fn nid(&self, entry: EntryIndex) -> u32 {
        self.nids[entry.0 as usize]
    }

    /// Where a pack's inodes, or a part of a large file, are; in blocks.
    pub(super) fn chunk_at(&self, chunk: u32) -> u32 {
        self.chunks_at[chunk as usize]
    }
}

/// The time of the first file: the inodes of all that have the same are half as long.
fn usual_time(manifest: &Manifest) -> Timestamp {
    let mut files = manifest
        .entries()
        .filter(|entry| matches!(entry.kind, EntryKind::File { .. }));
    let first = files.next();
    first.map_or(
        Timestamp {
            seconds: 0,
            nanos: 0,
        },
        |entry| entry.mtime,
    )
}
