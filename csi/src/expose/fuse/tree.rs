//! The file view: what the kernel asks about a version, and what the manifest answers.
//!
//! An inode's number is its entry's index plus one, so nothing has to be remembered for the kernel
//! and nothing forgotten.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use parking_lot::Mutex;
use trackbed_cache::manifest::{Entry, EntryIndex, EntryKind};

use super::fill::fill;
use super::killed::unless_killed;
use super::opens::{Opens, Passthrough};
use crate::expose::{Failure, VersionView};
use crate::readers::Readers;

/// How long the kernel may keep an answer: a version never changes, so for longer than any mount.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The unit of `statfs` and of preferred reads, in bytes. Larger ones make programs allocate
/// buffers of that size for each file they open.
const BLOCK_SIZE: u32 = 4096;

/// The largest read the kernel may send, in bytes. fuser has one limit for both directions.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// Reads ahead that may be under way at a time.
const MAX_BACKGROUND: u16 = 64;

/// Directory offsets: what to list next after `.`, after `..`, and after the first child.
const AFTER_DOT: u64 = 1;
const AFTER_DOT_DOT: u64 = 2;

/// What helps an immutable file system, each taken if this kernel has it: look-ups and listings
/// side by side; listings that bring attributes; links, and pages, kept; direct reads in
/// parallel; mounts with mapped ids (pods with user namespaces).
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// A version as fuser serves it.
pub(super) struct VersionTree {
    view: Arc<dyn VersionView>,
    dataset: Arc<str>,
    readers: Readers,
    last_failure: Arc<Mutex<Option<Failure>>>,
    passthrough: Arc<Passthrough>,
    opens: Opens,
    /// The kernel needs not ask to open a file once it was told so.
    opens_unasked: bool,
    /// The same for directories.
    opens_directories_unasked: bool,
}

impl VersionTree {
    pub(super) fn new(
        view: Arc<dyn VersionView>,
        dataset: &str,
        readers: Readers,
        passthrough: Arc<Passthrough>,
    ) -> VersionTree {
        VersionTree {
            view,
            dataset: dataset.into(),
            readers,
            last_failure: Arc::default(),
            passthrough,
            opens: Opens::default(),
            opens_unasked: false,
            opens_directories_unasked: false,
        }
    }

    /// Where the last failed read is noted.
    pub(super) fn last_failure(&self) -> Arc<Mutex<Option<Failure>>> {
        self.last_failure.clone()
    }

    fn entry(&self, inode: INodeNo) -> Result<Entry<'_>, Errno> {
        let index = inode
            .0
            .checked_sub(1)
            .and_then(|index| u32::try_from(index).ok())
            .ok_or(Errno::ENOENT)?;
        self.view
            .manifest()
            .entry(EntryIndex(index))
            .ok_or(Errno::ENOENT)
    }

    /// What follows `offset` in a listing: each item with the offset behind it, until `take` is
    /// full. `.` and `..` are given without a name of the manifest's.
    fn list<'a>(
        &'a self,
        inode: INodeNo,
        offset: u64,
        mut take: impl FnMut(u64, &OsStr, Entry<'a>) -> bool,
    ) -> Result<(), Errno> {
        let directory = self.entry(inode)?;
        if directory.kind != EntryKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let manifest = self.view.manifest();
        if offset < AFTER_DOT && take(AFTER_DOT, OsStr::new("."), directory) {
            return Ok(());
        }
        if offset < AFTER_DOT_DOT {
            let parent = manifest.entry(directory.parent).ok_or(Errno::EIO)?;
            if take(AFTER_DOT_DOT, OsStr::new(".."), parent) {
                return Ok(());
            }
        }
        let skipped = offset.saturating_sub(AFTER_DOT_DOT);
        let children = manifest.children(directory.index);
        let from = usize::try_from(skipped).map_or(children.len(), |at| at.min(children.len()));
        let behind = offset.max(AFTER_DOT_DOT) + 1..;
        for (&child, next) in children[from..].iter().zip(behind) {
            let entry = manifest.entry(child).ok_or(Errno::EIO)?;
            if take(next, OsStr::from_bytes(entry.name), entry) {
                break;
            }
        }
        Ok(())
    }
}

fn inode(index: EntryIndex) -> INodeNo {
    INodeNo(u64::from(index.0) + 1)
}

fn file_type(kind: EntryKind<'_>) -> FileType {
    match kind {
        EntryKind::Directory => FileType::Directory,
        EntryKind::File { .. } => FileType::RegularFile,
        EntryKind::Symlink { .. } => FileType::Symlink,
    }
}

