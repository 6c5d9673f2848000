//! The cache on one node: registers datasets, opens versions, and serves peers.
//!
//! Made in two steps, since the fabric needs a source and the agent a fabric: [`Agent::start`],
//! then [`Agent::source`] into a new fabric, then [`Agent::set_fabric`]. Without a fabric, as on a
//! single node, everything comes from the origin.

mod evict;
mod keep;
mod referrals;
mod serve;
mod siblings;
pub(crate) mod upkeep;
mod versions;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use trackbed_rdma::fabric::{ChunkSource, Fabric, FabricError};
use trackbed_rdma::shard::Shard;
use trackbed_rdma::slab::Slab;

use crate::digest::Digest;
use crate::fill::{Filler, FillerParts};
use crate::manifest::{Manifest, ManifestError, Place};
use crate::membership::Membership;
use crate::metrics::{AgentCounters, Counters};
use crate::open::{OpenVersion, Progress, Purpose};
use crate::origin::{ListProgress, OpenOrigin, OriginError, OriginUrl};
use crate::peers::{PeerControl, Peers};
use crate::registry::{DatasetName, DatasetRecord, Namespace, Readers, Registry, RegistryError};
use crate::seal::SLOT_BYTES;
use crate::store::{
    Budget, Device, DiskStatus, Disks, DisksParts, ImageMended, Quotas, StoreError,
};
use crate::workers::Workers;

pub use evict::{Keeps, Mounted};
pub use keep::VersionOnDisk;
use referrals::Referrals;
use upkeep::{Upkeep, UpkeepSettings};
use versions::Versions;

/// The fewest slots the agent works with: some for reading, some for filling, some kept.
pub const MIN_SLOTS: usize = 8;

/// How an agent is to run.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// This node's name among the members.
    pub node: String,
    /// The directories that hold the cache, one on each disk; one agent's alone.
    pub cache_dirs: Vec<PathBuf>,
    /// The most bytes of datasets to keep in each.
    pub capacity: u64,
    /// How full the cache may make each disk, in percent, whatever else is on it.
    pub disk_percent: u8,
    /// The most bytes to keep, on all disks together, of the datasets that only one namespace's pods
    /// may read.
    pub quotas: BTreeMap<Namespace, u64>,
    /// Chunks fetched ahead of a reader who begins a chunk, or meets one that is missing.
    pub read_ahead: u32,
    /// How long a read may take before it fails.
    pub read_deadline: Duration,
    /// Threads that hash.
    pub hash_threads: usize,
    /// Whether versions that are complete are verified and laid out as plain files, so that they
    /// can be shown to pods without a process in the way (see [`OpenVersion::showable`]).
    pub lay_out: bool,
    /// From how many small files on such a version is made an EROFS image instead, which the kernel
    /// mounts; never without. Only for who can mount one.
    pub image_from: Option<u32>,
    /// How often a disk that keeps failing, and is not used for now, is tried.
    pub disk_trial_every: Duration,
    /// Bytes a second that are read to verify a complete version before it is shown so.
    pub verify_rate: u64,
    /// Bytes a second that are read to scrub what is held; 0 for never.
    pub scrub_rate: u64,
    /// From one scrub of a version to the next.
    pub scrub_every: Duration,
}

