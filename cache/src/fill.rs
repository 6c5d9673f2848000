//! Brings a chunk to this node: from a peer that owns it, else from the origin, once however many
//! readers wait for it.
//!
//! Whom to ask is decided by pure functions in [`plan`]. What arrives is checked against its seal
//! before anyone sees it, handed to all who wait as one [`Filled`] in pinned memory, and written to
//! the store from there: a reader does not wait for the disk. A disk that is full or failing does
//! not fail the fill.

mod ask;
mod budget;
mod flight;
mod from_origin;
mod from_peer;
mod from_sibling;
mod keeping;
mod pace;
mod plan;
mod recent;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::future::{self, Either};
use futures_timer::Delay;
use trackbed_rdma::shard::Shard;
use trackbed_rdma::slab::{Lease, PAGE_BYTES, Slab};

use crate::digest::Digest;
use crate::membership::Membership;
use crate::metrics::Counters;
use crate::open::Version;
use crate::origin::{OpenOrigin, OriginError};
use crate::peers::Peers;
use crate::placement;
use crate::registry::Member;
use crate::seal::Seal;
use crate::store::ChunkFault;
use crate::workers::Workers;

use budget::RetryBudget;
use flight::{Flights, Lead};
use keeping::{Keeping, Kept};
use pace::Pace;
use plan::Situation;
use recent::Recent;

pub(crate) use from_sibling::{Known, Siblings};

/// How long a fill may take in all, from every source it tries.
const FILL_DEADLINE: Duration = Duration::from_secs(120);
/// How often the log repeats that the disk is full.
const FULL_LOG_EVERY: Duration = Duration::from_secs(30);

/// A whole chunk in pinned memory, checked against its seal, the seal in the slot's trailer.
pub(crate) struct Filled {
    lease: Arc<Lease>,
    seal: Arc<Seal>,
}

impl Filled {
    /// The chunk at the beginning of `lease`, which was found to be what `seal` says.
    fn new(mut lease: Lease, seal: Arc<Seal>) -> Filled {
        let end = seal.len().next_multiple_of(PAGE_BYTES).min(lease.len());
        // The last page goes to the disk whole; what the slot held before is nobody's business.
        lease[seal.len()..end].fill(0);
        Filled {
            lease: Arc::new(lease),
            seal,
        }
    }

    /// The slot and the chunk's length, for whoever is the last to hold it.
    pub(crate) fn into_lease(self) -> Result<(Lease, u32), Filled> {
        let len = self.seal.len() as u32;
        let seal = self.seal;
        match Arc::try_unwrap(self.lease) {
            Ok(lease) => Ok((lease, len)),
            Err(lease) => Err(Filled { lease, seal }),
        }
    }

    /// The whole slot: chunk and trailer.
    pub(crate) fn slot(&self) -> &[u8] {
        &self.lease
    }

    pub(crate) fn len(&self) -> usize {
        self.seal.len()
    }

    pub(crate) fn slab(&self) -> &Arc<Slab> {
        self.lease.slab()
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.lease[..self.seal.len()]
    }
}

/// Why nobody could deliver a chunk.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The origin said why.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// Peers were asked and the origin was not, or not to be asked.
    #[error(
        "chunk {chunk} of version {version}: {tried}: check that the nodes that own it run and reach each other and the origin"
    )]
    NoSource {
        /// The chunk's index.
        chunk: u32,
        /// The version.
        version: Digest,
        /// Who was asked and how that ended.
        tried: String,
    },
    /// It took too long.
    #[error(
        "chunk {chunk} of version {version} did not arrive within {waited:?}: check the origin and the network"
    )]
    Late {
        /// The chunk's index.
        chunk: u32,
        /// The version.
        version: Digest,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The task that was to bring it ended before it did.
    #[error("bringing chunk {chunk} of version {version} was broken off: read again")]
    BrokenOff {
        /// The chunk's index.
        chunk: u32,
        /// The version.
        version: Digest,
    },
}

/// What all who wait for a fill get.
pub(crate) type FillResult = Result<Arc<Filled>, Arc<FillError>>;

/// A chunk in memory.
#[derive(Clone)]
struct Arrived {
    filled: Arc<Filled>,
    /// Where it is being written.
    kept: Option<Kept>,
}

/// What a fill has brought.
enum Brought {
    /// It was in memory or on the disk already.
    There(Arrived),
    /// It is to be written.
    New(Arc<Filled>),
}

/// For whom a chunk is brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum For {
    /// A reader on this node, who reads on nearby.
    Reader,
    /// This node's disk.
    Store,
    /// A peer that takes this node for an owner.
    Peer,
}

