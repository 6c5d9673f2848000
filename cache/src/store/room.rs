//! How much the cache may keep on one of its disks, and what each version takes of that.
//!
//! Bytes are reserved before they are written, so that writes at the same time can't exceed a bound
//! together. Where there is no room the agent's evictor is asked for some, and [`waiting`]ed for;
//! whether it can give any is its business. What is kept is counted here for each version on the disk, also
//! for those that nobody has open.

mod quotas;
mod waiting;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, SystemTime};

use nix::sys::statvfs::fstatvfs;
use parking_lot::Mutex;

use crate::digest::Digest;
use crate::metrics::Counters;
use crate::registry::Namespace;
pub(crate) use quotas::Quotas;
use waiting::Asked;

/// How much may be kept on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// The most bytes of datasets.
    pub(crate) capacity: u64,
    /// How full the cache may make the disk, in percent, whatever else is on it.
    pub(crate) disk_percent: u8,
}

/// Which bound is met.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Short {
    /// The cache's capacity in bytes.
    Capacity(u64),
    /// The share of the disk, in percent; 100 is the disk itself.
    Disk(u8),
    /// A namespace's quota in bytes.
    Quota(Namespace, u64),
}

impl Short {
    /// Among whose versions room is to be made: one namespace's, or all.
    pub(crate) fn tenant(&self) -> Option<&Namespace> {
        match self {
            Short::Quota(tenant, _) => Some(tenant),
            Short::Capacity(_) | Short::Disk(_) => None,
        }
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let evict = "everything else in it is pinned or in use";
        match self {
            Short::Capacity(bytes) => write!(
                f,
                "the cache's capacity of {bytes} bytes is used up and {evict}: unpin or unmount a \
                 dataset, or raise --cache-capacity"
            ),
            Short::Disk(100) => write!(
                f,
                "the cache's disk is full and {evict}: unpin or unmount a dataset, or free space"
            ),
            Short::Disk(percent) => write!(
                f,
                "the cache's disk is {percent} % full and {evict}: unpin or unmount a dataset, free \
                 space, or raise --cache-disk-percent"
            ),
            Short::Quota(tenant, bytes) => write!(
                f,
                "namespace {tenant}'s quota of {bytes} bytes is used up and {evict}: unpin or \
                 unmount one of its datasets, or raise its --cache-quota"
            ),
        }
    }
}

/// What one version on the disk takes.
#[derive(Debug)]
pub(crate) struct Holding {
    bytes: AtomicU64,
    reserved: AtomicU64,
    /// When it was last used, in microseconds since 1970.
    used: AtomicU64,
    /// The same as the disk has it.
    used_on_disk: AtomicU64,
    pub(crate) pinned: AtomicBool,
    pub(crate) tenant: Mutex<Option<Namespace>>,
}

impl Holding {
    pub(crate) fn new(bytes: u64, used: SystemTime, pinned: bool) -> Holding {
        let used = micros(used);
        Holding {
            bytes: bytes.into(),
            reserved: AtomicU64::new(0),
            used: used.into(),
            used_on_disk: used.into(),
            pinned: pinned.into(),
            tenant: Mutex::default(),
        }
    }

    /// Bytes on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Acquire)
    }

    /// When it was last used, in microseconds since 1970.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// When it was last used.
    pub(crate) fn used_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.used())
    }

    /// It is being used now.
    pub(crate) fn touch(&self) {
        self.used.fetch_max(micros(SystemTime::now()), Relaxed);
    }

    /// When it was last used, if that is to be written to the disk.
    pub(crate) fn to_save(&self) -> Option<SystemTime> {
        let used = self.used();
        let saved = self.used_on_disk.swap(used, AcqRel);
        (saved != used).then(|| SystemTime::UNIX_EPOCH + Duration::from_micros(used))
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros().try_into().unwrap_or(u64::MAX))
}

/// Bytes that may be written.
pub(crate) struct Reservation<'a> {
    room: &'a Room,
    holding: &'a Holding,
    bytes: u64,
}

impl Reservation<'_> {
    /// They were, and are kept.
    pub(crate) fn keep(&self) {
        self.room.add(self.holding, self.bytes);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.room.reserved.fetch_sub(self.bytes, SeqCst);
        self.holding.reserved.fetch_sub(self.bytes, SeqCst);
    }
}

/// What a disk has for the cache, in bytes.
struct DiskFree {
    /// Of what is available now; negative where there is more on it than there may be.
    free: i128,
    /// Were nothing else on it.
    whole: u64,
}

/// The room on one disk.
pub(crate) struct Room {
    budget: Budget,
    /// Those of the node, for all its disks together.
    quotas: Arc<Quotas>,
    /// The cache directory.
    disk: File,
    /// The node's, for all its disks together.
    counters: Arc<Counters>,
    /// Bytes that are kept here.
    stored: AtomicU64,
    reserved: AtomicU64,
    holdings: Mutex<HashMap<Digest, Arc<Holding>>>,
    asked: Mutex<Asked>,
    /// Whether somebody evicts when asked.
    evicting: AtomicBool,
    evictor: async_channel::Sender<()>,
}

impl Room {
    /// The room in `directory`, of which nothing is taken yet. `evictor` is told when there is none.
    pub(crate) fn new(
        budget: Budget,
        quotas: Arc<Quotas>,
        directory: &Path,
        counters: Arc<Counters>,
        evictor: async_channel::Sender<()>,
    ) -> io::Result<Room> {
        Ok(Room {
            budget,
            quotas,
            disk: File::open(directory)?,
            counters,
            stored: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            holdings: Mutex::default(),
            asked: Mutex::default(),
            evicting: AtomicBool::new(false),
            evictor,
        })
    }

