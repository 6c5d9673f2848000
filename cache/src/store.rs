//! The chunks this node holds, on its disks, each beside the seal that says what it must be.
//!
//! A version is a directory of plain files: large files at their place in a tree, small ones in
//! packs. A chunk counts as held once its bytes are written; it counts as held *after a restart*
//! once its bytes were synced, its seal was synced, and then its presence bit was synced, in this
//! order, so a crash at any point loses nothing that was marked and never trusts what was not.
//! Every read is checked against the seal: what is damaged is forgotten, never returned.
//!
//! A version of which every chunk is held, was verified since the machine started, and has its
//! place in the tree may be shown to pods as plain files (see [`native`]); one with many small files,
//! as an EROFS image that the kernel mounts (see [`image`]).

mod commit;
mod device;
mod disks;
mod evict;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod health;
mod image;
mod lay_out;
mod layout;
mod native;
mod presence;
mod room;
mod seals;
mod tree;
mod verified;
mod version;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use trackbed_rdma::shard::Shard;
use trackbed_rdma::slab::Lease;

use crate::digest::Digest;
use crate::manifest::{Manifest, ManifestError};
use crate::metrics::Counters;
use crate::origin::OriginUrl;
use crate::seal::SealError;
use crate::workers::Workers;

pub use device::Device;
pub use disks::DiskStatus;
pub(crate) use disks::{Disks, DisksParts};
pub(crate) use evict::GivenUp;
pub(crate) use health::Health;
use layout::{Layout, make_private};
pub(crate) use layout::{failed, open_directory, read_beneath, read_manifest_in};
pub(crate) use native::Checked;
pub use native::Showable;
pub(crate) use room::{Budget, Holding, Quotas, Room, Short};
pub(crate) use version::VersionStore;

/// Why the store cannot do something as a whole. What goes wrong with one chunk is a
/// [`ChunkFault`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another agent uses the directory.
    #[error(
        "{path} is used by another agent (it holds the lock {path}/lock): stop that one, or give each agent a cache directory of its own"
    )]
    InUse {
        /// The cache directory.
        path: PathBuf,
    },
    /// No directory was named.
    #[error("a cache needs a directory to be in: name one for each disk")]
    NoDirectory,
    /// All disks fail.
    #[error("no disk of the cache works ({}): look at the disks", directories.iter().map(|one| one.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoDisk {
        /// The directories on them.
        directories: Vec<PathBuf>,
    },
    /// Two directories that are to be two disks are one.
    #[error(
        "the cache directories {one} and {other} are the same, or one lies in the other: name one directory for each disk"
    )]
    Nested {
        /// A directory.
        one: PathBuf,
        /// Another one.
        other: PathBuf,
    },
    /// A file or directory could not be used.
    #[error("{action} {path}: {source}: {remedy}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The stored manifest is damaged.
    #[error("{path}: {source}; remove that version's directory to fetch it again")]
    Manifest {
        /// The manifest's file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
}

/// Why a chunk could not be read from, or written to, this node's disk. The bytes are then brought
/// from elsewhere, or handed out without being stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChunkFault {
    /// Not held.
    #[error("not held")]
    Absent,
    /// What is on the disk is not what was stored.
    #[error(transparent)]
    Damaged(#[from] SealError),
    /// There is no room, and none could be made.
    #[error("{0}")]
    Full(Short),
    /// The disk keeps failing and is not used for now.
    #[error("a disk of the cache keeps failing and is out of service: look at the disk")]
    OutOfService,
    /// The disk failed, or is full.
    #[error("{action}: {source}")]
    Disk {
        action: &'static str,
        source: io::Error,
    },
}

/// Is told which chunk of a version's image was put right on the disk, and the chunk's bytes. Called on a
/// thread that may wait.
pub type ImageMended = Box<dyn Fn(&Manifest, u32, &[u8]) + Send + Sync>;

/// What the store of a disk and its versions work with.
pub(crate) struct StoreParts {
    pub(crate) shard: Shard,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) health: Health,
    pub(crate) workers: Workers,
    pub(crate) counters: Arc<Counters>,
    /// What may be kept, and what is.
    pub(crate) room: Room,
    /// Whether files are opened past the page cache; cleared where the file system can't.
    pub(crate) direct: AtomicBool,
    /// From how many small files on a version is shown as an EROFS image; never without.
    pub(crate) image_from: Option<u32>,
    /// Who has images mounted, and is to forget what was damaged.
    pub(crate) image_mended: Arc<OnceLock<ImageMended>>,
    /// Wakes the agent's upkeep.
    pub(crate) upkeep: async_channel::Sender<()>,
}

impl StoreParts {
    /// Lets the agent's upkeep look at the versions: one is complete now, or needs mending.
    fn call_upkeep(&self) {
        // Full: it has been called already. Closed: the agent ends.
        let _ = self.upkeep.try_send(());
    }
}

/// The versions on one disk.
pub(crate) struct Store {
    parts: Arc<StoreParts>,
    layout: Layout,
    open: Mutex<HashMap<Digest, Arc<VersionStore>>>,
}

