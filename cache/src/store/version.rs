//! One version's chunks on this node's disk: reading them checked, writing them, forgetting them.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;
use trackbed_rdma::slab::Lease;

use super::commit::Change;
use super::files::Files;
use super::image;
use super::lay_out::Laid;
use super::layout::{Layout, failed, open_plain};
use super::presence::{self, Durable, Presence};
use super::seals::Seals;
use super::tree;
use super::verified::Verified;
use super::{ChunkFault, Holding, Short, StoreError, StoreParts};
use crate::digest::Digest;
use crate::erofs::Plan;
use crate::manifest::{CHUNK_BYTES, Manifest};
use crate::origin::OriginUrl;
use crate::seal::{BLOCK_BYTES, SEAL_BYTES, Seal, SealError, put_trailer};

/// What O_DIRECT wants offsets and lengths to be a multiple of.
const DIRECT_BYTES: usize = 4096;

/// How much of a version is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) chunks: u32,
    pub(crate) bytes: u64,
}

/// A version on this node's disk.
pub(crate) struct VersionStore {
    pub(super) parts: Arc<StoreParts>,
    /// What it takes of the room.
    pub(super) holding: Arc<Holding>,
    pub(super) path: PathBuf,
    manifest: Arc<Manifest>,
    origin: OriginUrl,
    pub(super) files: Files,
    pub(super) seals: Seals,
    pub(super) presence: Presence,
    pub(super) verified: Verified,
    /// The version is, or is to be, shown as an image, which is laid out like this; else as its tree.
    pub(super) image: Option<Plan>,
    /// Whether the tree or the image holds every file, so that it may be shown as it is.
    pub(super) whole: AtomicBool,
    /// Whether there are copies of files in the tree or the image: once they are laid out.
    pub(super) laid_out: AtomicBool,
    /// How often chunks were to be verified anew: what was read before does not count.
    pub(super) doubts: AtomicU64,
    /// What the files were like when they were laid out, until the tree is whole.
    pub(super) laid: Mutex<Option<Laid>>,
    /// Why the tree could not be made whole, the last time.
    pub(super) trouble: Mutex<Option<String>>,
    /// The two presence files.
    pub(super) copies: [Arc<fs::File>; 2],
    pub(super) durable: futures::lock::Mutex<Durable>,
    /// What happened since the last commit, in order.
    pub(super) changes: Mutex<Vec<Change>>,
    /// Whether a commit is on its way.
    pub(super) committing: AtomicBool,
}

impl VersionStore {
    /// Opens what is on disk; `None` if the version is not there. Blocks.
    pub(super) fn open(
        layout: &Layout,
        digest: Digest,
        parts: Arc<StoreParts>,
    ) -> Result<Option<VersionStore>, StoreError> {
        let path = layout.version_path(&digest);
        let Some(encoded) = layout.read_manifest(&digest)? else {
            return Ok(None);
        };
        let manifest =
            Manifest::decode_as(&encoded, digest).map_err(|source| StoreError::Manifest {
                path: path.join("manifest"),
                source,
            })?;
        drop(encoded);
        let origin = read_origin(&path.join("origin"))?;
        let read = |name| {
            let path = path.join(name);
            fs::read(&path).map_err(failed("reading", path))
        };
        let [a, b] = presence::FILE_NAMES;
        let copies = [read(a)?, read(b)?];
        let chunks = manifest.chunks();
        let (presence, durable) =
            presence::load(&copies, &digest, chunks, |chunk| manifest.chunk_len(chunk));
        let copies = [
            open_plain(&path.join(a))?.into(),
            open_plain(&path.join(b))?.into(),
        ];
        let verified = Verified::load(&path, &digest, chunks, &presence, |chunk| {
            manifest.chunk_len(chunk)
        });
        // A tree that is whole stays.
        let whole_tree = tree::is_whole(&path, &digest);
        let image = match whole_tree {
            true => None,
            false => image::plan(&manifest, parts.image_from).ok(),
        };
        let whole = whole_tree || (image.is_some() && image::is_whole(&path, &digest));
        let holding = parts.room.count(digest, || layout.holding(&digest));
        Ok(Some(VersionStore {
            parts,
            holding,
            files: Files::open(&path)?,
            verified,
            image,
            whole: AtomicBool::new(whole),
            laid_out: AtomicBool::new(whole),
            doubts: AtomicU64::new(0),
            laid: Mutex::default(),
            trouble: Mutex::default(),
            seals: Seals::new(open_plain(&path.join("seals"))?, chunks),
            manifest: Arc::new(manifest),
            origin,
            presence,
            path,
            copies,
            durable: futures::lock::Mutex::new(durable),
            changes: Mutex::default(),
            committing: AtomicBool::new(false),
        }))
    }

