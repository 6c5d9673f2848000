//! Memory that is also a file, for an adapter: to be shared with other processes, or taken from a
//! mounted file system with a quota of its own.
//!
//! A mapped file that someone truncates turns each access to the lost pages into SIGBUS, which safe code
//! can't handle; and one that someone else writes changes under a `&[u8]`. So there are only files here
//! that this type makes itself: in memory, sealed against both by the kernel, or without a name and
//! without a descriptor, so that nobody can open them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::mapping::{self, Mapping, Piece};
use super::memory::Pinned;
use super::pages::{Backing, HugePageSize, MappingError, round, too_few};

/// A mapped file that can neither shrink nor be written by others while it is mapped.
///
/// Regions of a file on a disk's file system don't exist: the kernel won't pin such pages for writing
/// (since 6.5; before, the file system could write them back while the adapter changed them), and the
/// file could be truncated.
#[derive(Debug)]
pub struct FileMapping {
    mapping: Mapping,
    file: Option<OwnedFd>,
}

impl FileMapping {
    /// Makes a file in memory (memfd_create(2)) that only this process writes. Its descriptor, from
    /// [`FileMapping::file`], can be passed to others, who may map it to read.
    ///
    /// `name` shows in `/proc/PID/maps`; `huge` takes reserved huge pages.
    pub fn in_memory(
        name: &str,
        piece_bytes: usize,
        pieces: usize,
        huge: Option<HugePageSize>,
    ) -> Result<(Arc<FileMapping>, Vec<Piece>), MappingError> {
        let unit = huge.map_or(ORDINARY_PAGE, HugePageSize::bytes);
        let bytes = round(mapping::total(piece_bytes, pieces)?, unit)?;
        let failed = |call, source| match huge {
            Some(size) => too_few(size, bytes / size.bytes(), None),
            None => MappingError::Call {
                call,
                bytes,
                source,
            },
        };
        let flags = huge.map_or(0, |size| libc::MFD_HUGETLB | size.flag());
        let file = memory_file(name, flags).map_err(|error| failed("memfd_create", error))?;
        resize(&file, bytes).map_err(|error| failed("ftruncate", error))?;
        let backing = huge.map_or(Backing::Ordinary, Backing::Huge);
        let mapping = Mapping::of_file(bytes, file.as_fd(), backing)
            .map_err(|error| failed("mmap", error))?;
        mapping
            .populate()
            .map_err(|error| failed("madvise(MADV_POPULATE_WRITE)", error))?;
        // After our own mapping was made: nobody makes another one to write through.
        seal(&file).map_err(|source| MappingError::Call {
            call: "fcntl(F_ADD_SEALS)",
            bytes,
            source,
        })?;
        Ok(FileMapping::cut(mapping, Some(file), piece_bytes, pieces))
    }

    /// Makes a file without a name in a directory on tmpfs or hugetlbfs, within that mount's limits.
    /// It is gone with this value.
    pub fn unlinked_in(
        directory: &Path,
        piece_bytes: usize,
        pieces: usize,
    ) -> Result<(Arc<FileMapping>, Vec<Piece>), MappingError> {
        let wanted = mapping::total(piece_bytes, pieces)?;
        let failed = |source| MappingError::File {
            directory: directory.to_owned(),
            bytes: wanted,
            source,
        };
        let (kind, block) = file_system(directory).map_err(failed)?;
        let backing = match kind {
            TMPFS => Backing::Ordinary,
            HUGETLBFS => match block {
                TWO_MEBIBYTES => Backing::Huge(HugePageSize::TwoMebibytes),
                _ => Backing::Huge(HugePageSize::OneGibibyte),
            },
            kind => {
                return Err(MappingError::FileSystem {
                    directory: directory.to_owned(),
                    kind,
                });
            }
        };
        let unit = usize::try_from(block).unwrap_or(0).max(ORDINARY_PAGE);
        let bytes = round(wanted, unit)?;
        let file = unnamed(directory).map_err(failed)?;
        resize(&file, bytes).map_err(failed)?;
        // What the mount has no room for is refused here, and not by a signal later.
        reserve(&file, bytes).map_err(failed)?;
        let mapping = Mapping::of_file(bytes, file.as_fd(), backing).map_err(failed)?;
        mapping.populate().map_err(failed)?;
        // With its only descriptor closed nobody can reach the file to truncate or write it.
        drop(file);
        Ok(FileMapping::cut(mapping, None, piece_bytes, pieces))
    }

    fn cut(
        mut mapping: Mapping,
        file: Option<OwnedFd>,
        piece_bytes: usize,
        pieces: usize,
    ) -> (Arc<FileMapping>, Vec<Piece>) {
        mapping.shorten(piece_bytes * pieces);
        let memory = Arc::new(FileMapping { mapping, file });
        let shared: Arc<dyn Pinned> = Arc::clone(&memory) as Arc<dyn Pinned>;
        let parts = mapping::split(&shared, piece_bytes, pieces);
        (memory, parts)
    }

