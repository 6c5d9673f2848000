//! The disks of a node's cache: a store on each.
//!
//! A version lies whole on one disk, where it was first made room for: the one with the most room for
//! it. Which one that is, the disks themselves tell at the start, and nothing else has to. A disk that
//! fails takes only its own versions out of service.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use trackbed_rdma::shard::Shard;

use super::health::is_the_disk_s;
use super::{
    Budget, Device, GivenUp, Health, Holding, ImageMended, Layout, Quotas, Room, Store, StoreError,
    StoreParts, VersionStore, failed, make_private,
};
use crate::digest::Digest;
use crate::manifest::Manifest;
use crate::metrics::Counters;
use crate::origin::OriginUrl;
use crate::workers::Workers;

/// One disk of a node's cache, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// The cache directory on it.
    pub directory: PathBuf,
    /// Bytes of datasets on it.
    pub stored_bytes: u64,
    /// The most bytes of datasets that it may hold, were nothing else on it.
    pub capacity_bytes: u64,
    /// Bytes that it may hold beside what is there, with nothing given up.
    pub free_bytes: u64,
    /// Whether it is in use: one that keeps failing is not.
    pub in_service: bool,
}

/// What the stores of all disks work with.
pub(crate) struct DisksParts {
    pub(crate) shard: Shard,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) workers: Workers,
    pub(crate) counters: Arc<Counters>,
    /// What each of them may hold.
    pub(crate) budget: Budget,
    pub(crate) quotas: Arc<Quotas>,
    /// From how many small files on a version is shown as an EROFS image; never without.
    pub(crate) image_from: Option<u32>,
    /// Who has images mounted, and is to forget what was damaged.
    pub(crate) image_mended: Arc<OnceLock<ImageMended>>,
    /// Wakes the agent's upkeep.
    pub(crate) upkeep: async_channel::Sender<()>,
    /// Wakes the agent's evictor.
    pub(crate) evictor: async_channel::Sender<()>,
}

/// All disks of a node's cache.
pub(crate) struct Disks {
    stores: Box<[Store]>,
    /// Cache directories whose disks failed when they were opened.
    failing: Vec<PathBuf>,
    quotas: Arc<Quotas>,
    image_mended: Arc<OnceLock<ImageMended>>,
    /// Versions that lie on another disk too, which has more of them, by the place of the store.
    superseded: Mutex<Vec<(usize, Digest)>>,
}

impl Disks {
    /// Opens the cache directories, each made if it is not there. A disk that fails is out of service
    /// until the next start, if another one works. Blocks.
    pub(crate) fn open(directories: &[PathBuf], parts: &DisksParts) -> Result<Disks, StoreError> {
        let (mut stores, mut failing) = (Vec::new(), Vec::new());
        for directory in apart(directories)? {
            match Store::open_in(directory.clone(), parts) {
                Ok(store) => stores.push(store),
                Err(StoreError::Io { source, .. })
                    if directories.len() > 1 && is_the_disk_s(&source) =>
                {
                    tracing::error!(directory = %directory.display(), %source,
                        "a disk of the cache fails and is out of service until the node starts again: look at the disk");
                    parts.counters.disks_out.add(1);
                    failing.push(directory.clone());
                }
                Err(error) => return Err(error),
            }
        }
        if stores.is_empty() {
            return Err(StoreError::NoDisk {
                directories: failing,
            });
        }
        warn_of_shared_disks(&stores);
        let superseded = supersede(&stores);
        Ok(Disks {
            stores: stores.into(),
            failing,
            quotas: Arc::clone(&parts.quotas),
            image_mended: Arc::clone(&parts.image_mended),
            superseded: Mutex::new(superseded),
        })
    }

    /// The store of each disk.
    pub(crate) fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// How each disk is.
    pub(crate) fn status(&self) -> Vec<DiskStatus> {
        let open = self.stores.iter().map(|store| DiskStatus {
            directory: store.directory().to_owned(),
            stored_bytes: store.room().stored(),
            capacity_bytes: store.room().capacity(),
            free_bytes: store.room().free(),
            in_service: !store.health().is_out(),
        });
        let failing = self.failing.iter().map(|directory| DiskStatus {
            directory: directory.clone(),
            stored_bytes: 0,
            capacity_bytes: 0,
            free_bytes: 0,
            in_service: false,
        });
        open.chain(failing).collect()
    }

    /// Whether namespaces have bounds of their own.
    pub(crate) fn has_quotas(&self) -> bool {
        !self.quotas.is_empty()
    }

    /// The disk that has the version, if one does.
    pub(crate) fn home(&self, digest: &Digest) -> Option<&Store> {
        let mut stores = self.stores.iter();
        stores.find(|store| store.room().holding(digest).is_some())
    }