impl AgentConfig {
    /// The usual settings: one disk, no bound on capacity but the disk, 4 chunks ahead, reads of at most a
    /// minute, two threads that hash; nothing laid out, and a scrub at 32 MiB/s every day.
    pub fn new(node: impl Into<String>, cache_dir: impl Into<PathBuf>) -> AgentConfig {
        AgentConfig {
            node: node.into(),
            cache_dirs: vec![cache_dir.into()],
            capacity: u64::MAX,
            disk_percent: 100,
            quotas: BTreeMap::new(),
            read_ahead: 4,
            read_deadline: Duration::from_secs(60),
            hash_threads: 2,
            lay_out: false,
            image_from: None,
            disk_trial_every: Duration::from_secs(30),
            verify_rate: 512 << 20,
            scrub_rate: 32 << 20,
            scrub_every: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Why the agent could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A cache directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The origin.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// What was listed makes no dataset.
    #[error("{origin}: {source}")]
    Listing {
        /// The origin's URL.
        origin: String,
        /// What is wrong with the listing.
        source: ManifestError,
    },
    /// A manifest from a peer.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The fabric, when a peer wants to meet us.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// There is no such dataset.
    #[error("there is no dataset {0}: register it first, or check the name")]
    UnknownDataset(DatasetName),
    /// Nobody has the version.
    #[error(
        "version {version} is on no member of the cache ({tried}): start a node that has it, or register the dataset again"
    )]
    UnknownVersion {
        /// The version.
        version: Digest,
        /// Who was asked, and what they said.
        tried: String,
    },
    /// Something keeps it from being evicted.
    #[error("version {version} of {dataset} is not evicted: {}", match keeps {
        Keeps::Pinned => "it is pinned on this node: unpin it first",
        Keeps::InUse => "it is mounted, being read or being filled on this node: unmount it first",
    })]
    Kept {
        /// The dataset.
        dataset: DatasetName,
        /// The version.
        version: Digest,
        /// What.
        keeps: Keeps,
    },
    /// Not a version of the dataset.
    #[error("{version} is not a version of {dataset}: look at its versions in the status")]
    NotAVersion {
        /// The dataset.
        dataset: DatasetName,
        /// The version.
        version: Digest,
    },
    /// The pinned memory is of the wrong shape.
    #[error(
        "the agent's memory has {slots} slots of {slot_bytes} bytes: make at least {MIN_SLOTS} slots of {SLOT_BYTES}"
    )]
    Slab {
        /// Slots it has.
        slots: usize,
        /// Bytes a slot.
        slot_bytes: usize,
    },
    /// The system would not give a thread.
    #[error("starting the threads that hash and keep the cache: {0}: raise the limit on threads")]
    Threads(#[source] io::Error),
    /// A peer wants to meet us and there is no fabric.
    #[error("node {0} has no fabric yet: try again once it has started")]
    NoFabric(String),
}

/// The cache on one node. Clones are the same agent.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

/// What an agent, its open versions and its source share.
pub(crate) struct Inner {
    pub(crate) config: AgentConfig,
    pub(crate) shard: Shard,
    pub(crate) counters: Arc<Counters>,
    pub(crate) filler: Arc<Filler>,
    registry: Arc<dyn Registry>,
    origins: Arc<dyn OpenOrigin>,
    workers: Workers,
    disks: Disks,
    versions: Versions,
    /// Of chunks that peers ask this node for.
    referrals: Mutex<Referrals>,
    upkeep: Upkeep,
    /// Removes what was evicted, which may take a while.
    remover: Workers,
    mounted: OnceLock<Mounted>,
}

impl Agent {
    /// Starts the agent on its cache directories. `slab` must have slots of [`SLOT_BYTES`] and be
    /// the shard's.
    pub async fn start(
        config: AgentConfig,
        shard: Shard,
        slab: Arc<Slab>,
        registry: Arc<dyn Registry>,
        control: Arc<dyn PeerControl>,
        origins: Arc<dyn OpenOrigin>,
    ) -> Result<Agent, AgentError> {
        let device = Arc::new(shard.clone());
        Agent::start_on(config, device, shard, slab, registry, control, origins).await
    }