    /// The file in memory, which others may map to read but not to write; `None` for one without a name.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Which pages it is made of.
    pub fn backing(&self) -> Backing {
        self.mapping.backing()
    }
}

// SAFETY: mapped for life, and the file behind it can't shrink or be written by others (see the
// constructors); only the pieces made with it, which don't overlap, refer to its bytes.
unsafe impl Pinned for FileMapping {
    fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }
    fn len(&self) -> usize {
        self.mapping.len()
    }
}

const ORDINARY_PAGE: usize = 4096;
const TWO_MEBIBYTES: u64 = 2 << 20;
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

fn memory_file(name: &str, flags: u32) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags;
    // SAFETY: the name ends with a zero.
    owned(unsafe { libc::memfd_create(name.as_ptr(), flags) })
}

fn unnamed(directory: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // O_EXCL: it can't be given a name later either.
    let flags = libc::O_TMPFILE | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero.
    owned(unsafe { libc::open(path.as_ptr(), flags, 0o600) })
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn offset(bytes: usize) -> io::Result<libc::off_t> {
    libc::off_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn resize(file: &OwnedFd, bytes: usize) -> io::Result<()> {
    // SAFETY: a plain system call on a descriptor of ours.
    match unsafe { libc::ftruncate(file.as_raw_fd(), offset(bytes)?) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn reserve(file: &OwnedFd, bytes: usize) -> io::Result<()> {
    // SAFETY: a plain system call on a descriptor of ours.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, offset(bytes)?) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn seal(file: &OwnedFd) -> io::Result<()> {
    let seals =
        libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: a plain system call on a descriptor of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file system's type and block size.
fn file_system(directory: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: a statfs of zeroes is valid.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero and the result is ours.
    if unsafe { libc::statfs(path.as_ptr(), &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The fields' types differ from one architecture to the next.
    #[allow(clippy::unnecessary_cast)]
    Ok((found.f_type as u64 & 0xffff_ffff, found.f_bsize as u64))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use super::*;

    fn file_of(memory: &FileMapping) -> File {
        let file = memory.file().expect("a file in memory");
        File::from(file.try_clone_to_owned().expect("a second descriptor"))
    }

    #[test]
    fn what_a_piece_holds_is_in_the_file() {
        let (memory, mut pieces) =
            FileMapping::in_memory("trackbed-test", 4096, 2, None).expect("a file in memory");
        pieces[1].fill(7);
        let mut file = file_of(&memory);
        let mut bytes = Vec::new();
        file.rewind().expect("at its start");
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!((bytes.len(), bytes[4095], bytes[4096]), (8192, 0, 7));
    }

    #[test]
    fn nobody_can_truncate_or_write_the_file_under_its_mapping() {
        let (memory, pieces) =
            FileMapping::in_memory("trackbed-test", 4096, 1, None).expect("a file in memory");
        let file = file_of(&memory);
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(1 << 20).is_err());
        assert!(std::os::unix::fs::FileExt::write_at(&file, b"x", 0).is_err());
        // A hole would turn bytes into zeroes, which is writing too.
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a plain system call.
        let punched = unsafe { libc::fallocate(file.as_raw_fd(), punch, 0, 4096) };
        assert_eq!(punched, -1);
        let second = Mapping::of_file(4096, file.as_fd(), Backing::Ordinary);
        assert!(second.is_err(), "another writable mapping");
        assert_eq!(pieces[0][0], 0);
    }

    #[test]
    fn a_file_without_a_name_serves_where_the_kernel_pins_it_and_is_refused_elsewhere() {
        let shared = Path::new("/dev/shm");
        if file_system(shared).is_ok_and(|(kind, _)| kind == TMPFS) {
            let (memory, mut pieces) =
                FileMapping::unlinked_in(shared, 4096, 3).expect("a file on tmpfs");
            assert!(memory.file().is_none());
            pieces[2].fill(1);
            assert_eq!(pieces[2][4095], 1);
            let error = FileMapping::unlinked_in(shared, 1 << 20, 1 << 30).expect_err("1 PiB");
            assert!(matches!(error, MappingError::File { .. }), "{error}");
        }
        let error = FileMapping::unlinked_in(Path::new("/proc"), 4096, 1).expect_err("procfs");
        let text = error.to_string();
        assert!(
            matches!(error, MappingError::FileSystem { .. }) && text.contains("/dev/shm"),
            "{text}"
        );
        let error = FileMapping::unlinked_in(Path::new("/nowhere"), 4096, 1).expect_err("nowhere");
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }
}
