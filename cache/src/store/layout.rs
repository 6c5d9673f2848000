//! Where things lie in the cache directory, and how files in it are opened.
//!
//! ```text
//! lock                     held by the one agent that uses the directory
//! versions/<digest>/manifest, origin, seals, presence.a, presence.b, small.pack, tree/<path>
//!                   verified       which chunks were verified since the machine started
//!                   tree.whole     there once tree/ holds every file, small ones too
//!                   image.erofs    the version as an EROFS image, instead of small files in tree/
//!                   image.whole    there once that holds every file
//!                   pinned         there if the version is never evicted
//!                   used           its time says when the version was last used
//! versions/<digest>.new, <digest>.evicted    being made or removed; swept at the next start
//! ```
//! Without `tree.whole`, `tree/` holds the larger files alone, sparse, as far as their chunks are
//! marked. With it, `tree/` is the whole version as pods may see it: files of `small.pack` are
//! there a second time, and what is found damaged is mended in place. Another process may read all
//! of this; only the agent that holds `lock` writes.
//!
//! Names below `tree` come from an origin. They are opened relative to that directory, and the
//! kernel is told to follow no symlink and to leave it by no name (openat2, Linux 5.6).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use super::evict::{PINNED, SET_ASIDE, USED};
use super::room::Holding;
use super::{StoreError, image, presence, tree};
use crate::digest::Digest;
use crate::manifest::MAX_ENCODED_BYTES;

const CHECK_DISK: &str = "check the disk and the agent's permissions on the cache directory";

/// The cache directory, locked by this process.
#[derive(Clone)]
pub(crate) struct Layout {
    root: PathBuf,
    versions: PathBuf,
    _lock: Arc<Flock<File>>,
}

/// Turns an I/O error into one that says what was attempted on what.
pub(crate) fn failed(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.into();
    move |source| StoreError::Io {
        action,
        path,
        source,
        remedy: CHECK_DISK,
    }
}

impl Layout {
    /// Opens the directory, made if it is not there, and locks it for this process. Blocks.
    pub(crate) fn open(root: PathBuf) -> Result<Layout, StoreError> {
        let versions = root.join("versions");
        make_private(&versions)
            .and_then(|()| sync_directory(&root))
            .map_err(failed("making", &versions))?;
        let lock = root.join("lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock)
            .map_err(failed("opening", &lock))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Arc::new(lock),
            Err((_, Errno::EWOULDBLOCK)) => return Err(StoreError::InUse { path: root }),
            Err((_, errno)) => return Err(failed("locking", lock)(errno.into())),
        };
        let layout = Layout {
            root,
            versions,
            _lock: lock,
        };
        layout.sweep()?;
        Ok(layout)
    }

    /// The directory that has one for each version.
    pub(super) fn versions(&self) -> &Path {
        &self.versions
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Removes what was left by a crash in the middle of making or evicting a version.
    fn sweep(&self) -> Result<(), StoreError> {
        for name in self.version_names()? {
            let (path, unfinished) = (self.versions().join(&name), Path::new(&name).extension());
            if unfinished.is_some_and(|why| why == "new") {
                fs::remove_dir_all(&path).map_err(failed("removing", path))?;
            } else if unfinished.is_some_and(|why| why == SET_ASIDE) {
                self.finish_evicting(&path)?;
            }
        }
        Ok(())
    }

    fn version_names(&self) -> Result<Vec<std::ffi::OsString>, StoreError> {
        let versions = self.versions();
        let entries = fs::read_dir(versions).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(failed("listing", versions))?;
        Ok(entries.into_iter().map(|entry| entry.file_name()).collect())
    }

    /// What each version takes, from small files alone.
    pub(super) fn held(&self) -> Result<Vec<(Digest, Holding)>, StoreError> {
        let names = self.version_names()?;
        let digests = names
            .iter()
            .filter_map(|name| name.to_str()?.parse::<Digest>().ok());
        Ok(digests
            .map(|digest| (digest, self.holding(&digest)))
            .collect())
    }

    /// What a version on the disk takes.
    pub(super) fn holding(&self, digest: &Digest) -> Holding {
        let version = self.version_path(digest);
        let bytes = presence::held_bytes(&version)
            .saturating_add(tree::copied_bytes(&version))
            .saturating_add(image::bytes(&version));
        // What no disk holds is a damaged file's word, and is not to overflow the sum of all.
        let bytes = bytes.min(1 << 56);
        let time = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
        let used = time(&version.join(USED)).or_else(|_| time(&version));
        let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
        Holding::new(bytes, used, version.join(PINNED).exists())
    }

    pub(super) fn version_path(&self, digest: &Digest) -> PathBuf {
        self.versions.join(digest.to_string())
    }

    /// Makes a version's directory with nothing held; nothing happens if it is there already.
    pub(super) fn create_version(
        &self,
        digest: &Digest,
        manifest: &[u8],
        origin: &str,
        chunks: u32,
    ) -> Result<(), StoreError> {
        let place = self.version_path(digest);
        if place.exists() {
            return Ok(());
        }
        let new = place.with_extension("new");
        let make = || -> io::Result<()> {
            if new.exists() {
                fs::remove_dir_all(&new)?;
            }
            write_nothing_held(&new, digest, chunks)?;
            write_new(&new.join("manifest"), manifest)?;
            write_new(&new.join("origin"), origin.as_bytes())?;
            sync_directory(&new)?;
            fs::rename(&new, &place)?;
            sync_directory(self.versions())
        };
        make().map_err(failed("making a version in", place))
    }

    /// The encoded manifest, if the version is on this disk.
    pub(super) fn read_manifest(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        read_manifest_in(&self.version_path(digest))
    }
}

/// The encoded manifest of the version in `directory`, if there is one.
pub(crate) fn read_manifest_in(directory: &Path) -> Result<Option<Bytes>, StoreError> {
    let path = directory.join("manifest");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("opening", path)(error)),
    };
    let mut bytes = Vec::new();
    let read = (&mut file)
        .take(MAX_ENCODED_BYTES as u64 + 1)
        .read_to_end(&mut bytes);
    read.map_err(failed("reading", path))?;
    Ok(Some(bytes.into()))
}

