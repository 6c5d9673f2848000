//! The structures of the format, as bytes. All numbers are little-endian.

use crate::manifest::{Entry, EntryKind};
use crate::origin::Timestamp;

/// The unit of allocation, in bytes.
pub(super) const BLOCK: usize = 4096;
const BLOCK_BITS: u8 = 12;
/// Inodes lie at multiples of this; an inode's number is its place in these units.
pub(super) const SLOT: usize = 32;

const SUPERBLOCK_AT: usize = 1024;
/// Where the superblock ends and inodes may begin.
pub(super) const SUPERBLOCK_END: usize = SUPERBLOCK_AT + 128;
const MAGIC: u32 = 0xE0F5_E1E2;
/// `SB_CHKSUM`: the superblock has a checksum. `MTIME`: times are those of modification.
const FEATURES: u32 = 0x1 | 0x2;
/// Beside the version's digest, what tells the image as ours.
const VOLUME_NAME: &[u8; 16] = b"trackbed\0\0\0\0\0\0\0\0";

/// Length of a directory entry without its name.
pub(super) const DIRENT: usize = 12;

/// Bits of a mode that the image's files get: not set-uid and set-gid, as in a version's tree.
const MODE_BITS: u16 = 0o1777;

/// Where an inode's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// In whole blocks.
    Plain = 0,
    /// In whole blocks, but for those behind the last of them, which follow the inode.
    Inline = 2,
}

/// What an inode says beside its entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    /// Bytes of the file, link or directory.
    pub(super) size: u64,
    pub(super) links: u32,
    pub(super) layout: DataLayout,
    /// The first whole block; 0 if there is none.
    pub(super) first_block: u32,
}

/// What all inodes of an image share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BuildTime(pub(super) Timestamp);

/// Whether the short form of an inode, with 16 bits for links, 32 for the size and the image's time, says
/// all.
fn is_compact(entry: &Entry<'_>, size: u64, links: u32, time: BuildTime) -> bool {
    entry.mtime == time.0 && u32::try_from(size).is_ok() && u16::try_from(links).is_ok()
}

/// Length of an entry's inode.
pub(super) fn inode_len(entry: &Entry<'_>, size: u64, links: u32, time: BuildTime) -> usize {
    match is_compact(entry, size, links, time) {
        true => 32,
        false => 64,
    }
}

/// Appends an entry's inode.
pub(super) fn put_inode(out: &mut Vec<u8>, entry: &Entry<'_>, inode: Inode, time: BuildTime) {
    let compact = is_compact(entry, inode.size, inode.links, time);
    let kind: u16 = match entry.kind {
        EntryKind::Directory => 0o040_000,
        EntryKind::File { .. } => 0o100_000,
        EntryKind::Symlink { .. } => 0o120_000,
    };
    let permissions = match entry.kind {
        EntryKind::Symlink { .. } => 0o777,
        _ => entry.mode & MODE_BITS,
    };
    let format = (inode.layout as u16) << 1 | u16::from(!compact);
    // For programs that still know 32 bits only.
    let number = entry.index.0.wrapping_add(1);
    out.extend(format.to_le_bytes());
    // No extended attributes.
    out.extend(0u16.to_le_bytes());
    out.extend((kind | permissions).to_le_bytes());
    if compact {
        out.extend((inode.links as u16).to_le_bytes());
        out.extend((inode.size as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(inode.first_block.to_le_bytes());
        out.extend(number.to_le_bytes());
        // User and group: root. And what is reserved.
        out.extend([0; 8]);
    } else {
        out.extend([0; 2]);
        out.extend(inode.size.to_le_bytes());
        out.extend(inode.first_block.to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend([0; 8]);
        out.extend(entry.mtime.seconds.to_le_bytes());
        out.extend(entry.mtime.nanos.to_le_bytes());
        out.extend(inode.links.to_le_bytes());
        out.extend([0; 16]);
    }
}

/// Appends a directory entry; its name begins `name_at` bytes behind the directory block's beginning.
pub(super) fn put_dirent(out: &mut Vec<u8>, nid: u32, name_at: usize, kind: &EntryKind<'_>) {
    let kind: u8 = match kind {
        EntryKind::File { .. } => 1,
        EntryKind::Directory => 2,
        EntryKind::Symlink { .. } => 7,
    };
    out.extend(u64::from(nid).to_le_bytes());
    // Below the length of a block.
    out.extend((name_at as u16).to_le_bytes());
    out.extend([kind, 0]);
}

/// What the superblock says.
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) time: BuildTime,
    pub(super) blocks: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Writes it to the image's first block, whose other bytes are there.
    pub(super) fn put(&self, block: &mut [u8]) {
        let mut fields = Vec::with_capacity(SUPERBLOCK_END - SUPERBLOCK_AT);
        fields.extend(MAGIC.to_le_bytes());
        fields.extend(0u32.to_le_bytes());
        fields.extend(FEATURES.to_le_bytes());
        fields.extend([BLOCK_BITS, 0]);
        fields.extend(self.root.to_le_bytes());
        fields.extend(self.inodes.to_le_bytes());
        fields.extend(self.time.0.seconds.to_le_bytes());
        fields.extend(self.time.0.nanos.to_le_bytes());
        fields.extend(self.blocks.to_le_bytes());
        // Inodes are counted from the beginning of the image; shared attributes there are none.
        fields.extend([0; 8]);
        fields.extend(self.uuid);
        fields.extend(VOLUME_NAME);
        // No incompatible features, devices, or anything that came later.
        fields.resize(SUPERBLOCK_END - SUPERBLOCK_AT, 0);
        block[SUPERBLOCK_AT..SUPERBLOCK_END].copy_from_slice(&fields);
        // The kernel's crc32c, over the rest of the block, is not inverted at its end.
        let checksum = !crc32c::crc32c(&block[SUPERBLOCK_AT..BLOCK]);
        block[SUPERBLOCK_AT + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
    }
}
