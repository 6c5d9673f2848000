//! What the store reads back from its disk. See [`crate::fuzzing`].

use super::presence::{self, CRC_AT, PAGE_BYTES, Presence, held_in, tag};
use super::verified::{self, BOOT_BYTES};
use crate::Digest;
use crate::fuzzing::Target;

/// The two copies of the presence bits: two bytes say of how many chunks, then come the copies, half
/// of the rest each.
pub(crate) const PRESENCE: Target = Target {
    name: "presence",
    seeds: || {
        let chunks = 32_599_u16.to_le_bytes();
        let copy = presence::empty(&version(), 32_600);
        let said: &[u8] = &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 8];
        vec![
            [&chunks[..], &copy, &copy].concat(),
            [&[100, 0][..], said, said].concat(),
        ]
    },
    check: presence_bits,
};

/// The file of chunks that were verified in this boot.
pub(crate) const VERIFIED: Target = Target {
    name: "verified",
    seeds: || {
        let bits = Presence::none(CHUNKS);
        for chunk in [3, 64, 129] {
            bits.set(chunk, 1);
        }
        vec![verified::encode(tag(&version()), &BOOT, &bits)]
    },
    check: |bytes| {
        read_verified(bytes);
        if let Some((said, crc)) = bytes.to_vec().split_last_chunk_mut::<4>() {
            *crc = crc32c::crc32c(said).to_le_bytes();
            read_verified(&[&said[..], &crc[..]].concat());
        }
    },
};

const CHUNKS: u32 = 130;
const BOOT: [u8; BOOT_BYTES] = [b'b'; BOOT_BYTES];
/// Bytes of each chunk.
const LEN: u32 = 4 << 20;

fn version() -> Digest {
    Digest::of(b"v")
}

fn presence_bits(bytes: &[u8]) {
    let Some((chunks, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let chunks = u32::from(u16::from_le_bytes(*chunks)) + 1;
    let (a, b) = rest.split_at(rest.len() / 2);
    open(&[a.to_vec(), b.to_vec()], chunks);
    open(&[a, b].map(|copy| sealed(copy, chunks)), chunks);
}

/// Whole pages, with `said` in them from the generation on.
fn sealed(said: &[u8], chunks: u32) -> Vec<u8> {
    let mut copy = presence::empty(&version(), chunks);
    let pages = copy.chunks_exact_mut(PAGE_BYTES);
    for (page, said) in pages.zip(said.chunks(CRC_AT - 12)) {
        page[12..][..said.len()].copy_from_slice(said);
        let crc = crc32c::crc32c(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
    copy
}

fn open(copies: &[Vec<u8>; 2], chunks: u32) {
    let _ = held_in(copies);
    let (presence, mut durable) = presence::load(copies, &version(), chunks, |_| LEN);
    let held: u32 = presence.words().iter().map(|word| word.count_ones()).sum();
    let bytes = u64::from(held) * u64::from(LEN);
    assert_eq!(presence.held(), (held, bytes));
    assert!((chunks..chunks + 200).all(|beyond| !presence.has(beyond)));

    // What is marked from now on is there after the next start.
    for chunk in [0, chunks / 2, chunks - 1] {
        durable.mark(chunk, LEN, true);
        presence.set(chunk, LEN);
    }
    if let Some(chunk) = (1..chunks / 2).find(|&chunk| presence.has(chunk)) {
        durable.mark(chunk, LEN, false);
        presence.clear(chunk, LEN);
    }
    let mut written = copies.clone();
    for copy in &mut written {
        copy.resize(presence::empty(&version(), chunks).len(), 0);
    }
    for (at, page) in durable.changed() {
        for copy in &mut written {
            copy[at as usize..][..PAGE_BYTES].copy_from_slice(&page);
        }
    }
    let (again, _) = presence::load(&written, &version(), chunks, |_| LEN);
    assert_eq!(again.words(), presence.words());
}

fn read_verified(bytes: &[u8]) {
    let Some(bits) = verified::decode(bytes, tag(&version()), &BOOT, CHUNKS) else {
        return;
    };
    assert_eq!(bits.len(), Presence::encoded_len(CHUNKS));
    let again = Presence::none(8 * bits.len() as u32);
    for chunk in 0..8 * bits.len() as u32 {
        if bits[chunk as usize / 8] >> (chunk % 8) & 1 == 1 {
            again.set(chunk, 1);
        }
    }
    assert_eq!(verified::encode(tag(&version()), &BOOT, &again), bytes);
}
