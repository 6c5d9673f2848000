//! Measures every pair among many nodes, and names what is slower than the rest.
//!
//! One process a node meets the others at a coordinator, which tells pairs when to measure: in rounds,
//! so that no port takes part in two tests at a time. What was measured goes to a [`Journal`], from which
//! an interrupted mesh goes on. [`outliers()`] is a pure function from what was measured to the nodes,
//! adapters, rails and paths that stand out.
//!
//! A rail is the n-th port of every node; ports meet ports of their own rail.

mod agent;
mod coordinate;
mod coordinator;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod journal;
mod line;
mod message;
#[cfg(test)]
mod noise;
mod outliers;
mod robust;
mod schedule;
mod session;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bench::{BenchError, Length, Measure, Plan, Verb};
use crate::security::HandshakeError;

pub use agent::{AgentOptions, AgentProgress, AgentRail, join};
pub use coordinate::{CoordinateOptions, Progress, coordinate};
pub use journal::Journal;
pub use outliers::{Judgement, Outlier, OutlierKind, Tolerance, outliers};
pub use schedule::{Schedule, round};

/// Where agents meet unless told otherwise.
pub const DEFAULT_PORT: u16 = 18621;
/// More nodes are refused.
pub const MOST_NODES: usize = 4096;
/// More ports of one node are refused.
pub const MOST_RAILS: usize = 64;

/// Why there is no mesh, or no whole one.
#[derive(Debug, Error)]
pub enum MeshError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Options(String),
    /// A device can't be used.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Not all nodes came.
    #[error(
        "{came} of {nodes} nodes came within {} s: {}; start `trackbed rdma mesh` on the others, or say --nodes {came}",
        .waited.as_secs(), .names.join(", ")
    )]
    Missing {
        /// How many there should be.
        nodes: usize,
        /// How many there are.
        came: usize,
        /// Their names.
        names: Vec<String>,
        /// How long the coordinator waited.
        waited: Duration,
    },
    /// The coordinator can't be reached.
    #[error("cannot reach the coordinator at {address}: {source}")]
    Connect {
        /// Where it should be.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The coordinator refused us.
    #[error("the coordinator refused this node: {0}")]
    Refused(String),
    /// The connection to the coordinator broke.
    #[error("lost the coordinator while {doing}: {source}")]
    Lost {
        /// What was going on.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The other end is not what it should be.
    #[error("the other end is no matching `trackbed rdma mesh`: {0}")]
    Stranger(String),
    /// The journal can't be read or written.
    #[error("{}: {reason}", .path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Something of the system failed.
    #[error("cannot {attempted}: {source}")]
    System {
        /// What was attempted.
        attempted: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl From<HandshakeError> for MeshError {
    fn from(error: HandshakeError) -> MeshError {
        MeshError::Stranger(error.to_string())
    }
}

/// What each pair measures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPlan {
    /// There, then back.
    pub bandwidth: Plan,
    /// There and back.
    pub latency: Plan,
    /// Whether the rails of a pair take turns, rather than being measured at the same time.
    pub rails_apart: bool,
}

impl Default for MeshPlan {
    /// A second of 64 KiB writes each way, then 1000 round trips of 2 bytes.
    fn default() -> MeshPlan {
        MeshPlan {
            bandwidth: Plan {
                length: Length::Milliseconds(1000),
                settle_milliseconds: 0,
                ..Plan::new(Verb::Write, Measure::Bandwidth)
            },
            latency: Plan {
                length: Length::Iterations(1000),
                ..Plan::new(Verb::Write, Measure::Latency)
            },
            rails_apart: false,
        }
    }
}

impl MeshPlan {
    /// Checks what a person or a peer asks for.
    pub fn check(&self) -> Result<(), MeshError> {
        self.bandwidth.check().map_err(BenchError::from)?;
        self.latency.check().map_err(BenchError::from)?;
        if self.bandwidth.measure != Measure::Bandwidth || self.latency.measure != Measure::Latency
        {
            return Err(MeshError::Options(
                "a mesh measures bandwidth, then latency".to_owned(),
            ));
        }
        Ok(())
    }
}

/// A node that takes part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name: unique among them.
    pub name: String,
    /// Its ports, in the order of the rails.
    pub ports: Vec<NodePort>,
}

/// A port of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePort {
    /// Its device.
    pub device: String,
    /// Its number on the device.
    pub port: u8,
}

impl Node {
    /// The port of a rail, as people write it: `node-1 mlx5_0/1`.
    pub fn port_name(&self, rail: usize) -> String {
        match self.ports.get(rail) {
            Some(port) => format!("{} {}/{}", self.name, port.device, port.port),
            None => format!("{} rail {rail}", self.name),
        }
    }
}

/// What two nodes measured on one rail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// One node: its place in [`Mesh::nodes`].
    pub a: usize,
    /// The other.
    pub b: usize,
    /// The rail, from 0.
    pub rail: usize,
    /// Gb/s from the one to the other.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub there_gbps: Option<f64>,
    /// Gb/s from the other to the one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub back_gbps: Option<f64>,
    /// Half of a round trip, median, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub latency_us: Option<f64>,
    /// Why it is not complete.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<String>,
}

/// A node that left before the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its place in [`Mesh::nodes`].
    pub node: usize,
    /// Why.
    pub reason: String,
}

/// All that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mesh {
    /// What each pair measured.
    pub plan: MeshPlan,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The pairs, of which not all need be there.
    pub pairs: Vec<Pair>,
    /// Nodes that left in the last run.
    pub left: Vec<Left>,
}

impl Mesh {
    /// How many rails there are.
    pub fn rails(&self) -> usize {
        self.nodes
            .iter()
            .map(|node| node.ports.len())
            .max()
            .unwrap_or(0)
    }

    /// How many pairs there should be.
    pub fn expected_pairs(&self) -> usize {
        let rails = self.rails();
        (0..rails)
            .map(|rail| {
                let nodes = self
                    .nodes
                    .iter()
                    .filter(|node| node.ports.len() > rail)
                    .count();
                nodes * nodes.saturating_sub(1) / 2
            })
            .sum()
    }

    /// Whether all numbers point to what is there and are what can be measured. A file may hold anything.
    pub fn check(&self) -> Result<(), String> {
        if self.nodes.len() > MOST_NODES || self.rails() > MOST_RAILS {
            return Err(format!(
                "more than {MOST_NODES} nodes or {MOST_RAILS} rails"
            ));
        }
        for pair in &self.pairs {
            let has_port = |node: usize| {
                self.nodes
                    .get(node)
                    .is_some_and(|node| pair.rail < node.ports.len())
            };
            if pair.a == pair.b || !has_port(pair.a) || !has_port(pair.b) {
                return Err(format!(
                    "a pair {}, {} on rail {} of nodes that it does not name",
                    pair.a, pair.b, pair.rail
                ));
            }
            let figures = [pair.there_gbps, pair.back_gbps, pair.latency_us];
            if figures
                .iter()
                .flatten()
                .any(|figure| !(figure.is_finite() && *figure >= 0.0))
            {
                return Err("a figure that can't have been measured".to_owned());
            }
        }
        if let Some(left) = self.left.iter().find(|left| left.node >= self.nodes.len()) {
            return Err(format!("node {} left and was never there", left.node));
        }
        Ok(())
    }
}
