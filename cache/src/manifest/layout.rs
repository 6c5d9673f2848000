//! How a version's bytes are cut into chunks, as a function of its entries alone.
//!
//! Files from 1 MiB on have chunks of their own, 4 MiB each and a shorter last one. Smaller files
//! share *packs*: taken in path order, a pack is closed when the next file does not fit, or, once
//! it is half full, where a hash of the next file's path says so. The latter makes boundaries
//! depend on names nearby and not on all that came before: an inserted file shifts a pack or a
//! few, not all that follow. Packs have the first chunk indices, so that pack `i` is chunk `i`.
//! Empty files have no chunk.

use super::assemble::{Body, Record};
use super::{CHUNK_BYTES, ChunkKind, EntryIndex, Extent, MAX_CHUNKS, Manifest, ManifestError};

/// Files smaller than this are packed, in bytes.
pub const SMALL_FILE_BYTES: u64 = 1 << 20;
/// From this fill on, in bytes, a path's hash may close a pack.
const CUT_FROM_BYTES: u64 = CHUNK_BYTES as u64 / 2;
/// The most files in a pack: bounds what one chunk costs to read from an origin.
const MAX_PACK_FILES: u32 = 4096;

/// Where a byte of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The chunk that holds it.
    pub chunk: u32,
    /// Where in the chunk it is.
    pub chunk_offset: u32,
    /// How many bytes of the file follow in this chunk, this one included.
    pub available: u32,
}

/// The inverse of what records say: which files a chunk holds.
#[derive(Debug)]
pub(super) struct Layout {
    /// Packed files in path order.
    small: Vec<u32>,
    /// Where each pack begins in `small`, and `small`'s length.
    packs: Vec<u32>,
    /// Unpacked files in path order, with their first chunk.
    large: Vec<(u32, u32)>,
    chunks: u32,
}

impl Layout {
    /// Lays out all files and notes each one's first chunk in its record.
    pub(super) fn of(records: &mut [Record], text: &[u8]) -> Result<Layout, ManifestError> {
        let mut layout = Layout {
            small: Vec::new(),
            packs: Vec::new(),
            large: Vec::new(),
            chunks: 0,
        };
        layout.pack(records, text);
        let mut chunks = (layout.packs.len() - 1) as u64;
        for (index, record) in records.iter_mut().enumerate() {
            let Body::File {
                size,
                ref mut chunk,
                ..
            } = record.body
            else {
                continue;
            };
            if size >= SMALL_FILE_BYTES {
                // Below MAX_CHUNKS, checked before it could grow further.
                *chunk = chunks as u32;
                layout.large.push((chunks as u32, index as u32));
                chunks += size.div_ceil(CHUNK_BYTES as u64);
                if chunks > u64::from(MAX_CHUNKS) {
                    return Err(ManifestError::TooLarge {
                        limit: u64::from(MAX_CHUNKS),
                        what: "chunks of 4 MiB",
                    });
                }
            }
        }
        layout.chunks = chunks as u32;
        Ok(layout)
    }

    fn pack(&mut self, records: &mut [Record], text: &[u8]) {
        // A path's hash continues its directory's, which is always met first.
        let mut hashes = vec![0; records.len()];
        let (mut bytes, mut files) = (0, 0);
        self.packs.push(0);
        for index in 1..records.len() {
            let record = &mut records[index];
            let name = &text[record.name_at as usize..][..usize::from(record.name_len)];
            hashes[index] = crc32c::crc32c_append(hashes[record.parent as usize], name);
            let Body::File {
                size,
                ref mut chunk,
                ref mut chunk_offset,
                ..
            } = record.body
            else {
                continue;
            };
            if size == 0 || size >= SMALL_FILE_BYTES {
                continue;
            }
            let full = bytes + size > CHUNK_BYTES as u64 || files == MAX_PACK_FILES;
            if full || (bytes >= CUT_FROM_BYTES && cuts(hashes[index], size)) {
                self.packs.push(self.small.len() as u32);
                (bytes, files) = (0, 0);
            }
            *chunk = (self.packs.len() - 1) as u32;
            *chunk_offset = bytes as u32;
            self.small.push(index as u32);
            bytes += size;
            files += 1;
        }
        if files > 0 {
            self.packs.push(self.small.len() as u32);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        (self.small.capacity() + self.packs.capacity() + 2 * self.large.capacity())
            * size_of::<u32>()
    }

    fn pack_count(&self) -> u32 {
        (self.packs.len() - 1) as u32
    }
}

/// Whether a pack that is half full ends before this file: on average once a MiB.
fn cuts(path_hash: u32, size: u64) -> bool {
    // A multiplication spreads the checksum over the high bits (Knuth's multiplicative hashing).
    let spread = path_hash.wrapping_mul(0x9E37_79B1) ^ path_hash >> 15;
    u64::from(spread) < size << 12
}

impl Manifest {
    /// How many chunks the version has.
    pub fn chunks(&self) -> u32 {
        self.layout.chunks
    }