/// A fill under way, and whether it may wait for peers to bring the chunk. Those that may are apart
/// from those that may not: a peer that takes us for an owner must not wait for a fill of ours that
/// itself waits for that peer, as could happen while members disagree about who is one.
type FlightKey = (Digest, u32, bool);

/// All that filling needs.
pub(crate) struct Filler {
    pub(crate) node: String,
    pub(crate) shard: Shard,
    pub(crate) slab: Arc<Slab>,
    pub(crate) workers: Workers,
    pub(crate) counters: Arc<Counters>,
    pub(crate) membership: Membership,
    pub(crate) peers: Peers,
    pub(crate) origins: Arc<dyn OpenOrigin>,
    flights: Flights<FlightKey, Result<Arrived, Arc<FillError>>>,
    recent: Recent,
    keeping: Keeping,
    /// Of reads of the origin that are made again.
    budget: RetryBudget,
    /// Of requests to a second peer beside a slow one.
    hedges: RetryBudget,
    pace: Pace,
    full_logged: parking_lot::Mutex<Option<Instant>>,
    siblings: OnceLock<Box<dyn Siblings>>,
}

/// What a [`Filler`] is made of.
pub(crate) struct FillerParts {
    pub(crate) node: String,
    pub(crate) shard: Shard,
    pub(crate) slab: Arc<Slab>,
    pub(crate) workers: Workers,
    pub(crate) counters: Arc<Counters>,
    pub(crate) membership: Membership,
    pub(crate) peers: Peers,
    pub(crate) origins: Arc<dyn OpenOrigin>,
}

impl Filler {
    pub(crate) fn new(parts: FillerParts) -> Filler {
        let FillerParts {
            node,
            shard,
            slab,
            workers,
            counters,
            membership,
            peers,
            origins,
        } = parts;
        Filler {
            node,
            shard,
            slab,
            workers,
            counters,
            membership,
            peers,
            origins,
            flights: Flights::default(),
            recent: Recent::default(),
            keeping: Keeping::default(),
            budget: RetryBudget::default(),
            hedges: RetryBudget::default(),
            pace: Pace::default(),
            full_logged: parking_lot::Mutex::default(),
            siblings: OnceLock::new(),
        }
    }

    /// The chunk, if it was filled a moment ago and is still in memory.
    pub(crate) fn in_memory(&self, version: &Version, chunk: u32) -> Option<Arc<Filled>> {
        let key = (version.digest(), chunk);
        let being_written = || self.keeping.get(&key).map(|(filled, _)| filled);
        self.recent.get(&key).or_else(being_written)
    }

    /// Whether a chunk is on its way to this node's disk already.
    pub(crate) fn is_on_its_way(&self, version: &Version, chunk: u32) -> bool {
        let key = (version.digest(), chunk);
        self.keeping.has(&key)
            || [true, false]
                .iter()
                .any(|&asks| self.flights.has(&(key.0, chunk, asks)))
    }

    /// Waits for a chunk that is on its way to this node already, for so long at most.
    pub(crate) async fn arrival(&self, version: &Version, chunk: u32, patience: Duration) {
        let under_way = |asks| self.flights.join_if_any(&(version.digest(), chunk, asks));
        if let Some(arrival) = under_way(true).or_else(|| under_way(false)) {
            future::select(arrival, Delay::new(patience)).await;
        }
    }

    /// Waits until what has arrived so far is on the disk.
    pub(crate) async fn settle(&self) {
        self.keeping.settle().await;
    }

    fn situation(&self, members: &[Member], chunk_id: &Digest, wanted: For) -> Situation {
        Situation {
            me: members.iter().position(|member| member.name == self.node),
            owners: placement::owners(members, chunk_id),
            for_peer: wanted == For::Peer,
        }
    }