    pub(crate) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Where it lies.
    pub(crate) fn directory(&self) -> &Path {
        &self.path
    }

    pub(crate) fn origin(&self) -> &OriginUrl {
        &self.origin
    }

    pub(crate) fn has(&self, chunk: u32) -> bool {
        self.presence.has(chunk)
    }

    /// Which chunks are held: a bit each, the first in the lowest bit of the first word.
    pub(crate) fn held_words(&self) -> Vec<u64> {
        self.presence.words()
    }

    /// Whether all chunks are held.
    pub(crate) fn is_complete(&self) -> bool {
        self.presence.held().0 == self.manifest.chunks()
    }

    pub(crate) fn held(&self) -> Held {
        let (chunks, bytes) = self.presence.held();
        Held { chunks, bytes }
    }

    /// Reads the blocks that hold the chunk's bytes `range` to the same place in `lease`, and
    /// checks each. What turns out damaged is forgotten.
    pub(crate) async fn read(
        self: &Arc<Self>,
        chunk: u32,
        range: Range<usize>,
        lease: Lease,
    ) -> (Lease, Result<(), ChunkFault>) {
        if !self.presence.has(chunk) {
            return (lease, Err(ChunkFault::Absent));
        }
        if self.parts.health.is_out() {
            return (lease, Err(ChunkFault::OutOfService));
        }
        let (lease, result) = self.read_checked(chunk, range, lease).await;
        match &result {
            Err(ChunkFault::Damaged(why)) => {
                self.parts.counters.corrupt_blocks.add(1);
                tracing::warn!(version = %self.manifest.digest().short(), chunk, %why,
                    "this node's disk returned damaged data: fetching it again");
                self.forget(chunk);
            }
            Err(ChunkFault::Disk { action, source }) => {
                self.parts.counters.disk_errors.add(1);
                tracing::warn!(version = %self.manifest.digest().short(), chunk, action, %source,
                    "this node's disk failed: fetching the chunk again");
                self.forget(chunk);
            }
            Err(_) | Ok(()) => {}
        }
        (lease, result)
    }

    /// Reads the whole chunk and its seal, laid out as a chunk travels.
    pub(crate) async fn read_whole(
        self: &Arc<Self>,
        chunk: u32,
        lease: Lease,
    ) -> (Lease, Result<(), ChunkFault>) {
        let len = self.manifest.chunk_len(chunk) as usize;
        let (mut lease, result) = self.read(chunk, 0..len, lease).await;
        if result.is_ok()
            && let Some(seal) = self.seals.recent(chunk)
        {
            put_trailer(&mut lease, &seal);
        }
        (lease, result)
    }

