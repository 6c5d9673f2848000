//! Chunks from peers: one interface over TCP and over verbs, with the same frames.
//!
//! A requester leases a slot of the arena it keeps for a peer and asks for a chunk; the peer brings
//! the chunk from wherever it has it and writes data and trailer into that slot. Requests issued
//! together travel together. Peers meet by opaque bytes that the control plane carries between
//! sides it has authenticated: [`Fabric::offer`], [`Fabric::accept`], [`Fabric::complete`].
//!
//! The fabric does not look at what it carries: a payload is as trustworthy as the peer until the
//! layer above has checked it against its seal. Time matters less than life: a link ends when a peer
//! that owes answers gives no sign of life for [`FabricConfig::deadline`]. Data that arrives is such
//! a sign, however little of an answer it is; a peer that has none to send yet says that it is at
//! work, and one that is too busy even for that is known to be there by its adapter, for a while. How
//! long a slow one is worth waiting for is decided above.
//!
//! A link that is cut ends each of its fetches with an error, once; the others never notice. A new
//! meeting makes a new link: what was fetched stays, and what failed is asked again by whoever
//! wants it. A requester that takes its answers slowly holds no more of the server than
//! [`FabricConfig::serves_per_peer`] slots, and stalls nobody but itself.

mod config;
mod counters;
mod error;
mod frame;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod link;
mod meeting;
mod serve;
mod session;
mod silence;
mod tcp;
mod verbs;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::shard::Shard;
use crate::slab::{Lease, PAGE_BYTES, Slab};
use crate::verbs::Context;
use counters::Counters;
use serve::Server;

pub use config::FabricConfig;
pub use counters::FabricCounters;
pub use error::FabricError;
pub use frame::TRAILER_BYTES;
pub use link::PeerLink;
pub use meeting::GreetingError;

/// What carries the chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FabricKind {
    /// TCP connections.
    Tcp,
    /// RDMA: reliable connected queue pairs.
    Verbs,
}

impl fmt::Display for FabricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FabricKind::Tcp => "tcp",
            FabricKind::Verbs => "verbs",
        })
    }
}

/// A text that names no fabric.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fabric: say tcp or verbs")]
pub struct UnknownFabric(String);

impl FromStr for FabricKind {
    type Err = UnknownFabric;

    fn from_str(text: &str) -> Result<FabricKind, UnknownFabric> {
        match text {
            "tcp" => Ok(FabricKind::Tcp),
            "verbs" => Ok(FabricKind::Verbs),
            _ => Err(UnknownFabric(text.to_owned())),
        }
    }
}

/// What a request waits for.
pub type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the layer above serves to peers.
pub trait ChunkSource: Send + Sync + 'static {
    /// What is to be waited for before the request is worth serving, if anything. It holds up nothing else,
    /// as it takes none of [`FabricConfig::serves_per_peer`]; so it must not hold a slot.
    ///
    /// Called and awaited as [`ChunkSource::serve`] is.
    fn before(&self, peer: &str, request: ChunkRequest) -> Option<Wait> {
        let _ = (peer, request);
        None
    }

    /// Brings the chunk into a lease, trailer included, or says why not. `peer` is the name that
    /// the control plane has authenticated. The slot must be of the shard's slot size.
    ///
    /// Called on the shard's thread, where the future also runs: it must not block. It is dropped
    /// if the peer goes away.
    fn serve(
        &self,
        peer: &str,
        request: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>>;

    /// A payload that [`ChunkSource::serve`] gave has left this node whole (`delivered`), or never
    /// will: called once for each, on the shard's thread, and must not block.
    fn ended(&self, peer: &str, request: ChunkRequest, delivered: bool) {
        let _ = (peer, request, delivered);
    }
}

/// Which chunk, of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRequest {
    /// Digest of the dataset version's manifest.
    pub version: [u8; 32],
    /// The chunk's index in the manifest.
    pub chunk: u32,
    /// Bits that the layers above agree on, such as [`ChunkRequest::FORWARDED`].
    pub flags: u16,
}

impl ChunkRequest {
    /// The requester is itself answering somebody: don't ask a third on its behalf.
    pub const FORWARDED: u16 = 1;

    /// The requester understands [`Refusal::AskInstead`].
    pub const MAY_BE_REFERRED: u16 = 2;

    /// The peer was named to the requester: what it is being sent itself, it is to give as well.
    pub const NAMED: u16 = 4;
}

/// A chunk in a slot: `len` bytes of data from the start, the trailer in the last page.
#[derive(Debug)]
pub struct Payload {
    /// The slot.
    pub lease: Lease,
    /// Bytes of data.
    pub len: u32,
}

