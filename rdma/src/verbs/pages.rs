//! Which pages memory is made of and on which NUMA node they lie, and why they could not be had.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::mapping::Mapping;

/// The size of a huge page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePageSize {
    /// 2 MiB.
    TwoMebibytes,
    /// 1 GiB.
    OneGibibyte,
}

impl HugePageSize {
    /// Its bytes.
    pub fn bytes(self) -> usize {
        1 << self.exponent()
    }

    fn exponent(self) -> u32 {
        match self {
            HugePageSize::TwoMebibytes => 21,
            HugePageSize::OneGibibyte => 30,
        }
    }

    /// The bits that say so in the flags of mmap(2) and memfd_create(2).
    pub(super) fn flag(self) -> u32 {
        self.exponent() << libc::MAP_HUGE_SHIFT
    }

    /// The kernel's file for one of this size's counts: of the whole machine, or of a node.
    fn control(self, node: Option<u32>, count: &str) -> PathBuf {
        let base = match node {
            Some(node) => format!("/sys/devices/system/node/node{node}/hugepages"),
            None => "/sys/kernel/mm/hugepages".to_owned(),
        };
        PathBuf::from(format!("{base}/hugepages-{}kB/{count}", self.bytes() >> 10))
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HugePageSize::TwoMebibytes => "2 MiB",
            HugePageSize::OneGibibyte => "1 GiB",
        })
    }
}

/// Memory from the pool of huge pages that the machine's owner reserved: far fewer entries in the
/// adapter's translation table, and none of its pages ever moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePages {
    /// Their size.
    pub size: HugePageSize,
    /// Whether transparent huge pages will do when the pool has too few.
    pub or_transparent: bool,
}

/// Which pages anonymous memory shall be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// What the kernel gives.
    #[default]
    Ordinary,
    /// Ordinary memory for which the kernel is asked for huge pages; it may not have any.
    Transparent,
    /// Reserved huge pages.
    Huge(HugePages),
}

/// Which pages a mapping is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Ordinary pages.
    Ordinary,
    /// Ordinary memory for which the kernel was asked for huge pages.
    Transparent,
    /// Reserved huge pages.
    Huge(HugePageSize),
}

/// How to map anonymous memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MappingOptions {
    /// Its pages.
    pub pages: Pages,
    /// The NUMA node all of them must lie on, as `/sys/devices/system/node` counts; any when `None`.
    pub node: Option<u32>,
}

/// Why memory could not be mapped.
#[derive(Debug, Error)]
pub enum MappingError {
    /// No pieces, or more bytes than an address space has.
    #[error(
        "{pieces} pieces of {piece_bytes} bytes can't be mapped: there must be at least one byte, and \
             all must fit the address space"
    )]
    Size {
        /// Bytes of a piece.
        piece_bytes: usize,
        /// Number of pieces.
        pieces: usize,
    },
    /// A system call failed.
    #[error("{call} of {bytes} bytes: {source}")]
    Call {
        /// The system call.
        call: &'static str,
        /// How much memory it was about.
        bytes: usize,
        /// Its error.
        source: io::Error,
    },
    /// The pool of huge pages is too small.
    #[error(
        "{wanted} huge pages of {size} are not to be had, {free} of {reserved} reserved ones are free: {remedy}"
    )]
    HugePages {
        /// Their size.
        size: HugePageSize,
        /// Pages needed.
        wanted: usize,
        /// Pages in the pool that nobody uses.
        free: u64,
        /// Pages in the pool.
        reserved: u64,
        /// What to write where.
        remedy: String,
    },
    /// The machine has no such node, or its memory may not be used.
    #[error(
        "memory can't be bound to NUMA node {node} (nodes online: {online}): {source}; choose one of \
             these, and note that a container needs cpuset.mems to include it and, under a seccomp \
             profile, leave to call mbind"
    )]
    Node {
        /// The node asked for.
        node: u32,
        /// The kernel's list of nodes.
        online: String,
        /// The error of mbind(2).
        source: io::Error,
    },
    /// A file system whose files the kernel refuses to pin for writing.
    #[error(
        "{directory} is on a file system of type {kind:#x}, whose mapped files the kernel won't pin \
             for an adapter: use one on tmpfs (/dev/shm) or hugetlbfs"
    )]
    FileSystem {
        /// The directory given.
        directory: PathBuf,
        /// Its `f_type`, see statfs(2).
        kind: u64,
    },
    /// The file could not be made.
    #[error("a file of {bytes} bytes in {directory}: {source}")]
    File {
        /// The directory given.
        directory: PathBuf,
        /// Its size.
        bytes: usize,
        /// Why.
        source: io::Error,
    },
}