impl Store {
    /// Opens the store of a directory that is locked for this process.
    fn open(layout: Layout, parts: StoreParts) -> Result<Store, StoreError> {
        for (digest, holding) in layout.held()? {
            parts.room.count(digest, || holding);
        }
        Ok(Store {
            parts: Arc::new(parts),
            layout,
            open: Mutex::default(),
        })
    }

    /// The cache directory that it is in.
    pub(crate) fn directory(&self) -> &Path {
        self.layout.root()
    }

    /// Whether the disk is fit to be used.
    pub(crate) fn health(&self) -> &Health {
        &self.parts.health
    }

    /// Tries a disk that is out of service: writes, syncs and reads back a page; whether it is used
    /// again.
    pub(crate) async fn try_disk(&self, lease: Lease) -> bool {
        let worked = self.write_and_read(lease).await;
        let again = self.parts.health.tried(&worked);
        if again {
            self.parts.call_upkeep();
        }
        again
    }

    async fn write_and_read(&self, mut lease: Lease) -> io::Result<()> {
        const PAGE: usize = 4096;
        let path = self.layout.root().join("trial");
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        let (file, device) = (Arc::new(file), &self.parts.device);
        let pattern = self.parts.counters.disk_errors.get().to_le_bytes();
        lease[..PAGE].fill(0);
        lease[..pattern.len()].copy_from_slice(&pattern);
        let lease = Arc::new(lease);
        device
            .write_at(Arc::clone(&file), 0, Arc::clone(&lease), 0, PAGE)
            .await?;
        device.fdatasync(Arc::clone(&file)).await?;
        tree::drop_cached(&file, 0, PAGE as u64);
        let mut lease = Arc::try_unwrap(lease)
            .map_err(|_| io::Error::other("the disk still has what was written to it"))?;
        lease[..PAGE].fill(!0);
        let (lease, read) = device.read_at(file, 0, lease, 0, PAGE).await;
        match read? == PAGE && lease[..pattern.len()] == pattern {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// What may be kept, and what is.
    pub(crate) fn room(&self) -> &Room {
        &self.parts.room
    }

    /// The version, from memory or disk; `None` if this disk has none of it.
    async fn version(&self, digest: Digest) -> Result<Option<Arc<VersionStore>>, StoreError> {
        if let Some(open) = self.open.lock().get(&digest) {
            return Ok(Some(Arc::clone(open)));
        }
        let layout = self.layout.clone();
        let parts = Arc::clone(&self.parts);
        let opened = self
            .parts
            .workers
            .run(move || VersionStore::open(&layout, digest, parts));
        Ok(opened.await?.map(|version| self.keep(version)))
    }

    /// Makes room on disk for a version that this node has none of yet.
    async fn create(
        &self,
        manifest: Arc<Manifest>,
        encoded: Bytes,
        origin: &OriginUrl,
    ) -> Result<Arc<VersionStore>, StoreError> {
        let (digest, chunks) = (manifest.digest(), manifest.chunks());
        // It is opened from the disk below: of a million files there is not room for two.
        drop(manifest);
        let (layout, origin) = (self.layout.clone(), origin.to_string());
        let create = move || layout.create_version(&digest, &encoded, &origin, chunks);
        let mut created = self.parts.workers.run(create.clone()).await;
        if let Err(StoreError::Io { source, .. }) = &created
            && source.kind() == io::ErrorKind::StorageFull
            && self.parts.room.free_some().await
        {
            created = self.parts.workers.run(create.clone()).await;
        }
        drop(create);
        created?;
        self.version(digest).await?.ok_or_else(|| StoreError::Io {
            action: "opening the version just made in",
            path: self.layout.version_path(&digest),
            source: io::ErrorKind::NotFound.into(),
            remedy: "leave the cache directory to the agent",
        })
    }

    /// The encoded manifest of a version on this disk.
    pub(crate) async fn manifest_bytes(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        let layout = self.layout.clone();
        self.parts
            .workers
            .run(move || layout.read_manifest(&digest))
            .await
    }

    /// Bytes that are still to come, until all versions that are open are whole.
    fn to_come(&self) -> u64 {
        let open = self.open.lock();
        let each = open.values().map(|version| {
            let whole = version.manifest().totals().bytes;
            whole.saturating_sub(version.held().bytes)
        });
        each.fold(0, u64::saturating_add)
    }

    /// Makes everything written so far survive a restart.
    async fn flush(&self) {
        let open: Vec<_> = self.open.lock().values().cloned().collect();
        for version in open {
            version.commit().await;
            version.save_verified();
        }
        self.save_uses();
    }

    /// Whether reads and writes bypass the page cache.
    fn is_direct(&self) -> bool {
        self.parts.direct.load(Relaxed)
    }

    /// Two that open a version at the same time must share its state: the first one stays.
    fn keep(&self, version: VersionStore) -> Arc<VersionStore> {
        let mut open = self.open.lock();
        let digest = version.manifest().digest();
        Arc::clone(open.entry(digest).or_insert_with(|| Arc::new(version)))
    }
}
