//! One anonymous mapping, from the largest pages that can be had.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a huge page on the architectures RDMA machines have, at their default granule.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Which pages back a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// 2 MiB pages reserved in the system's pool (`vm.nr_hugepages`).
    Huge,
    /// Ordinary memory for which transparent huge pages were asked.
    Transparent,
    /// 4 KiB pages.
    Small,
}

/// The mapping; unmapped on drop.
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    kind: PageKind,
}

// SAFETY: the mapping is plain memory that belongs to no thread; access to its bytes is governed
// by leases, each of which owns its slot alone.
unsafe impl Send for Mapping {}
// SAFETY: as above; through a shared reference only the address and the size can be read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps and populates at least `bytes` bytes, which are whole pages.
    pub(super) fn anonymous(bytes: usize) -> io::Result<Mapping> {
        let mapping = if bytes < HUGE_PAGE_BYTES {
            Self::small(bytes)?
        } else {
            Self::large(bytes)?
        };
        // A child between fork and exec has no use for it, and sharing pinned pages copy-on-write
        // would make fork copy them. A core dump has no use for cached data. Both are refinements:
        // a kernel that knows neither is fine.
        let _ = mapping.advise(MmapAdvise::MADV_DONTFORK);
        let _ = mapping.advise(MmapAdvise::MADV_DONTDUMP);
        Ok(mapping)
    }

    fn small(bytes: usize) -> io::Result<Mapping> {
        let start = Self::map(bytes, MapFlags::empty())?;
        let mapping = Mapping {
            start,
            bytes,
            kind: PageKind::Small,
        };
        mapping.populate()?;
        Ok(mapping)
    }

    fn large(bytes: usize) -> io::Result<Mapping> {
        let rounded = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        // Populating at the mmap is what makes a pool that is too small fail here: a reservation
        // alone can still end in SIGBUS inside a container with a hugetlb limit.
        let huge = MapFlags::MAP_HUGETLB | MapFlags::MAP_POPULATE;
        if let Ok(start) = Self::map(rounded, huge) {
            return Ok(Mapping {
                start,
                bytes: rounded,
                kind: PageKind::Huge,
            });
        }
        let mut mapping = Mapping {
            start: Self::map(rounded, MapFlags::empty())?,
            bytes: rounded,
            kind: PageKind::Small,
        };
        if mapping.advise(MmapAdvise::MADV_HUGEPAGE).is_ok() {
            mapping.kind = PageKind::Transparent;
        }
        mapping.populate()?;
        Ok(mapping)
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(super) fn kind(&self) -> PageKind {
        self.kind
    }

    fn map(bytes: usize, extra: MapFlags) -> io::Result<NonNull<u8>> {
        let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | extra;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                flags,
            )
        }?;
        Ok(start.cast())
    }

    fn advise(&self, advice: MmapAdvise) -> io::Result<()> {
        // SAFETY: the range is this mapping, and none of the advice used here discards contents.
        unsafe { madvise(self.start.cast(), self.bytes, advice) }?;
        Ok(())
    }

    /// Faults every page in, so that want of memory is an error and not a signal.
    fn populate(&self) -> io::Result<()> {
        match self.advise(MmapAdvise::MADV_POPULATE_WRITE) {
            // Kernels before 5.14 don't know it: pages then come when they are first used.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, made by `map`; no slice into it outlives the slab.
        let unmapped = unsafe { munmap(self.start.cast(), self.bytes) };
        if let Err(error) = unmapped {
            tracing::error!(bytes = self.bytes, %error, "unmapping a slab failed");
        }
    }
}
