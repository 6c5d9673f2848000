//! Making a complete version's tree whole, so that it can be shown to pods as it is.
//!
//! The files are laid out, with their modes and times, and stamped; then every chunk is read back
//! from the disk and checked; then the tree counts as whole, unless a stamp shows that a file was
//! written to meanwhile. So whatever anybody, or the disk, does to a file between a chunk's fill and
//! this is either read and found, or shows; and it is found before anyone is shown the file.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use futures_timer::Delay;
use nix::sys::statvfs::fstatvfs;
use trackbed_rdma::slab::Slab;

use super::tree::{self, Stamps};
use super::version::VersionStore;
use crate::manifest::EntryIndex;

/// The most small files that are copied into a tree: making one takes some 30 µs, and the disk
/// holds each twice.
const MAX_COPIED_FILES: u32 = 250_000;
/// Space left free on the disk when small files are copied.
const SPARE_BYTES: u64 = 64 << 20;
/// Packs that are copied at a time.
const PACKS_AT_A_TIME: usize = 2;
/// The kernel's times of change may be as coarse as a tick of its clock, at most 10 ms: what is
/// written to a file after this long has another time than its stamp.
const TICK: Duration = Duration::from_millis(20);

impl VersionStore {
    /// Lays out those files of a complete version that are not, and takes their stamps. Their chunks
    /// count as verified no longer, since what was read before the stamp proves nothing. What goes
    /// wrong is said by [`VersionStore::showable`] too.
    pub(crate) async fn lay_out(self: &Arc<Self>, slab: &Arc<Slab>) -> Result<(), String> {
        self.commit().await;
        if self.is_whole() || !self.is_complete() {
            return Ok(());
        }
        let done = self.try_lay_out(slab).await;
        *self.trouble.lock() = done.as_ref().err().cloned();
        done
    }

    async fn try_lay_out(self: &Arc<Self>, slab: &Arc<Slab>) -> Result<(), String> {
        let first = self.laid.lock().is_none();
        if first {
            self.room_for_copies().await?;
        }
        let stamps = self.laid.lock().take().unwrap_or_default();
        match self.lay_out_files(stamps, slab).await {
            Ok(stamps) => {
                *self.laid.lock() = Some(stamps);
                Ok(())
            }
            Err(error) => {
                let version = Arc::clone(self);
                let remove = move || tree::remove_copies(version.files.tree(), version.manifest());
                self.parts.workers.run(remove).await;
                let bytes = tree::bytes_to_copy(self.manifest());
                self.parts.room.sub(&self.holding, bytes);
                Err(format!(
                    "its files could not be laid out on the disk: {error}"
                ))
            }
        }
    }

    /// Makes the tree count as whole, if every chunk was verified since its files were laid out and
    /// none has changed since; says whether it does.
    pub(crate) async fn make_whole(self: &Arc<Self>) -> Result<bool, String> {
        if self.is_whole() || !self.is_complete() || !self.is_verified() {
            return Ok(self.is_whole());
        }
        let laid = self.laid.lock().take();
        let Some(mut stamps) = laid else {
            return Ok(false);
        };
        let version = Arc::clone(self);
        let looking = move || {
            let (tree, manifest) = (version.files.tree(), version.manifest());
            let changed = stamps.drop_changed(tree, manifest);
            let marked = match changed.is_empty() {
                true => tree::mark_whole(&version.path, manifest),
                false => Ok(()),
            };
            (stamps, changed, marked)
        };
        let (stamps, changed, marked) = self.parts.workers.run(looking).await;
        if !changed.is_empty() {
            tracing::info!(version = %self.manifest().digest().short(), files = changed.len(),
                "files of the cache have changed while they were verified: once more");
            self.doubt(&changed);
        }
        if !changed.is_empty() || marked.is_err() {
            *self.laid.lock() = Some(stamps);
            let failed = |error| format!("its tree could not be marked as whole: {error}");
            let marked = marked.map(|()| false).map_err(failed);
            *self.trouble.lock() = marked.as_ref().err().cloned();
            return marked;
        }
        self.parts.counters.whole_trees.add(1);
        // Programs in the tree can't be run while they are open for writing.
        self.files.close();
        self.whole.store(true, Release);
        Ok(true)
    }

