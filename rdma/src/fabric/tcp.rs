//! The fabric over TCP: one connection a link, opened by the requester to the server's data port.
//!
//! The port speaks to nobody without a ticket: 32 random bytes that [`Tcp::accept`] puts into an
//! answer, which the control plane carries to the peer it has authenticated. A ticket works once
//! and for a short time. Data is not encrypted here: the data network is one that is trusted for
//! RDMA as well, and every payload is verified above against its seal.

mod client;
mod server;
mod socket;
mod tickets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::link::{PeerLink, link};
use super::meeting::{Endpoint, Greeting, GreetingError, Role};
use super::serve::{MAX_PEER_SLOTS, Server};
use super::{FabricConfig, FabricError};
use crate::shard::{Ring, Shard, spawn_local};
use crate::slab::Slab;
use tickets::{Admission, Tickets};

/// The transport of a fabric over TCP.
pub(super) struct Tcp {
    shard: Shard,
    server: Arc<Server>,
    tickets: Arc<Tickets>,
    /// Where peers reach our data port.
    address: SocketAddr,
    arena_slots: usize,
    deadline: Duration,
    /// Ends the data port and its connections when dropped.
    _open: async_channel::Sender<std::convert::Infallible>,
}

impl Tcp {
    /// Opens the data port.
    pub(super) fn new(
        config: &FabricConfig,
        shard: Shard,
        server: Arc<Server>,
    ) -> Result<Tcp, FabricError> {
        let listen = config.listen;
        let failed = |attempt, source| FabricError::Socket {
            attempt,
            address: listen,
            source,
        };
        let listener = socket::listen(listen).map_err(|error| failed("listening on", error))?;
        let bound = listener
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket())
            .ok_or(FabricError::Advertise { listen })?;
        let address = match config.advertise {
            Some(ip) => SocketAddr::new(ip, bound.port()),
            None if bound.ip().is_unspecified() => return Err(FabricError::Advertise { listen }),
            None => bound,
        };
        let tickets = Arc::new(Tickets::new(config.ticket_lifetime));
        let (open, closed) = async_channel::bounded(1);
        let port = server::Port {
            server: Arc::clone(&server),
            tickets: Arc::clone(&tickets),
            deadline: config.deadline,
            closed,
        };
        shard.spawn(move || port.run(Arc::new(listener.into())));
        Ok(Tcp {
            shard,
            server,
            tickets,
            address,
            arena_slots: config.arena_slots,
            deadline: config.deadline,
            _open: open,
        })
    }

    /// Where peers reach our data port.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn offer(&self) -> Vec<u8> {
        Greeting {
            role: Role::Offer,
            chunk_capacity: self.server.chunk_capacity as u32,
            slots: self.arena_slots as u16,
            heartbeat: self.deadline / 4,
            endpoint: Endpoint::TcpRequester,
        }
        .encode()
    }

    pub(super) fn accept(&self, peer: &str, offer: &[u8]) -> Result<Vec<u8>, FabricError> {
        let refused = |source| FabricError::Greeting {
            peer: peer.to_owned(),
            source,
        };
        let offer = Greeting::decode(offer, Role::Offer).map_err(refused)?;
        if offer.endpoint != Endpoint::TcpRequester {
            return Err(refused(GreetingError::Transport(super::FabricKind::Tcp)));
        }
        offer
            .check_capacity(self.server.chunk_capacity as u32)
            .map_err(refused)?;
        if offer.slots == 0 || usize::from(offer.slots) > MAX_PEER_SLOTS {
            return Err(refused(GreetingError::Slots(offer.slots)));
        }
        let admission = Admission {
            peer: peer.to_owned(),
            slots: usize::from(offer.slots),
            heartbeat: offer
                .heartbeat
                .clamp(Duration::from_millis(20), Duration::from_secs(30)),
        };
        let ticket = self.tickets.issue(admission)?;
        Ok(Greeting {
            role: Role::Answer,
            chunk_capacity: self.server.chunk_capacity as u32,
            slots: 0,
            heartbeat: Duration::ZERO,
            endpoint: Endpoint::TcpServer {
                address: self.address,
                ticket,
            },
        }
        .encode())
    }

    pub(super) async fn complete(
        &self,
        peer: &str,
        answer: &[u8],
    ) -> Result<PeerLink, FabricError> {
        let refused = |source| FabricError::Greeting {
            peer: peer.to_owned(),
            source,
        };
        let answer = Greeting::decode(answer, Role::Answer).map_err(refused)?;
        answer
            .check_capacity(self.server.chunk_capacity as u32)
            .map_err(refused)?;
        let Endpoint::TcpServer { address, ticket } = answer.endpoint else {
            return Err(refused(GreetingError::Transport(super::FabricKind::Tcp)));
        };
        let slot_bytes = self.shard.slab().slot_bytes();
        let arena = Slab::new(&format!("arena of {peer}"), slot_bytes, self.arena_slots)?;
        let counters = Arc::clone(&self.server.counters);
        let (link, driver) = link(peer, arena, self.shard.clone(), counters, self.deadline);
        let peer = peer.to_owned();
        let deadline = self.deadline;
        self.shard
            .on_shard(move || async move {
                let ring = Ring::current().expect("this runs on a shard");
                let socket = client::connect(&ring, &peer, address, &ticket, deadline).await?;
                spawn_local(client::drive(ring, socket, driver));
                Ok(link)
            })
            .await
    }
}
