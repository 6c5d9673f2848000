//! Which chunks are held: in memory as atomic bits, on disk as two copies of checksummed pages.
//!
//! A page is written to copy a and synced before it is written to copy b, so whenever a crash
//! comes, at least one copy of it is whole. Of two whole copies the newer one counts. A page
//! without a whole copy counts as empty: its chunks are fetched again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Device;
use crate::digest::Digest;

pub(super) const FILE_NAMES: [&str; 2] = ["presence.a", "presence.b"];

pub(super) const PAGE_BYTES: usize = 4096;
const MAGIC: u32 = u32::from_le_bytes(*b"tbp\x01");
const BITS_AT: usize = 28;
pub(super) const CRC_AT: usize = PAGE_BYTES - 4;
/// Chunks a page has bits for.
const PAGE_CHUNKS: u32 = ((CRC_AT - BITS_AT) * 8) as u32;

/// The bits that readers look at.
pub(super) struct Presence {
    words: Box<[AtomicU64]>,
    chunks: AtomicU64,
    bytes: AtomicU64,
}

impl Presence {
    /// None of `chunks` chunks.
    pub(super) fn none(chunks: u32) -> Presence {
        Presence {
            words: (0..chunks.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            chunks: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// How many bytes [`Presence::to_bytes`] gives for so many chunks.
    pub(super) fn encoded_len(chunks: u32) -> usize {
        chunks.div_ceil(64) as usize * 8
    }

    /// The bits, eight a byte, the first chunk's lowest.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let words = self.words.iter();
        words
            .flat_map(|word| word.load(Ordering::Acquire).to_le_bytes())
            .collect()
    }

    pub(super) fn has(&self, chunk: u32) -> bool {
        let word = self.words.get(chunk as usize / 64);
        // Pairs with the release in `set`: who sees the bit sees what was done before it.
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (chunk % 64) & 1 == 1)
    }

    /// Marks a chunk of `len` bytes; false if it already was.
    pub(super) fn set(&self, chunk: u32, len: u32) -> bool {
        let bit = 1 << (chunk % 64);
        let new = self.words[chunk as usize / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0;
        if new {
            self.chunks.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(u64::from(len), Ordering::Relaxed);
        }
        new
    }

    /// Unmarks a chunk of `len` bytes; false if it was not marked.
    pub(super) fn clear(&self, chunk: u32, len: u32) -> bool {
        let bit = 1 << (chunk % 64);
        let old = self.words[chunk as usize / 64].fetch_and(!bit, Ordering::AcqRel) & bit != 0;
        if old {
            self.chunks.fetch_sub(1, Ordering::Relaxed);
            self.bytes.fetch_sub(u64::from(len), Ordering::Relaxed);
        }
        old
    }

    /// A bit for each chunk, the first in the lowest bit of the first word.
    pub(super) fn words(&self) -> Vec<u64> {
        let words = self.words.iter();
        words.map(|word| word.load(Ordering::Acquire)).collect()
    }

    /// Chunks held, and their bytes.
    pub(super) fn held(&self) -> (u32, u64) {
        // As many as there are chunks, which is a u32.
        (
            self.chunks.load(Ordering::Relaxed) as u32,
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

/// The bits that survive a restart. Changed by whoever commits, one at a time.
pub(super) struct Durable {
    version: u32,
    pages: Vec<Page>,
    dirty: BTreeSet<usize>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Page {
    generation: u64,
    /// Bytes of the chunks marked here: lets a start add up what is held without any manifest.
    bytes: u64,
    bits: Box<[u8]>,
}

impl Page {
    fn empty() -> Page {
        Page {
            generation: 0,
            bytes: 0,
            bits: vec![0; CRC_AT - BITS_AT].into(),
        }
    }

    fn encode(&self, version: u32, index: usize) -> [u8; PAGE_BYTES] {
        let mut out = [0; PAGE_BYTES];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&version.to_le_bytes());
        // At most MAX_CHUNKS / PAGE_CHUNKS.
        out[8..12].copy_from_slice(&(index as u32).to_le_bytes());
        out[12..20].copy_from_slice(&self.generation.to_le_bytes());
        out[20..28].copy_from_slice(&self.bytes.to_le_bytes());
        out[BITS_AT..CRC_AT].copy_from_slice(&self.bits);
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], version: Option<u32>, index: usize) -> Option<Page> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let whole = bytes.len() == PAGE_BYTES
            && word(0) == Some(MAGIC)
            && version.is_none_or(|version| word(4) == Some(version))
            && word(8).is_some_and(|found| found as usize == index)
            && word(CRC_AT) == Some(crc32c::crc32c(&bytes[..CRC_AT]));
        if !whole {
            return None;
        }
        Some(Page {
            generation: long(12)?,
            bytes: long(20)?,
            bits: bytes[BITS_AT..CRC_AT].into(),
        })
    }
}

/// What marks files as this version's.
pub(super) fn tag(digest: &Digest) -> u32 {
    let [a, b, c, d, ..] = *digest.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn pages_for(chunks: u32) -> usize {
    chunks.div_ceil(PAGE_CHUNKS) as usize
}

/// A copy's content when nothing is held. Written in full, so that marking never needs new space.
pub(super) fn empty(digest: &Digest, chunks: u32) -> Vec<u8> {
    let page = Page::empty();
    (0..pages_for(chunks))
        .flat_map(|index| page.encode(tag(digest), index))
        .collect()
}

/// Bytes held by the version in this directory; what can't be read counts as nothing held.
pub(super) fn held_bytes(directory: &Path) -> u64 {
    held_in(&FILE_NAMES.map(|name| std::fs::read(directory.join(name)).unwrap_or_default()))
}

/// Bytes held as two copies say it together.
pub(super) fn held_in(copies: &[Vec<u8>; 2]) -> u64 {
    let pages = copies.iter().map(Vec::len).max().unwrap_or(0) / PAGE_BYTES;
    (0..pages)
        .filter_map(|index| newest(copies, None, index))
        // Whoever can write to the disk can write any number.
        .fold(0, |held: u64, page| held.saturating_add(page.bytes))
}

fn newest(copies: &[Vec<u8>; 2], version: Option<u32>, index: usize) -> Option<Page> {
    let at = index * PAGE_BYTES;
    copies
        .iter()
        .filter_map(|copy| Page::decode(copy.get(at..at + PAGE_BYTES)?, version, index))
        .max_by_key(|page| page.generation)
}

/// What two copies say together, for readers and for committing. `chunk_len` gives the length of a
/// chunk in bytes.
pub(super) fn load(
    copies: &[Vec<u8>; 2],
    digest: &Digest,
    chunks: u32,
    chunk_len: impl Fn(u32) -> u32,
) -> (Presence, Durable) {
    let presence = Presence::none(chunks);
    let mut durable = Durable {
        version: tag(digest),
        pages: Vec::new(),
        dirty: BTreeSet::new(),
    };
    for index in 0..pages_for(chunks) {
        let mut page = newest(copies, Some(durable.version), index).unwrap_or_else(|| {
            tracing::warn!(version = %digest.short(), page = index,
                "both copies of a presence page are damaged: its chunks are fetched again");
            Page::empty()
        });
        let first = index as u32 * PAGE_CHUNKS;
        // Added up anew: what is marked and unmarked from now on is added to it and taken from it.
        page.bytes = 0;
        for bit in 0..PAGE_CHUNKS.min(chunks - first) {
            if page.bits[bit as usize / 8] >> (bit % 8) & 1 == 1 {
                let len = chunk_len(first + bit);
                presence.set(first + bit, len);
                page.bytes += u64::from(len);
            }
        }
        durable.pages.push(page);
    }
    (presence, durable)
}

impl Durable {
    /// Notes that a chunk of `len` bytes is, or is no longer, held. On disk after `write`.
    pub(super) fn mark(&mut self, chunk: u32, len: u32, held: bool) {
        let (index, bit) = ((chunk / PAGE_CHUNKS) as usize, chunk % PAGE_CHUNKS);
        let page = &mut self.pages[index];
        let byte = &mut page.bits[bit as usize / 8];
        let mask = 1 << (bit % 8);
        if (*byte & mask != 0) != held {
            *byte ^= mask;
            let len = u64::from(len);
            page.bytes = if held {
                page.bytes + len
            } else {
                page.bytes.saturating_sub(len)
            };
            self.dirty.insert(index);
        }
    }

    /// The changed pages with their place in the file, a generation newer. To be written to one
    /// copy, synced, written to the other, and synced.
    pub(super) fn changed(&mut self) -> Vec<(u64, [u8; PAGE_BYTES])> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|index| {
                // The last one stays the last: both copies then say the same once both are written.
                let page = &mut self.pages[index];
                page.generation = page.generation.saturating_add(1);
                let encoded = self.pages[index].encode(self.version, index);
                ((index * PAGE_BYTES) as u64, encoded)
            })
            .collect()
    }

    /// To be called when writing `changed` pages failed: they are written again next time.
    pub(super) fn not_written(&mut self, changed: &[(u64, [u8; PAGE_BYTES])]) {
        self.dirty
            .extend(changed.iter().map(|(at, _)| *at as usize / PAGE_BYTES));
    }
}

/// Writes pages to one copy, without syncing.
pub(super) fn write_pages(
    device: &dyn Device,
    copy: &File,
    pages: &[(u64, [u8; PAGE_BYTES])],
) -> io::Result<()> {
    pages
        .iter()
        .try_for_each(|(at, page)| device.write_small(copy, page, *at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(presence: &Presence, chunks: u32) -> Vec<bool> {
        (0..chunks).map(|chunk| presence.has(chunk)).collect()
    }

    #[test]
    fn a_page_of_another_version_or_place_is_not_believed() {
        let (ours, other) = (Digest::of(b"ours"), Digest::of(b"other"));
        let (_, mut durable) = load(&[Vec::new(), Vec::new()], &other, 10, |_| 1);
        durable.mark(3, 1, true);
        let copy = durable.changed()[0].1.to_vec();
        let (presence, _) = load(&[copy.clone(), copy], &ours, 10, |_| 1);
        assert_eq!(presence.held(), (0, 0));
    }

    #[test]
    fn a_page_with_absurd_numbers_is_counted_by_its_bits_and_can_be_changed() {
        let digest = Digest::of(b"v");
        let mut page = Page::empty();
        (page.generation, page.bytes, page.bits[0]) = (u64::MAX, u64::MAX, 0b101);
        let copy: Vec<u8> = [0, 1]
            .iter()
            .flat_map(|&index| page.encode(tag(&digest), index))
            .collect();
        let mut copies = [copy.clone(), copy];
        assert_eq!(held_in(&copies), u64::MAX);
        let (presence, mut durable) = load(&copies, &digest, 40_000, |_| 5);
        assert_eq!(presence.held(), (4, 20));
        durable.mark(1, 5, true);
        for (at, page) in durable.changed() {
            for copy in &mut copies {
                copy[at as usize..][..PAGE_BYTES].copy_from_slice(&page);
            }
        }
        let (again, _) = load(&copies, &digest, 40_000, |_| 5);
        assert!(again.has(1));
        let (first, _) = copies[0].split_at(PAGE_BYTES);
        assert_eq!(held_in(&[first.to_vec(), Vec::new()]), 15);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Steps are commits of some changes; the crash comes while one page is being written to
        /// one of the copies, leaving a part of it.
        #[test]
        fn a_crash_at_any_byte_loses_nothing_marked_and_adds_nothing(
            commits in prop::collection::vec(prop::collection::vec((0..40_000u32, any::<bool>()), 1..6), 1..6),
            crash_copy in 0..2usize, torn in 0..=PAGE_BYTES, second_page: bool,
        ) {
            let (digest, chunks) = (Digest::of(b"v"), 40_000);
            let mut copies = [empty(&digest, chunks), empty(&digest, chunks)];
            let (presence, mut durable) = load(&copies, &digest, chunks, |_| 5);
            let mut before = bits(&presence, chunks);
            let last = commits.len() - 1;
            for (step, commit) in commits.iter().enumerate() {
                before = bits(&presence, chunks);
                for &(chunk, held) in commit {
                    durable.mark(chunk, 5, held);
                    if held { presence.set(chunk, 5) } else { presence.clear(chunk, 5) };
                }
                let pages = durable.changed();
                for (which, copy) in copies.iter_mut().enumerate() {
                    for (place, (at, page)) in pages.iter().enumerate() {
                        let at = *at as usize;
                        let crashed = step == last && (which, place) >= (crash_copy, usize::from(second_page));
                        let written = match crashed {
                            false => PAGE_BYTES,
                            true if (which, place) == (crash_copy, usize::from(second_page)) => torn,
                            true => 0,
                        };
                        copy[at..at + written].copy_from_slice(&page[..written]);
                    }
                }
            }
            let after = bits(&presence, chunks);
            let (reopened, _) = load(&copies, &digest, chunks, |_| 5);
            for chunk in 0..chunks {
                let (old, new) = (before[chunk as usize], after[chunk as usize]);
                let found = reopened.has(chunk);
                prop_assert!(found == old || found == new, "chunk {} was {old} or {new}", chunk);
            }
            let held = u64::from(reopened.held().0);
            prop_assert_eq!(reopened.held().1, held * 5);
        }

        #[test]
        fn arbitrary_bytes_are_never_a_panic(
            a in prop::collection::vec(any::<u8>(), 0..9000), b in prop::collection::vec(any::<u8>(), 0..9000),
        ) {
            let (presence, _) = load(&[a, b], &Digest::of(b"v"), 40_000, |_| 1);
            prop_assert_eq!(presence.held(), (0, 0));
        }
    }
}
