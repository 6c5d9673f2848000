//! Measures what two devices move between them with plain verbs: no GPU, no vendor's tool.
//!
//! The client decides what is measured and tells the server, so that both ends always run the same
//! thing; they agree on the kind of GID too. Each bandwidth ends with the server comparing what
//! arrived with what was to be sent: a fast wrong answer is an error.
//!
//! [`serve`] and [`run`] are the two roles between two processes, [`run_local`] does both in one.

mod bandwidth;
mod channel;
mod latency;
mod meet;
mod message;
mod network;
mod pattern;
mod plan;
mod roles;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::verbs::{CompletionError, VerbsError};

pub use meet::{DeviceChoice, Target};
pub use plan::{Length, Measure, Plan, PlanError, Sizes, Verb};
pub use roles::{Progress, Serve, run, run_local, serve};

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
    /// Memory can't be mapped.
    #[error("cannot map {bytes} bytes: {source}")]
    Memory {
        /// How much.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// Cannot listen.
    #[error("cannot listen on {address}: {source}; choose another port with --tcp-port")]
    Listen {
        /// Where.
        address: SocketAddr,
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
            BenchError::Transfer { .. } | BenchError::Stalled { .. } | BenchError::Corrupted { .. }
        )
    }
}

/// One measured message size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Message size in bytes.
    pub bytes: u64,
    /// Messages measured.
    pub messages: u64,
    /// Time they took, from the first post to the last completion.
    pub seconds: f64,
    /// 2^20 bytes a second; for bandwidth.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mib_per_second: Option<f64>,
    /// 10^9 bits a second; for bandwidth.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gbit_per_second: Option<f64>,
    /// Messages a second; for bandwidth.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub messages_per_second: Option<f64>,
    /// One way; for latency.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub latency: Option<Latency>,
}

/// Half of a round trip, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Shortest.
    pub min_us: f64,
    /// Median.
    pub p50_us: f64,
    /// Mean.
    pub mean_us: f64,
    /// 99 of 100 are shorter.
    pub p99_us: f64,
    /// 999 of 1000 are shorter.
    pub p999_us: f64,
    /// Longest.
    pub max_us: f64,
}

/// What was measured, on what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What was measured, such as `write bandwidth`.
    pub bench: String,
    /// `client`, `server` or `local`.
    pub role: String,
    /// Our device.
    pub device: String,
    /// Our port on it.
    pub port: u8,
    /// Our GID.
    pub gid: String,
    /// Its index.
    pub gid_index: u8,
    /// The peer's GID.
    pub peer_gid: String,
    /// Path MTU in bytes.
    pub mtu: u32,
    /// The plan, as both ends ran it.
    pub plan: Plan,
    /// A row a message size.
    pub rows: Vec<Row>,
}

impl Row {
    fn bandwidth(bytes: u64, messages: u64, elapsed: Duration) -> Row {
        let seconds = elapsed.as_secs_f64();
        let per_second = if seconds > 0.0 {
            messages as f64 / seconds
        } else {
            0.0
        };
        let bytes_per_second = per_second * bytes as f64;
        Row {
            bytes,
            messages,
            seconds,
            mib_per_second: Some(bytes_per_second / f64::from(1 << 20)),
            gbit_per_second: Some(bytes_per_second * 8.0 / 1e9),
            messages_per_second: Some(per_second),
            latency: None,
        }
    }
}
