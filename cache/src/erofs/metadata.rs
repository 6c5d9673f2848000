//! The beginning of an image: all that follows from the manifest alone.

use super::directory::{Blocks, put_block};
use super::format::{BLOCK, DataLayout, Inode, SLOT, SUPERBLOCK_END, Superblock, put_inode};
use super::place::Cursor;
use super::plan::{Plan, in_metadata, place};
use crate::manifest::layout::SMALL_FILE_BYTES;
use crate::manifest::{Entry, EntryIndex, EntryKind, Manifest};

/// Pieces are of about this many bytes.
const PIECE: usize = 1 << 20;

/// The superblock, the inodes of directories, links, empty and large files, and what is in directories
/// and links: pieces one behind the other from the beginning of the image, each some whole blocks.
pub struct Metadata<'a> {
    manifest: &'a Manifest,
    plan: &'a Plan,
    /// What comes next, and where in the image it begins.
    piece: Vec<u8>,
    begin: u64,
    cursor: Cursor,
    /// The next entry whose inode is to come, and then whose blocks are.
    next: u32,
    /// Where the blocks of the next directory are.
    block: u32,
    phase: Phase<'a>,
}

enum Phase<'a> {
    Inodes,
    Directories,
    /// In the middle of a directory: its blocks, and how many of them are to come.
    Directory(Blocks<'a>, u32),
    Done,
}

impl Plan {
    /// The image's beginning, piece by piece, for the manifest that was planned for.
    pub fn metadata<'a>(&'a self, manifest: &'a Manifest) -> Metadata<'a> {
        Metadata {
            manifest,
            plan: self,
            piece: vec![0; SUPERBLOCK_END],
            begin: 0,
            cursor: Cursor::new(SUPERBLOCK_END as u64),
            next: 0,
            block: self.directories_at,
            phase: Phase::Inodes,
        }
    }

    /// Length of what [`Plan::metadata`] gives, in bytes.
    pub fn metadata_bytes(&self) -> u64 {
        let end = self.chunks_at.first().copied().unwrap_or(self.blocks);
        u64::from(end) * BLOCK as u64
    }
}

impl<'a> Metadata<'a> {
    fn next_entry(&mut self) -> Option<Entry<'a>> {
        let entry = self.manifest.entry(EntryIndex(self.next))?;
        self.next += 1;
        Some(entry)
    }

    /// Appends the next entry's inode; whether there was one.
    fn inode(&mut self) -> bool {
        let Some(entry) = self.next_entry() else {
            return false;
        };
        let (manifest, plan) = (self.manifest, self.plan);
        let Some(measure) = in_metadata(manifest, &entry) else {
            return true;
        };
        let placed = place(&mut self.cursor, &entry, measure, plan.time);
        self.piece.resize((placed.at - self.begin) as usize, 0);
        let is_large = matches!(entry.kind, EntryKind::File { size } if size >= SMALL_FILE_BYTES);
        let first_block = match manifest.locate(entry.index, 0) {
            Some(first) if is_large => plan.chunk_at(first.chunk),
            _ if placed.blocks > 0 => self.block,
            _ => 0,
        };
        self.block += placed.blocks;
        let inode = Inode {
            size: measure.bytes,
            links: measure.links,
            layout: placed.layout,
            first_block,
        };
        put_inode(&mut self.piece, &entry, inode, plan.time);
        if placed.layout == DataLayout::Inline {
            match entry.kind {
                EntryKind::Symlink { target } => self.piece.extend_from_slice(target),
                _ => {
                    if let Some(block) = Blocks::of(manifest, entry.index).last() {
                        put_block(&mut self.piece, manifest, &block, |entry| plan.nid(entry));
                    }
                }
            }
        }
        let padded = self.piece.len().next_multiple_of(SLOT);
        self.piece.resize(padded, 0);
        true
    }

    /// Goes to the next entry that has blocks of its own; whether there is one.
    fn next_directory(&mut self) -> bool {
        let Some(entry) = self.next_entry() else {
            return false;
        };
        let (manifest, plan) = (self.manifest, self.plan);
        let Some(measure) = in_metadata(manifest, &entry) else {
            return true;
        };
        let placed = place(&mut self.cursor, &entry, measure, plan.time);
        match entry.kind {
            EntryKind::Directory => {
                let blocks = Blocks::of(manifest, entry.index);
                self.phase = Phase::Directory(blocks, placed.blocks);
            }
            EntryKind::Symlink { target } if placed.blocks > 0 => {
                self.piece.extend_from_slice(target);
                self.pad();
            }
            EntryKind::Symlink { .. } | EntryKind::File { .. } => {}
        }
        true
    }

    fn pad(&mut self) {
        let padded = self.piece.len().next_multiple_of(BLOCK);
        self.piece.resize(padded, 0);
    }

    /// Brings `piece` further; whether anything is left.
    fn step(&mut self) -> bool {
        match &mut self.phase {
            Phase::Inodes => {
                if !self.inode() {
                    self.pad();
                    self.begin_directories();
                }
            }
            Phase::Directories => {
                if !self.next_directory() {
                    self.phase = Phase::Done;
                }
            }
            Phase::Directory(_, 0) => self.phase = Phase::Directories,
            Phase::Directory(blocks, left) => {
                *left -= 1;
                let (manifest, plan) = (self.manifest, self.plan);
                if let Some(block) = blocks.next() {
                    put_block(&mut self.piece, manifest, &block, |entry| plan.nid(entry));
                }
                self.pad();
            }
            Phase::Done => return false,
        }
        true
    }
}

impl Metadata<'_> {
    fn begin_directories(&mut self) {
        (self.next, self.cursor) = (0, Cursor::new(SUPERBLOCK_END as u64));
        self.phase = Phase::Directories;
    }

    fn put_superblock(&self, first: &mut [u8]) {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.manifest.digest().as_bytes()[..16]);
        let superblock = Superblock {
            // It is the first inode, in the first block or the second.
            root: self.plan.nid(EntryIndex::ROOT) as u16,
            inodes: self.manifest.len().into(),
            time: self.plan.time,
            blocks: self.plan.blocks,
            uuid,
        };
        superblock.put(first);
    }
}

impl Iterator for Metadata<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        while self.piece.len() < PIECE && self.step() {}
        let whole = self.piece.len() / BLOCK * BLOCK;
        let rest = self.piece.split_off(whole);
        let mut piece = std::mem::replace(&mut self.piece, rest);
        if self.begin == 0 && !piece.is_empty() {
            self.put_superblock(&mut piece[..BLOCK]);
        }
        self.begin += whole as u64;
        (!piece.is_empty()).then_some(piece)
    }
}