    /// Whether small files have copies in the tree, verified or not.
    pub(super) fn is_laid_out(&self) -> bool {
        self.laid_out.load(Acquire)
    }

    /// The chunks of these files count as verified no longer, whoever is reading them just now.
    pub(super) fn doubt(&self, files: &[EntryIndex]) {
        let manifest = self.manifest();
        self.doubts.fetch_add(1, SeqCst);
        for &file in files {
            for chunk in manifest.chunks_of(file) {
                self.verified.clear(chunk, manifest.chunk_len(chunk));
            }
        }
    }

    /// Takes the room that the copies of small files need.
    async fn room_for_copies(&self) -> Result<(), String> {
        let files = self.manifest().packed_files();
        if files > MAX_COPIED_FILES {
            return Err(format!(
                "it has {files} small files, and at most {MAX_COPIED_FILES} are laid out on the disk"
            ));
        }
        let bytes = tree::bytes_to_copy(self.manifest());
        let no_room = |why: String| {
            format!(
                "the cache has no room for {bytes} bytes of small files laid out one by one: {why}"
            )
        };
        let reserved = self.parts.room.reserve(&self.holding, bytes).await;
        let reserved = reserved.map_err(|short| no_room(short.to_string()))?;
        let free = fstatvfs(self.files.tree()).map_or(u64::MAX, |disk| {
            disk.blocks_available().saturating_mul(disk.fragment_size())
        });
        if bytes > 0 && bytes.saturating_add(SPARE_BYTES) > free {
            return Err(no_room(format!("its disk has {free} free")));
        }
        reserved.keep();
        Ok(())
    }

    /// Lays out the files without a stamp, and gives the stamps of all.
    async fn lay_out_files(
        self: &Arc<Self>,
        stamps: Stamps,
        slab: &Arc<Slab>,
    ) -> io::Result<Stamps> {
        let before = tree::watch(self.files.tree())?;
        let version = Arc::clone(self);
        let skeleton = move || {
            let (tree, manifest) = (version.files.tree(), version.manifest());
            tree::make_skeleton(tree, manifest, &stamps).map(|()| stamps)
        };
        let mut stamps = self.parts.workers.run(skeleton).await?;

        let manifest = self.manifest();
        let mut packs = Vec::new();
        for chunk in 0..manifest.packs() {
            let files = manifest.extents(chunk);
            if !files.iter().all(|file| stamps.has(file.entry)) {
                // All of a pack's files are written again.
                files.iter().for_each(|file| stamps.forget(file.entry));
                packs.push(chunk);
            }
        }
        let mut copies = stream::iter(packs)
            .map(|chunk| self.copy_pack(chunk, slab))
            .buffer_unordered(PACKS_AT_A_TIME);
        while let Some(copied) = copies.next().await {
            copied?;
        }
        drop(copies);

        let version = Arc::clone(self);
        let complete = move || {
            let (tree, manifest) = (version.files.tree(), version.manifest());
            tree::complete(tree, manifest, &before)?;
            let mut stamps = stamps;
            let taken = stamps.take(tree, manifest)?;
            Ok::<_, io::Error>((stamps, taken))
        };
        let (stamps, taken) = self.parts.workers.run(complete).await?;
        Delay::new(TICK).await;
        self.laid_out.store(true, Release);
        self.doubt(&taken);
        Ok(stamps)
    }

    async fn copy_pack(self: &Arc<Self>, chunk: u32, slab: &Arc<Slab>) -> io::Result<()> {
        let lease = slab.lease().await;
        let len = self.manifest().chunk_len(chunk) as usize;
        let (lease, read) = self.read(chunk, 0..len, lease).await;
        read.map_err(io::Error::other)?;
        self.rewrite_copies(chunk, lease.into(), false).await
    }
}