/// Maps anonymous memory and brings every page of it in, so that want of memory is an error here and
/// not a signal later.
pub(super) fn map(bytes: usize, options: &MappingOptions) -> Result<Mapping, MappingError> {
    let (size, or_transparent) = match options.pages {
        Pages::Ordinary => return anonymous(bytes, false, options.node),
        Pages::Transparent => return anonymous(bytes, true, options.node),
        Pages::Huge(HugePages {
            size,
            or_transparent,
        }) => (size, or_transparent),
    };
    match huge(bytes, size, options.node) {
        Err(MappingError::HugePages { .. }) if or_transparent => {
            anonymous(bytes, true, options.node)
        }
        outcome => outcome,
    }
}

fn anonymous(bytes: usize, transparent: bool, node: Option<u32>) -> Result<Mapping, MappingError> {
    let unit = if transparent {
        HugePageSize::TwoMebibytes.bytes()
    } else {
        PAGE_BYTES
    };
    let rounded = round(bytes, unit)?;
    let mut mapping =
        Mapping::anonymous(rounded, 0, Backing::Ordinary).map_err(|source| MappingError::Call {
            call: "mmap",
            bytes: rounded,
            source,
        })?;
    if transparent && mapping.advise(libc::MADV_HUGEPAGE).is_ok() {
        mapping.set_backing(Backing::Transparent);
    }
    if let Some(node) = node {
        bind(&mapping, node)?;
    }
    mapping.populate().map_err(|source| MappingError::Call {
        call: "madvise(MADV_POPULATE_WRITE)",
        bytes: rounded,
        source,
    })?;
    mapping.shorten(bytes);
    Ok(mapping)
}

fn huge(bytes: usize, size: HugePageSize, node: Option<u32>) -> Result<Mapping, MappingError> {
    let rounded = round(bytes, size.bytes())?;
    let wanted = rounded / size.bytes();
    let flags = libc::MAP_HUGETLB.cast_unsigned() | size.flag();
    let mut mapping = Mapping::anonymous(rounded, flags.cast_signed(), Backing::Huge(size))
        .map_err(|_| too_few(size, wanted, node))?;
    if let Some(node) = node {
        bind(&mapping, node)?;
    }
    // The pool promised pages when it was mapped, but not on this node or in this cgroup.
    mapping
        .populate()
        .map_err(|_| too_few(size, wanted, node))?;
    mapping.shorten(bytes);
    Ok(mapping)
}

/// The least page there is on the machines we know.
const PAGE_BYTES: usize = 4096;

pub(super) fn round(bytes: usize, unit: usize) -> Result<usize, MappingError> {
    bytes
        .checked_next_multiple_of(unit)
        .ok_or(MappingError::Size {
            piece_bytes: bytes,
            pieces: 1,
        })
}

/// The error for a pool that is too small, with what would make it large enough.
pub(super) fn too_few(size: HugePageSize, wanted: usize, node: Option<u32>) -> MappingError {
    let read = |count| -> Option<u64> {
        let text = std::fs::read_to_string(size.control(node, count)).ok()?;
        text.trim().parse().ok()
    };
    let reserved = read("nr_hugepages");
    let free = read("free_hugepages").unwrap_or(0);
    // Pages that are free but promised to another mapping are not to be had either.
    let promised = read("resv_hugepages").unwrap_or(0);
    let control = size.control(node, "nr_hugepages");
    let remedy = match reserved {
        None => format!(
            "this kernel knows no pages of {size}; boot it with hugepagesz={}M hugepages={wanted}",
            size.bytes() >> 20
        ),
        Some(reserved) => {
            let short = (wanted as u64).saturating_sub(free.saturating_sub(promised));
            if short == 0 {
                "a cgroup limit (hugetlb.*.max; in a pod: resources.limits of hugepages-*) keeps them \
                 from this process"
                    .to_owned()
            } else {
                format!(
                    "write {} into {} as root, early after boot while memory is in one piece",
                    reserved.saturating_add(short),
                    control.display()
                )
            }
        }
    };
    MappingError::HugePages {
        size,
        wanted,
        free,
        reserved: reserved.unwrap_or(0),
        remedy,
    }
}

/// Words in the mask handed to mbind(2): 1024 nodes, the most that Linux is built for.
const MASK_WORDS: usize = 16;