    /// Brings the chunk, or waits for the fill that is bringing it; for the store, until it is
    /// there or was refused. The fill goes on if the future is dropped.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        version: &Arc<Version>,
        chunk: u32,
        wanted: For,
    ) -> FillResult {
        let digest = version.digest();
        let chunk_id = version.manifest().chunk_id(chunk);
        let asks = self
            .situation(&self.membership.now(), &chunk_id, wanted)
            .asks_on();
        let (arrival, lead) = self.flights.join((digest, chunk, asks));
        match lead {
            Some(lead) => {
                let (filler, version) = (Arc::clone(self), Arc::clone(version));
                self.shard
                    .spawn(move || async move { filler.run(&version, chunk, wanted, lead).await });
            }
            None => self.counters.fills_joined.add(1),
        }
        let broken_off = |_| {
            Err(Arc::new(FillError::BrokenOff {
                chunk,
                version: digest,
            }))
        };
        let Arrived { filled, kept } = arrival.await.unwrap_or_else(broken_off)?;
        match (wanted, kept) {
            (For::Reader, _) => self.recent.insert((digest, chunk), Arc::clone(&filled)),
            (For::Store, Some(kept)) => kept.wait().await,
            (For::Store, None) | (For::Peer, _) => {}
        }
        Ok(filled)
    }

    /// Brings the chunk, hands it to all who wait, and writes it.
    async fn run(
        self: &Arc<Self>,
        version: &Arc<Version>,
        chunk: u32,
        wanted: For,
        lead: Lead<FlightKey, Result<Arrived, Arc<FillError>>>,
    ) {
        let bring = std::pin::pin!(self.bring(version, chunk, wanted));
        let brought = match future::select(bring, Delay::new(FILL_DEADLINE)).await {
            Either::Left((brought, _)) => brought,
            Either::Right(((), _)) => Err(FillError::Late {
                chunk,
                version: version.digest(),
                waited: FILL_DEADLINE,
            }),
        };
        let key = (version.digest(), chunk);
        match brought {
            Ok(Brought::There(arrived)) => lead.finish(Ok(arrived)),
            Ok(Brought::New(filled)) => {
                // Found there before it leaves the flights, so that nobody fetches it anew.
                let writing = self.keeping.begin(key, &filled);
                let kept = self.keeping.get(&key).map(|(_, kept)| kept);
                let arrived = Arrived {
                    filled: Arc::clone(&filled),
                    kept,
                };
                lead.finish(Ok(arrived));
                if writing.is_some() {
                    self.keep(version, chunk, filled).await;
                }
            }
            Err(error) => {
                self.counters.fill_errors.add(1);
                tracing::warn!(version = %version.digest().short(), chunk, %error, "a fill failed");
                lead.finish(Err(Arc::new(error)));
            }
        }
    }

    async fn keep(&self, version: &Arc<Version>, chunk: u32, filled: Arc<Filled>) {
        let stored = version
            .store()
            .write(chunk, &filled.seal, &filled.lease)
            .await;
        if let Err(fault) = stored {
            self.note_unstored(version, chunk, &fault);
            // Memory is then the only place where others can find it for a while.
            self.recent.insert((version.digest(), chunk), filled);
        }
    }

    async fn bring(
        self: &Arc<Self>,
        version: &Arc<Version>,
        chunk: u32,
        wanted: For,
    ) -> Result<Brought, FillError> {
        let key = (version.digest(), chunk);
        let there = |filled, kept| Ok(Brought::There(Arrived { filled, kept }));
        // Someone may have brought it since the caller looked.
        if let Some((filled, kept)) = self.keeping.get(&key) {
            return there(filled, Some(kept));
        }
        let stored = version.store().has(chunk);
        if let Some(filled) = self.recent.get(&key) {
            return match wanted {
                For::Store if !stored => Ok(Brought::New(filled)),
                _ => there(filled, None),
            };
        }
        if stored && let Some(filled) = self.reread(version, chunk).await {
            return there(Arc::new(filled), None);
        }
        if let Some(filled) = self.take_from_sibling(version, chunk).await {
            self.counters.fills.add(1);
            return Ok(Brought::New(Arc::new(filled)));
        }
        let (lease, seal) = self.ask_around(version, chunk, wanted).await?;
        self.counters.fills.add(1);
        Ok(Brought::New(Arc::new(Filled::new(lease, seal))))
    }

    async fn reread(&self, version: &Arc<Version>, chunk: u32) -> Option<Filled> {
        let lease = self.slab.lease().await;
        let (lease, read) = version.store().read_whole(chunk, lease).await;
        read.ok()?;
        let seal = crate::seal::trailer(&lease)?;
        Some(Filled::new(lease, Arc::new(seal)))
    }

    fn note_unstored(&self, version: &Version, chunk: u32, fault: &ChunkFault) {
        self.counters.unstored_chunks.add(1);
        let mut logged = self.full_logged.lock();
        if logged.is_none_or(|at| at.elapsed() >= FULL_LOG_EVERY) {
            *logged = Some(Instant::now());
            tracing::warn!(version = %version.digest().short(), chunk, %fault,
                "a chunk could not be stored and is served from memory: give the cache more space; it is tried again with the next read");
        }
    }
}
