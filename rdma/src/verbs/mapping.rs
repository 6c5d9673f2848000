//! Plain memory to register, cut into pieces of one owner each.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::memory::{Pinned, Sink, Source};

/// Zeroed, page-aligned memory.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is never accessed through this type; its pieces each have one owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(len: usize) -> io::Result<Arc<Mapping>> {
        // SAFETY: a new private anonymous mapping touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Arc::new(Mapping { start, len }))
    }

    /// Maps `pieces` times `piece_bytes` and hands out each piece to be owned on its own.
    pub fn split(piece_bytes: usize, pieces: usize) -> io::Result<(Arc<Mapping>, Vec<Piece>)> {
        let len = piece_bytes
            .checked_mul(pieces)
            .filter(|len| *len > 0)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mapping = Mapping::new(len)?;
        let parts = (0..pieces)
            .map(|index| Piece {
                // SAFETY: `index * piece_bytes` is less than the mapping's length.
                start: unsafe { mapping.start.add(index * piece_bytes) },
                len: piece_bytes,
                _mapping: Arc::clone(&mapping),
            })
            .collect();
        Ok((mapping, parts))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; pieces and regions held it alive, so none is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

// SAFETY: mapped for life; only pieces, which don't overlap, refer to its bytes. (A `RemoteWindow` has a
// mapping without pieces.)
unsafe impl Pinned for Mapping {
    fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.len
    }
}

/// A part of a [`Mapping`] with one owner.
#[derive(Debug)]
pub struct Piece {
    start: NonNull<u8>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: a piece is the only way to its bytes.
unsafe impl Send for Piece {}
// SAFETY: shared, a piece can only be read.
unsafe impl Sync for Piece {}

impl Deref for Piece {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: inside the mapping, zeroed at first, and nobody else writes it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: the mapping stays where it is while the piece exists; writing takes `&mut` of the piece.
unsafe impl Source for Piece {
    fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.len
    }
}
// SAFETY: pieces don't overlap.
unsafe impl Sink for Piece {}

// SAFETY: as for the piece; shared, nobody can write it.
unsafe impl Source for Arc<Piece> {
    fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.len
    }
}
