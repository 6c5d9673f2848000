//! Names what is slower than the rest: a rail, a node, an adapter, one of its directions, or a path.
//!
//! Logarithms of what was measured are taken apart, rail by rail, by median polish: what is common to the
//! rail, what belongs to each sender, to each receiver, and the rest, which is of the path between the
//! two. An effect stands out when it is beyond a tolerance that matters in practice *and* beyond what
//! noise would do to the largest of so many healthy ones. What a rail or a node explains is not told
//! again of its adapters.

mod failures;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Mesh;
use super::robust::{Polished, limit, median, polish, sigma};
use crate::bench::Figure;
use failures::failures;

/// With fewer nodes on a rail, nobody can say who of them is slow.
const FEWEST: usize = 4;
/// The chance that a healthy mesh has anything named, for each kind of thing.
const CHANCE: f64 = 0.005;
/// A median of n values is known as well as a mean of n / 1.57.
const MEDIAN: f64 = 1.2533;

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
    let bandwidth = Measured::of(mesh, Figure::Bandwidth, tolerance.bandwidth);
    let latency = Measured::of(mesh, Figure::Latency, tolerance.latency);
    let mut found = failures(mesh);
    found.extend(bandwidth.outliers());
    found.extend(latency.outliers());
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

/// One figure of the whole mesh, taken apart.
struct Measured<'a> {
    mesh: &'a Mesh,
    figure: Figure,
    /// The least effect worth naming, as a logarithm: negative, for values are turned so that less is worse.
    tolerance: f64,
    /// Rails with enough nodes, and what they are made of.
    rails: Vec<(usize, Polished)>,
    /// The spread of single values, in logarithms.
    sigma: f64,
    /// Independent values behind it.
    freedom: f64,
}

