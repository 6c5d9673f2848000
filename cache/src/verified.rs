//! Bytes that were checked against their seal on the way to the reader.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// Bytes of a dataset whose checksums were right when they were read. Only the checking code can
/// make one. Holds a slot of the pinned slab for as long as it lives: copy out and drop.
#[derive(Clone)]
pub struct VerifiedBytes(Bytes);

impl VerifiedBytes {
    /// No bytes: what reading at or beyond the end of a file gives.
    pub const EMPTY: VerifiedBytes = VerifiedBytes(Bytes::new());

    /// To be called where the checksums have just been compared.
    pub(crate) fn checked(bytes: Bytes) -> VerifiedBytes {
        VerifiedBytes(bytes)
    }
}

impl Deref for VerifiedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for VerifiedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for VerifiedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedBytes({} bytes)", self.0.len())
    }
}
