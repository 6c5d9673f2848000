//! librdmacm without a device: connections between identifiers of this process, deterministic, with
//! faults on demand.
//!
//! It stands behind the same table of functions as the system's library, so [`crate::verbs::cm`] runs on
//! it unchanged; queue pairs are those of the mock devices. Everything is named by the address that an
//! identifier asks for or listens on, so tests that use different ports do not meet.

mod calls;
mod connecting;
mod identifiers;
mod world;

use std::net::SocketAddr;
use std::time::Instant;

use crate::verbs::cm::{ConnectError, Connector, Listener, Options};

/// What a call has for an answer instead of the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It fails at once with this errno.
    Refused(i32),
    /// It succeeds, and nothing ever comes of it.
    Silence,
    /// It succeeds, and an event comes: its number in `enum rdma_cm_event_type`, its status, and the
    /// private data with it.
    Event {
        /// The number.
        kind: u32,
        /// The status: 0, a negative errno, or a code of the protocol.
        status: i32,
        /// The private data, as long as it is.
        private_data: Vec<u8>,
    },
}

/// Begins to connect through this connection manager, as [`Connector::new`] does through the system's.
pub fn connector(
    address: SocketAddr,
    options: &Options,
    deadline: Instant,
) -> Result<Connector, ConnectError> {
    Connector::new_in(&calls::TABLE, address, options, deadline)
}

/// Listens through this connection manager, as [`Listener::bind`] does through the system's.
pub fn listener(address: SocketAddr, backlog: u16) -> Result<Listener, ConnectError> {
    Listener::bind_in(&calls::TABLE, address, backlog)
}

/// Gives the next call of this name (`rdma_connect`, …) on an identifier of this address another answer.
/// After several of one name they are taken in order.
pub fn answer(call: &'static str, address: SocketAddr, answer: Answer) {
    world::lock().answer(call, address, answer);
}

/// Lets every identifier of this address report an event, by its number and status.
pub fn report(address: SocketAddr, kind: u32, status: i32) {
    world::lock().report(address, kind, status);
}

/// Puts an event on the channel of every identifier of this address that is about another identifier,
/// which is gone.
pub fn report_of_another(address: SocketAddr, kind: u32) {
    world::lock().report_of_another(address, kind);
}

/// Lets the device of every identifier of this address, and of requests to it, vanish without an event: as
/// when it goes between two steps.
pub fn remove_device(address: SocketAddr) {
    world::lock().remove_device(address);
}

/// Identifiers of this address that exist.
pub fn identifiers(address: SocketAddr) -> usize {
    world::lock().of(address).len()
}