/// Makes a directory for the agent alone, and those above it, if it is not there.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)
}

/// Makes what was made or removed in a directory survive a crash.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the directory of a version of which nothing is held, but for what says which one it is.
pub(super) fn write_nothing_held(path: &Path, digest: &Digest, chunks: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path.join("tree"))?;
    write_new(&path.join("seals"), &[])?;
    write_new(&path.join("small.pack"), &[])?;
    let nothing = presence::empty(digest, chunks);
    presence::FILE_NAMES
        .iter()
        .try_for_each(|name| write_new(&path.join(name), &nothing))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens a file of a version for reading and writing.
pub(super) fn open_plain(path: &Path) -> Result<File, StoreError> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed("opening", path))
}

/// Opens a directory as a place to open files from.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, StoreError> {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
        .map(OwnedFd::from)
        .map_err(failed("opening", path))
}

/// Opens what is at `path` below `directory`, through no symlink and not leaving it.
pub(super) fn beneath(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlag,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let mode = if flags.contains(OFlag::O_CREAT) {
        Mode::from_bits_truncate(0o600)
    } else {
        Mode::empty()
    };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .mode(mode)
        .resolve(resolve);
    loop {
        match openat2(directory, OsStr::from_bytes(path), how) {
            // The kernel says so when a rename elsewhere raced with the walk.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// To read it. A program that pods run must not be open for writing.
    Reading,
    /// To write it too.
    Writing,
    /// To write it; it and the directories above it are made if they are not there.
    Making,
}

/// Opens the file at `path` below `directory`.
pub(super) fn open_beneath(
    directory: BorrowedFd<'_>,
    path: &[u8],
    wanted: For,
    direct: bool,
) -> io::Result<File> {
    let mut flags = match wanted {
        For::Reading => OFlag::O_RDONLY,
        For::Writing | For::Making => OFlag::O_RDWR,
    };
    flags.set(OFlag::O_CREAT, wanted == For::Making);
    flags.set(OFlag::O_DIRECT, direct);
    match beneath(directory, path, flags) {
        Err(Errno::ENOENT) if wanted == For::Making => {
            make_parents(directory, path)?;
            Ok(beneath(directory, path, flags)?.into())
        }
        other => Ok(other?.into()),
    }
}

/// Opens the file at `path` below `directory` for reading, if it is there.
pub(crate) fn read_beneath(
    directory: BorrowedFd<'_>,
    path: &[u8],
    direct: bool,
) -> io::Result<File> {
    let mut flags = OFlag::O_RDONLY;
    flags.set(OFlag::O_DIRECT, direct);
    Ok(beneath(directory, path, flags)?.into())
}

fn make_parents(directory: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
    let mut at: Option<OwnedFd> = None;
    let mut names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    names.pop();
    for name in names {
        let here = at.as_ref().map_or(directory, |fd| fd.as_fd());
        match mkdirat(
            here,
            OsStr::from_bytes(name),
            Mode::from_bits_truncate(0o700),
        ) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        at = Some(beneath(here, name, OFlag::O_DIRECTORY | OFlag::O_RDONLY)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_on_the_same_directory_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Layout::open(directory.path().into()).expect("free");
        let error = Layout::open(directory.path().into())
            .err()
            .expect("locked")
            .to_string();
        assert!(
            error.contains("another agent") && error.contains("of its own"),
            "{error}"
        );
        drop(first);
        Layout::open(directory.path().into()).expect("free again");
    }

    #[test]
    fn no_symlink_planted_in_the_cache_leads_out_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (tree, outside) = (
            directory.path().join("tree"),
            directory.path().join("outside"),
        );
        fs::create_dir(&tree).expect("made");
        fs::create_dir(&outside).expect("made");
        std::os::unix::fs::symlink(&outside, tree.join("link")).expect("made");
        std::os::unix::fs::symlink("/etc/hostname", tree.join("file")).expect("made");
        let fd = open_directory(&tree).expect("opened");
        for path in [&b"link/x"[..], b"file", b"../outside/x", b"/etc/hostname"] {
            let opened = open_beneath(fd.as_fd(), path, For::Making, false);
            assert!(opened.is_err(), "{}", String::from_utf8_lossy(path));
        }
        assert_eq!(fs::read_dir(&outside).expect("listed").count(), 0);
        open_beneath(fd.as_fd(), b"a/b/c", For::Making, false).expect("a plain path is made");
    }
}
