//! A version as the keeper serves it: from the disk what is known to be there, else from the agent.
//!
//! Every block that is read from the disk here is checked against its seal. What does not match is
//! not tried again until the agent has looked at it. While there is no agent, reads of what is not
//! there wait.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use crossbeam_channel::Sender;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use trackbed_cache::disk::DiskFault;
use trackbed_cache::manifest::{ChunkKind, EntryIndex, Manifest, layout::Location, shown};
use trackbed_cache::{Digest, VersionReader};

use super::bits::Bits;
use super::link::Link;
use super::message::{Answer, Ask, Tell};
use crate::expose::{Cached, ReadFailure, VerifiedPiece, VersionView};

/// A file to be checked as a whole, so that the kernel may read it by itself.
pub(super) struct ToVerify {
    pub(super) version: Weak<KeptVersion>,
    pub(super) entry: EntryIndex,
}

/// Told when chunks are no longer known to be right: their pages are to be dropped.
pub(super) type Gone = Box<dyn Fn(&KeptVersion, &[u32]) + Send + Sync>;

/// A version that the keeper has mounted, in one place or several.
pub(super) struct KeptVersion {
    directory: PathBuf,
    reader: VersionReader,
    /// Chunks that are on the disk, as the agent said.
    known: Bits,
    /// Chunks that the keeper has checked as a whole since they became known.
    verified: Bits,
    agent: Mutex<Agent>,
    verify: Sender<ToVerify>,
    /// Files that are waiting to be verified.
    queued: Mutex<HashSet<u32>>,
    /// What files were like when they began to be verified.
    stamps: Mutex<HashMap<u32, Stamp>>,
    gone: Gone,
}