    async fn read_checked(
        &self,
        chunk: u32,
        range: Range<usize>,
        lease: Lease,
    ) -> (Lease, Result<(), ChunkFault>) {
        let chunk_len = self.manifest.chunk_len(chunk) as usize;
        let blocks = Seal::blocks(range);
        let (begin, end) = (
            blocks.start * BLOCK_BYTES,
            (blocks.end * BLOCK_BYTES).min(chunk_len),
        );
        if begin >= end {
            return (lease, Ok(()));
        }
        let (lease, seal) = self.seal(chunk, lease).await;
        let seal = match seal {
            Ok(seal) => seal,
            Err(fault) => return (lease, Err(fault)),
        };
        let place = match self
            .files
            .place(&self.manifest, chunk, false, &self.parts.direct)
        {
            Ok(place) => place,
            Err(source) => {
                return (
                    lease,
                    Err(ChunkFault::Disk {
                        action: "opening a cache file",
                        source,
                    }),
                );
            }
        };
        let asked = (end - begin).next_multiple_of(DIRECT_BYTES);
        let offset = place.offset + begin as u64;
        let (lease, read) = self
            .parts
            .device
            .read_at(place.file, offset, lease, begin, asked)
            .await;
        self.parts.health.note("reading a cache file", &read);
        let checked = match read {
            Ok(count) => {
                let count = count.min(end - begin);
                self.parts.counters.disk_read_bytes.add(count as u64);
                // A file that was cut short fails by its length.
                seal.verify_blocks(blocks.start, &lease[begin..begin + count])
                    .and_then(|()| match count == end - begin {
                        true => Ok(()),
                        false => Err(SealError::Length {
                            sealed: end as u32,
                            found: begin + count,
                        }),
                    })
                    .map_err(ChunkFault::Damaged)
            }
            Err(source) => Err(ChunkFault::Disk {
                action: "reading a cache file",
                source,
            }),
        };
        (lease, checked)
    }

    /// The chunk's seal, read into the lease's trailer if it is not in memory.
    async fn seal(&self, chunk: u32, lease: Lease) -> (Lease, Result<Arc<Seal>, ChunkFault>) {
        if let Some(seal) = self.seals.recent(chunk) {
            return (lease, Ok(seal));
        }
        let (file, offset) = (Arc::clone(self.seals.file()), Seals::offset(chunk));
        let (lease, read) = self
            .parts
            .device
            .read_at(file, offset, lease, CHUNK_BYTES, SEAL_BYTES)
            .await;
        self.parts.health.note("reading a seal", &read);
        let seal = match read {
            Ok(count) => Seal::decode(&lease[CHUNK_BYTES..][..count.min(SEAL_BYTES)])
                .and_then(|seal| {
                    let expected = self.manifest.chunk_len(chunk);
                    match seal.len() == expected as usize {
                        true => Ok(Arc::new(seal)),
                        false => Err(SealError::Length {
                            sealed: expected,
                            found: seal.len(),
                        }),
                    }
                })
                .map_err(ChunkFault::Damaged),
            Err(source) => Err(ChunkFault::Disk {
                action: "reading a seal",
                source,
            }),
        };
        if let Ok(seal) = &seal {
            self.seals.remember(chunk, Arc::clone(seal));
        }
        (lease, seal)
    }

    /// Writes a chunk that was checked against `seal` and lies at the beginning of `lease`, followed
    /// by zeros to the end of its last page. Held from then on, and across restarts after the next
    /// commit.
    pub(crate) async fn write(
        self: &Arc<Self>,
        chunk: u32,
        seal: &Arc<Seal>,
        lease: &Arc<Lease>,
    ) -> Result<(), ChunkFault> {
        if self.parts.health.is_out() {
            return Err(ChunkFault::OutOfService);
        }
        if self.presence.has(chunk) {
            return Ok(());
        }
        let room = &self.parts.room;
        let reserved = room.reserve(&self.holding, seal.len() as u64).await;
        let reserved = reserved.map_err(ChunkFault::Full)?;
        let file = self.write_and_mend(chunk, seal, lease).await?;
        // Not if someone else was first.
        if self.presence.set(chunk, seal.len() as u32) {
            reserved.keep();
            self.parts.counters.stored_chunks.add(1);
            self.note(Change::Held { chunk, file });
            if self.is_complete() {
                self.parts.call_upkeep();
            }
        }
        Ok(())
    }