fn attributes(entry: &Entry<'_>) -> FileAttr {
    let size = match entry.kind {
        EntryKind::Directory => 0,
        EntryKind::File { size } => size,
        EntryKind::Symlink { target } => target.len() as u64,
    };
    let modified = time(entry.mtime.seconds, entry.mtime.nanos);
    FileAttr {
        ino: inode(entry.index),
        size,
        blocks: size.div_ceil(512),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: file_type(entry.kind),
        perm: entry.mode,
        // 1 also for directories: the count of subdirectories is not known without listing, and
        // tools take 1 as just that.
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Seconds since 1970, before it if negative. What no clock of this machine can show is 1970.
fn time(seconds: i64, nanos: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|time| time.checked_add(Duration::from_nanos(nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

impl Filesystem for VersionTree {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in WANTED {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "not in this kernel");
            }
        }
        let unasked =
            |config: &mut KernelConfig, capability| config.add_capabilities(capability).is_ok();
        self.opens_directories_unasked = unasked(config, InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        // A file that the kernel reads by itself has to be asked for when it is opened.
        self.opens_unasked =
            !self.passthrough.settle(config) && unasked(config, InitFlags::FUSE_NO_OPEN_SUPPORT);
        // Each is refused only outside fuser's own bounds, which these are within.
        let bounded = config
            .set_max_write(MAX_REQUEST_BYTES)
            .and_then(|_| config.set_max_background(MAX_BACKGROUND).map_err(u32::from));
        bounded.map_err(|nearest| io::Error::other(format!("fuser takes only {nearest}")))?;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let directory = match self.entry(parent) {
            Ok(directory) => directory,
            Err(errno) => return reply.error(errno),
        };
        let manifest = self.view.manifest();
        let found = manifest
            .lookup(directory.index, name.as_bytes())
            .and_then(|index| manifest.entry(index));
        match found {
            Some(entry) => reply.entry(&FOREVER, &attributes(&entry), Generation(0)),
            // Inode 0 says "not there" in a way the kernel may keep, too.
            None => {
                let absent = FileAttr {
                    ino: INodeNo(0),
                    ..attributes(&directory)
                };
                reply.entry(&FOREVER, &absent, Generation(0));
            }
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.entry(inode) {
            Ok(entry) => reply.attr(&FOREVER, &attributes(&entry)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        match self.entry(inode).map(|entry| entry.kind) {
            Ok(EntryKind::Symlink { target }) => reply.data(target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The mount is read-only: the kernel refuses to open for writing before it asks.
        match self.entry(inode) {
            Err(errno) => reply.error(errno),
            Ok(_) if self.opens_unasked => reply.error(Errno::ENOSYS),
            Ok(entry) => {
                let backing = || match self.passthrough.is_on() {
                    true => self.view.clone().backing(entry.index),
                    false => None,
                };
                self.opens
                    .open(entry.index, reply, &self.passthrough, backing);
            }
        }
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(entry) = self.entry(inode) {
            self.opens.release(entry.index, handle);
        }
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let entry = match self.entry(inode) {
            Ok(entry) => entry,
            Err(errno) => return reply.error(errno),
        };
        let EntryKind::File { size: file_size } = entry.kind else {
            return reply.error(Errno::EISDIR);
        };
        let (index, view, dataset) = (entry.index, self.view.clone(), self.dataset.clone());
        let last_failure = self.last_failure.clone();
        let reader = request.pid();
        self.readers.run(async move {
            let filled = fill(view.clone(), index, file_size, offset, size);
            match unless_killed(reader, filled).await {
                Some(Ok(filled)) => reply.data(filled.bytes()),
                None => reply.error(Errno::EINTR),
                Some(Err(reason)) => {
                    tracing::error!(
                        %dataset, offset, size, %reason,
                        "a read failed and was answered with an I/O error"
                    );
                    *last_failure.lock() = Some(Failure {
                        at: Instant::now(),
                        what: reason.to_string(),
                    });
                    reply.error(Errno::EIO);
                }
            }
        });
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.entry(inode) {
            Err(errno) => reply.error(errno),
            Ok(_) if self.opens_directories_unasked => reply.error(Errno::ENOSYS),
            Ok(_) => reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
            ),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        directory: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.list(directory, offset, |next, name, entry| {
            reply.add(inode(entry.index), next, file_type(entry.kind), name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        directory: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.list(directory, offset, |next, name, entry| {
            let attributes = attributes(&entry);
            reply.add(
                attributes.ino,
                next,
                name,
                &FOREVER,
                &attributes,
                Generation(0),
            )
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let manifest = self.view.manifest();
        let blocks = manifest.totals().bytes.div_ceil(BLOCK_SIZE.into());
        let files = u64::from(manifest.len());
        // Full, as an image on a read-only disk is.
        reply.statfs(blocks, 0, 0, files, 0, BLOCK_SIZE, 255, BLOCK_SIZE);
    }

    // A kernel that was answered ENOSYS once does not ask again.

    fn getxattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _inode: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
