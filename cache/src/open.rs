//! A dataset version that is open for reading on this node.
//!
//! [`OpenVersion::read`] gives bytes of a file, brought here if they are not yet, every one of them
//! checked on its way. Reading on in path order finds the next chunks already on their way.

mod verify;
mod warm;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, Either};
use futures_timer::Delay;
use serde::{Deserialize, Serialize};
use trackbed_rdma::slab::Lease;

use crate::agent::Inner;
use crate::digest::Digest;
use crate::fill::{FillError, Filled, For, Known};
use crate::manifest::layout::Location;
use crate::manifest::{EntryIndex, EntryKind, Manifest, shown};
use crate::origin::{OpenOrigin, Origin, OriginError, OriginUrl};
use crate::seal::BLOCK_BYTES;
use crate::store::{Showable, VersionStore};
use crate::verified::VerifiedBytes;

pub use verify::{VerifyProgress, VerifyReport};
pub use warm::{Part, WarmError, WarmProgress, Warmed};

/// A version on this node, shared by all who have it open.
pub(crate) struct Version {
    store: Arc<VersionStore>,
    /// Where the bytes come from.
    origin: parking_lot::Mutex<OriginUrl>,
    /// The origin opened last, and by which URL.
    opened: futures::lock::Mutex<Option<(OriginUrl, Arc<dyn Origin>)>>,
    siblings: Known,
}

impl Version {
    pub(crate) fn new(store: Arc<VersionStore>, origin: OriginUrl) -> Version {
        Version {
            store,
            origin: parking_lot::Mutex::new(origin),
            opened: futures::lock::Mutex::new(None),
            siblings: Known::default(),
        }
    }

    pub(crate) fn store(&self) -> &Arc<VersionStore> {
        &self.store
    }

    /// The versions that may have some of the same chunks.
    pub(crate) fn siblings(&self) -> &Known {
        &self.siblings
    }

    pub(crate) fn manifest(&self) -> &Arc<Manifest> {
        self.store.manifest()
    }

    pub(crate) fn digest(&self) -> Digest {
        self.manifest().digest()
    }

    /// What it was made of, when nobody uses it any more.
    pub(crate) fn into_parts(self) -> (Arc<VersionStore>, OriginUrl) {
        (self.store, self.origin.into_inner())
    }

    /// From now on the bytes come from `origin`: datasets move, their objects' identities kept.
    pub(crate) fn set_origin(&self, origin: &OriginUrl) {
        *self.origin.lock() = origin.clone();
    }

    pub(crate) async fn open_origin(
        &self,
        origins: &dyn OpenOrigin,
    ) -> Result<Arc<dyn Origin>, OriginError> {
        let mut opened = self.opened.lock().await;
        let url = self.origin.lock().clone();
        match &*opened {
            Some((by, origin)) if *by == url => Ok(Arc::clone(origin)),
            _ => {
                let origin = origins.open(&url).await?;
                *opened = Some((url, Arc::clone(&origin)));
                Ok(origin)
            }
        }
    }
}

/// An open dataset version. Cheap to share; holds nothing but memory. For as long as it is open it is
/// not evicted.
pub struct OpenVersion {
    inner: Arc<Inner>,
    version: Arc<Version>,
    purpose: Purpose,
}

/// What a version is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be used: of what was used the longest ago the cache makes room first.
    Use,
    /// To be looked at, which is no use of it.
    Look,
}

/// How much of a version is on this node's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Chunks on disk.
    pub chunks_present: u32,
    /// Chunks in all.
    pub chunks: u32,
    /// Bytes on disk.
    pub bytes_present: u64,
    /// Bytes in all.
    pub bytes: u64,
}

impl Progress {
    /// Whether all of it is on disk.
    pub fn is_complete(&self) -> bool {
        self.chunks_present == self.chunks
    }
}

/// Where bytes are that were brought for somebody who reads this node's disk.
#[derive(Debug)]
pub struct Brought {
    /// The chunk that holds them is on the disk.
    pub on_disk: bool,
    /// The bytes, if they are in memory; always there if they are not on the disk.
    pub bytes: Option<VerifiedBytes>,
}