    /// As [`Agent::start`], on other disks than the shard's ring reads and writes.
    pub async fn start_on(
        config: AgentConfig,
        device: Arc<dyn Device>,
        shard: Shard,
        slab: Arc<Slab>,
        registry: Arc<dyn Registry>,
        control: Arc<dyn PeerControl>,
        origins: Arc<dyn OpenOrigin>,
    ) -> Result<Agent, AgentError> {
        if slab.slot_bytes() != SLOT_BYTES || slab.slots() < MIN_SLOTS {
            let (slots, slot_bytes) = (slab.slots(), slab.slot_bytes());
            return Err(AgentError::Slab { slots, slot_bytes });
        }
        let workers = Workers::start("hash", config.hash_threads).map_err(AgentError::Threads)?;
        let counters = Arc::new(Counters::default());
        let remover = Workers::start("remove", 1).map_err(AgentError::Threads)?;
        let (wake, woken) = async_channel::bounded(1);
        let (wake_evictor, evictor_woken) = async_channel::bounded(1);
        let parts = DisksParts {
            shard: shard.clone(),
            device,
            workers: workers.clone(),
            counters: Arc::clone(&counters),
            budget: Budget {
                capacity: config.capacity,
                disk_percent: config.disk_percent,
            },
            quotas: Arc::new(Quotas::new(config.quotas.clone())),
            image_from: config.image_from.filter(|_| config.lay_out),
            image_mended: Arc::default(),
            upkeep: wake.clone(),
            evictor: wake_evictor,
        };
        let directories = config.cache_dirs.clone();
        let disks = workers
            .run(move || Disks::open(&directories, &parts))
            .await?;
        let filler = Arc::new(Filler::new(FillerParts {
            node: config.node.clone(),
            shard: shard.clone(),
            slab,
            workers: workers.clone(),
            counters: Arc::clone(&counters),
            membership: Membership::new(Arc::clone(&registry)),
            peers: Peers::new(control),
            origins: Arc::clone(&origins),
        }));
        let settings = UpkeepSettings {
            lay_out: config.lay_out,
            verify_rate: config.verify_rate,
            scrub_rate: config.scrub_rate,
            scrub_every: config.scrub_every,
        };
        let upkeep = Upkeep::start(settings, Arc::clone(&filler), wake, woken)
            .map_err(AgentError::Threads)?;
        let agent = Agent(Arc::new(Inner {
            config,
            shard,
            counters,
            filler,
            registry,
            origins,
            workers,
            disks,
            versions: Versions::default(),
            referrals: Mutex::default(),
            upkeep,
            remover,
            mounted: OnceLock::new(),
        }));
        let siblings = siblings::Registered(Arc::downgrade(&agent.0));
        agent.0.filler.set_siblings(Box::new(siblings));
        agent.0.assign_tenants();
        evict::start(&agent.0, evictor_woken).map_err(AgentError::Threads)?;
        if agent.0.config.lay_out {
            versions::open_current(&agent.0);
        }
        Ok(agent)
    }

    /// From now on `tell` is told which chunk of a version's image was damaged and put right on the disk,
    /// as who has the image mounted may have the damage in memory. A second one is ignored.
    pub fn when_images_are_mended(&self, tell: ImageMended) {
        self.0.disks.when_images_are_mended(tell);
    }

    /// What serves this node's chunks to peers; goes into the fabric.
    pub fn source(&self) -> Arc<dyn ChunkSource> {
        Arc::new(serve::Source::new(&self.0))
    }

    /// Gives the agent the fabric made with its [`Agent::source`]. A second one is ignored.
    pub fn set_fabric(&self, fabric: Fabric) {
        if !self.0.filler.peers.set_fabric(fabric) {
            tracing::warn!("the agent has a fabric already and keeps it");
        }
    }

    /// Lets a peer ask us for chunks: takes the offer its control plane brought and gives the
    /// answer to carry back. `peer` must be the name the control plane has authenticated.
    pub async fn accept_peer(&self, peer: &str, offer: &[u8]) -> Result<Vec<u8>, AgentError> {
        match self.0.filler.peers.fabric() {
            Some(fabric) => Ok(fabric.accept(peer, offer).await?),
            None => Err(AgentError::NoFabric(self.0.config.node.clone())),
        }
    }

    /// Lists the origin, makes the version it holds now, and lets the dataset's name mean it. Who
    /// may read it stays as it was.
    pub async fn register(
        &self,
        name: &DatasetName,
        origin: &OriginUrl,
        progress: &ListProgress,
    ) -> Result<DatasetRecord, AgentError> {
        self.register_for(name, origin, Readers::AsBefore, progress)
            .await
    }

