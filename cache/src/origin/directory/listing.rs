//! Lists a tree with a bounded number of threads.
//!
//! Threads, since the kernel has no asynchronous `getdents`, and many of them, since on a network
//! file system each call is a round trip. The newest directory is taken first, so what waits is
//! the siblings along one path and not a whole level of the tree. Found entries flow back through a
//! bounded channel; dropping the listing closes it, and the threads end at their next entry.

use std::os::fd::OwnedFd;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use async_channel::Sender;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, fstatat};
use nix::unistd::{AccessFlags, faccessat};
use parking_lot::{Condvar, Mutex};

use super::super::{ListProgress, ListedEntry, ListedKind, Listing, ObjectIdentity, OriginError};
use super::{NO_OPENAT2, READABLE, Root, is_transient, modified, shown};
use std::ffi::CStr;
use std::os::unix::ffi::OsStringExt;

/// Directories read at once. More than cores: on a network file system they mostly wait.
const THREADS: usize = 16;
/// Entries handed over at once.
const BATCH: usize = 1024;
/// The longest path below the root: one that, with its final zero, the kernel takes in one call.
const MAX_PATH_BYTES: usize = 4095;
/// Names of skipped entries kept for the log.
const SKIPPED_NAMES: usize = 5;

type Batch = Result<Vec<ListedEntry>, OriginError>;

/// Everything below `root`.
pub(super) async fn list(root: Arc<Root>, progress: &ListProgress) -> Result<Listing, OriginError> {
    let (sender, receiver) = async_channel::bounded(2 * THREADS);
    let walk = Arc::new(Walk::new(root));
    let mut threads = Vec::with_capacity(THREADS);
    for number in 0..THREADS {
        let (worker, sender) = (walk.clone(), sender.clone());
        let started = thread::Builder::new()
            .name(format!("list-{number}"))
            .spawn(move || worker.run(&sender));
        match started {
            Ok(thread) => threads.push(thread),
            // One thread lists everything as well, only slower.
            Err(_) if !threads.is_empty() => break,
            Err(e) => {
                return Err(OriginError::Unavailable {
                    origin: walk.root.url.clone(),
                    why: format!("cannot start a thread: {e}"),
                    remedy: "raise the limit on processes (pids.max of the pod, ulimit -u)",
                    transient: true,
                });
            }
        }
    }
    drop(sender);
    let mut all = Listing::new();
    while let Ok(batch) = receiver.recv().await {
        let batch = batch?;
        let bytes = batch.iter().map(size_of_file).sum();
        progress.found(batch.len() as u64, bytes)?;
        batch.iter().for_each(|entry| all.push(entry));
    }
    // All senders are gone, so all threads are at their end. One that panicked would have left
    // its directory out: that must not pass for a complete listing.
    for thread in threads {
        if let Err(payload) = thread.join() {
            panic::resume_unwind(payload);
        }
    }
    walk.skipped.report(&walk.root.url);
    Ok(all)
}

fn size_of_file(entry: &ListedEntry) -> u64 {
    match entry.kind {
        ListedKind::File { size, .. } => size,
        ListedKind::Directory | ListedKind::Symlink { .. } => 0,
    }
}

/// What the threads share.
struct Walk {
    root: Arc<Root>,
    queue: Mutex<Queue>,
    changed: Condvar,
    stopped: AtomicBool,
    skipped: Skipped,
}

struct Queue {
    /// Directories to read, by their path below the root.
    waiting: Vec<Vec<u8>>,
    /// Threads that read one now, and may add more.
    busy: usize,
}

/// A directory taken from the queue; given back when dropped, so that a panic ends the walk
/// instead of leaving the other threads waiting.
struct Claim<'a> {
    walk: &'a Walk,
    path: Vec<u8>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.walk.queue.lock().busy -= 1;
        self.walk.changed.notify_all();
    }
}

impl Walk {
    fn new(root: Arc<Root>) -> Walk {
        Walk {
            root,
            queue: Mutex::new(Queue {
                waiting: vec![Vec::new()],
                busy: 0,
            }),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            skipped: Skipped::default(),
        }
    }

    fn run(&self, sender: &Sender<Batch>) {
        while let Some(claim) = self.claim() {
            if let Err(error) = self.read_directory(&claim.path, sender) {
                self.stop();
                // Nobody listens any more when the listing itself was dropped.
                let _ = sender.send_blocking(Err(error));
            }
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Relaxed);
        self.changed.notify_all();
    }