impl<'a> Measured<'a> {
    fn of(mesh: &'a Mesh, figure: Figure, tolerance: f64) -> Measured<'a> {
        let size = mesh.nodes.len();
        let mut tables = vec![Vec::new(); mesh.rails()];
        let mut count = vec![0usize; mesh.rails()];
        for pair in &mesh.pairs {
            let values = match figure {
                Figure::Bandwidth => [pair.there_gbps, pair.back_gbps],
                // There and back is one figure, of both directions.
                Figure::Latency => [pair.latency_us; 2],
            };
            let table: &mut Vec<f64> = &mut tables[pair.rail];
            if table.is_empty() {
                table.resize(size * size, f64::NAN);
            }
            for (value, (from, to)) in values.into_iter().zip([(pair.a, pair.b), (pair.b, pair.a)])
            {
                if let Some(value) = value.filter(|value| *value > 0.0) {
                    table[from * size + to] = match figure {
                        Figure::Bandwidth => value.ln(),
                        Figure::Latency => -value.ln(),
                    };
                    count[pair.rail] += 1;
                }
            }
        }
        let mut rails = Vec::new();
        let (mut values, mut parameters) = (0usize, 0usize);
        for (rail, table) in tables.iter().enumerate() {
            let nodes = (0..size)
                .filter(|row| {
                    table
                        .get(row * size..(row + 1) * size)
                        .is_some_and(|line| line.iter().any(|value| !value.is_nan()))
                })
                .count();
            if nodes < FEWEST {
                continue;
            }
            let (known, unknown) = match figure {
                Figure::Bandwidth => (count[rail], 2 * nodes - 1),
                Figure::Latency => (count[rail] / 2, nodes),
            };
            values += known;
            parameters += unknown;
            rails.push((rail, polish(table, size)));
        }
        let freedom = values.saturating_sub(parameters).max(1) as f64;
        let rest = rails
            .iter()
            .flat_map(|(_, polished)| polished.rest.iter().copied());
        // The latency of a pair is in its table twice.
        let fitted = match figure {
            Figure::Bandwidth => parameters,
            Figure::Latency => 2 * parameters,
        };
        let sigma = sigma(rest, fitted);
        Measured {
            mesh,
            figure,
            tolerance: match figure {
                Figure::Bandwidth => (1.0 - tolerance.clamp(0.0, 0.99)).ln(),
                Figure::Latency => -(1.0 + tolerance.max(0.0)).ln(),
            },
            rails,
            sigma,
            freedom,
        }
    }

    fn noise(&self) -> Option<f64> {
        (!self.rails.is_empty()).then(|| self.sigma.exp_m1())
    }

    fn outliers(&self) -> Vec<Outlier> {
        let mut found = Vec::new();
        let slow_rails = self.slow_rails(&mut found);
        let slow_ports = self.slow_ports(&mut found);
        self.slow_paths(&slow_rails, &slow_ports, &mut found);
        found
    }

    /// Rails against the other rails.
    fn slow_rails(&self, found: &mut Vec<Outlier>) -> HashSet<usize> {
        let mut slow = HashSet::new();
        let levels: Vec<f64> = self.rails.iter().map(|(_, rail)| rail.common).collect();
        // Of two, the slower one is slow; of more, the one that is unlike most.
        let usual = match levels.len() {
            0 | 1 => return slow,
            2 => levels[0].max(levels[1]),
            _ => median(levels.iter().copied()),
        };
        let size = self.mesh.nodes.len() as f64;
        let own = MEDIAN * self.sigma / (size * (size - 1.0)).sqrt();
        let scale = own.hypot(spread(&levels, usual));
        let least = limit(CHANCE, levels.len(), self.freedom);
        for ((rail, _), level) in self.rails.iter().zip(&levels) {
            let effect = level - usual;
            if effect < self.tolerance && effect < -least * scale {
                slow.insert(*rail);
                found.push(self.outlier(
                    OutlierKind::Rail,
                    format!("rail {rail}"),
                    effect,
                    scale,
                    "the other rails",
                ));
            }
        }
        slow
    }

    /// Ports against the other ports of their rails; nodes most of whose ports are slow.
    fn slow_ports(&self, found: &mut Vec<Outlier>) -> HashSet<(usize, usize)> {
        let senders: Vec<f64> = self.effects(|polished| &polished.rows);
        let receivers: Vec<f64> = self.effects(|polished| &polished.columns);
        let peers = (self.mesh.nodes.len() - 1).max(1) as f64;
        let own = MEDIAN * self.sigma / peers.sqrt();
        let least = limit(CHANCE, senders.len() + receivers.len(), self.freedom);
        let scales = [
            own.hypot(spread(&senders, 0.0)),
            own.hypot(spread(&receivers, 0.0)),
        ];
        let stands_out =
            |effect: f64, scale: f64| effect < self.tolerance && effect < -least * scale;
        let mut slow = HashSet::new();
        let mut ports: Vec<(usize, usize, OutlierKind, f64, f64)> = Vec::new();
        for (rail, polished) in &self.rails {
            for (node, (sends, receives)) in polished.rows.iter().zip(&polished.columns).enumerate()
            {
                let kind = match (
                    stands_out(*sends, scales[0]),
                    stands_out(*receives, scales[1]),
                ) {
                    (true, true) => OutlierKind::Nic,
                    // Latency has no direction.
                    (true, false) | (false, true) if self.figure == Figure::Latency => {
                        OutlierKind::Nic
                    }
                    (true, false) => OutlierKind::Sender,
                    (false, true) => OutlierKind::Receiver,
                    (false, false) => continue,
                };
                let (effect, scale) = match kind {
                    OutlierKind::Receiver => (*receives, scales[1]),
                    OutlierKind::Sender => (*sends, scales[0]),
                    _ => (f64::midpoint(*sends, *receives), scales[0]),
                };
                slow.insert((node, *rail));
                ports.push((node, *rail, kind, effect, scale));
            }
        }
        for node in 0..self.mesh.nodes.len() {
            let of_node: Vec<_> = ports.iter().filter(|port| port.0 == node).collect();
            let judged = self
                .rails
                .iter()
                .filter(|(rail, _)| *rail < self.mesh.nodes[node].ports.len())
                .count();
            if of_node.len() >= 2 && 2 * of_node.len() > judged {
                let effect = median(of_node.iter().map(|port| port.3));
                let name = self.mesh.nodes[node].name.clone();
                let whole = format!("{name} ({} of {judged} ports)", of_node.len());
                let mut outlier = self.outlier(
                    OutlierKind::Node,
                    whole,
                    effect,
                    of_node[0].4,
                    "other nodes",
                );
                outlier.subject = name;
                found.push(outlier);
            } else {
                for (node, rail, kind, effect, scale) in of_node {
                    let name = self.mesh.nodes[*node].port_name(*rail);
                    found.push(self.outlier(
                        *kind,
                        name,
                        *effect,
                        *scale,
                        "the rail's other ports",
                    ));
                }
            }
        }
        slow
    }

    /// The effects of ports that were measured at all.
    fn effects(&self, of: impl Fn(&Polished) -> &Vec<f64>) -> Vec<f64> {
        self.rails
            .iter()
            .flat_map(|(_, polished)| of(polished).iter().copied())
            .filter(|effect| !effect.is_nan())
            .collect()
    }

    /// Pairs against what their ends and their rail let expect. A single figure tells less than a median
    /// of many, so twice the tolerance is asked of it.
    fn slow_paths(
        &self,
        slow_rails: &HashSet<usize>,
        slow_ports: &HashSet<(usize, usize)>,
        found: &mut Vec<Outlier>,
    ) {
        let size = self.mesh.nodes.len();
        let values: usize = self
            .rails
            .iter()
            .map(|(_, polished)| polished.rest.iter().filter(|rest| !rest.is_nan()).count())
            .sum();
        let least = limit(CHANCE, values, self.freedom);
        let stands_out = |rest: f64| rest < 2.0 * self.tolerance && rest < -least * self.sigma;
        for (rail, polished) in &self.rails {
            if slow_rails.contains(rail) {
                continue;
            }
            for a in 0..size {
                for b in a + 1..size {
                    // A slow port explains its pairs.
                    if slow_ports.contains(&(a, *rail)) || slow_ports.contains(&(b, *rail)) {
                        continue;
                    }
                    let (there, back) = (polished.rest[a * size + b], polished.rest[b * size + a]);
                    let (from, to, sign, effect) = match (stands_out(there), stands_out(back)) {
                        (true, true) => (a, b, "<->", f64::midpoint(there, back)),
                        (true, false) => (a, b, "->", there),
                        (false, true) => (b, a, "->", back),
                        (false, false) => continue,
                    };
                    let name = format!(
                        "{} {sign} {}",
                        self.mesh.nodes[from].port_name(*rail),
                        self.mesh.nodes[to].port_name(*rail)
                    );
                    found.push(self.outlier(
                        OutlierKind::Path,
                        name,
                        effect,
                        self.sigma,
                        "what both have with others",
                    ));
                }
            }
        }
    }

    fn outlier(
        &self,
        kind: OutlierKind,
        subject: String,
        effect: f64,
        scale: f64,
        others: &str,
    ) -> Outlier {
        let ratio = match self.figure {
            Figure::Bandwidth => effect.exp(),
            Figure::Latency => (-effect).exp(),
        };
        // Noise too small to be seen makes it certain.
        let sigmas = (scale > 0.0).then(|| (effect / scale).abs());
        let what = match self.figure {
            Figure::Bandwidth => "bandwidth",
            Figure::Latency => "latency",
        };
        let role = match kind {
            OutlierKind::Sender => " when sending",
            OutlierKind::Receiver => " when receiving",
            _ => "",
        };
        let sentence = format!(
            "{subject} has {:.0}% of the {what} of {others}{role}",
            ratio * 100.0
        );
        Outlier {
            kind,
            subject,
            figure: Some(self.figure),
            ratio: Some(ratio),
            sigmas,
            sentence,
        }
    }
}

/// How much healthy things of a kind differ among themselves, when there are enough to tell.
fn spread(effects: &[f64], centre: f64) -> f64 {
    const ENOUGH: usize = 8;
    if effects.len() < ENOUGH {
        return 0.0;
    }
    sigma(effects.iter().map(|effect| effect - centre), 1)
}