    /// As [`Agent::register`], for these readers from then on.
    #[tracing::instrument(
        target = "trackbed_traces",
        name = "dataset.register",
        skip_all,
        fields(dataset = %name, origin = %origin),
        err
    )]
    pub async fn register_for(
        &self,
        name: &DatasetName,
        origin: &OriginUrl,
        readers: Readers,
        progress: &ListProgress,
    ) -> Result<DatasetRecord, AgentError> {
        let opened = self.0.origins.open(origin).await?;
        let listed = opened.list(progress).await?;
        let place = Place::of(origin);
        let built = self.0.workers.run(move || {
            let manifest = Manifest::build(place, listed)?;
            let encoded = Bytes::from(manifest.encode());
            Ok::<_, ManifestError>((Arc::new(manifest), encoded))
        });
        let (manifest, encoded) = built.await.map_err(|source| AgentError::Listing {
            origin: origin.to_string(),
            source,
        })?;
        let version = manifest.digest();
        self.0.create_version(manifest, encoded, origin).await?;
        let mut record = DatasetRecord::new(name.clone(), origin.clone(), version);
        if let Some(before) = self.0.registry.dataset(name)? {
            record = record.following(before);
        }
        record = record.for_readers(readers);
        self.0.registry.put_dataset(&record).await?;
        // Who may read it may have changed, and with that whose quota it counts for.
        self.0.assign_tenants();
        Ok(record)
    }

    /// What the registry says of a dataset.
    pub fn dataset(&self, name: &DatasetName) -> Result<Option<DatasetRecord>, AgentError> {
        Ok(self.0.registry.dataset(name)?)
    }

    /// Opens a dataset: the given version of it, or the current one.
    pub async fn open(
        &self,
        dataset: &DatasetName,
        version: Option<Digest>,
    ) -> Result<Arc<OpenVersion>, AgentError> {
        self.open_for(Purpose::Use, dataset, version).await
    }

    /// As [`Agent::open`], to see how it is: that does not count as a use of it, by which the cache
    /// decides what it makes room of.
    pub async fn look_at(
        &self,
        dataset: &DatasetName,
        version: Option<Digest>,
    ) -> Result<Arc<OpenVersion>, AgentError> {
        self.open_for(Purpose::Look, dataset, version).await
    }

    async fn open_for(
        &self,
        purpose: Purpose,
        dataset: &DatasetName,
        version: Option<Digest>,
    ) -> Result<Arc<OpenVersion>, AgentError> {
        let record = self.0.registry.dataset(dataset)?;
        let record = record.ok_or_else(|| AgentError::UnknownDataset(dataset.clone()))?;
        let digest = version.unwrap_or(record.version);
        let version = self.0.version(digest, Some(&record.origin)).await?;
        Ok(Arc::new(OpenVersion::new(
            Arc::clone(&self.0),
            version,
            purpose,
        )))
    }

    /// How much this node has of the datasets whose current version it has open; nobody is asked about the
    /// others. Looks into the registry, whose files may be on a network.
    pub fn datasets_here(&self) -> Result<Vec<(DatasetName, Progress)>, AgentError> {
        let records = self.0.registry.datasets()?.into_iter();
        let here = records.filter_map(|record| {
            let version = self.0.versions.opened(&record.version)?;
            let open = OpenVersion::new(Arc::clone(&self.0), version, Purpose::Look);
            Some((record.name, open.progress()))
        });
        Ok(here.collect())
    }

    /// Whether this node knows a version without asking anybody: its manifest is on a disk.
    pub fn holds(&self, version: Digest) -> bool {
        self.0.disks.home(&version).is_some()
    }

    /// The encoded manifest of a version, if this node has it: what its peers ask for.
    pub async fn manifest_bytes(&self, version: Digest) -> Result<Option<Bytes>, AgentError> {
        match self.0.disks.home(&version) {
            Some(disk) => Ok(disk.manifest_bytes(version).await?),
            None => Ok(None),
        }
    }

    /// The disks of the cache, in the order of their directories.
    pub fn disks(&self) -> Vec<DiskStatus> {
        self.0.disks.status()
    }

    /// What was counted so far.
    pub fn counters(&self) -> AgentCounters {
        self.0.counters.snapshot()
    }

    /// The fabric, once there is one.
    pub fn fabric(&self) -> Option<&Fabric> {
        self.0.filler.peers.fabric()
    }

    /// Whether the cache's files are read and written past the page cache.
    pub fn bypasses_page_cache(&self) -> bool {
        self.0.disks.is_direct()
    }

    /// Makes everything fetched so far survive a restart. To be called before ending; otherwise
    /// the last fraction of a second is fetched again.
    pub async fn flush(&self) {
        self.0.filler.settle().await;
        self.0.disks.flush().await;
    }
}
