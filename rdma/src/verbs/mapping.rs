//! Plain memory to register, cut into pieces of one owner each.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::memory::{Pinned, Sink, Source};
use super::pages::{Backing, MappingError, MappingOptions, map};

/// Zeroed, page-aligned memory.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Whole pages, `len` at least.
    mapped: usize,
    backing: Backing,
}

// SAFETY: the mapping is never accessed through this type; its pieces each have one owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `pieces` times `piece_bytes` of ordinary pages and hands out each piece to be owned on its
    /// own.
    pub fn split(piece_bytes: usize, pieces: usize) -> io::Result<(Arc<Mapping>, Vec<Piece>)> {
        let len = piece_bytes
            .checked_mul(pieces)
            .filter(|len| *len > 0)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mapping = Arc::new(Mapping::anonymous(len, 0, Backing::Ordinary)?);
        let parts = split(
            &(Arc::clone(&mapping) as Arc<dyn Pinned>),
            piece_bytes,
            pieces,
        );
        Ok((mapping, parts))
    }

    /// As [`Mapping::split`], with a say in the pages. All of them are brought in at once.
    pub fn split_with(
        piece_bytes: usize,
        pieces: usize,
        options: &MappingOptions,
    ) -> Result<(Arc<Mapping>, Vec<Piece>), MappingError> {
        let mapping = Arc::new(map(total(piece_bytes, pieces)?, options)?);
        let parts = split(
            &(Arc::clone(&mapping) as Arc<dyn Pinned>),
            piece_bytes,
            pieces,
        );
        Ok((mapping, parts))
    }

    /// Which pages it is made of.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    pub(super) fn anonymous(len: usize, flags: i32, backing: Backing) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        Mapping::map(len, flags, -1, backing)
    }

    /// Maps a file of at least `len` bytes, so that writes reach the file.
    pub(super) fn of_file(
        len: usize,
        file: BorrowedFd<'_>,
        backing: Backing,
    ) -> io::Result<Mapping> {
        Mapping::map(len, libc::MAP_SHARED, file.as_raw_fd(), backing)
    }

    fn map(len: usize, flags: i32, fd: i32, backing: Backing) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces none.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Mapping {
            start,
            len,
            mapped: len,
            backing,
        })
    }

    pub(super) fn set_backing(&mut self, backing: Backing) {
        self.backing = backing;
    }

    /// Leaves what is past `len` bytes, of the last page, to nobody.
    pub(super) fn shorten(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn range(&self) -> (*mut u8, usize) {
        (self.start.as_ptr(), self.mapped)
    }

    /// Advice that discards no contents.
    pub(super) fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: the range is this mapping, and callers give no advice that discards contents.
        match unsafe { libc::madvise(self.start.as_ptr().cast(), self.mapped, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Brings every page in, so that want of memory is an error and not a signal.
    pub(super) fn populate(&self) -> io::Result<()> {
        match self.advise(libc::MADV_POPULATE_WRITE) {
            // Kernels before 5.14 don't know it: pages then come when they are first used.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            outcome => outcome,
        }
    }
}

/// Bytes of all pieces together.
pub(super) fn total(piece_bytes: usize, pieces: usize) -> Result<usize, MappingError> {
    piece_bytes
        .checked_mul(pieces)
        .filter(|bytes| *bytes > 0)
        .ok_or(MappingError::Size {
            piece_bytes,
            pieces,
        })
}

/// Cuts memory that nothing refers to yet. The caller calls it once, with pieces that fit.
pub(super) fn split(memory: &Arc<dyn Pinned>, piece_bytes: usize, pieces: usize) -> Vec<Piece> {
    debug_assert!(piece_bytes * pieces <= memory.len());
    let start = NonNull::new(memory.as_ptr()).expect("a mapping has an address");
    (0..pieces)
        .map(|index| Piece {
            // SAFETY: `index * piece_bytes` is less than the memory's length.
            start: unsafe { start.add(index * piece_bytes) },
            len: piece_bytes,
            _memory: Arc::clone(memory),
        })
        .collect()
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; pieces and regions held it alive, so none is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
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

/// A part of a [`Mapping`] or of a [`super::FileMapping`] with one owner.
pub struct Piece {
    start: NonNull<u8>,
    len: usize,
    _memory: Arc<dyn Pinned>,
}

// SAFETY: a piece is the only way to its bytes.
unsafe impl Send for Piece {}
// SAFETY: shared, a piece can only be read.
unsafe impl Sync for Piece {}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece")
            .field("start", &self.start)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

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
