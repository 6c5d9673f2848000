//! Names what is slower than the rest: a rail, a node, an adapter, one of its directions, or a path.
//!
//! Logarithms of what was measured are taken apart, rail by rail, by median polish: what is common to the
//! rail, what belongs to each sender, to each receiver, and the rest, which is of the path between the
//! two. An effect stands out when it is beyond a tolerance that matters in practice *and* beyond what
//! noise would do to the largest of so many healthy ones. What a rail or a node explains is not told
//! again of its adapters.

mod failures;
mod fit;
mod slow;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Mesh;
use crate::bench::Figure;
use failures::failures;
use fit::Fit;
use slow::slow;

/// How much worse than the others something must be to be named, as a share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tolerance {
    /// For bandwidth: 0.1 is 10% less.
    pub bandwidth: f64,
    /// For latency: 0.25 is 25% more.
    pub latency: f64,
}

impl Default for Tolerance {
    fn default() -> Tolerance {
        Tolerance {
            bandwidth: 0.1,
            latency: 0.25,
        }
    }
}

/// What stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutlierKind {
    /// All pairs of a rail: its switch.
    Rail,
    /// Most ports of a node: its CPU, memory, PCIe or settings.
    Node,
    /// A port in both directions: the adapter, its slot or its cable.
    Nic,
    /// A port when it sends: its cable or transceiver, its PCIe reads.
    Sender,
    /// A port when it receives: its cable or transceiver, its PCIe writes.
    Receiver,
    /// One pair: the links between the two, or how their traffic is spread over them.
    Path,
    /// Pairs that failed.
    Failed,
}

impl fmt::Display for OutlierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OutlierKind::Rail => "rail",
            OutlierKind::Node => "node",
            OutlierKind::Nic => "NIC",
            OutlierKind::Sender => "sender",
            OutlierKind::Receiver => "receiver",
            OutlierKind::Path => "path",
            OutlierKind::Failed => "failed",
        })
    }
}

impl OutlierKind {
    /// Where to look.
    pub fn remedy(self) -> &'static str {
        match self {
            OutlierKind::Rail => "look at the rail's switch: its ports' speed, MTU, PFC and ECN",
            OutlierKind::Node => {
                "run `trackbed rdma check` there; compare PCIe, firmware, BIOS and CPU frequency with other nodes"
            }
            OutlierKind::Nic => {
                "run `trackbed rdma check` there; compare PCIe width and firmware, then change the cable"
            }
            OutlierKind::Sender | OutlierKind::Receiver => {
                "one direction is slow: clean or change cable and transceiver, look at the switch port's errors"
            }
            OutlierKind::Path => {
                "both ends are well with others: look at the switch links between them and at ECMP"
            }
            OutlierKind::Failed => {
                "run `trackbed rdma check` on both nodes, then `trackbed rdma bench` between them"
            }
        }
    }
}

/// Something that stands out, named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outlier {
    /// What it is.
    pub kind: OutlierKind,
    /// Its name: `rail 3`, `node-7`, `node-7 mlx5_2/1`, `node-7 mlx5_2/1 -> node-9 mlx5_2/1`.
    pub subject: String,
    /// What it is seen in; none for failures.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub figure: Option<Figure>,
    /// Its share of what the others have: 0.5 is half the bandwidth, 2 is twice the latency.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ratio: Option<f64>,
    /// How far it is from the others, in standard deviations of the noise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sigmas: Option<f64>,
    /// One sentence for a person.
    pub sentence: String,
}

/// What the mesh comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// What stands out: the largest things first.
    pub outliers: Vec<Outlier>,
    /// Pairs that were measured, and those that should have been.
    pub measured: usize,
    /// All pairs of ports.
    pub expected: usize,
    /// Rails that could be judged: those with enough nodes.
    pub judged_rails: usize,
    /// The noise of single figures, as shares: of bandwidth and of latency.
    pub noise: [Option<f64>; 2],
}

impl Judgement {
    /// Whether everything was measured and could be judged.
    pub fn is_whole(&self) -> bool {
        self.measured == self.expected && self.judged_rails > 0
    }
}

/// Judges what was measured. The mesh must have passed [`Mesh::check`].
pub fn outliers(mesh: &Mesh, tolerance: &Tolerance) -> Judgement {
    let bandwidth = Fit::of(mesh, Figure::Bandwidth, tolerance.bandwidth);
    let latency = Fit::of(mesh, Figure::Latency, tolerance.latency);
    let mut found = failures(mesh);
    found.extend(slow(&bandwidth));
    found.extend(slow(&latency));
    found.sort_by_key(|outlier| (outlier.kind != OutlierKind::Failed, outlier.kind));
    let measured = mesh
        .pairs
        .iter()
        .filter(|pair| pair.failure.is_none())
        .count();
    Judgement {
        outliers: found,
        measured,
        expected: mesh.expected_pairs(),
        judged_rails: bandwidth.rails.len(),
        noise: [bandwidth.noise(), latency.noise()],
    }
}
