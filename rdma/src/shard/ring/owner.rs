//! Whose a completion is, by the user data of its entry.

use crate::shard::table::Key;

/// An operation or a stream.
pub(super) enum Owner {
    Operation(Key),
    /// A read of a stream; the lowest 16 bits are its place.
    Stream(Key),
}

impl Owner {
    /// Marks the reads of streams; the keys of operations stay below.
    const STREAM: u64 = 1 << 63;

    /// The user data of a stream's first place. From the highest bit: the mark, 31 bits of the
    /// generation, 16 each of the stream's index and the place.
    pub(super) fn stream_bits(stream: Key) -> u64 {
        let bits = stream.to_bits();
        let (generation, index) = (bits >> 32, bits & 0xffff);
        Self::STREAM | generation << 32 | index << 16
    }

    #[inline]
    pub(super) fn from_bits(bits: u64) -> Owner {
        if bits & Self::STREAM == 0 {
            return Owner::Operation(Key::from_bits(bits));
        }
        let (generation, index) = (bits >> 32 & (u64::MAX >> 33), bits >> 16 & 0xffff);
        Owner::Stream(Key::from_bits(generation << 32 | index))
    }
}
