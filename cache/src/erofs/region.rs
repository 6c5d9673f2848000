//! The part of an image that has a chunk's bytes.

use std::borrow::Cow;

use super::directory::Measure;
use super::format::{BLOCK, DataLayout, Inode, put_inode};
use super::place::Cursor;
use super::plan::{Plan, place};
use crate::manifest::{ChunkKind, Manifest};

/// Some whole blocks of an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Region<'a> {
    /// Where they are, in bytes.
    pub at: u64,
    /// What they are; up to three times as much as the chunk.
    pub bytes: Cow<'a, [u8]>,
}

impl Plan {
    /// What the image has of a chunk, whose bytes are `content`; nothing for a chunk that the manifest does
    /// not have. Bytes that `content` lacks are zero.
    pub fn region<'a>(&self, manifest: &Manifest, chunk: u32, content: &'a [u8]) -> Region<'a> {
        let bytes = match manifest.chunk_kind(chunk) {
            Some(ChunkKind::Pack) => self.pack(manifest, chunk, content).into(),
            Some(ChunkKind::Part { .. }) if content.len().is_multiple_of(BLOCK) => content.into(),
            Some(ChunkKind::Part { .. }) => {
                let mut padded = content.to_vec();
                padded.resize(content.len().next_multiple_of(BLOCK), 0);
                padded.into()
            }
            None => {
                return Region {
                    at: 0,
                    bytes: Cow::default(),
                };
            }
        };
        let at = u64::from(self.chunk_at(chunk)) * BLOCK as u64;
        Region { at, bytes }
    }

    /// A pack's inodes, with the last bytes of their files, and then the files' whole blocks.
    fn pack(&self, manifest: &Manifest, chunk: u32, content: &[u8]) -> Vec<u8> {
        let begin = u64::from(self.chunk_at(chunk)) * BLOCK as u64;
        let extents = manifest.extents(chunk);
        let mut cursor = Cursor::new(begin);
        let mut files = Vec::with_capacity(extents.len());
        for extent in &extents {
            let measure = Measure {
                bytes: extent.len.into(),
                links: 1,
            };
            if let Some(entry) = manifest.entry(extent.entry) {
                let placed = place(&mut cursor, &entry, measure, self.time);
                files.push((extent, entry, placed));
            }
        }
        let whole_blocks_at = cursor.next_block();
        let mut region = Vec::with_capacity(2 * content.len());
        let mut next_block = whole_blocks_at;
        for (extent, entry, placed) in &files {
            region.resize((placed.at - begin) as usize, 0);
            let inode = Inode {
                size: extent.len.into(),
                links: 1,
                layout: placed.layout,
                // Below the image's number of blocks, which the plan has counted.
                first_block: match placed.blocks {
                    0 => 0,
                    _ => next_block as u32,
                },
            };
            next_block += u64::from(placed.blocks);
            put_inode(&mut region, entry, inode, self.time);
            if placed.layout == DataLayout::Inline {
                let end = (extent.chunk_offset + extent.len) as usize;
                region.extend_from_slice(part(content, end - placed.tail, end));
            }
        }
        region.resize((whole_blocks_at * BLOCK as u64 - begin) as usize, 0);
        for (extent, _, placed) in &files {
            let from = extent.chunk_offset as usize;
            let to = from + extent.len as usize - placed.tail;
            let padded = region.len() + placed.blocks as usize * BLOCK;
            region.extend_from_slice(part(content, from, to));
            region.resize(padded, 0);
        }
        region
    }
}

/// What there is of a part of `content`.
fn part(content: &[u8], from: usize, to: usize) -> &[u8] {
    &content[from.min(content.len())..to.min(content.len())]
}
