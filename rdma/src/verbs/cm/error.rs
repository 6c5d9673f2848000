//! Why a connection could not be made or kept.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use super::private_data::{PrivateData, PrivateDataError};
use crate::sys::LoadError;
use crate::verbs::VerbsError;

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Finding the device and the neighbour for an address.
    Address,
    /// Finding the path.
    Route,
    /// Waiting for the peer's answer to our request.
    Answer,
    /// Waiting for the peer to confirm that it has our acceptance.
    Confirmation,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Address => "resolving its address",
            Phase::Route => "resolving the route",
            Phase::Answer => "waiting for its answer",
            Phase::Confirmation => "waiting for its confirmation",
        })
    }
}

/// Why a peer said no: the codes of the InfiniBand specification's REJ message (volume 1, section 12.6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Nobody listens on that port.
    NobodyListens,
    /// The program that listens refused; its private data may say why.
    ByApplication,
    /// The listener's device or host has no resources for another queue pair.
    NoResources,
    /// The peer waited too long for an answer of ours.
    PeerTimedOut,
    /// The peer still has the last connection of this queue pair.
    Stale,
    /// The peer does not accept the path: MTU, address or packet rate.
    Path(u16),
    /// Any other code.
    Other(u16),
}

impl Refusal {
    /// From the status of a rejection.
    pub(super) fn from_status(status: i32) -> Refusal {
        let code = status.unsigned_abs().min(u16::MAX.into()) as u16;
        match code {
            1..=3 => Refusal::NoResources,
            4 => Refusal::PeerTimedOut,
            8 => Refusal::NobodyListens,
            10 => Refusal::Stale,
            12..=18 | 20..=27 | 31 | 32 => Refusal::Path(code),
            28 => Refusal::ByApplication,
            code => Refusal::Other(code),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NobodyListens => f.write_str(
                "nobody listens there: is the peer's program running, on this port, in this network?",
            ),
            Refusal::ByApplication => f.write_str(
                "the program that listens there refused: its log and its private data say why",
            ),
            Refusal::NoResources => f.write_str(
                "it has no queue pair or memory left: close connections there, or raise its limits",
            ),
            Refusal::PeerTimedOut => {
                f.write_str("it waited too long for us: try again, and look for packet loss")
            }
            Refusal::Stale => {
                f.write_str("it has not forgotten the last connection yet: try again in some seconds")
            }
            Refusal::Path(code) => write!(
                f,
                "it does not accept the path (code {code}): compare MTU, addresses and routes of both ends"
            ),
            Refusal::Other(code) => write!(
                f,
                "code {code} of the InfiniBand specification, section 12.6.7.2"
            ),
        }
    }
}

/// Why a connection could not be made or kept.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// librdmacm can't be opened here.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// librdmacm lacks a function that it has since rdma-core 19.
    #[error("librdmacm has no {0}: update rdma-core to release 19 or later")]
    TooOld(&'static str),
    /// A call of librdmacm failed.
    #[error("{call} for {address}: {source}{}", hint(source))]
    Call {
        /// The function, by its C name.
        call: &'static str,
        /// The peer's address, or the one listened on.
        address: SocketAddr,
        /// The errno.
        source: io::Error,
    },
    /// No device leads to the address, or nobody has it.
    #[error(
        "{address} can't be resolved: {source}; is there an RDMA device on the net device that \
         `ip route get` names, and does `ping` reach the address from it?"
    )]
    Address {
        /// The peer's address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no path to the address.
    #[error(
        "there is no route to {address} on {device}: {source}; on InfiniBand, is a subnet manager running?"
    )]
    Route {
        /// The peer's address.
        address: SocketAddr,
        /// Our device.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The peer said no.
    #[error("{address} rejected the connection: {reason}")]
    Rejected {
        /// The peer's address.
        address: SocketAddr,
        /// Why.
        reason: Refusal,
        /// What came with it.
        private_data: PrivateData,
    },
    /// The peer can't be reached, or did not get our answer.
    #[error(
        "{address} could not be reached: {source}; do both ends' RDMA devices reach each other (UDP port \
         4791 for RoCE v2)?"
    )]
    Unreachable {
        /// The peer's address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing came in time.
    #[error(
        "{address} did not answer within {waited:?} ({phase}): is it up, and does a firewall let UDP port \
         4791 (RoCE v2) through?"
    )]
    TimedOut {
        /// The peer's address.
        address: SocketAddr,
        /// What was waited for.
        phase: Phase,
        /// How long, from the first step on.
        waited: Duration,
    },
    /// The peer went while the connection was being made.
    #[error("{address} went away while the connection was being made: try again")]
    Gone {
        /// The peer's address.
        address: SocketAddr,
    },
    /// Our device was removed.
    #[error("the RDMA device on the way to {address} was removed: connect anew on another")]
    DeviceRemoved {
        /// The peer's address.
        address: SocketAddr,
    },
    /// The queue pair is of a device or port that does not lead to the peer.
    #[error(
        "{address} is reached by {route}, but the queue pair is on {given}: make it on the route's device \
         and port"
    )]
    OtherDevice {
        /// The peer's address.
        address: SocketAddr,
        /// The device and port of the route.
        route: String,
        /// Those of the queue pair.
        given: String,
    },
    /// Private data that does not fit.
    #[error(transparent)]
    PrivateData(#[from] PrivateDataError),
    /// Opening our device, or bringing the queue pair up.
    #[error(transparent)]
    Verbs(#[from] VerbsError),
}

/// What a failed call usually means, as a clause to append.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENODEV) => {
            "; no RDMA device is on the way to or at this address, or rdma_ucm is not loaded (`modprobe rdma_ucm`)"
        }
        Some(libc::ENOENT | libc::EACCES | libc::EPERM) => {
            "; /dev/infiniband/rdma_cm is missing or not ours: load rdma_ucm, or give the container the device"
        }
        Some(libc::EADDRINUSE) => "; another program listens there: choose another port",
        Some(libc::EADDRNOTAVAIL) => "; this address is not one of this host",
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => "; `ip route get` shows no way to it",
        Some(libc::EMFILE | libc::ENFILE) => "; too many files are open: raise `ulimit -n`",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_code_of_a_rejection_has_a_meaning_to_print(status: i32) {
            prop_assert!(!Refusal::from_status(status).to_string().is_empty());
        }
    }

    #[test]
    fn the_codes_people_meet_are_told_apart() {
        assert_eq!(Refusal::from_status(8), Refusal::NobodyListens);
        assert_eq!(Refusal::from_status(28), Refusal::ByApplication);
        assert_eq!(Refusal::from_status(10), Refusal::Stale);
        assert_eq!(Refusal::from_status(1), Refusal::NoResources);
        assert_eq!(Refusal::from_status(26), Refusal::Path(26));
        assert_eq!(Refusal::from_status(6), Refusal::Other(6));
    }

    #[test]
    fn a_call_that_failed_says_what_to_do() {
        let error = ConnectError::Call {
            call: "rdma_resolve_addr",
            address: SocketAddr::from(([10, 0, 0, 1], 7)),
            source: io::Error::from_raw_os_error(libc::ENODEV),
        };
        let text = error.to_string();
        assert!(
            text.contains("10.0.0.1:7") && text.contains("rdma_ucm"),
            "{text}"
        );
    }
}
