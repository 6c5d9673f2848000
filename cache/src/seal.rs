//! What a chunk's bytes must be: a length, a BLAKE3 hash, and a crc32c for each 64 KiB block.
//!
//! The owner that reads a chunk from the origin makes its [`Seal`]; from then on the seal travels
//! and is stored beside the chunk, so that every hop and every read can tell right bytes from
//! wrong ones. Encoded it takes exactly [`SEAL_BYTES`] and carries a checksum of its own.

use std::ops::Range;

use crate::manifest::CHUNK_BYTES;

/// A block is what one crc32c covers, and the least that can be read and verified.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Length of an encoded seal.
pub const SEAL_BYTES: usize = 512;
/// A slot of pinned memory: a chunk, then a page for its seal.
pub const SLOT_BYTES: usize = CHUNK_BYTES + 4096;
/// The most blocks a chunk has.
pub const MAX_BLOCKS: usize = CHUNK_BYTES / BLOCK_BYTES;

const MAGIC: &[u8; 8] = b"tb seal\x01";
const LEN_AT: usize = 8;
const HASH_AT: usize = 12;
const CRCS_AT: usize = HASH_AT + 32;
const END: usize = CRCS_AT + 4 * MAX_BLOCKS;
const OWN_CRC_AT: usize = SEAL_BYTES - 4;
const _: () = assert!(END <= OWN_CRC_AT);

/// What a chunk's bytes must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seal {
    len: u32,
    blake3: [u8; 32],
    /// One for each block, the last of which may be shorter.
    crcs: Box<[u32]>,
}

/// Why bytes are not a seal, or not what a seal says.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum SealError {
    /// Not 512 bytes of a seal of this format with a right checksum.
    #[error("the chunk's seal is damaged or of an unknown format")]
    Damaged,
    /// The chunk has another length.
    #[error("the chunk has {found} bytes and its seal says {sealed}")]
    Length {
        /// What the seal says.
        sealed: u32,
        /// How many there are.
        found: usize,
    },
    /// The bytes of a block are not those that were sealed.
    #[error(
        "block {block} of the chunk is damaged: its crc32c is {found:08x}, sealed {sealed:08x}"
    )]
    Block {
        /// Which block, from 0.
        block: usize,
        /// What the seal says.
        sealed: u32,
        /// What the bytes give.
        found: u32,
    },
    /// Every block's crc32c is right and the BLAKE3 hash of the chunk is not.
    #[error("the chunk's BLAKE3 hash is not the sealed one: its seal is not this chunk's")]
    Hash,
}

impl Seal {
    /// The seal of these bytes: 1 to [`CHUNK_BYTES`] of them, straight from the origin. `None` for
    /// any other number.
    pub fn of(bytes: &[u8]) -> Option<Seal> {
        if bytes.is_empty() || bytes.len() > CHUNK_BYTES {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        // Block by block, so that what was hashed is still near when its checksum is made.
        let mut block_crc = |block: &[u8]| {
            hasher.update(block);
            crc32c::crc32c(block)
        };
        let crcs = bytes.chunks(BLOCK_BYTES).map(&mut block_crc).collect();
        Some(Seal {
            len: bytes.len() as u32,
            blake3: *hasher.finalize().as_bytes(),
            crcs,
        })
    }

    /// How many bytes the chunk has.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Never: an empty chunk is not sealed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The blocks that hold the chunk's bytes `range`.
    pub fn blocks(range: Range<usize>) -> Range<usize> {
        range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)
    }

    /// Checks a whole chunk, by checksums and by hash: what came from elsewhere.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), SealError> {
        if bytes.len() != self.len() {
            return Err(SealError::Length {
                sealed: self.len,
                found: bytes.len(),
            });
        }
        self.verify_blocks(0, bytes)?;
        if blake3::hash(bytes) != self.blake3 {
            return Err(SealError::Hash);
        }
        Ok(())
    }

    /// Checks whole blocks from block `first` on, the chunk's last one as short as it is, by their
    /// checksums: what comes from this node's own disk.
    pub fn verify_blocks(&self, first: usize, bytes: &[u8]) -> Result<(), SealError> {
        let wrong_length = SealError::Length {
            sealed: self.len,
            found: bytes.len(),
        };
        let begin = first.checked_mul(BLOCK_BYTES).ok_or(wrong_length)?;
        let end = begin.checked_add(bytes.len()).ok_or(wrong_length)?;
        if end > self.len() || (end != self.len() && !bytes.len().is_multiple_of(BLOCK_BYTES)) {
            return Err(wrong_length);
        }
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
            let (sealed, found) = (self.crcs[block], crc32c::crc32c(bytes));
            if sealed != found {
                return Err(SealError::Block {
                    block,
                    sealed,
                    found,
                });
            }
        }
        Ok(())
    }

    /// The seal as it travels and is stored.
    pub fn encode(&self) -> [u8; SEAL_BYTES] {
        let mut out = [0; SEAL_BYTES];
        out[..LEN_AT].copy_from_slice(MAGIC);
        out[LEN_AT..HASH_AT].copy_from_slice(&self.len.to_le_bytes());
        out[HASH_AT..CRCS_AT].copy_from_slice(&self.blake3);
        for (place, crc) in out[CRCS_AT..END].chunks_exact_mut(4).zip(&self.crcs) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        let own = crc32c::crc32c(&out[..OWN_CRC_AT]);
        out[OWN_CRC_AT..].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// The seal these bytes encode. They may come from anyone.
    pub fn decode(bytes: &[u8]) -> Result<Seal, SealError> {
        let bytes: &[u8; SEAL_BYTES] = bytes.try_into().map_err(|_| SealError::Damaged)?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let len = word(LEN_AT);
        if &bytes[..LEN_AT] != MAGIC
            || word(OWN_CRC_AT) != crc32c::crc32c(&bytes[..OWN_CRC_AT])
            || len == 0
            || len as usize > CHUNK_BYTES
        {
            return Err(SealError::Damaged);
        }
        let blocks = (len as usize).div_ceil(BLOCK_BYTES);
        let crcs_end = CRCS_AT + 4 * blocks;
        if bytes[crcs_end..OWN_CRC_AT].iter().any(|&byte| byte != 0) {
            return Err(SealError::Damaged);
        }
        let mut blake3 = [0; 32];
        blake3.copy_from_slice(&bytes[HASH_AT..CRCS_AT]);
        let crcs = (0..blocks).map(|block| word(CRCS_AT + 4 * block)).collect();
        Ok(Seal { len, blake3, crcs })
    }
}