/// Why bytes of a file could not be had.
#[derive(Debug, thiserror::Error, Clone)]
pub enum ReadError {
    /// The manifest has no such entry.
    #[error("version {version} has no entry {index}")]
    NoSuchEntry {
        /// The version.
        version: Digest,
        /// The index asked for.
        index: u32,
    },
    /// Directories and symlinks have no bytes.
    #[error("{path} is no file")]
    NotAFile {
        /// The entry's path.
        path: String,
    },
    /// Nobody could deliver the bytes.
    #[error("{path} at byte {offset}: {source}")]
    Unavailable {
        /// The file.
        path: String,
        /// Where in it.
        offset: u64,
        /// Why not.
        source: Arc<FillError>,
    },
    /// The bytes did not come in time. They are still being fetched: reading again may succeed.
    #[error(
        "{path} at byte {offset} did not arrive within {waited:?}: check the origin and the network, then read again"
    )]
    Late {
        /// The file.
        path: String,
        /// Where in it.
        offset: u64,
        /// How long it was waited for.
        waited: Duration,
    },
}

impl ReadError {
    /// The error number that a file system answers with.
    pub fn errno(&self) -> i32 {
        match self {
            ReadError::NoSuchEntry { .. } => libc::ESTALE,
            ReadError::NotAFile { .. } => libc::EISDIR,
            ReadError::Unavailable { .. } => libc::EIO,
            ReadError::Late { .. } => libc::ETIMEDOUT,
        }
    }
}

impl OpenVersion {
    pub(crate) fn new(inner: Arc<Inner>, version: Arc<Version>, purpose: Purpose) -> OpenVersion {
        if purpose == Purpose::Use {
            version.store().touch();
        }
        OpenVersion {
            inner,
            version,
            purpose,
        }
    }

    /// What the version holds.
    pub fn manifest(&self) -> &Arc<Manifest> {
        self.version.manifest()
    }

    /// Where its bytes come from.
    pub fn origin(&self) -> OriginUrl {
        self.version.origin.lock().clone()
    }

    /// How much of it is on this node's disk.
    pub fn progress(&self) -> Progress {
        let held = self.version.store().held();
        Progress {
            chunks_present: held.chunks,
            chunks: self.manifest().chunks(),
            bytes_present: held.bytes,
            bytes: self.manifest().totals().bytes,
        }
    }

    /// Where the version lies on this node's disk: what [`VersionReader::open`] takes.
    ///
    /// [`VersionReader::open`]: crate::VersionReader::open
    pub fn directory(&self) -> PathBuf {
        self.version.store().directory().to_owned()
    }

    /// Which chunks are on this node's disk: a bit each, the first in the lowest bit of the first
    /// word.
    /// None while the disk is out of service.
    pub fn held(&self) -> Vec<u64> {
        let store = self.version.store();
        let mut words = store.held_words();
        if store.is_out_of_service() {
            words.fill(0);
        }
        words
    }

    /// What is wrong with the disk it is on, with the remedy, while it is out of service.
    pub fn trouble(&self) -> Option<String> {
        self.version.store().trouble()
    }

    /// Sees to it that the bytes [`OpenVersion::read`] would give are on this node's disk, or, where
    /// it is full, gives them. `suspect` says that the chunk was found damaged there: it is then
    /// looked at, and mended if so.
    pub async fn bring(
        &self,
        entry: EntryIndex,
        offset: u64,
        len: usize,
        suspect: bool,
    ) -> Result<Brought, ReadError> {
        let store = self.version.store();
        store.touch();
        let usable = !store.is_out_of_service();
        let held = |chunk: u32| usable && store.has(chunk) && !suspect;
        match self.manifest().locate(entry, offset) {
            Some(at) if held(at.chunk) && self.in_memory(at.chunk).is_none() => {
                if (at.chunk_offset as usize) < BLOCK_BYTES {
                    self.read_ahead(at.chunk);
                }
                Ok(Brought {
                    on_disk: true,
                    bytes: None,
                })
            }
            at => {
                if let Some(at) = at
                    && suspect
                    && store.has(at.chunk)
                {
                    let lease = self.inner.filler.slab.lease().await;
                    // What is damaged is forgotten by it, and fetched below.
                    drop(store.read_whole(at.chunk, lease).await);
                }
                let bytes = Some(self.read(entry, offset, len).await?);
                let usable = !store.is_out_of_service();
                let on_disk = usable && at.is_some_and(|at| store.has(at.chunk));
                Ok(Brought { on_disk, bytes })
            }
        }
    }

    fn in_memory(&self, chunk: u32) -> Option<Arc<Filled>> {
        self.inner.filler.in_memory(&self.version, chunk)
    }

    /// Whether it can be shown to pods as plain files now. What is shown so is checked in the
    /// background, and no more with each read.
    pub fn showable(&self) -> Showable {
        self.version.store().showable()
    }

    /// As [`OpenVersion::showable`], for one who is about to show it: files that somebody else has written
    /// to meanwhile are found by their times, and verified again first. Blocks: asks the disk for each file.
    pub fn showable_now(&self) -> Showable {
        self.version.store().showable_now()
    }