/// Lets all pages of a mapping that has none yet come from one node, and from no other.
fn bind(mapping: &Mapping, node: u32) -> Result<(), MappingError> {
    let refused = |source| MappingError::Node {
        node,
        online: std::fs::read_to_string("/sys/devices/system/node/online")
            .map_or_else(|_| "unknown".to_owned(), |list| list.trim().to_owned()),
        source,
    };
    let mut mask = [0u64; MASK_WORDS];
    let word = mask
        .get_mut(node as usize / 64)
        .ok_or_else(|| refused(io::Error::from_raw_os_error(libc::EINVAL)))?;
    *word |= 1 << (node % 64);
    let (start, bytes) = mapping.range();
    // SAFETY: the range is a whole mapping of ours, and the mask has as many bits as we say; the call
    // only sets where pages will come from.
    let code = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            start,
            bytes,
            libc::MPOL_BIND,
            mask.as_ptr(),
            MASK_WORDS * 64 + 1,
            0,
        )
    };
    if code != 0 {
        return Err(refused(io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pages: Pages) -> MappingOptions {
        MappingOptions { pages, node: None }
    }

    fn pool(size: HugePageSize) -> u64 {
        std::fs::read_to_string(size.control(None, "nr_hugepages"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    #[test]
    fn want_of_huge_pages_says_what_to_write_where() {
        let size = HugePageSize::TwoMebibytes;
        // More than any pool of a machine that runs this.
        let wanted = 1 << 20;
        let asked = Pages::Huge(HugePages {
            size,
            or_transparent: false,
        });
        let error = Mapping::split_with(size.bytes(), wanted, &options(asked))
            .expect_err("2 TiB of huge pages");
        let text = error.to_string();
        assert!(text.contains("1048576 huge pages of 2 MiB"), "{text}");
        if size.control(None, "nr_hugepages").exists() {
            assert!(
                text.contains("hugepages-2048kB/nr_hugepages"),
                "{text} (pool of {})",
                pool(size)
            );
        } else {
            assert!(text.contains("hugepagesz=2M"), "{text}");
        }
    }

    #[test]
    fn transparent_huge_pages_do_instead_only_when_the_caller_says_so() {
        // A pool of this size exists on few machines, and none has this many.
        let size = HugePageSize::OneGibibyte;
        let bytes = (pool(size) as usize + 1) << 30;
        if bytes > 1 << 30 {
            return;
        }
        let asked = |or_transparent| {
            options(Pages::Huge(HugePages {
                size,
                or_transparent,
            }))
        };
        let refused = Mapping::split_with(4096, 16, &asked(false));
        assert!(matches!(refused, Err(MappingError::HugePages { .. })));
        let (mapping, mut pieces) =
            Mapping::split_with(4096, 16, &asked(true)).expect("ordinary memory");
        assert_ne!(mapping.backing(), Backing::Huge(size));
        pieces[15][4095] = 7;
        assert_eq!(pieces[15][4095], 7);
    }

    #[test]
    fn memory_lies_on_the_node_it_was_bound_to() {
        let node = MappingOptions {
            node: Some(0),
            ..MappingOptions::default()
        };
        let (_mapping, pieces) = match Mapping::split_with(4096, 4, &node) {
            Ok(mapped) => mapped,
            // A sandbox without mbind, or a machine without node 0: the error says so.
            Err(error) => {
                assert!(error.to_string().contains("NUMA node 0"), "{error}");
                return;
            }
        };
        let mut found: i32 = -1;
        // SAFETY: the address is of a mapped page and the result is ours; flags 3 ask for the node of
        // the page at the address (MPOL_F_NODE | MPOL_F_ADDR).
        let code = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut found,
                std::ptr::null_mut::<u64>(),
                0,
                pieces[3].as_ptr(),
                3,
            )
        };
        assert_eq!((code, found), (0, 0));
    }

    #[test]
    fn a_node_that_is_not_there_is_refused_with_the_nodes_that_are() {
        for node in [1000, 5000] {
            let options = MappingOptions {
                node: Some(node),
                ..MappingOptions::default()
            };
            let error = Mapping::split_with(4096, 1, &options).expect_err("no such node");
            assert!(
                matches!(&error, MappingError::Node { node: named, .. } if *named == node),
                "{error}"
            );
            assert!(error.to_string().contains("nodes online"), "{error}");
        }
    }

    #[test]
    fn sizes_that_overflow_are_an_error() {
        for (piece, pieces) in [(0, 4), (4096, 0), (usize::MAX, 2), (usize::MAX, 1)] {
            let mapped = Mapping::split_with(piece, pieces, &MappingOptions::default());
            assert!(
                matches!(mapped, Err(MappingError::Size { .. })),
                "{piece} x {pieces}"
            );
        }
    }
}
