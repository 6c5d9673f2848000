//! The fabric over verbs: a reliable connected queue pair a link, on which the server writes.
//!
//! The requester SENDs request frames, each entry with the address and key of its slot. The server
//! RDMA-WRITEs the data to the slot's start, then, with immediate, the trailer and behind it the
//! reply's frame; a refusal is an immediate alone, or one with the reply's frame if it names another
//! to ask. An immediate is `slot << 16 | status << 8 | tag`,
//! the tag cut to 8 bits: enough to notice a stray one, while the frame in the slot has all of it.
//!
//! Data goes in pieces, and each but the last carries an immediate that says "working". A queue pair
//! works in order, so nothing sent as a sign of life would overtake the data queued before it: the
//! data itself must show the requester that the peer is there, and its acknowledgements show the
//! server the same, as often as a piece takes and not a whole answer.
//!
//! Only arenas are remotely writable, each in a protection domain of its own: the keys of one peer
//! open nothing on another's connection, and the domain peers are served from has nothing to open.
//! Neither side can overrun the other: the server has a receive posted for every slot the requester
//! has, and the requester one for every piece of every slot and a few more for signs of life.
//!
//! Each link has a completion queue and its own descriptor, waited for by the ring; one a shard is
//! for when there are peers by the hundred.

mod client;
mod completions;
mod server;

use std::convert::Infallible;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::frame::Outcome;
use super::link::{PeerLink, link};
use super::meeting::{Endpoint, Greeting, GreetingError, Role};
use super::serve::{Desk, MAX_PEER_SLOTS, Server};
use super::{FabricConfig, FabricError, FabricKind};
use crate::shard::{Ring, Shard};
use crate::verbs::{
    Access, ConnectOptions, Context, LinkLayer, LocalPort, MemoryRegion, ProtectionDomain,
    device_names,
};

pub(super) use client::Half;

/// The most peers served at a time.
const MAX_PEERS: usize = 1024;

/// Receives of a requester beyond those for answers: for signs of life, of which one is under way at
/// most and the next comes a heartbeat later.
const SPARE_RECEIVES: usize = 8;

/// The least bytes of data written at a time: on a link that brings 50 KB/s, every 10 s.
const PIECE_BYTES: usize = 512 << 10;

/// The most pieces of an answer. Chunks of more than 8 MiB are written in larger ones.
const MAX_PIECES: usize = 16;

/// Bytes of data written at a time, for answers of up to that many.
fn piece_bytes(capacity: usize) -> usize {
    capacity.div_ceil(MAX_PIECES).max(PIECE_BYTES)
}

/// Pieces of the largest answer: so many immediates, the last of them with the trailer.
fn pieces(capacity: usize) -> usize {
    capacity.div_ceil(piece_bytes(capacity)).max(1)
}

/// The transport of a fabric over verbs.
pub(super) struct Verbs {
    shard: Shard,
    server: Arc<Server>,
    context: Arc<Context>,
    port: LocalPort,
    /// The slab, readable for our own writes; no peer reaches it.
    serving: Arc<MemoryRegion>,
    peers: Arc<AtomicUsize>,
    arena_slots: usize,
    deadline: Duration,
    ticket_lifetime: Duration,
    closed: async_channel::Receiver<Infallible>,
    /// Ends the connections of those who ask us when dropped.
    _open: async_channel::Sender<Infallible>,
}

