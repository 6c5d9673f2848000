//! What failed, named by what failures have in common.

use std::collections::HashSet;

use super::{Outlier, OutlierKind};
use crate::mesh::{Mesh, Pair};

/// Failures, by what they have in common: a node that left, a port none of whose pairs worked, a pair.
pub(super) fn failures(mesh: &Mesh) -> Vec<Outlier> {
    let mut found = Vec::new();
    if mesh.left.is_empty() && mesh.pairs.iter().all(|pair| pair.failure.is_none()) {
        return found;
    }
    let ports = Ports::of(mesh);
    let mut explained: HashSet<(usize, usize)> = HashSet::new();
    for left in &mesh.left {
        let node = &mesh.nodes[left.node];
        let pairs = ports.0[left.node].iter().flatten();
        let failed = pairs.filter(|pair| pair.failure.is_some()).count();
        found.push(outlier(
            node.name.clone(),
            format!(
                "{} left ({}); {failed} of its pairs were not measured",
                node.name, left.reason
            ),
        ));
        explained.extend((0..node.ports.len()).map(|rail| (left.node, rail)));
    }
    for (number, rails) in ports.0.iter().enumerate() {
        for (rail, pairs) in rails.iter().enumerate() {
            if explained.contains(&(number, rail)) {
                continue;
            }
            let of_others = pairs
                .iter()
                .filter(|pair| !explained.contains(&(pair.a + pair.b - number, rail)));
            let mut all = 0;
            let mut reasons = Vec::new();
            for pair in of_others {
                all += 1;
                reasons.extend(pair.failure.as_deref());
            }
            if all >= 2 && reasons.len() == all {
                let name = mesh.nodes[number].port_name(rail);
                let reason = reasons[0];
                found.push(outlier(
                    name.clone(),
                    format!("{name} failed with all of its {all} peers: {reason}"),
                ));
                explained.insert((number, rail));
            }
        }
    }
    for pair in &mesh.pairs {
        let Some(reason) = &pair.failure else {
            continue;
        };
        if explained.contains(&(pair.a, pair.rail)) || explained.contains(&(pair.b, pair.rail)) {
            continue;
        }
        let name = format!(
            "{} <-> {}",
            mesh.nodes[pair.a].port_name(pair.rail),
            mesh.nodes[pair.b].port_name(pair.rail)
        );
        found.push(outlier(name.clone(), format!("{name} failed: {reason}")));
    }
    found
}

/// The pairs of each node's ports.
struct Ports<'a>(Vec<Vec<Vec<&'a Pair>>>);

impl<'a> Ports<'a> {
    fn of(mesh: &'a Mesh) -> Ports<'a> {
        let nodes = mesh.nodes.iter();
        let mut ports: Vec<Vec<Vec<&Pair>>> = nodes
            .map(|node| vec![Vec::new(); node.ports.len()])
            .collect();
        for pair in &mesh.pairs {
            ports[pair.a][pair.rail].push(pair);
            ports[pair.b][pair.rail].push(pair);
        }
        Ports(ports)
    }
}

fn outlier(subject: String, sentence: String) -> Outlier {
    Outlier {
        kind: OutlierKind::Failed,
        subject,
        figure: None,
        ratio: None,
        sigmas: None,
        sentence,
    }
}