    /// How many of the chunks are packs of small files: the first ones.
    pub fn packs(&self) -> u32 {
        self.layout.pack_count()
    }

    /// How many files are in packs.
    pub fn packed_files(&self) -> u32 {
        // At most one for each entry, whose indices are u32.
        self.layout.small.len() as u32
    }

    /// What chunk `chunk` is; `None` beyond the last one.
    pub fn chunk_kind(&self, chunk: u32) -> Option<ChunkKind> {
        if chunk >= self.layout.chunks {
            return None;
        }
        if chunk < self.layout.pack_count() {
            return Some(ChunkKind::Pack);
        }
        let after = self
            .layout
            .large
            .partition_point(|&(first, _)| first <= chunk);
        let (first, entry) = *self.layout.large.get(after.checked_sub(1)?)?;
        let file_offset = u64::from(chunk - first) * CHUNK_BYTES as u64;
        Some(ChunkKind::Part {
            entry: EntryIndex(entry),
            file_offset,
        })
    }

    /// How many bytes chunk `chunk` has: 1 to [`CHUNK_BYTES`]; 0 beyond the last one.
    pub fn chunk_len(&self, chunk: u32) -> u32 {
        match self.chunk_kind(chunk) {
            Some(ChunkKind::Pack) => {
                let end = self.layout.packs[chunk as usize + 1];
                let last = &self.records[self.layout.small[end as usize - 1] as usize];
                match last.body {
                    Body::File {
                        size, chunk_offset, ..
                    } => chunk_offset + size as u32,
                    _ => 0,
                }
            }
            Some(ChunkKind::Part { entry, file_offset }) => {
                (self.file_size(entry) - file_offset).min(CHUNK_BYTES as u64) as u32
            }
            None => 0,
        }
    }

    /// What chunk `chunk` is made of, in order and without gaps; nothing beyond the last one.
    pub fn extents(&self, chunk: u32) -> Vec<Extent> {
        match self.chunk_kind(chunk) {
            Some(ChunkKind::Pack) => {
                let (begin, end) = (
                    self.layout.packs[chunk as usize],
                    self.layout.packs[chunk as usize + 1],
                );
                let files = &self.layout.small[begin as usize..end as usize];
                files
                    .iter()
                    .filter_map(|&entry| self.packed(EntryIndex(entry)))
                    .collect()
            }
            Some(ChunkKind::Part { entry, file_offset }) => {
                let len = self.chunk_len(chunk);
                vec![Extent {
                    entry,
                    file_offset,
                    chunk_offset: 0,
                    len,
                }]
            }
            None => Vec::new(),
        }
    }

    /// Where byte `offset` of a file is; `None` at or beyond its end, and for what is no file.
    pub fn locate(&self, entry: EntryIndex, offset: u64) -> Option<Location> {
        let record = self.records.get(entry.0 as usize)?;
        let Body::File {
            size,
            chunk,
            chunk_offset,
            ..
        } = record.body
        else {
            return None;
        };
        let left = size.checked_sub(offset).filter(|&left| left > 0)?;
        if size < SMALL_FILE_BYTES {
            let chunk_offset = chunk_offset + offset as u32;
            return Some(Location {
                chunk,
                chunk_offset,
                available: left as u32,
            });
        }
        let within = offset % CHUNK_BYTES as u64;
        Some(Location {
            chunk: chunk + (offset / CHUNK_BYTES as u64) as u32,
            chunk_offset: within as u32,
            available: left.min(CHUNK_BYTES as u64 - within) as u32,
        })
    }

    fn packed(&self, entry: EntryIndex) -> Option<Extent> {
        match self.records[entry.0 as usize].body {
            Body::File {
                size, chunk_offset, ..
            } => Some(Extent {
                entry,
                file_offset: 0,
                chunk_offset,
                len: size as u32,
            }),
            _ => None,
        }
    }

    /// A file's size in bytes; 0 for what is no file.
    pub fn file_size(&self, entry: EntryIndex) -> u64 {
        match self
            .records
            .get(entry.0 as usize)
            .map(|record| &record.body)
        {
            Some(&Body::File { size, .. }) => size,
            _ => 0,
        }
    }
}