    /// The next directory, once there is one; `None` when the walk is over.
    fn claim(&self) -> Option<Claim<'_>> {
        let mut queue = self.queue.lock();
        loop {
            if self.stopped.load(Relaxed) {
                return None;
            }
            if let Some(path) = queue.waiting.pop() {
                queue.busy += 1;
                return Some(Claim { walk: self, path });
            }
            if queue.busy == 0 {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    fn read_directory(&self, path: &[u8], sender: &Sender<Batch>) -> Result<(), OriginError> {
        let directory = match self.root.open_below(path, OFlag::O_DIRECTORY) {
            Ok(directory) => directory,
            // Removed, or replaced by something else, since its name was read. The root stays.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if !path.is_empty() => return Ok(()),
            Err(errno) => return Err(self.failed(path, errno)),
        };
        // `Dir` wants the descriptor for itself while its entries are looked up by ours.
        let mut names = directory
            .try_clone()
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
            .and_then(Dir::from_fd)
            .map_err(|errno| self.failed(path, errno))?;
        let mut found = Vec::new();
        for entry in names.iter() {
            if self.stopped.load(Relaxed) {
                return Ok(());
            }
            let entry = entry.map_err(|errno| self.failed(path, errno))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let child = self.child_path(path, name)?;
            match self.look_at(&directory, name, child) {
                Ok(Some(entry)) => {
                    if entry.kind == ListedKind::Directory {
                        self.queue.lock().waiting.push(entry.path.clone());
                        self.changed.notify_one();
                    }
                    found.push(entry);
                }
                Ok(None) => {}
                Err((child, errno)) => return Err(self.failed(&child, errno)),
            }
            if found.len() == BATCH && !self.hand_over(&mut found, sender) {
                return Ok(());
            }
        }
        self.hand_over(&mut found, sender);
        Ok(())
    }

    /// Sends what was found; false, and the walk ends, if nobody takes it.
    fn hand_over(&self, found: &mut Vec<ListedEntry>, sender: &Sender<Batch>) -> bool {
        if found.is_empty() {
            return true;
        }
        let taken = sender.send_blocking(Ok(std::mem::take(found))).is_ok();
        if !taken {
            self.stop();
        }
        taken
    }

    fn child_path(&self, parent: &[u8], name: &CStr) -> Result<Vec<u8>, OriginError> {
        let name = name.to_bytes();
        let length = parent.len() + usize::from(!parent.is_empty()) + name.len();
        if length > MAX_PATH_BYTES {
            let why = format!(
                "the path of {} in {} has {length} bytes, more than the {MAX_PATH_BYTES} that Linux opens",
                shown(name),
                shown(parent),
            );
            return Err(OriginError::Unavailable {
                origin: self.root.url.clone(),
                why,
                remedy: "shorten its directories' names, or name a directory further down",
                transient: false,
            });
        }
        let mut path = Vec::with_capacity(length);
        path.extend_from_slice(parent);
        if !parent.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(path)
    }

    /// What `name` is; `None` for what vanished meanwhile and for what no dataset can hold.
    fn look_at(
        &self,
        directory: &OwnedFd,
        name: &CStr,
        path: Vec<u8>,
    ) -> Result<Option<ListedEntry>, (Vec<u8>, Errno)> {
        let stat = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err((path, errno)),
        };
        let kind = match stat.st_mode & file_type::MASK {
            file_type::DIRECTORY => ListedKind::Directory,
            file_type::REGULAR => {
                if let Err(errno) = check_readable(directory, name, &stat) {
                    return Err((path, errno));
                }
                ListedKind::File {
                    // A size is never negative; were it, no read would fit in it.
                    size: u64::try_from(stat.st_size).unwrap_or(0),
                    identity: ObjectIdentity::Modified(modified(&stat)),
                }
            }
            file_type::SYMLINK => match readlinkat(directory, name) {
                Ok(target) => ListedKind::Symlink {
                    target: target.into_vec(),
                },
                Err(Errno::ENOENT | Errno::EINVAL) => return Ok(None),
                Err(errno) => return Err((path, errno)),
            },
            _ => {
                self.skipped.add(&path);
                return Ok(None);
            }
        };
        Ok(Some(ListedEntry {
            path,
            kind,
            mode: (stat.st_mode & 0o7777) as u16,
            mtime: modified(&stat),
        }))
    }

    fn failed(&self, path: &[u8], errno: Errno) -> OriginError {
        let origin = self.root.url.clone();
        match errno {
            Errno::EACCES | Errno::EPERM => OriginError::Denied {
                origin,
                object: shown(path),
                why: errno.desc().into(),
                remedy: READABLE,
            },
            Errno::ENOSYS => OriginError::Unavailable {
                origin,
                why: "this kernel or its seccomp filter has no openat2".into(),
                remedy: NO_OPENAT2,
                transient: false,
            },
            errno => OriginError::Unavailable {
                origin,
                why: format!("{}: {}", shown(path), errno.desc()),
                remedy: "check the directory's file system and its mount (dmesg, mount)",
                transient: is_transient(&errno.into()),
            },
        }
    }
}

/// Whether reading the file will be allowed: better said now than when a job reads it. Files that
/// everyone may read are not asked about.
fn check_readable(directory: &OwnedFd, name: &CStr, stat: &FileStat) -> Result<(), Errno> {
    if stat.st_mode & 0o004 != 0 {
        return Ok(());
    }
    match faccessat(directory, name, AccessFlags::R_OK, AtFlags::AT_EACCESS) {
        // Vanished meanwhile: the read will say so, naming the file.
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// The bits of a mode that say what a file is.
mod file_type {
    use nix::sys::stat::SFlag;

    pub(super) const MASK: u32 = SFlag::S_IFMT.bits();
    pub(super) const DIRECTORY: u32 = SFlag::S_IFDIR.bits();
    pub(super) const REGULAR: u32 = SFlag::S_IFREG.bits();
    pub(super) const SYMLINK: u32 = SFlag::S_IFLNK.bits();
}

/// Sockets, pipes and devices: left out of the dataset, and said so.
#[derive(Default)]
struct Skipped {
    count: AtomicU64,
    first: Mutex<Vec<String>>,
}

impl Skipped {
    fn add(&self, path: &[u8]) {
        self.count.fetch_add(1, Relaxed);
        let mut first = self.first.lock();
        if first.len() < SKIPPED_NAMES {
            first.push(shown(path));
        }
    }

    fn report(&self, origin: &str) {
        let count = self.count.load(Relaxed);
        if count > 0 {
            tracing::warn!(
                origin,
                count,
                first = ?self.first.lock(),
                "left sockets, pipes and devices out of the dataset: remove them from the origin to silence this",
            );
        }
    }
}
