//! Brings a chunk to this node: from a peer that owns it, else from the origin, once however many
//! readers wait for it.
//!
//! Whom to ask is decided by pure functions in [`plan`]. What arrives is checked against its seal
//! before anyone sees it, written to the store, and handed to all who wait as one [`Filled`] in
//! pinned memory. A disk that is full or failing does not fail the fill.

mod budget;
mod flight;
mod from_origin;
mod from_peer;
mod plan;
mod recent;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{self, Either};
use futures_timer::Delay;
use trackbed_rdma::shard::Shard;
use trackbed_rdma::slab::{Lease, Slab};

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
use flight::Flights;
use plan::{Outcome, Situation, Source, Step};
use recent::Recent;

/// How long a fill may take in all, from every source it tries.
const FILL_DEADLINE: Duration = Duration::from_secs(120);
/// First wait for an owner that has too much to do; doubled each time up to a second.
const BUSY_WAIT: Duration = Duration::from_millis(20);
/// How often the log repeats that the disk is full.
const FULL_LOG_EVERY: Duration = Duration::from_secs(30);

/// A whole chunk in pinned memory, checked against its seal, the seal in the slot's trailer.
pub(crate) struct Filled {
    lease: Lease,
    seal: Arc<Seal>,
}

impl Filled {
    /// The slot and the chunk's length, for whoever is the last to hold it.
    pub(crate) fn into_lease(self) -> (Lease, u32) {
        let len = self.seal.len() as u32;
        (self.lease, len)
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
    flights: Flights<FlightKey, FillResult>,
    recent: Recent,
    budget: RetryBudget,
    full_logged: parking_lot::Mutex<Option<Instant>>,
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
            budget: RetryBudget::default(),
            full_logged: parking_lot::Mutex::default(),
        }
    }

    /// The chunk, if it was filled a moment ago and is still in memory.
    pub(crate) fn recent(&self, version: &Version, chunk: u32) -> Option<Arc<Filled>> {
        self.recent.get(&(version.digest(), chunk))
    }

    /// Whether a chunk is on its way to this node already.
    pub(crate) fn is_on_its_way(&self, version: &Version, chunk: u32) -> bool {
        [true, false]
            .iter()
            .any(|&asks| self.flights.has(&(version.digest(), chunk, asks)))
    }

    fn situation(
        &self,
        members: &[Member],
        version: &Version,
        chunk: u32,
        wanted: For,
    ) -> Situation {
        Situation {
            me: members.iter().position(|member| member.name == self.node),
            owners: placement::owners(members, &version.digest(), chunk),
            for_peer: wanted == For::Peer,
        }
    }

    /// Brings the chunk, or waits for the fill that is bringing it. The fill goes on if the future
    /// is dropped.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        version: &Arc<Version>,
        chunk: u32,
        wanted: For,
    ) -> FillResult {
        let digest = version.digest();
        let asks = self
            .situation(&self.membership.now(), version, chunk, wanted)
            .asks_on();
        let (arrival, lead) = self.flights.join((digest, chunk, asks));
        match lead {
            Some(lead) => {
                let (filler, version) = (Arc::clone(self), Arc::clone(version));
                self.shard.spawn(move || async move {
                    let result = filler.run(&version, chunk, wanted).await;
                    lead.finish(result);
                });
            }
            None => self.counters.fills_joined.add(1),
        }
        let broken_off = |_| {
            Err(Arc::new(FillError::BrokenOff {
                chunk,
                version: digest,
            }))
        };
        let result = arrival.await.unwrap_or_else(broken_off);
        if let (Ok(filled), For::Reader) = (&result, wanted) {
            self.recent.insert((digest, chunk), Arc::clone(filled));
        }
        result
    }

    async fn run(self: &Arc<Self>, version: &Arc<Version>, chunk: u32, wanted: For) -> FillResult {
        let bring = std::pin::pin!(self.bring(version, chunk, wanted));
        let brought = match future::select(bring, Delay::new(FILL_DEADLINE)).await {
            Either::Left((brought, _)) => brought,
            Either::Right(((), _)) => Err(FillError::Late {
                chunk,
                version: version.digest(),
                waited: FILL_DEADLINE,
            }),
        };
        match brought {
            Ok(filled) => Ok(filled),
            Err(error) => {
                self.counters.fill_errors.add(1);
                tracing::warn!(version = %version.digest().short(), chunk, %error, "a fill failed");
                Err(Arc::new(error))
            }
        }
    }

    async fn bring(
        self: &Arc<Self>,
        version: &Arc<Version>,
        chunk: u32,
        wanted: For,
    ) -> Result<Arc<Filled>, FillError> {
        // Someone may have brought it since the caller looked. What is to be stored must come anew:
        // a chunk in memory is shared, and can't be written from there.
        if wanted != For::Store
            && let Some(filled) = self.recent(version, chunk)
        {
            return Ok(filled);
        }
        if version.store().has(chunk)
            && let Some(filled) = self.reread(version, chunk).await
        {
            return Ok(Arc::new(filled));
        }
        let (lease, seal) = self.ask_around(version, chunk, wanted).await?;
        self.counters.fills.add(1);
        let (lease, stored) = version.store().write(chunk, &seal, lease).await;
        let filled = Arc::new(Filled { lease, seal });
        if let Err(fault) = stored {
            self.note_unstored(version, chunk, &fault);
            // Memory is then the only place where others can find it for a while.
            self.recent
                .insert((version.digest(), chunk), Arc::clone(&filled));
        }
        Ok(filled)
    }

    async fn reread(&self, version: &Arc<Version>, chunk: u32) -> Option<Filled> {
        let lease = self.slab.lease().await;
        let (lease, read) = version.store().read_whole(chunk, lease).await;
        read.ok()?;
        let seal = crate::seal::trailer(&lease)?;
        Some(Filled {
            lease,
            seal: Arc::new(seal),
        })
    }

    /// Asks one source after the other, as planned, until one delivers.
    async fn ask_around(
        &self,
        version: &Arc<Version>,
        chunk: u32,
        wanted: For,
    ) -> Result<(Lease, Arc<Seal>), FillError> {
        let mut tried: Vec<(Source, Outcome)> = Vec::new();
        let mut told = Vec::new();
        let mut busy_wait = BUSY_WAIT;
        loop {
            let members = self.membership.now();
            let situation = self.situation(&members, version, chunk, wanted);
            let usable = |source: &Source| match source {
                Source::Peer {
                    member,
                    stored_only: true,
                } => self.peers.is_linked(&members[*member]),
                Source::Peer { member, .. } => !self.peers.is_down(&members[*member].name),
                Source::Origin => true,
            };
            match plan::next(&situation, &tried, usable) {
                Step::Ask(Source::Origin) => {
                    return self
                        .read_origin(version, chunk)
                        .await
                        .map_err(FillError::Origin);
                }
                Step::Ask(
                    source @ Source::Peer {
                        member,
                        stored_only,
                    },
                ) => {
                    let member = &members[member];
                    match self.ask_peer(version, chunk, member, stored_only).await {
                        Ok(filled) => return Ok(filled),
                        Err(failure) => {
                            if !stored_only {
                                told.push(format!("{}: {failure}", member.name));
                            }
                            tried.push((source, failure.outcome()));
                        }
                    }
                }
                Step::Wait => {
                    Delay::new(busy_wait).await;
                    busy_wait = (busy_wait * 2).min(Duration::from_secs(1));
                    tried.retain(|(_, outcome)| *outcome != Outcome::Busy);
                    told.clear();
                }
                Step::GiveUp => {
                    let tried = told.join("; ");
                    return Err(FillError::NoSource {
                        chunk,
                        version: version.digest(),
                        tried,
                    });
                }
            }
        }
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
