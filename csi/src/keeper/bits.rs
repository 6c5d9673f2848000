//! A bit for each chunk, read and written by many threads.

use std::sync::atomic::{AtomicU64, Ordering};

pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    /// No bit set.
    pub(super) fn new(chunks: u32) -> Bits {
        let words = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0));
        Bits(words.collect())
    }

    pub(super) fn has(&self, chunk: u32) -> bool {
        let word = self.0.get(chunk as usize / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (chunk % 64) & 1 == 1)
    }

    pub(super) fn set(&self, chunk: u32) {
        if let Some(word) = self.0.get(chunk as usize / 64) {
            word.fetch_or(1 << (chunk % 64), Ordering::AcqRel);
        }
    }

    pub(super) fn clear(&self, chunk: u32) {
        if let Some(word) = self.0.get(chunk as usize / 64) {
            word.fetch_and(!(1 << (chunk % 64)), Ordering::AcqRel);
        }
    }

    /// Sets the bits to those encoded; calls `gone` for each that was set and is not any more.
    pub(super) fn replace(&self, encoded: &[u8], mut gone: impl FnMut(u32)) {
        let mut words = encoded.chunks(8);
        for (index, word) in self.0.iter().enumerate() {
            let mut bytes = [0; 8];
            if let Some(given) = words.next() {
                bytes[..given.len()].copy_from_slice(given);
            }
            let new = u64::from_le_bytes(bytes);
            let mut lost = word.swap(new, Ordering::AcqRel) & !new;
            while lost != 0 {
                gone(index as u32 * 64 + lost.trailing_zeros());
                lost &= lost - 1;
            }
        }
    }
}

/// Words of bits as [`Bits::replace`] takes them.
pub(super) fn encode(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_go_are_told_and_what_is_encoded_may_be_of_any_length() {
        let bits = Bits::new(130);
        bits.set(3);
        bits.set(129);
        bits.set(4000);
        assert!(bits.has(3) && bits.has(129) && !bits.has(4) && !bits.has(4000));
        let mut gone = Vec::new();
        bits.replace(&encode(&[1 << 4, 0]), |chunk| gone.push(chunk));
        assert_eq!(gone, [3, 129]);
        assert!(bits.has(4));
        bits.replace(&[0xff; 100], |chunk| panic!("{chunk} is still there"));
        assert!(bits.has(64));
        bits.clear(64);
        assert!(!bits.has(64));
        bits.replace(&[1], |_| {});
        assert!(bits.has(0) && !bits.has(1) && !bits.has(100));
    }
}