    /// Bytes of a file from `offset` on: at most `len`, and at most to the end of the chunk that
    /// holds `offset`, so fewer do not mean the end of the file. None at or beyond the end. Can be
    /// polled by any executor.
    pub async fn read(
        &self,
        entry: EntryIndex,
        offset: u64,
        len: usize,
    ) -> Result<VerifiedBytes, ReadError> {
        let Some(found) = self.manifest().entry(entry) else {
            return Err(ReadError::NoSuchEntry {
                version: self.version.digest(),
                index: entry.0,
            });
        };
        if !matches!(found.kind, EntryKind::File { .. }) {
            return Err(ReadError::NotAFile {
                path: self.shown(entry),
            });
        }
        let Some(location) = self.manifest().locate(entry, offset).filter(|_| len > 0) else {
            return Ok(VerifiedBytes::EMPTY);
        };
        let Location {
            chunk,
            chunk_offset,
            available,
        } = location;
        let begin = chunk_offset as usize;
        let range = begin..begin + len.min(available as usize);

        let waited = self.inner.config.read_deadline;
        let mut read = std::pin::pin!(self.read_range(chunk, range));
        // What is in memory needs no timer.
        let result = match read.as_mut().now_or_never() {
            Some(result) => result,
            None => match future::select(read, Delay::new(waited)).await {
                Either::Left((result, _)) => result,
                Either::Right(((), _)) => {
                    return Err(ReadError::Late {
                        path: self.shown(entry),
                        offset,
                        waited,
                    });
                }
            },
        };
        let bytes = result.map_err(|source| ReadError::Unavailable {
            path: self.shown(entry),
            offset,
            source,
        })?;
        self.inner.counters.served_bytes.add(bytes.len() as u64);
        Ok(bytes)
    }

    async fn read_range(
        &self,
        chunk: u32,
        range: Range<usize>,
    ) -> Result<VerifiedBytes, Arc<FillError>> {
        let filler = &self.inner.filler;
        self.version.store().touch();
        // Whoever begins a chunk is likely to read on: keep what follows on its way, so that such
        // readers do not meet a missing chunk again.
        let begins = range.start < BLOCK_BYTES;
        if let Some(filled) = self.in_memory(chunk) {
            if begins {
                self.read_ahead(chunk);
            }
            return Ok(part(Bytes::from_owner(InMemory(filled)), range));
        }
        let store = self.version.store();
        if store.has(chunk) {
            if begins {
                self.read_ahead(chunk);
            }
            let lease = filler.slab.lease().await;
            let (lease, read) = store.read(chunk, range.clone(), lease).await;
            if read.is_ok() {
                return Ok(part(Bytes::from_owner(Slot(lease)), range));
            }
        }
        let mut fill = std::pin::pin!(filler.fill(&self.version, chunk, For::Reader));
        // Polled once before the others are started, so that what is waited for comes first.
        let filled = match fill.as_mut().now_or_never() {
            Some(filled) => filled?,
            None => {
                self.read_ahead(chunk);
                fill.await?
            }
        };
        Ok(part(Bytes::from_owner(InMemory(filled)), range))
    }

    /// Starts bringing the chunks after `chunk`, as far as memory allows.
    fn read_ahead(&self, chunk: u32) {
        let ahead = chunk.saturating_add(1)..chunk.saturating_add(1 + self.inner.config.read_ahead);
        let filler = &self.inner.filler;
        for next in ahead.take_while(|&next| next < self.manifest().chunks()) {
            if filler.slab.free_slots() <= filler.slab.slots() / 2 {
                return;
            }
            if self.version.store().has(next) || filler.is_on_its_way(&self.version, next) {
                continue;
            }
            self.inner.counters.prefetched_chunks.add(1);
            let (filler, version) = (Arc::clone(filler), Arc::clone(&self.version));
            self.inner.shard.spawn(move || async move {
                // Whoever reads it next finds it, or learns why not.
                let _ = filler.fill(&version, next, For::Reader).await;
            });
        }
    }

    fn shown(&self, entry: EntryIndex) -> String {
        shown(&self.manifest().path(entry)).into_owned()
    }
}

impl Drop for OpenVersion {
    /// Who had it mounted natively has used it without our knowing.
    fn drop(&mut self) {
        if self.purpose == Purpose::Use {
            self.version.store().touch();
        }
    }
}

/// A slot whose blocks around some range were just checked.
struct Slot(Lease);

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A chunk that was checked when it was filled, shared with others.
struct InMemory(Arc<Filled>);

impl AsRef<[u8]> for InMemory {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

fn part(whole: Bytes, range: Range<usize>) -> VerifiedBytes {
    VerifiedBytes::checked(whole.slice(range))
}
