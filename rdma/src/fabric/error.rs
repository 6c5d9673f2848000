//! Why a fabric could not start or peers could not meet.

use std::io;
use std::net::SocketAddr;

use super::{FabricKind, GreetingError};
use crate::slab::SlabError;
use crate::verbs::VerbsError;

/// Why a fabric could not start or peers could not meet.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// The data port.
    #[error("{attempt} the data port {address} failed: {source}")]
    Socket {
        /// What was attempted.
        attempt: &'static str,
        /// On which address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Peers can't be told where to connect.
    #[error("peers can't connect to {listen}: listen on one address, or say which to advertise")]
    Advertise {
        /// Where the data port listens.
        listen: SocketAddr,
    },
    /// A setting makes no sense.
    #[error("fabric setting {name}: {reason}")]
    Setting {
        /// Which.
        name: &'static str,
        /// Why not.
        reason: String,
    },
    /// This fabric is not to be had here.
    #[error("fabric {kind} can't be used: {reason}")]
    Unavailable {
        /// Which.
        kind: FabricKind,
        /// Why, and what to do.
        reason: String,
    },
    /// The memory for a peer's payloads.
    #[error(transparent)]
    Arena(#[from] SlabError),
    /// The RDMA device, or what was to be made on it.
    #[error(transparent)]
    Verbs(#[from] VerbsError),
    /// A queue pair that takes no work.
    #[error("preparing a queue pair failed: {reason}")]
    Post {
        /// What refused, and why.
        reason: String,
    },
    /// No randomness for a ticket.
    #[error("reading /dev/urandom for a ticket failed: {source}")]
    Random {
        /// What the system said.
        source: io::Error,
    },
    /// Too many peers are connecting.
    #[error("peer {peer} has to try again: too many are being connected")]
    Busy {
        /// The peer's name.
        peer: String,
    },
    /// The bytes the control plane brought.
    #[error("the greeting of peer {peer} can't be used: {source}")]
    Greeting {
        /// The peer's name.
        peer: String,
        /// What is wrong with it.
        source: GreetingError,
    },
    /// The data connection.
    #[error("{attempt} at {address}, the data port of peer {peer}, failed: {source}")]
    Connect {
        /// The peer's name.
        peer: String,
        /// Its data port.
        address: SocketAddr,
        /// What was attempted.
        attempt: &'static str,
        /// What the system or the peer said.
        source: io::Error,
    },
}
