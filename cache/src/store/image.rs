//! A version's files as an EROFS image, where there are too many small ones to lay each out.
//!
//! The image is a copy of the version's bytes beside the chunks, as the small files of a tree are. It
//! is written chunk by chunk from what was read back and matched its seal. Every part of it is compared
//! with what it must be whenever its chunk is checked, what follows from the manifest alone with the
//! first chunk; a part that is not right is written again in place, beneath the pods that have the
//! image mounted. A marker beside it is written last: without one nothing in the image is believed, and
//! it is made anew as another file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};

use futures::stream::{self, StreamExt};
use futures_timer::Delay;
use trackbed_rdma::slab::{Lease, Slab};

use super::lay_out::{Laid, PACKS_AT_A_TIME, TICK};
use super::tree::drop_cached;
use super::version::VersionStore;
use crate::erofs::Plan;
use crate::manifest::{CHUNK_BYTES, Manifest};

mod file;

pub(super) use file::{FILE, Stamp, bytes, discard, is_changed, is_whole, mark_whole, stamp};
use file::{create, open, set_time, unmark};

/// The image of a version that is to be shown as one: of `from` small files on, if the large ones,
/// which the image has a second time, have no more bytes than the small ones. The reason, if it is not.
pub(super) fn plan(manifest: &Manifest, from: Option<u32>) -> Result<Plan, String> {
    let from = from.ok_or("this node shows no EROFS images")?;
    let packs = 0..manifest.packs();
    let small: u64 = packs
        .map(|chunk| u64::from(manifest.chunk_len(chunk)))
        .sum();
    let large = manifest.totals().bytes.saturating_sub(small);
    if manifest.packed_files() < from.max(1) {
        return Err(format!(
            "only from {from} small files on it would be an EROFS image"
        ));
    }
    if large > small {
        return Err(format!(
            "as an EROFS image its large files, {large} bytes, would be on the disk twice, and they are more than the small ones"
        ));
    }
    Plan::of(manifest).map_err(|error| error.to_string())
}

fn missing() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the version is shown as no image")
}

impl VersionStore {
    /// Where the version's image is, if it is to be shown as one.
    pub(super) fn image_path(&self) -> Option<PathBuf> {
        self.image.as_ref().map(|_| self.path.join(FILE))
    }

    /// Makes the image, if it is not there, and notes what it is like. If that is not what was noted
    /// before, all chunks count as verified no longer.
    pub(super) async fn lay_out_image(
        self: &Arc<Self>,
        noted: Option<Stamp>,
        slab: &Arc<Slab>,
    ) -> io::Result<Laid> {
        let there = stamp(&self.path).ok();
        if noted.is_some() && noted == there {
            return Ok(Laid::Image(noted));
        }
        let len = self.image.as_ref().map(Plan::image_bytes);
        let whole_file = there.is_some_and(|there| u64::try_from(there.len).ok() == len);
        if !self.is_laid_out() || !whole_file {
            self.make_image(slab).await?;
        }
        let stamp = stamp(&self.path)?;
        Delay::new(TICK).await;
        self.laid_out.store(true, Release);
        self.doubt_all();
        Ok(Laid::Image(Some(stamp)))
    }

    /// All chunks are to be verified again.
    pub(super) fn doubt_all(&self) {
        self.doubts.fetch_add(1, SeqCst);
        for chunk in 0..self.manifest().chunks() {
            self.verified.clear(chunk, self.manifest().chunk_len(chunk));
        }
    }

    async fn make_image(self: &Arc<Self>, slab: &Arc<Slab>) -> io::Result<()> {
        let version = Arc::clone(self);
        let begin = move || {
            let plan = version.image.as_ref().ok_or_else(missing)?;
            let file = create(&version.path, plan)?;
            let mut at = 0;
            for piece in plan.metadata(version.manifest()) {
                file.write_all_at(&piece, at)?;
                at += piece.len() as u64;
            }
            Ok::<_, io::Error>(Arc::new(file))
        };
        let file = self.parts.workers.run(begin).await?;
        let mut copies = stream::iter(0..self.manifest().chunks())
            .map(|chunk| self.copy_into_image(&file, chunk, slab))
            .buffer_unordered(PACKS_AT_A_TIME);
        while let Some(copied) = copies.next().await {
            copied?;
        }
        drop(copies);
        let end = move || {
            set_time(&file)?;
            // The descriptor that all was written by: it tells of every error since.
            file.sync_all()?;
            drop_cached(&file, 0, file.metadata()?.len());
            Ok(())
        };
        self.parts.workers.run(end).await
    }

    async fn copy_into_image(
        self: &Arc<Self>,
        file: &Arc<File>,
        chunk: u32,
        slab: &Arc<Slab>,
    ) -> io::Result<()> {
        let lease = slab.lease().await;
        let len = self.manifest().chunk_len(chunk) as usize;
        let (lease, read) = self.read(chunk, 0..len, lease).await;
        read.map_err(io::Error::other)?;
        let (version, file) = (Arc::clone(self), Arc::clone(file));
        let write = move || {
            let plan = version.image.as_ref().ok_or_else(missing)?;
            let region = plan.region(version.manifest(), chunk, &lease[..len]);
            file.write_all_at(&region.bytes, region.at)?;
            // Not more than a few chunks wait to be written to the disk.
            file.sync_data()?;
            drop_cached(&file, region.at, region.bytes.len() as u64);
            Ok(())
        };
        self.parts.workers.run(write).await
    }