    /// What is held of a version.
    pub(crate) fn holding(&self, digest: &Digest) -> Option<Arc<Holding>> {
        let mut stores = self.stores.iter();
        stores.find_map(|store| store.room().holding(digest))
    }

    /// The versions on all disks.
    pub(crate) fn holdings(&self) -> Vec<(Digest, Arc<Holding>)> {
        let stores = self.stores.iter();
        stores.flat_map(|store| store.room().holdings()).collect()
    }

    /// The version, from memory or its disk; `None` if this node has none of it.
    pub(crate) async fn version(
        &self,
        digest: Digest,
    ) -> Result<Option<Arc<VersionStore>>, StoreError> {
        match self.home(&digest) {
            Some(home) => home.version(digest).await,
            None => Ok(None),
        }
    }

    /// Makes room for a version on the disk with the most of it, unless one has it already. One at a
    /// time for each version.
    pub(crate) async fn create(
        &self,
        manifest: Arc<Manifest>,
        encoded: Bytes,
        origin: &OriginUrl,
    ) -> Result<Arc<VersionStore>, StoreError> {
        let digest = manifest.digest();
        let home = self.home(&digest);
        let store = home.unwrap_or_else(|| self.best_for(&digest));
        store.create(manifest, encoded, origin).await
    }

    /// The disk in service that will have the most room once all that is open is filled. Of those with
    /// the same, not always the first.
    fn best_for(&self, digest: &Digest) -> &Store {
        let places = self.stores.iter().enumerate().map(|(number, store)| Place {
            in_service: !store.health().is_out(),
            left: i128::from(store.room().free()) - i128::from(store.to_come()),
            lot: lot(digest, number),
        });
        // There is one: `apart` lets no node start without.
        let best = places.enumerate().max_by_key(|(_, place)| *place);
        &self.stores[best.map_or(0, |(number, _)| number)]
    }

    /// Has a version never be evicted, or again at need. Durable once `Ok`.
    pub(crate) fn pin(&self, digest: &Digest, pinned: bool) -> Result<(), StoreError> {
        let home = self.home(digest);
        home.map_or(Ok(()), |home| home.pin(digest, pinned))
    }

    /// Gives up all that is held of a version, see [`Store::give_up`].
    pub(crate) async fn give_up(
        &self,
        digest: Digest,
        open: Option<Arc<VersionStore>>,
        known: bool,
        remover: &Workers,
    ) -> Result<GivenUp, StoreError> {
        match self.home(&digest) {
            Some(home) => home.give_up(digest, open, known, remover).await,
            None => Ok(GivenUp::Bytes(0)),
        }
    }

    /// Removes what lies on two disks from the one that has less of it, unless it may be mounted from
    /// there.
    pub(crate) async fn remove_superseded(
        &self,
        mounted: impl Fn(&Digest) -> bool,
        remover: &Workers,
    ) {
        let (now, later) = {
            let mut superseded = self.superseded.lock();
            superseded
                .drain(..)
                .partition::<Vec<_>, _>(|(_, digest)| !mounted(digest))
        };
        self.superseded.lock().extend(later);
        for (place, digest) in now {
            if let Err(error) = self.stores[place].remove(digest, remover).await {
                tracing::error!(version = %digest.short(), %error,
                    "what also lies on another disk can't be removed: it is tried again when the node starts");
            }
        }
    }

    /// From now on this is told of images that were mended. A second one is ignored.
    pub(crate) fn when_images_are_mended(&self, tell: ImageMended) {
        let _ = self.image_mended.set(tell);
    }

    /// Makes everything written so far survive a restart.
    pub(crate) async fn flush(&self) {
        for store in &self.stores {
            store.flush().await;
        }
    }

    /// Whether reads and writes bypass the page cache, on all disks.
    pub(crate) fn is_direct(&self) -> bool {
        self.stores.iter().all(Store::is_direct)
    }
}

/// What speaks for a disk, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    in_service: bool,
    /// Bytes that will be left.
    left: i128,
    lot: [u8; 8],
}

/// Decides between disks that are alike, for each version anew.
fn lot(digest: &Digest, number: usize) -> [u8; 8] {
    let mut drawn = [0; 40];
    drawn[..32].copy_from_slice(digest.as_bytes());
    drawn[32..].copy_from_slice(&(number as u64).to_le_bytes());
    let mut lot = [0; 8];
    lot.copy_from_slice(&Digest::of(&drawn).as_bytes()[..8]);
    lot
}

