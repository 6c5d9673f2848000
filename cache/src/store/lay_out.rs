//! Making a complete version's tree, or its image, whole, so that it can be shown to pods as it is.
//!
//! The files are laid out, with their modes and times, or written as one [`image`], and stamped; then
//! every chunk is read back from the disk and checked; then the tree, or the image, counts as whole,
//! unless a stamp shows that a file was written to meanwhile. So whatever anybody, or the disk, does to a
//! file between a chunk's fill and this is either read and found, or shows; and it is found before anyone
//! is shown the file.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use futures_timer::Delay;
use nix::sys::statvfs::fstatvfs;
use trackbed_rdma::slab::Slab;

use super::image;
use super::tree::{self, Stamps};
use super::version::VersionStore;
use crate::manifest::EntryIndex;

/// The most small files that are copied into a tree: making one takes some 30 µs, and the disk
/// holds each twice.
const MAX_COPIED_FILES: u32 = 250_000;
/// Space left free on the disk when small files are copied.
const SPARE_BYTES: u64 = 64 << 20;
/// Packs that are copied at a time.
pub(super) const PACKS_AT_A_TIME: usize = 2;
/// The kernel's times of change may be as coarse as a tick of its clock, at most 10 ms: what is
/// written to a file after this long has another time than its stamp.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// What the files, or the image, were like when they were laid out, until they count as whole.
#[derive(Debug)]
pub(super) enum Laid {
    Tree(Stamps),
    /// Without a stamp the image is yet to be looked at.
    Image(Option<image::Stamp>),
}

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
        let laid = self.laid.lock().take();
        let laid = match (&self.image, laid) {
            (Some(_), Some(Laid::Image(noted))) => self.lay_out_image(noted, slab).await,
            (Some(_), _) => self.lay_out_image(None, slab).await,
            (None, Some(Laid::Tree(stamps))) => self.lay_out_files(stamps, slab).await,
            (None, _) => self.lay_out_files(Stamps::default(), slab).await,
        };
        match laid {
            Ok(laid) => {
                *self.laid.lock() = Some(laid);
                Ok(())
            }
            Err(error) => {
                self.remove_copies().await;
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
        let Some(mut laid) = laid else {
            return Ok(false);
        };
        let version = Arc::clone(self);
        let looking = move || {
            let changed = version.changed_since(&mut laid);
            let marked = match changed {
                0 => version.mark_whole(),
                _ => Ok(()),
            };
            (laid, changed, marked)
        };
        let (laid, changed, marked) = self.parts.workers.run(looking).await;
        if changed > 0 {
            tracing::info!(version = %self.manifest().digest().short(), files = changed,
                "files of the cache have changed while they were verified: once more");
        }
        if changed > 0 || marked.is_err() {
            *self.laid.lock() = Some(laid);
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

    /// How many files have changed since they were laid out; their chunks count as verified no longer.
    /// Asks for each, and blocks.
    fn changed_since(&self, laid: &mut Laid) -> usize {
        match laid {
            Laid::Tree(stamps) => {
                let changed = stamps.drop_changed(self.files.tree(), self.manifest());
                self.doubt(&changed);
                changed.len()
            }
            Laid::Image(noted) => {
                let unchanged = noted.is_some() && image::stamp(&self.path).ok() == *noted;
                if !unchanged {
                    self.doubt_all();
                }
                usize::from(!unchanged)
            }
        }
    }

    fn mark_whole(&self) -> io::Result<()> {
        match &self.image {
            Some(plan) => image::mark_whole(&self.path, self.manifest(), plan),
            None => tree::mark_whole(&self.path, self.manifest()),
        }
    }

    /// Bytes that showing the version as files, or as an image, adds.
    fn bytes_to_copy(&self) -> u64 {
        match &self.image {
            Some(plan) => plan.image_bytes(),
            None => tree::bytes_to_copy(self.manifest()),
        }
    }

    /// Removes what a failed attempt has made.
    async fn remove_copies(self: &Arc<Self>) {
        let version = Arc::clone(self);
        let remove = move || match &version.image {
            Some(_) => image::discard(&version.path),
            None => {
                tree::remove_copies(version.files.tree(), version.manifest());
                Ok(())
            }
        };
        if let Err(error) = self.parts.workers.run(remove).await {
            tracing::warn!(version = %self.manifest().digest().short(), %error,
                "an image that could not be made stays on the disk");
        }
        self.parts.room.sub(&self.holding, self.bytes_to_copy());
    }

    /// Whether small files have copies in the tree, or all in an image, verified or not.
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
        if self.image.is_none() && files > MAX_COPIED_FILES {
            let from = self.parts.image_from;
            let no_image = image::plan(self.manifest(), from).err().unwrap_or_default();
            return Err(format!(
                "it has {files} small files, and at most {MAX_COPIED_FILES} are laid out on the disk one by one; {no_image}"
            ));
        }
        let bytes = self.bytes_to_copy();
        let no_room = |why: String| {
            format!(
                "the cache has no room for {bytes} bytes of files laid out beside their chunks: {why}"
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
    async fn lay_out_files(self: &Arc<Self>, stamps: Stamps, slab: &Arc<Slab>) -> io::Result<Laid> {
        self.give_up_image().await?;
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
        Ok(Laid::Tree(stamps))
    }

    /// Removes the image that the version was shown as when this node still showed images.
    async fn give_up_image(self: &Arc<Self>) -> io::Result<()> {
        let version = Arc::clone(self);
        let discard = move || {
            let bytes = image::bytes(&version.path);
            image::discard(&version.path).map(|()| bytes)
        };
        let bytes = self.parts.workers.run(discard).await?;
        self.parts.room.sub(&self.holding, bytes);
        Ok(())
    }

    async fn copy_pack(self: &Arc<Self>, chunk: u32, slab: &Arc<Slab>) -> io::Result<()> {
        let lease = slab.lease().await;
        let len = self.manifest().chunk_len(chunk) as usize;
        let (lease, read) = self.read(chunk, 0..len, lease).await;
        read.map_err(io::Error::other)?;
        self.rewrite_copies(chunk, lease.into(), false).await
    }
}