/// What changes when somebody writes to a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    mtime: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> Option<Stamp> {
        let found = file.metadata().ok()?;
        Some(Stamp {
            len: found.len(),
            mtime: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// The agent that brings what is not there.
#[derive(Default)]
struct Agent {
    link: Option<Arc<Link>>,
    /// Reads that wait for one.
    waiting: Vec<oneshot::Sender<()>>,
}

impl KeptVersion {
    pub(super) fn new(
        directory: PathBuf,
        reader: VersionReader,
        verify: Sender<ToVerify>,
        gone: Gone,
    ) -> Arc<KeptVersion> {
        let chunks = reader.manifest().chunks();
        Arc::new(KeptVersion {
            directory,
            known: Bits::new(chunks),
            verified: Bits::new(chunks),
            agent: Mutex::default(),
            verify,
            queued: Mutex::default(),
            stamps: Mutex::default(),
            gone,
            reader,
        })
    }

    pub(super) fn digest(&self) -> Digest {
        self.reader.manifest().digest()
    }

    pub(super) fn directory(&self) -> &PathBuf {
        &self.directory
    }

    /// From now on this agent is asked for what is not there.
    pub(super) fn serve_by(&self, link: &Arc<Link>, held: &[u8]) {
        self.set_held(held);
        let waiting = {
            let mut agent = self.agent.lock();
            agent.link = Some(Arc::clone(link));
            std::mem::take(&mut agent.waiting)
        };
        for read in waiting {
            // A reader may have left.
            let _ = read.send(());
        }
    }

    /// The agent that is asked, if it is connected.
    pub(super) fn agent(&self) -> Option<Arc<Link>> {
        let agent = self.agent.lock();
        agent.link.clone().filter(|link| !link.is_lost())
    }

    /// Takes over which chunks are on the disk; what is no longer there is taken back.
    pub(super) fn set_held(&self, held: &[u8]) {
        let mut gone = Vec::new();
        self.known.replace(held, |chunk| gone.push(chunk));
        for &chunk in &gone {
            self.verified.clear(chunk);
            self.reader.forget(chunk);
        }
        if !gone.is_empty() {
            tracing::info!(version = %self.digest().short(), chunks = gone.len(),
                "taken back: these chunks are no longer on the disk as they should be");
            (self.gone)(self, &gone);
        }
    }

    /// Checks all chunks of a file by their hash, and keeps those that are right for known to be so.
    /// Blocks for the disk.
    pub(super) fn verify(&self, entry: EntryIndex) {
        // Before the first byte is read: what is written from here on shows.
        let file = self.reader.open_file(entry).ok();
        if let Some(now) = file.as_ref().and_then(Stamp::of) {
            let then = self.stamps.lock().insert(entry.0, now);
            // What was verified of it before somebody wrote to it is to be read again too.
            if then != Some(now) {
                self.chunks_of(entry)
                    .for_each(|chunk| self.verified.clear(chunk));
            }
        }
        for chunk in self.chunks_of(entry) {
            if self.verified.has(chunk) || !self.known.has(chunk) {
                continue;
            }
            match self.reader.verify(chunk) {
                Ok(()) => self.verified.set(chunk),
                Err(fault) => {
                    self.distrust(chunk, &fault);
                    break;
                }
            }
        }
        self.queued.lock().remove(&entry.0);
    }

    /// No longer reads the chunk from the disk, until the agent has looked at it.
    fn distrust(&self, chunk: u32, fault: &DiskFault) {
        tracing::warn!(version = %self.digest().short(), chunk, %fault,
            "the cache's disk does not have what it should: asking for it anew");
        self.known.clear(chunk);
        self.verified.clear(chunk);
        self.reader.forget(chunk);
    }

    /// The chunks of a file that has some of its own; none for a packed one.
    fn chunks_of(&self, entry: EntryIndex) -> std::ops::Range<u32> {
        let manifest = self.reader.manifest();
        let chunks = manifest.chunks_of(entry);
        match manifest.chunk_kind(chunks.start) {
            Some(ChunkKind::Part { .. }) => chunks,
            _ => 0..0,
        }
    }

    /// The file, if nobody has written to it since it began to be verified. Who lays it out writes to it
    /// too: it is then verified once more, as its new time would hide what was written before.
    fn untouched(&self, entry: EntryIndex) -> Option<File> {
        let file = self.reader.open_file(entry).ok()?;
        let then = self.stamps.lock().get(&entry.0).copied();
        (then.is_some() && then == Stamp::of(&file)).then_some(file)
    }

    async fn agent_or_wait(&self) -> Arc<Link> {
        loop {
            let came = {
                let mut agent = self.agent.lock();
                match &agent.link {
                    Some(link) if !link.is_lost() => return Arc::clone(link),
                    _ => {}
                }
                agent.link = None;
                // Readers that have left leave no trace.
                agent.waiting.retain(|read| !read.is_canceled());
                let (sender, receiver) = oneshot::channel();
                agent.waiting.push(sender);
                receiver
            };
            // Also when the sender is dropped: then the loop looks again.
            let _ = came.await;
        }
    }

    async fn read_at(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        at: Location,
        len: usize,
    ) -> Result<VerifiedPiece, ReadFailure> {
        let begin = at.chunk_offset as usize;
        let mut suspect = false;
        loop {
            if self.known.has(at.chunk) && !suspect {
                match self.reader.read(at.chunk, begin..begin + len) {
                    Ok(bytes) => return Ok(Box::new(bytes)),
                    Err(fault) => {
                        self.distrust(at.chunk, &fault);
                        suspect = true;
                    }
                }
            }
            let ask = Ask::Bring {
                version: self.digest().to_string(),
                entry: entry.0,
                offset,
                len: len as u32,
                suspect,
            };
            let link = self.agent_or_wait().await;
            let Ok((answer, bytes)) = link.ask(&ask, &[]).await else {
                // It went before it answered: the next one will.
                continue;
            };
            match answer {
                Answer::Brought {
                    on_disk,
                    bytes: with_bytes,
                } => {
                    if on_disk {
                        self.known.set(at.chunk);
                    }
                    if with_bytes {
                        return Ok(Box::new(bytes));
                    }
                    if !on_disk {
                        return Err(self.nonsense(entry));
                    }
                    suspect = false;
                }
                Answer::Failed { why } => return Err(ReadFailure(why)),
                _ => return Err(self.nonsense(entry)),
            }
        }
    }

    fn nonsense(&self, entry: EntryIndex) -> ReadFailure {
        ReadFailure(format!(
            "{}: the agent's answer is not one to the question: its build may be damaged",
            shown(&self.reader.manifest().path(entry))
        ))
    }
}

impl VersionView for KeptVersion {
    fn manifest(&self) -> &Arc<Manifest> {
        self.reader.manifest()
    }

    fn read(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        len: usize,
    ) -> BoxFuture<'static, Result<VerifiedPiece, ReadFailure>> {
        match self.reader.manifest().locate(entry, offset) {
            Some(at) if len > 0 => {
                let len = len.min(at.available as usize);
                self.read_at(entry, offset, at, len).boxed()
            }
            _ => async { Ok(Box::new([]) as VerifiedPiece) }.boxed(),
        }
    }

    /// Unknown here: the agent answers this.
    fn cached(&self) -> Cached {
        Cached {
            bytes_present: 0,
            bytes: self.reader.manifest().totals().bytes,
        }
    }

    fn backing(self: Arc<Self>, entry: EntryIndex) -> Option<File> {
        let chunks = self.chunks_of(entry);
        if chunks.is_empty() || !chunks.clone().all(|chunk| self.known.has(chunk)) {
            return None;
        }
        if chunks.clone().all(|chunk| self.verified.has(chunk)) {
            if let Some(file) = self.untouched(entry) {
                return Some(file);
            }
            chunks.for_each(|chunk| self.verified.clear(chunk));
        }
        if self.queued.lock().insert(entry.0) {
            // Without the thread that verifies, files are served as before.
            let _ = self.verify.send(ToVerify {
                version: Arc::downgrade(&self),
                entry,
            });
        }
        None
    }
}

impl Drop for KeptVersion {
    fn drop(&mut self) {
        if let Some(link) = self.agent() {
            let version = self.digest().to_string();
            link.tell(&Tell::Released { version }, &[]);
        }
    }
}
