//! Reads ranges of files on a few threads of the origin's own.
//!
//! Threads and not the ring: opening and checking a file block (for seconds, on a network file
//! system), and the caller's borrowed slice must not be left with the kernel when its future is
//! dropped. A thread reads into a buffer of its own, which is copied once and used again. Each
//! origin has its own threads, so that a server that hangs holds up no other dataset.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::thread;

use async_channel::{Receiver, Sender};
use futures::channel::oneshot;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};
use parking_lot::Mutex;

use super::super::{ObjectIdentity, ObjectRef, OriginError};
use super::{NO_OPENAT2, READABLE, Root, is_transient, modified, shown};

/// Reads under way at once, and the threads for them.
const THREADS: usize = 8;
/// Buffers kept for the next reads: 16 MiB at most for each origin.
const SPARE_BUFFERS: usize = 4;
/// The most a thread reads, and keeps a buffer for, at once.
const PIECE_BYTES: usize = 4 << 20;

/// The threads of one origin, started by the first read.
pub(super) struct Readers {
    root: Arc<Root>,
    jobs: OnceLock<Sender<Job>>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

struct Job {
    object: OwnedObject,
    offset: u64,
    buffer: Vec<u8>,
    reply: oneshot::Sender<Result<Vec<u8>, OriginError>>,
}

/// An [`ObjectRef`] that a thread can keep.
struct OwnedObject {
    path: Vec<u8>,
    size: u64,
    identity: ObjectIdentity,
}

impl Readers {
    pub(super) fn new(root: Arc<Root>) -> Readers {
        Readers {
            root,
            jobs: OnceLock::new(),
            spare: Arc::default(),
        }
    }

    pub(super) async fn read(
        &self,
        object: ObjectRef<'_>,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), OriginError> {
        object.check_range(&self.root.url, offset, into.len())?;
        let mut at = offset;
        for piece in into.chunks_mut(PIECE_BYTES) {
            let mut buffer = self.spare.lock().pop().unwrap_or_default();
            buffer.resize(piece.len(), 0);
            let (reply, answer) = oneshot::channel();
            let job = Job {
                object: OwnedObject {
                    path: object.path.to_vec(),
                    size: object.size,
                    identity: object.identity.clone(),
                },
                offset: at,
                buffer,
                reply,
            };
            let sent = self.jobs().send(job).await.is_ok();
            let buffer = match answer.await {
                Ok(result) if sent => result?,
                _ => return Err(self.no_thread()),
            };
            piece.copy_from_slice(&buffer);
            at += piece.len() as u64;
            self.keep(buffer);
        }
        Ok(())
    }

    fn keep(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    }

    fn jobs(&self) -> &Sender<Job> {
        self.jobs.get_or_init(|| {
            let (sender, receiver) = async_channel::bounded(2 * THREADS);
            for number in 0..THREADS {
                let (root, jobs) = (self.root.clone(), receiver.clone());
                let started = thread::Builder::new()
                    .name(format!("origin-{number}"))
                    .spawn(move || serve(&root, &jobs));
                if let Err(error) = started {
                    tracing::warn!(origin = root_url(&self.root), %error, "cannot start a thread for reads: raise the limit on processes");
                    break;
                }
            }
            sender
        })
    }

    fn no_thread(&self) -> OriginError {
        OriginError::Unavailable {
            origin: self.root.url.clone(),
            why: "no thread is there to read it".into(),
            remedy: "raise the limit on processes (pids.max of the pod, ulimit -u) and restart the agent",
            transient: false,
        }
    }
}

fn root_url(root: &Root) -> &str {
    &root.url
}

fn serve(root: &Root, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv_blocking() {
        if job.reply.is_canceled() {
            continue;
        }
        let mut buffer = job.buffer;
        let result = root
            .read_exact(&job.object, job.offset, &mut buffer)
            .map(|()| buffer);
        // The caller may have gone meanwhile: then nobody wants the bytes.
        let _ = job.reply.send(result);
    }
}

impl Root {
    fn read_exact(
        &self,
        object: &OwnedObject,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), OriginError> {
        let length = buffer.len() as u64;
        let failed = |source: io::Error| OriginError::Read {
            origin: self.url.clone(),
            object: shown(&object.path),
            offset,
            length,
            transient: is_transient(&source),
            source,
        };
        // Without O_NONBLOCK, a pipe put in the file's place would hold the thread for ever.
        let file = self
            .open_below(&object.path, OFlag::O_NONBLOCK)
            .map_err(|errno| self.cannot_open(object, errno, &failed))?;
        let file = File::from(file);
        let before = self.check(&file, object, None, &failed)?;
        let read = file.read_exact_at(buffer, offset);
        // First whether it changed: that is why a read comes up short.
        self.check(&file, object, Some(&before), &failed)?;
        read.map_err(&failed)
    }

    /// Fails unless the open file is the one that was listed and, if `before` is given, has not
    /// been touched since.
    fn check(
        &self,
        file: &File,
        object: &OwnedObject,
        before: Option<&FileStat>,
        failed: &impl Fn(io::Error) -> OriginError,
    ) -> Result<FileStat, OriginError> {
        let now = fstat(file.as_fd()).map_err(|errno| failed(errno.into()))?;
        let regular = now.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
        let identity = ObjectIdentity::Modified(modified(&now));
        let listed =
            regular && u64::try_from(now.st_size) == Ok(object.size) && identity == object.identity;
        let untouched = before.is_none_or(|before| {
            (before.st_ctime, before.st_ctime_nsec) == (now.st_ctime, now.st_ctime_nsec)
        });
        if listed && untouched {
            return Ok(now);
        }
        let found = match (regular, listed) {
            (false, _) => "not a regular file".into(),
            (true, false) => format!("{} bytes, {identity}", now.st_size),
            (true, true) => "written to while it was read".into(),
        };
        Err(self.changed(object, found))
    }

    fn changed(&self, object: &OwnedObject, found: String) -> OriginError {
        OriginError::Changed {
            origin: self.url.clone(),
            object: shown(&object.path),
            listed: format!("{} bytes, {}", object.size, object.identity),
            found,
        }
    }

    fn cannot_open(
        &self,
        object: &OwnedObject,
        errno: Errno,
        failed: &impl Fn(io::Error) -> OriginError,
    ) -> OriginError {
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => OriginError::Missing {
                origin: self.url.clone(),
                object: shown(&object.path),
            },
            Errno::ELOOP | Errno::EXDEV => self.changed(object, "a symbolic link".into()),
            // A socket, or a device without a driver, in the file's place.
            Errno::ENXIO | Errno::ENODEV => self.changed(object, "not a regular file".into()),
            Errno::EACCES | Errno::EPERM => OriginError::Denied {
                origin: self.url.clone(),
                object: shown(&object.path),
                why: errno.desc().into(),
                remedy: READABLE,
            },
            Errno::ENOSYS => OriginError::Unavailable {
                origin: self.url.clone(),
                why: "this kernel or its seccomp filter has no openat2".into(),
                remedy: NO_OPENAT2,
                transient: false,
            },
            errno => failed(errno.into()),
        }
    }
}