    /// Whether the image has of a chunk what `content` says, on the disk; with the first chunk, also
    /// whether all is right that follows from the manifest.
    pub(super) async fn image_matches(
        &self,
        chunk: u32,
        content: &Lease,
        slab: &Arc<Slab>,
    ) -> bool {
        match self.compare_image(chunk, content, slab).await {
            Ok(true) => true,
            Ok(false) => {
                tracing::warn!(version = %self.manifest().digest().short(), chunk,
                    "this node's disk has a damaged image of a version: mending it");
                self.parts.counters.corrupt_blocks.add(1);
                false
            }
            Err(error) => {
                tracing::warn!(version = %self.manifest().digest().short(), chunk, %error,
                    "the image of a version can't be read: mending it");
                false
            }
        }
    }

    async fn compare_image(
        &self,
        chunk: u32,
        content: &Lease,
        slab: &Arc<Slab>,
    ) -> io::Result<bool> {
        let (plan, manifest) = (self.image.as_ref().ok_or_else(missing)?, self.manifest());
        let direct = self.parts.direct.load(Relaxed);
        let file = Arc::new(open(&self.path, false, direct)?);
        if file.metadata()?.len() != plan.image_bytes() {
            return Ok(false);
        }
        let mut scratch = slab.lease().await;
        let len = manifest.chunk_len(chunk) as usize;
        let region = plan.region(manifest, chunk, &content[..len]);
        let (back, right) = self
            .has_bytes(&file, region.at, &region.bytes, scratch)
            .await;
        let right = right?;
        if !right || chunk > 0 {
            return Ok(right);
        }
        scratch = back;
        let mut at = 0;
        for piece in plan.metadata(manifest) {
            let (back, right) = self.has_bytes(&file, at, &piece, scratch).await;
            if !right? {
                return Ok(false);
            }
            scratch = back;
            at += piece.len() as u64;
        }
        Ok(true)
    }

    /// Whether the disk has these bytes, whole blocks, at a place of the image.
    async fn has_bytes(
        &self,
        file: &Arc<File>,
        at: u64,
        wanted: &[u8],
        mut scratch: Lease,
    ) -> (Lease, io::Result<bool>) {
        if !self.parts.direct.load(Relaxed) {
            drop_cached(file, at, wanted.len() as u64);
        }
        let mut from = at;
        for wanted in wanted.chunks(CHUNK_BYTES) {
            let device = &self.parts.device;
            let reading = device.read_at(Arc::clone(file), from, scratch, 0, wanted.len());
            let (back, read) = reading.await;
            scratch = back;
            self.parts.health.note("reading an image", &read);
            match read {
                Ok(count) if scratch[..count] == *wanted => {}
                Ok(_) => return (scratch, Ok(false)),
                Err(error) => return (scratch, Err(error)),
            }
            from += wanted.len() as u64;
        }
        (scratch, Ok(true))
    }

    /// Writes what the image has of a chunk again, in place, and with the first chunk what follows from
    /// the manifest. An image that is gone or has another length is not mended but made anew, later.
    pub(super) async fn mend_image(
        self: &Arc<Self>,
        chunk: u32,
        content: Arc<Lease>,
    ) -> io::Result<()> {
        let version = Arc::clone(self);
        let mend = move || {
            let (plan, manifest) = (
                version.image.as_ref().ok_or_else(missing)?,
                version.manifest(),
            );
            let file = open(&version.path, true, false)?;
            if file.metadata()?.len() != plan.image_bytes() {
                return Err(io::Error::other(
                    "the image has not the length it was made with",
                ));
            }
            let len = manifest.chunk_len(chunk) as usize;
            let write = |at: u64, bytes: &[u8]| {
                file.write_all_at(bytes, at)?;
                file.sync_data()?;
                drop_cached(&file, at, bytes.len() as u64);
                Ok::<_, io::Error>(())
            };
            let region = plan.region(manifest, chunk, &content[..len]);
            write(region.at, &region.bytes)?;
            if chunk == 0 {
                let mut at = 0;
                for piece in plan.metadata(manifest) {
                    write(at, &piece)?;
                    at += piece.len() as u64;
                }
            }
            set_time(&file)?;
            file.sync_all()?;
            if let Some(tell) = version.parts.image_mended.get() {
                tell(manifest, chunk, &content[..len]);
            }
            Ok(())
        };
        let mended = self.parts.workers.run(mend).await;
        if mended.is_err() {
            self.image_no_longer_whole();
        }
        mended
    }

    /// Nothing in the image is believed until all of it was verified again; it is made anew if it is gone.
    pub(super) fn image_no_longer_whole(&self) {
        *self.laid.lock() = Some(Laid::Image(None));
        self.whole.store(false, Release);
        self.doubt_all();
        if let Err(error) = unmark(&self.path) {
            tracing::error!(path = %self.path.display(), %error,
                "cannot take back that an image is whole: remove its file image.whole by hand");
        }
        self.parts.call_upkeep();
    }
}
