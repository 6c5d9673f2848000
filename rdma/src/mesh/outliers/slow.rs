//! What of a fit stands out: beyond the tolerance, and beyond what noise would do to the largest of so many.

use std::collections::HashSet;

use super::fit::Fit;
use super::{Outlier, OutlierKind};
use crate::bench::Figure;
use crate::mesh::robust::{Polished, limit, median, sigma};

/// The chance that a healthy mesh has anything named, for each kind of thing.
const CHANCE: f64 = 0.005;
/// A median of n values is known as well as a mean of n / 1.57.
const MEDIAN: f64 = 1.2533;

/// Rails, nodes, ports and paths that are slower than the others.
pub(super) fn slow(fit: &Fit<'_>) -> Vec<Outlier> {
    let mut found = Vec::new();
    let slow_rails = fit.slow_rails(&mut found);
    let slow_ports = fit.slow_ports(&mut found);
    fit.slow_paths(&slow_rails, &slow_ports, &mut found);
    found
}

impl Fit<'_> {
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