impl Store {
    /// Opens the store in a directory.
    fn open_in(directory: PathBuf, parts: &DisksParts) -> Result<Store, StoreError> {
        let layout = Layout::open(directory)?;
        let (counters, evictor) = (Arc::clone(&parts.counters), parts.evictor.clone());
        let quotas = Arc::clone(&parts.quotas);
        let room = Room::new(parts.budget, quotas, layout.root(), counters, evictor)
            .map_err(failed("opening", layout.root()))?;
        let own = StoreParts {
            shard: parts.shard.clone(),
            device: Arc::clone(&parts.device),
            health: Health::new(layout.root(), Arc::clone(&parts.counters)),
            workers: parts.workers.clone(),
            counters: Arc::clone(&parts.counters),
            room,
            direct: AtomicBool::new(true),
            image_from: parts.image_from,
            image_mended: Arc::clone(&parts.image_mended),
            upkeep: parts.upkeep.clone(),
        };
        Store::open(layout, own)
    }
}

/// The directories, after a look that none is another one or lies in another one, by whatever path. Each
/// is made if it is not there; what cannot be made fails when it is opened.
fn apart(directories: &[PathBuf]) -> Result<&[PathBuf], StoreError> {
    if directories.is_empty() {
        return Err(StoreError::NoDirectory);
    }
    let mut real: Vec<PathBuf> = Vec::with_capacity(directories.len());
    for directory in directories {
        let made = make_private(directory).and_then(|()| fs::canonicalize(directory));
        let found = made.unwrap_or_else(|_| directory.clone());
        let within = |one: &Path, other: &Path| one.starts_with(other) || other.starts_with(one);
        if let Some(number) = real.iter().position(|other| within(&found, other)) {
            return Err(StoreError::Nested {
                one: directories[number].clone(),
                other: directory.clone(),
            });
        }
        real.push(found);
    }
    Ok(directories)
}

/// Two directories on one file system are no two disks.
fn warn_of_shared_disks(stores: &[Store]) {
    let mut devices: HashMap<u64, &Path> = HashMap::new();
    for directory in stores.iter().map(|store| store.directory()) {
        let Ok(found) = fs::metadata(directory) else {
            continue;
        };
        if let Some(other) = devices.insert(found.dev(), directory) {
            tracing::warn!(one = %other.display(), other = %directory.display(),
                "two cache directories are on one file system, and are taken for two disks: name one \
                 directory for each disk, and see that the disks are mounted");
        }
    }
}

/// Finds versions that lie on several disks, after a change by hand, say: the one that has most of such a
/// version keeps it, and the others no longer count it. Which those are.
fn supersede(stores: &[Store]) -> Vec<(usize, Digest)> {
    let mut homes: HashMap<Digest, (usize, u64)> = HashMap::new();
    let mut superseded = Vec::new();
    for (number, store) in stores.iter().enumerate() {
        for (digest, holding) in store.room().holdings() {
            let bytes = holding.bytes();
            let without = match homes.entry(digest) {
                Entry::Vacant(free) => {
                    free.insert((number, bytes));
                    continue;
                }
                Entry::Occupied(mut taken) if taken.get().1 < bytes => {
                    taken.insert((number, bytes)).0
                }
                Entry::Occupied(_) => number,
            };
            stores[without].room().discount(&digest);
            tracing::warn!(version = %digest.short(),
                directory = %stores[without].directory().display(),
                "a version lies on two disks: it is used from the one that has more of it, and will be \
                 removed here");
            superseded.push((without, digest));
        }
    }
    superseded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_in_service_comes_first_then_the_one_with_the_most_room_and_ties_are_spread() {
        let place = |in_service, left, number| Place {
            in_service,
            left,
            lot: lot(&Digest::of(b"x"), number),
        };
        assert!(place(true, -5, 0) > place(false, 100, 1));
        assert!(place(true, 7, 0) > place(true, 6, 1));
        let first_wins = (0..64u8).filter(|&version| {
            let version = Digest::of(&[version]);
            lot(&version, 0) > lot(&version, 1)
        });
        let first_wins = first_wins.count();
        assert!((10..54).contains(&first_wins), "{first_wins} of 64");
    }

    #[test]
    fn directories_that_are_one_or_lie_in_each_other_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::os::unix::fs::symlink(at("a"), at("link")).expect("made");
        for (one, other) in [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "link")] {
            let refused = apart(&[at("c"), at(one), at(other)]).expect_err("refused");
            let said = refused.to_string();
            let named = [one, other].map(|name| at(name).display().to_string());
            assert!(named.iter().all(|name| said.contains(name)), "{said}");
        }
        assert_eq!(apart(&[at("a"), at("ab")]).expect("apart").len(), 2);
        assert!(matches!(apart(&[]), Err(StoreError::NoDirectory)));
    }
}