impl Payload {
    /// The chunk's bytes.
    pub fn data(&self) -> &[u8] {
        &self.lease[..self.len as usize]
    }

    /// The trailer's bytes that travel.
    pub fn trailer(&self) -> &[u8] {
        &self.lease[trailer_at(self.lease.slab())..][..TRAILER_BYTES]
    }
}

/// Where in a slot the trailer is: the last page.
pub fn trailer_at(slab: &Slab) -> usize {
    slab.slot_bytes() - PAGE_BYTES
}

/// Bytes of data a slot has room for: all but the last page.
pub fn chunk_capacity(slab: &Slab) -> usize {
    slab.slot_bytes() - PAGE_BYTES
}

/// Why a peer does not bring a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The peer does not have the chunk.
    #[error("it does not have the chunk")]
    NotHere,
    /// The peer does not know the dataset version.
    #[error("it does not know the dataset version")]
    UnknownVersion,
    /// The peer has too much to do.
    #[error("it has too much to do")]
    Busy,
    /// The peer tried and failed; its log says why.
    #[error("it failed to bring the chunk (its log says why)")]
    Failed,
    /// The request makes no sense to the peer.
    #[error("it found the request malformed")]
    Malformed,
    /// Another has the chunk and less to do: whom, by a number that the layers above agree on. Only
    /// to a request with [`ChunkRequest::MAY_BE_REFERRED`].
    #[error("it named another that has the chunk")]
    AskInstead(u32),
}

impl Refusal {
    /// The number that travels, below 255, and what travels beside it.
    pub(crate) fn to_wire(self) -> (u8, u32) {
        match self {
            Refusal::NotHere => (1, 0),
            Refusal::UnknownVersion => (2, 0),
            Refusal::Busy => (3, 0),
            Refusal::Failed => (4, 0),
            Refusal::Malformed => (5, 0),
            Refusal::AskInstead(whom) => (6, whom),
        }
    }

    /// The refusal of that number, with what came beside it.
    pub(crate) fn from_wire(status: u16, beside: u32) -> Option<Refusal> {
        match (status, beside) {
            (6, whom) => Some(Refusal::AskInstead(whom)),
            (status, 0) => Refusal::plain(status),
            _ => None,
        }
    }

    /// The refusal of that number, of those that need nothing beside it.
    pub(crate) fn plain(status: u16) -> Option<Refusal> {
        Some(match status {
            1 => Refusal::NotHere,
            2 => Refusal::UnknownVersion,
            3 => Refusal::Busy,
            4 => Refusal::Failed,
            5 => Refusal::Malformed,
            _ => return None,
        })
    }
}

/// Why a fetch brought nothing. Only [`FetchError::Refused`] leaves the link usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The peer answered no.
    #[error("the peer refused: {0}")]
    Refused(Refusal),
    /// The peer, or the way to it, is gone.
    #[error("peer {peer} is gone: {reason}")]
    Gone {
        /// The peer's name.
        peer: String,
        /// What was observed.
        reason: String,
    },
    /// The peer gave no sign of life.
    #[error("peer {peer} gave no sign of life for {waited:?} while it owed an answer")]
    Timeout {
        /// The peer's name.
        peer: String,
        /// How long.
        waited: Duration,
    },
    /// The peer sent what it must not; the link is closed.
    #[error("peer {peer} broke the protocol: {reason}")]
    Malformed {
        /// The peer's name.
        peer: String,
        /// What it sent.
        reason: String,
    },
}

/// Our end of the network of peers: serves them from a source, and links to them for fetching.
/// Cheap to clone; dropping the last clone closes the data port and the connections of those who
/// ask us, while links on which we ask live on their own handles.
#[derive(Clone)]
pub struct Fabric {
    inner: Arc<Inner>,
}

struct Inner {
    kind: FabricKind,
    counters: Arc<Counters>,
    transport: Transport,
}

enum Transport {
    Tcp(tcp::Tcp),
    Verbs(verbs::Verbs),
}

/// Our half of a meeting that is under way.
pub struct PendingLink {
    peer: String,
    offer: Vec<u8>,
    half: Half,
}

enum Half {
    Tcp,
    Verbs(Box<verbs::Half>),
}

impl fmt::Debug for PendingLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingLink")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl PendingLink {
    /// What the control plane is to carry to the peer.
    pub fn offer_bytes(&self) -> &[u8] {
        &self.offer
    }
}

