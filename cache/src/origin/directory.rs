//! A directory as an origin: local, or on a mounted file system such as NFS.
//!
//! Every path is resolved by the kernel below the root's descriptor, with symbolic links refused
//! (`openat2`, `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`): whatever is renamed or linked meanwhile,
//! nothing outside the root is listed or read. A file is told from a later one by size and
//! modification time, compared before and after each read; what is written while being read is
//! found by the change time too, as finely as the file system keeps it.

mod listing;
mod reading;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::FileStat;

use super::{ListProgress, Listing, ObjectRef, Origin, OriginError, OriginUrl, Timestamp};
use reading::Readers;

const READABLE: &str =
    "make it readable for the user the agent runs as (uid, gid and, on NFS, root_squash count)";
const NO_OPENAT2: &str =
    "use Linux 5.6 or later, and allow openat2 in the container's seccomp profile";

/// A directory on this node. Its threads start at the first use and end when it is dropped.
pub struct DirectoryOrigin {
    root: Arc<Root>,
    readers: Readers,
}

impl DirectoryOrigin {
    /// Opens the directory; `path` itself may lead through symbolic links. Blocks on the file
    /// system.
    pub fn open(path: &Path) -> Result<DirectoryOrigin, OriginError> {
        let root = Arc::new(Root::open(path)?);
        Ok(DirectoryOrigin {
            readers: Readers::new(root.clone()),
            root,
        })
    }
}

impl Origin for DirectoryOrigin {
    fn list<'a>(
        &'a self,
        progress: &'a ListProgress,
    ) -> BoxFuture<'a, Result<Listing, OriginError>> {
        Box::pin(listing::list(self.root.clone(), progress))
    }

    fn read<'a>(
        &'a self,
        object: ObjectRef<'a>,
        offset: u64,
        into: &'a mut [u8],
    ) -> BoxFuture<'a, Result<(), OriginError>> {
        Box::pin(self.readers.read(object, offset, into))
    }
}

/// The descriptor that everything is resolved below, and the URL that errors name.
struct Root {
    directory: OwnedFd,
    url: String,
}

impl Root {
    fn open(path: &Path) -> Result<Root, OriginError> {
        let url = OriginUrl::Directory(PathBuf::from(path)).to_string();
        match File::open(path).and_then(|file| Ok((file.metadata()?.is_dir(), file))) {
            Ok((true, file)) => Ok(Root {
                directory: file.into(),
                url,
            }),
            Ok((false, _)) => Err(OriginError::Unavailable {
                origin: url,
                why: "it is not a directory".into(),
                remedy: "name the directory that holds the dataset",
                transient: false,
            }),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(OriginError::Denied {
                origin: url,
                object: "/".into(),
                why: e.to_string(),
                remedy: READABLE,
            }),
            Err(e) => Err(OriginError::Unavailable {
                origin: url,
                transient: is_transient(&e),
                why: e.to_string(),
                remedy: "check that the directory exists on this node and that its file system is mounted",
            }),
        }
    }

    /// Opens what `path` (below the root; empty for the root itself) names, through no symbolic
    /// link.
    fn open_below(&self, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        loop {
            match openat2(&self.directory, path, how) {
                // EAGAIN: a rename elsewhere raced with the resolution; the kernel asks to retry.
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                result => return result,
            }
        }
    }
}

/// When the file was last modified.
fn modified(stat: &FileStat) -> Timestamp {
    Timestamp {
        seconds: stat.st_mtime,
        // The kernel keeps it within a second; a file system that does not has lost the right to
        // be told apart by it.
        nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

/// A path as people read it, control characters and bytes that are no UTF-8 made visible.
fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        return "/".into();
    }
    String::from_utf8_lossy(path).escape_debug().to_string()
}

/// Whether the same system call may succeed when made again soon.
fn is_transient(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw).is_some_and(|e| {
        matches!(
            e,
            Errno::ESTALE
                | Errno::ETIMEDOUT
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOMEM
        )
    })
}