    /// The versions on the disk.
    pub(crate) fn holdings(&self) -> Vec<(Digest, Arc<Holding>)> {
        let holdings = self.holdings.lock();
        let each = holdings.iter();
        each.map(|(digest, holding)| (*digest, Arc::clone(holding)))
            .collect()
    }

    pub(crate) fn holding(&self, digest: &Digest) -> Option<Arc<Holding>> {
        self.holdings.lock().get(digest).cloned()
    }

    /// Counts a version that is on the disk, unless it is counted already.
    pub(crate) fn count(&self, digest: Digest, holding: impl FnOnce() -> Holding) -> Arc<Holding> {
        let mut holdings = self.holdings.lock();
        let counted = holdings.entry(digest).or_insert_with(|| {
            let holding = Arc::new(holding());
            self.more(holding.bytes());
            self.quotas.count(&holding);
            holding
        });
        Arc::clone(counted)
    }

    /// A version is no longer on the disk.
    pub(crate) fn discount(&self, digest: &Digest) {
        if let Some(holding) = self.holdings.lock().remove(digest) {
            self.less(holding.bytes());
        }
    }

    pub(crate) fn add(&self, holding: &Holding, bytes: u64) {
        holding.bytes.fetch_add(bytes, AcqRel);
        self.more(bytes);
    }

    pub(crate) fn sub(&self, holding: &Holding, bytes: u64) {
        holding.bytes.fetch_sub(bytes, AcqRel);
        self.less(bytes);
    }

    fn more(&self, bytes: u64) {
        self.stored.fetch_add(bytes, AcqRel);
        self.counters.stored_bytes.add(bytes);
    }

    fn less(&self, bytes: u64) {
        self.stored.fetch_sub(bytes, AcqRel);
        self.counters.stored_bytes.sub(bytes);
    }

    /// Bytes that are kept.
    pub(crate) fn stored(&self) -> u64 {
        self.stored.load(Acquire)
    }

    /// Bytes that may still be kept beside what is, with nothing evicted. None on a disk that does not
    /// say how full it is.
    pub(crate) fn free(&self) -> u64 {
        let reserved = self.reserved.load(SeqCst);
        let by_capacity = self.budget.capacity.saturating_sub(self.stored());
        let on_disk = self.disk_free().map_or(0, |disk| disk.free);
        by_capacity
            .min(on_disk.try_into().unwrap_or(0))
            .saturating_sub(reserved)
    }

    /// The most bytes that may be kept, were nothing else on the disk.
    pub(crate) fn capacity(&self) -> u64 {
        let on_disk = self.disk_free().map_or(0, |disk| disk.whole);
        self.budget.capacity.min(on_disk)
    }

    /// What the disk has for us, of what is free and in all.
    fn disk_free(&self) -> Option<DiskFree> {
        let disk = fstatvfs(&self.disk).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
        // As df reckons: what only root may use is neither used nor there to be used.
        let used = disk.blocks().saturating_sub(disk.blocks_free());
        let usable = bytes(used.saturating_add(disk.blocks_available()));
        let spare = usable / 100 * u64::from(100_u8.saturating_sub(self.budget.disk_percent));
        Some(DiskFree {
            free: i128::from(bytes(disk.blocks_available())) - i128::from(spare),
            whole: usable - spare,
        })
    }

    /// From now on somebody evicts when asked.
    pub(crate) fn begin_evicting(&self) {
        self.evicting.store(true, SeqCst);
        self.wake();
    }

    pub(crate) fn is_evicting(&self) -> bool {
        self.evicting.load(SeqCst)
    }

    fn wake(&self) {
        // Full: it has been called already. Closed: the agent ends.
        let _ = self.evictor.try_send(());
    }

    /// The bound that is exceeded with `all` more bytes of any version, or `theirs` of the tenant's
    /// beside what is reserved for them.
    fn exceeded(&self, tenant: Option<&Namespace>, all: u64, theirs: u64) -> Option<Short> {
        let capacity = self.budget.capacity;
        if self.stored().saturating_add(all) > capacity {
            return Some(Short::Capacity(capacity));
        }
        if let Some((tenant, quota)) = tenant.and_then(|t| self.quotas.exceeded(t, theirs)) {
            return Some(Short::Quota(tenant.clone(), quota));
        }
        let percent = self.budget.disk_percent;
        if percent < 100
            && let Some(disk) = self.disk_free()
            && disk.free < i128::from(all)
        {
            return Some(Short::Disk(percent));
        }
        None
    }

    /// Reserves bytes for a version, if there is room for them.
    fn try_reserve<'a>(
        &'a self,
        holding: &'a Holding,
        bytes: u64,
    ) -> Result<Reservation<'a>, Short> {
        // Announced before the comparison, so that writes at the same time can't exceed it together.
        let announced = self.reserved.fetch_add(bytes, SeqCst) + bytes;
        holding.reserved.fetch_add(bytes, SeqCst);
        let reservation = Reservation {
            room: self,
            holding,
            bytes,
        };
        let tenant = holding.tenant.lock().clone();
        match self.exceeded(tenant.as_ref(), announced, 0) {
            None => Ok(reservation),
            Some(short) => Err(short),
        }
    }
}
