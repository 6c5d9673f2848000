//! Measures what two devices move between them with plain verbs: no GPU, no vendor's tool.
//!
//! The client decides what is measured and tells the server, so that both ends always run the same
//! thing; they agree on the kind of GID too. Each size ends with both ends comparing what arrived with
//! what was to be sent: a fast wrong answer is an error.
//!
//! [`serve`] and [`run`] are the two roles between two processes, [`run_local`] does both in one. A
//! [`Plan`] says what is measured, a [`Target`] on what, a [`Report`] what came of it, and [`judge`]
//! whether that is what was expected.

mod bandwidth;
mod channel;
mod contents;
mod cpu;
mod end;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod histogram;
mod lane;
mod latency;
mod limit;
mod meet;
mod memory;
mod message;
mod network;
mod numa;
mod pattern;
mod plan;
mod report;
mod roles;
mod series;
mod size;
mod statistics;
mod target;
mod transfer;
mod verdict;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use crate::security::HandshakeError;
use crate::verbs::{CompletionError, VerbsError};

pub use crate::security::{Identity, IdentityError};
pub use memory::Memory;
pub use plan::{AtomicKind, Length, Measure, Plan, PlanError, Rate, Sizes, Verb};
pub use report::{Cpu, Interval, Latency, Limit, Percentile, Report, Row, SCHEMA, Steady};
pub use roles::{Progress, Serve, Stage, run, run_local, serve, serve_all};
pub use target::{DeviceChoice, Target};
pub use verdict::{Expectation, Figure, Outcome, Verdict, judge};

/// Where servers listen unless told otherwise.
pub const DEFAULT_PORT: u16 = 18620;

/// Why there is no result.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The device can't be used.
    #[error(transparent)]
    Verbs(#[from] VerbsError),
    /// There is no device with an active port.
    #[error("no RDMA device has an active port: `trackbed rdma devices` says what is missing")]
    NoDevice,
    /// What shall be measured makes no sense, here or at all.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The measuring thread can't be bound to a NUMA node.
    #[error("NUMA node {node}: {reason}; `ls /sys/devices/system/node` shows which there are")]
    Numa {
        /// The node.
        node: u32,
        /// Why.
        reason: String,
    },
    /// Cannot listen.
    #[error("cannot listen on {address}: {source}; choose another port with --tcp-port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody can be let in.
    #[error("cannot take a client's connection: {source}")]
    Accept {
        /// What the system said.
        source: io::Error,
    },
    /// Nobody came.
    #[error("no client connected within {} s", .waited.as_secs())]
    NoClient {
        /// How long the server waited.
        waited: Duration,
    },
    /// The server can't be reached.
    #[error(
        "cannot reach {host}: {source}; start `trackbed rdma bench` without a host there first"
    )]
    Connect {
        /// Where.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection to the other process broke or fell silent.
    #[error("lost the other end while {doing}: {source}")]
    Channel {
        /// What was going on.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The other process is no `trackbed rdma bench`, or of a version that ours can't talk with.
    #[error("the other end is not a matching `trackbed rdma bench`: {reason}")]
    Stranger {
        /// What it said instead.
        reason: String,
    },
    /// The other end gave up.
    #[error("the other end gave up: {reason}")]
    PeerFailed {
        /// Its reason.
        reason: String,
    },
    /// A transfer failed, and the other end said something about it, or left.
    #[error("{bytes}-byte messages: {source}; and {told}")]
    Together {
        /// Message size.
        bytes: u64,
        /// What the completion said.
        source: CompletionError,
        /// What is known of the other end.
        told: Box<BenchError>,
    },
    /// A transfer failed.
    #[error("{bytes}-byte messages: {source}")]
    Transfer {
        /// Message size.
        bytes: u64,
        /// What the completion said.
        source: CompletionError,
    },
    /// A work request was refused.
    #[error("{bytes}-byte messages: {reason}")]
    Post {
        /// Message size.
        bytes: u64,
        /// Why.
        reason: String,
    },
    /// Nothing completes any more.
    #[error(
        "{bytes}-byte messages: nothing completed for {} s with {outstanding} outstanding; \
         with soft-RoCE and an rdma-core before 64, try --inline 0",
        .waited.as_secs()
    )]
    Stalled {
        /// Message size.
        bytes: u64,
        /// Work requests without completion.
        outstanding: u32,
        /// How long nothing came.
        waited: Duration,
    },
    /// What arrived is not what was sent.
    #[error(
        "{bytes}-byte messages: the bytes that arrived differ from those sent; suspect memory, adapter or link"
    )]
    Corrupted {
        /// Message size.
        bytes: u64,
    },
}

impl BenchError {
    /// Whether the measurement could not begin, rather than failed.
    pub fn is_setup(&self) -> bool {
        !matches!(
            self,
            BenchError::Transfer { .. }
                | BenchError::Together { .. }
                | BenchError::Stalled { .. }
                | BenchError::Corrupted { .. }
        )
    }
}

impl From<HandshakeError> for BenchError {
    fn from(error: HandshakeError) -> BenchError {
        BenchError::Stranger {
            reason: error.to_string(),
        }
    }
}
