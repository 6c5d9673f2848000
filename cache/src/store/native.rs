//! When a version may be shown to pods as plain files or as an image of them, and keeping it right.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use trackbed_rdma::slab::{Lease, Slab};

use super::version::VersionStore;
use super::{ChunkFault, image, tree};
use crate::manifest::{ChunkKind, EntryIndex};

/// How a version can be shown, and if only by the cache, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Showable {
    /// As plain files in this directory: all is here and was verified since the machine started.
    Native(PathBuf),
    /// As this EROFS image, with the same promise.
    Image(PathBuf),
    /// By the cache, which checks each read; the words say what is missing.
    Checked(String),
}

impl Showable {
    /// Whether the kernel alone serves it.
    pub fn is_native(&self) -> bool {
        !matches!(self, Showable::Checked(_))
    }
}

impl fmt::Display for Showable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Showable::Native(_) => f.write_str("native"),
            Showable::Image(_) => f.write_str("native, from an EROFS image"),
            Showable::Checked(why) => write!(f, "checked: {why}"),
        }
    }
}

/// What looking at a chunk on the disk has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// It is what its seal says.
    Right,
    /// A small file in the tree was not what its pack says, and is again.
    CopyMended,
}

impl VersionStore {
    /// How the version can be shown now.
    pub(crate) fn showable(&self) -> Showable {
        if let Some(trouble) = self.trouble() {
            return Showable::Checked(trouble);
        }
        let chunks = self.manifest().chunks();
        let (held, verified) = (self.held().chunks, self.verified.chunks());
        if held < chunks {
            let missing = chunks - held;
            return Showable::Checked(format!("{missing} of {chunks} chunks are not here yet"));
        }
        let whole = self.is_whole();
        if !whole && let Some(trouble) = self.trouble.lock().clone() {
            return Showable::Checked(trouble);
        }
        if verified < chunks {
            return Showable::Checked(format!(
                "{verified} of {chunks} chunks were verified since this machine started"
            ));
        }
        if !whole {
            return Showable::Checked("its files are being laid out".into());
        }
        match self.image_path() {
            Some(image) => Showable::Image(image),
            None => Showable::Native(self.path.join("tree")),
        }
    }

    /// As [`VersionStore::showable`], having looked at the files once more: what somebody has written to
    /// since it was verified no longer counts as such. Asks for each file, and blocks.
    pub(crate) fn showable_now(&self) -> Showable {
        if self.is_whole() {
            self.distrust_changed();
        }
        self.showable()
    }