/// Puts the seal where it travels in a slot: after the space for the chunk.
pub(crate) fn put_trailer(slot: &mut [u8], seal: &Seal) {
    slot[CHUNK_BYTES..][..SEAL_BYTES].copy_from_slice(&seal.encode());
}

/// The seal in a slot's trailer, if there is one.
pub(crate) fn trailer(slot: &[u8]) -> Option<Seal> {
    Seal::decode(slot.get(CHUNK_BYTES..CHUNK_BYTES + SEAL_BYTES)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    #[test]
    fn a_chunk_of_any_length_is_sealed_and_verified() {
        for len in [
            1,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            CHUNK_BYTES,
        ] {
            let bytes = some_bytes(len);
            let seal = Seal::of(&bytes).expect("1 byte to 4 MiB");
            assert_eq!(seal.verify(&bytes), Ok(()));
            assert_eq!(Seal::decode(&seal.encode()), Ok(seal.clone()));
            assert!(seal.verify(&bytes[..len - 1]).is_err());
        }
        assert_eq!(Seal::of(&[]), None);
        assert_eq!(Seal::of(&vec![0; CHUNK_BYTES + 1]), None);
    }

    #[test]
    fn blocks_are_verified_apart_from_each_other() {
        let mut bytes = some_bytes(2 * BLOCK_BYTES + 10);
        let seal = Seal::of(&bytes).expect("sealed");
        bytes[BLOCK_BYTES + 3] ^= 1;
        assert_eq!(seal.verify_blocks(0, &bytes[..BLOCK_BYTES]), Ok(()));
        assert_eq!(seal.verify_blocks(2, &bytes[2 * BLOCK_BYTES..]), Ok(()));
        let damaged = seal.verify_blocks(1, &bytes[BLOCK_BYTES..2 * BLOCK_BYTES]);
        assert!(matches!(damaged, Err(SealError::Block { block: 1, .. })));
        let partial = seal.verify_blocks(0, &bytes[..BLOCK_BYTES - 1]);
        assert!(
            matches!(partial, Err(SealError::Length { .. })),
            "half a block proves nothing"
        );
        assert!(seal.verify_blocks(usize::MAX, &bytes).is_err());
        assert!(seal.verify_blocks(3, &bytes).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_flipped_bit_is_always_noticed(len in 1..150_000usize, at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = some_bytes(len);
            let seal = Seal::of(&bytes).expect("sealed");
            bytes[at.index(len)] ^= 1_u8 << bit;
            prop_assert!(seal.verify(&bytes).is_err());
        }

        #[test]
        fn a_damaged_seal_is_never_taken_for_one(at in 0..SEAL_BYTES, change in 1..=255u8) {
            let mut encoded = Seal::of(b"some bytes").expect("sealed").encode();
            encoded[at] ^= change;
            prop_assert_eq!(Seal::decode(&encoded), Err(SealError::Damaged));
        }

        #[test]
        fn arbitrary_bytes_are_never_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Seal::decode(&bytes);
            bytes.resize(SEAL_BYTES, 0);
            bytes[..LEN_AT].copy_from_slice(MAGIC);
            let own = crc32c::crc32c(&bytes[..OWN_CRC_AT]);
            bytes[OWN_CRC_AT..].copy_from_slice(&own.to_le_bytes());
            if let Ok(seal) = Seal::decode(&bytes) {
                prop_assert_eq!(&seal.encode()[..], &bytes[..]);
                let _ = seal.verify(&bytes);
            }
        }
    }
}