impl Verbs {
    /// Opens the configured device, or the first of this network namespace that has an active port.
    pub(super) fn open_device(config: &FabricConfig) -> Result<Arc<Context>, FabricError> {
        if let Some(name) = &config.device {
            return Ok(Context::open(name)?);
        }
        let mut reason = "no RDMA device is here: use the fabric tcp".to_owned();
        for name in device_names()? {
            let context = Context::open(&name)?;
            match context.local_port(config.device_port, &config.gid) {
                Ok(port) if is_of_this_namespace(&port) => return Ok(context),
                Ok(port) => {
                    let address = port.gid.ip();
                    reason = format!("{name} has address {address}, which is of another namespace");
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(FabricError::Unavailable {
            kind: FabricKind::Verbs,
            reason,
        })
    }

    /// The device's name.
    pub(super) fn device(&self) -> &str {
        self.context.name()
    }

    /// Registers the slab and is ready to meet peers.
    pub(super) fn new(
        config: &FabricConfig,
        context: Arc<Context>,
        shard: Shard,
        server: Arc<Server>,
    ) -> Result<Verbs, FabricError> {
        let port = context.local_port(config.device_port, &config.gid)?;
        let largest = context.port(port.port)?.max_message_bytes;
        if server.chunk_capacity > largest as usize {
            return Err(FabricError::Unavailable {
                kind: FabricKind::Verbs,
                reason: format!(
                    "{} port {} carries messages of {largest} bytes at most, a chunk has up to {}",
                    context.name(),
                    port.port,
                    server.chunk_capacity
                ),
            });
        }
        let pd = ProtectionDomain::new(&context)?;
        let serving =
            MemoryRegion::register(&pd, Arc::clone(shard.slab()) as _, Access::LocalRead)?;
        let (open, closed) = async_channel::bounded(1);
        tracing::info!(device = context.name(), port = port.port, gid = %port.gid, "fabric over verbs");
        Ok(Verbs {
            shard,
            server,
            context,
            port,
            serving,
            peers: Arc::default(),
            arena_slots: config.arena_slots,
            deadline: config.deadline,
            ticket_lifetime: config.ticket_lifetime,
            closed,
            _open: open,
        })
    }

    fn capacity(&self) -> u32 {
        self.server.chunk_capacity as u32
    }

    /// Makes our half of a link: arena, queue pair, offer.
    pub(super) fn offer(&self, peer: &str) -> Result<(Half, Vec<u8>), FabricError> {
        let slot_bytes = self.shard.slab().slot_bytes();
        let half = Half::new(&self.context, self.port, peer, slot_bytes, self.arena_slots)?;
        let offer = Greeting {
            role: Role::Offer,
            chunk_capacity: self.capacity(),
            slots: self.arena_slots as u16,
            heartbeat: self.deadline / 4,
            endpoint: Endpoint::Verbs(half.endpoint()),
        };
        Ok((half, offer.encode()))
    }

    /// Connects a queue pair for the peer and serves it from now on.
    pub(super) fn accept(&self, peer: &str, offer: &[u8]) -> Result<Vec<u8>, FabricError> {
        let refused = |source| FabricError::Greeting {
            peer: peer.to_owned(),
            source,
        };
        let offer = Greeting::decode(offer, Role::Offer).map_err(refused)?;
        let Endpoint::Verbs(theirs) = offer.endpoint else {
            return Err(refused(GreetingError::Transport(FabricKind::Verbs)));
        };
        offer.check_capacity(self.capacity()).map_err(refused)?;
        let slots = usize::from(offer.slots);
        if slots == 0 || slots > MAX_PEER_SLOTS {
            return Err(refused(GreetingError::Slots(offer.slots)));
        }
        let place = Place::take(&self.peers).ok_or_else(|| FabricError::Busy {
            peer: peer.to_owned(),
        })?;
        let connected = server::connect(
            &self.context,
            self.port,
            &self.serving,
            slots,
            self.server.serves_per_peer,
            pieces(self.server.chunk_capacity),
            &theirs,
        )?;
        let answer = Greeting {
            role: Role::Answer,
            chunk_capacity: self.capacity(),
            slots: 0,
            heartbeat: Duration::ZERO,
            endpoint: Endpoint::Verbs(connected.endpoint()),
        };
        let desk = Desk::new(Arc::clone(&self.server), peer, slots);
        let patience = server::Patience {
            heartbeat: offer
                .heartbeat
                .clamp(Duration::from_millis(20), Duration::from_secs(30)),
            deadline: self.deadline,
            first_frame: self.ticket_lifetime,
        };
        let slab = Arc::clone(self.shard.slab());
        let closed = self.closed.clone();
        self.shard.spawn(move || async move {
            let _place = place;
            let ring = Ring::current().expect("this runs on a shard");
            server::drive(ring, connected, desk, slab, patience, closed).await;
        });
        Ok(answer.encode())
    }

    /// Connects our half with the peer's.
    pub(super) fn complete(
        &self,
        peer: &str,
        half: Half,
        answer: &[u8],
    ) -> Result<PeerLink, FabricError> {
        let refused = |source| FabricError::Greeting {
            peer: peer.to_owned(),
            source,
        };
        let answer = Greeting::decode(answer, Role::Answer).map_err(refused)?;
        answer.check_capacity(self.capacity()).map_err(refused)?;
        let Endpoint::Verbs(theirs) = answer.endpoint else {
            return Err(refused(GreetingError::Transport(FabricKind::Verbs)));
        };
        let arena = Arc::clone(half.arena());
        let connected = half.connect(&theirs)?;
        let counters = Arc::clone(&self.server.counters);
        let (link, driver) = link(peer, arena, self.shard.clone(), counters, self.deadline);
        self.shard.spawn(move || async move {
            let ring = Ring::current().expect("this runs on a shard");
            client::drive(ring, connected, driver).await;
        });
        Ok(link)
    }
}

/// Whether a port's address is one of ours. By default all RDMA devices of a machine are seen in all
/// its network namespaces, but a RoCE device reaches the network of its own only.
fn is_of_this_namespace(port: &LocalPort) -> bool {
    port.link_layer != LinkLayer::Ethernet
        || port.gid.is_link_local()
        || UdpSocket::bind((port.gid.ip(), 0)).is_ok()
}

/// How connections treat losses: a peer that acknowledges nothing for about two seconds is gone. One
/// that has no receive posted is waited for; both sides watch that work gets on.
///
/// Six retries, as soft-RoCE takes the largest number, seven, for any number.
fn connect_options() -> ConnectOptions {
    ConnectOptions {
        timeout: 16,
        retries: 6,
        not_ready_retries: 7,
        ..ConnectOptions::default()
    }
}

/// What an immediate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Immediate {
    slot: u16,
    status: u8,
    tag: u8,
}

impl Immediate {
    const PAYLOAD: u8 = 0;
    const WORKING: u8 = 0xff;

    /// The status of a reply.
    fn status(outcome: &Outcome) -> u8 {
        match outcome {
            Outcome::Payload(_) => Immediate::PAYLOAD,
            Outcome::Refused(refusal) => refusal.to_wire().0,
            Outcome::Working => Immediate::WORKING,
        }
    }

    const fn encode(self) -> u32 {
        (self.slot as u32) << 16 | (self.status as u32) << 8 | self.tag as u32
    }

    fn decode(bits: u32) -> Immediate {
        Immediate {
            slot: (bits >> 16) as u16,
            status: (bits >> 8) as u8,
            tag: bits as u8,
        }
    }
}

/// One of the places for peers that are served; free again when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(peers: &Arc<AtomicUsize>) -> Option<Place> {
        let place = Place(Arc::clone(peers));
        (peers.fetch_add(1, Ordering::Relaxed) < MAX_PEERS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