    async fn write_and_mend(
        self: &Arc<Self>,
        chunk: u32,
        seal: &Arc<Seal>,
        lease: &Arc<Lease>,
    ) -> Result<Arc<fs::File>, ChunkFault> {
        let mut written = self.write_data(chunk, seal, lease).await;
        if is_full(&written) && self.parts.room.free_some().await {
            written = self.write_data(chunk, seal, lease).await;
        }
        if is_full(&written) {
            return Err(ChunkFault::Full(Short::Disk(100)));
        }
        let file = written?;
        if self.whole.load(Acquire) {
            self.mend_tree(chunk, &file, lease).await?;
        }
        Ok(file)
    }

    /// Whether the disk is not used for now: chunks may be held, and can't be read.
    pub(crate) fn is_out_of_service(&self) -> bool {
        self.parts.health.is_out()
    }

    /// What is wrong with the disk, if it is not used for now.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.parts.health.trouble()
    }

    /// Notes that somebody uses the version: what was not used for longest is evicted first.
    pub(crate) fn touch(&self) {
        self.holding.touch();
    }

    async fn write_data(
        &self,
        chunk: u32,
        seal: &Arc<Seal>,
        lease: &Arc<Lease>,
    ) -> Result<Arc<fs::File>, ChunkFault> {
        let failed = |source| ChunkFault::Disk {
            action: "writing a cache file",
            source,
        };
        let padded = seal.len().next_multiple_of(DIRECT_BYTES);
        loop {
            let direct = self.parts.direct.load(Relaxed);
            let place = self
                .files
                .place(&self.manifest, chunk, true, &self.parts.direct)
                .map_err(failed)?;
            let written = self
                .parts
                .device
                .write_at(
                    Arc::clone(&place.file),
                    place.offset,
                    Arc::clone(lease),
                    0,
                    padded,
                )
                .await;
            self.parts.health.note("writing a cache file", &written);
            let written = written.and_then(|()| {
                let end = place.offset + padded as u64;
                match place.file_len {
                    Some(file_len) if end > file_len => place.file.set_len(file_len),
                    _ => Ok(()),
                }
            });
            match written {
                Ok(()) => {
                    self.seals
                        .write(&*self.parts.device, chunk, seal)
                        .map_err(failed)?;
                    return Ok(place.file);
                }
                // Alignment this file system wants and we don't know: go through the page cache.
                Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {
                    self.parts.direct.store(false, Relaxed);
                    self.files.close();
                }
                Err(source) => return Err(failed(source)),
            }
        }
    }

    /// No longer holds the chunk: its bytes, or its seal, are not what was written.
    pub(crate) fn forget(self: &Arc<Self>, chunk: u32) {
        let len = self.manifest.chunk_len(chunk);
        self.seals.forget(chunk);
        self.verified.clear(chunk, len);
        if self.presence.clear(chunk, len) {
            self.parts.room.sub(&self.holding, len.into());
            self.note(Change::Forgotten { chunk });
            if self.whole.load(Acquire) {
                self.parts.call_upkeep();
            }
        }
    }
}

/// Whether the disk said that it has no space left.
fn is_full<T>(written: &Result<T, ChunkFault>) -> bool {
    let full = [libc::ENOSPC, libc::EDQUOT];
    matches!(written, Err(ChunkFault::Disk { source, .. })
        if source.raw_os_error().is_some_and(|errno| full.contains(&errno)))
}

fn read_origin(path: &Path) -> Result<OriginUrl, StoreError> {
    let text = fs::read_to_string(path).map_err(failed("reading", path))?;
    let invalid = |error: crate::origin::OriginError| io::Error::other(error.to_string());
    text.parse()
        .map_err(invalid)
        .map_err(failed("reading", path))
}