    /// Has the chunks of changed files be verified again. Blocks.
    pub(crate) fn distrust_changed(&self) {
        let manifest = self.manifest();
        if let Some(plan) = &self.image {
            if image::is_changed(&self.path, plan) {
                tracing::warn!(version = %manifest.digest().short(),
                    "somebody has changed an image in this node's cache: it is verified again");
                self.image_no_longer_whole();
            }
            return;
        }
        let changed = match tree::changed(self.files.tree(), manifest, &self.path) {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(version = %manifest.digest().short(), %error,
                    "the files of a version can't be looked at: all are verified again");
                (0..manifest.len()).map(EntryIndex).collect()
            }
        };
        if changed.is_empty() {
            return;
        }
        let before = self.verified.chunks();
        self.doubt(&changed);
        if self.verified.chunks() < before {
            tracing::warn!(version = %manifest.digest().short(), files = changed.len(),
                "somebody has changed files in this node's cache: they are verified again");
        }
        // Also if they were not verified yet: who is reading them just now has begun too early.
        self.parts.call_upkeep();
    }

    /// Whether every chunk was verified since the machine started.
    pub(crate) fn is_verified(&self) -> bool {
        self.verified.chunks() == self.manifest().chunks()
    }

    pub(crate) fn was_verified(&self, chunk: u32) -> bool {
        self.verified.has(chunk)
    }

    /// Whether the tree holds every file: it may be shown to pods.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Acquire)
    }

    /// Remembers over restarts of the agent what was verified of a tree that is whole.
    pub(crate) fn save_verified(&self) {
        if self.is_whole() {
            self.verified.save();
        }
    }

    /// Reads a held chunk from the disk and checks all of it, also where small files have copies
    /// in the tree. What turns out damaged is forgotten, as with every read; a damaged copy is
    /// put right.
    pub(crate) async fn check(
        self: &Arc<Self>,
        chunk: u32,
        slab: &Arc<Slab>,
    ) -> Result<Checked, ChunkFault> {
        let len = self.manifest().chunk_len(chunk);
        let doubts = self.doubts.load(SeqCst);
        self.drop_cached(chunk);
        let lease = slab.lease().await;
        let (lease, read) = self.read(chunk, 0..len as usize, lease).await;
        read?;
        self.parts.counters.checked_bytes.add(len.into());
        let mut checked = Checked::Right;
        if self.is_laid_out() && !self.copies_match(chunk, &lease, slab).await {
            let mended = self.rewrite_copies(chunk, lease.into(), true).await;
            mended.map_err(|source| ChunkFault::Disk {
                action: "mending small files in the tree",
                source,
            })?;
            checked = Checked::CopyMended;
        }
        if self.image.is_none() && self.is_whole() && !self.verified.has(chunk) {
            self.restore_times(chunk).await;
        }
        if self.has(chunk) {
            self.verified.set(chunk, len);
            if self.doubts.load(SeqCst) != doubts {
                self.verified.clear(chunk, len);
            }
        }
        Ok(checked)
    }

    /// By the times of its files it is told whether somebody has written to them.
    async fn restore_times(self: &Arc<Self>, chunk: u32) {
        let version = Arc::clone(self);
        let restore = move || tree::restore(version.files.tree(), version.manifest(), chunk);
        if let Err(error) = self.parts.workers.run(restore).await {
            tracing::warn!(version = %self.manifest().digest().short(), chunk, %error,
                "a file of the cache can't be given its time: it goes on being verified");
        }
    }

    /// Where the page cache can't be bypassed, what it has is let go, so that the disk is read.
    fn drop_cached(&self, chunk: u32) {
        let direct = &self.parts.direct;
        if !direct.load(Relaxed)
            && let Ok(place) = self.files.place(self.manifest(), chunk, false, direct)
        {
            let len = self.manifest().chunk_len(chunk);
            tree::drop_cached(&place.file, place.offset, len.into());
        }
    }

    /// Whether what was laid out of a chunk is what the chunk's bytes say.
    async fn copies_match(&self, chunk: u32, bytes: &Lease, slab: &Arc<Slab>) -> bool {
        match (&self.image, self.manifest().chunk_kind(chunk)) {
            (Some(_), _) => self.image_matches(chunk, bytes, slab).await,
            (None, Some(ChunkKind::Pack)) => self.files_match(chunk, bytes, slab).await,
            // A large file is in the tree once, and that is what was read.
            (None, _) => true,
        }
    }

    async fn files_match(&self, chunk: u32, pack: &Lease, slab: &Arc<Slab>) -> bool {
        let mut scratch = slab.lease().await;
        for extent in self.manifest().extents(chunk) {
            let begin = extent.chunk_offset as usize;
            let wanted = &pack[begin..begin + extent.len as usize];
            let (back, found) = self.read_copy(extent.entry, wanted.len(), scratch).await;
            scratch = back;
            let right = match found {
                Ok(count) => scratch[..count] == *wanted,
                Err(_) => false,
            };
            if !right {
                let path = self.manifest().path(extent.entry);
                tracing::warn!(version = %self.manifest().digest().short(),
                    path = %crate::manifest::shown(&path),
                    "this node's disk has a damaged copy of a small file: mending it");
                self.parts.counters.corrupt_blocks.add(1);
                return false;
            }
        }
        true
    }

    /// Reads a small file of the tree, and a little more if it is longer than it should be.
    async fn read_copy(
        &self,
        entry: EntryIndex,
        len: usize,
        lease: Lease,
    ) -> (Lease, io::Result<usize>) {
        let direct = self.parts.direct.load(Relaxed);
        match tree::open_copy(self.files.tree(), self.manifest(), entry, direct) {
            Ok(file) => {
                if !direct {
                    tree::drop_cached(&file, 0, len as u64);
                }
                // O_DIRECT wants whole pages; one byte more shows a file that is too long.
                let asked = (len + 1).next_multiple_of(4096);
                let device = &self.parts.device;
                device.read_at(Arc::new(file), 0, lease, 0, asked).await
            }
            Err(error) => (lease, Err(error)),
        }
    }

    /// Writes a pack's small files to their places in the tree, or any chunk's to the image.
    pub(super) async fn rewrite_copies(
        self: &Arc<Self>,
        chunk: u32,
        lease: Arc<Lease>,
        sync: bool,
    ) -> io::Result<()> {
        if self.image.is_some() {
            return self.mend_image(chunk, lease).await;
        }
        let version = Arc::clone(self);
        let write = move || {
            let (tree, manifest) = (version.files.tree(), version.manifest());
            tree::write_pack(tree, manifest, chunk, &lease, sync)
        };
        self.parts.workers.run(write).await
    }

    /// To be called when a chunk of a whole tree or image was written again: puts right what is seen of it.
    pub(super) async fn mend_tree(
        self: &Arc<Self>,
        chunk: u32,
        file: &Arc<File>,
        lease: &Arc<Lease>,
    ) -> Result<(), ChunkFault> {
        let failed = |source| ChunkFault::Disk {
            action: "mending the tree",
            source,
        };
        let mended = match self.manifest().chunk_kind(chunk) {
            Some(ChunkKind::Part { entry, file_offset }) if self.image.is_none() => {
                let len = self.manifest().chunk_len(chunk);
                tree::drop_cached(file, file_offset, len.into());
                let entry = self.manifest().entry(entry);
                entry.map_or(Ok(()), |entry| tree::finish(file, &entry))
            }
            _ => self.rewrite_copies(chunk, Arc::clone(lease), true).await,
        };
        mended.map_err(failed)
    }
}