impl Fabric {
    /// Starts serving `source` to the peers that will be accepted.
    pub fn new(
        config: FabricConfig,
        shard: Shard,
        source: Arc<dyn ChunkSource>,
    ) -> Result<Fabric, FabricError> {
        config.check()?;
        match config.kind {
            FabricKind::Tcp => Self::start(config, shard, source, |config, shard, server| {
                Ok(Transport::Tcp(tcp::Tcp::new(config, shard, server)?))
            }),
            FabricKind::Verbs => {
                let context = verbs::Verbs::open_device(&config)?;
                Self::on_device(context, config, shard, source)
            }
        }
    }

    /// As [`Fabric::new`], over verbs on a device that is open already; [`FabricConfig::kind`] and
    /// [`FabricConfig::device`] are not looked at.
    pub fn on_device(
        context: Arc<Context>,
        config: FabricConfig,
        shard: Shard,
        source: Arc<dyn ChunkSource>,
    ) -> Result<Fabric, FabricError> {
        let config = FabricConfig {
            kind: FabricKind::Verbs,
            ..config
        };
        Self::start(config, shard, source, |config, shard, server| {
            Ok(Transport::Verbs(verbs::Verbs::new(
                config, context, shard, server,
            )?))
        })
    }

    fn start(
        config: FabricConfig,
        shard: Shard,
        source: Arc<dyn ChunkSource>,
        make: impl FnOnce(&FabricConfig, Shard, Arc<Server>) -> Result<Transport, FabricError>,
    ) -> Result<Fabric, FabricError> {
        config.check()?;
        let capacity = chunk_capacity(shard.slab());
        if u32::try_from(capacity).is_err() || capacity == 0 {
            let reason = format!("{capacity} bytes of data: 1 page to 4 GiB work");
            return Err(FabricError::Setting {
                name: "slot size",
                reason,
            });
        }
        let counters = Arc::new(Counters::default());
        let server = Arc::new(Server {
            source,
            counters: Arc::clone(&counters),
            serves_per_peer: config.serves_per_peer,
            chunk_capacity: capacity,
        });
        let transport = make(&config, shard, server)?;
        Ok(Fabric {
            inner: Arc::new(Inner {
                kind: config.kind,
                counters,
                transport,
            }),
        })
    }

    /// Begins a meeting with a peer that we want to ask.
    pub async fn offer(&self, peer: &str) -> Result<PendingLink, FabricError> {
        let (half, offer) = match &self.inner.transport {
            Transport::Tcp(tcp) => (Half::Tcp, tcp.offer()),
            Transport::Verbs(verbs) => {
                let (half, offer) = verbs.offer(peer)?;
                (Half::Verbs(Box::new(half)), offer)
            }
        };
        Ok(PendingLink {
            peer: peer.to_owned(),
            offer,
            half,
        })
    }

    /// Lets a peer ask us: takes its offer, gives the answer to carry back. `peer` must be the name
    /// that the control plane has authenticated.
    pub async fn accept(&self, peer: &str, offer: &[u8]) -> Result<Vec<u8>, FabricError> {
        match &self.inner.transport {
            Transport::Tcp(tcp) => tcp.accept(peer, offer),
            Transport::Verbs(verbs) => verbs.accept(peer, offer),
        }
    }

    /// Ends a meeting: the link is ready for fetching. `pending` must be of this fabric.
    pub async fn complete(
        &self,
        pending: PendingLink,
        answer: &[u8],
    ) -> Result<PeerLink, FabricError> {
        let PendingLink { peer, half, .. } = pending;
        match (&self.inner.transport, half) {
            (Transport::Tcp(tcp), Half::Tcp) => tcp.complete(&peer, answer).await,
            (Transport::Verbs(verbs), Half::Verbs(half)) => verbs.complete(&peer, *half, answer),
            _ => Err(FabricError::Greeting {
                peer,
                source: GreetingError::Transport(self.inner.kind),
            }),
        }
    }

    /// What carries the chunks.
    pub fn kind(&self) -> FabricKind {
        self.inner.kind
    }

    /// Where peers reach the data port, over TCP.
    pub fn data_address(&self) -> Option<SocketAddr> {
        match &self.inner.transport {
            Transport::Tcp(tcp) => Some(tcp.address()),
            Transport::Verbs(_) => None,
        }
    }

    /// The RDMA device in use, over verbs.
    pub fn device(&self) -> Option<&str> {
        match &self.inner.transport {
            Transport::Tcp(_) => None,
            Transport::Verbs(verbs) => Some(verbs.device()),
        }
    }

    /// What was done so far.
    pub fn counters(&self) -> FabricCounters {
        self.inner.counters.snapshot(self.inner.kind)
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric")
            .field("kind", &self.inner.kind)
            .finish_non_exhaustive()
    }
}
