//! What failed, named by what failures have in common.

use std::collections::HashSet;

use super::{Outlier, OutlierKind};
use crate::mesh::{Mesh, Pair};

/// Failures, by what they have in common: a node that left, a port none of whose pairs worked, a pair.
pub(super) fn failures(mesh: &Mesh) -> Vec<Outlier> {
    let failed: Vec<_> = mesh
        .pairs
        .iter()
        .filter(|pair| pair.failure.is_some())
        .collect();
    let outlier = |subject: String, sentence: String| Outlier {
        kind: OutlierKind::Failed,
        subject,
        figure: None,
        ratio: None,
        sigmas: None,
        sentence,
    };
    let mut found = Vec::new();
    let mut explained: HashSet<(usize, usize)> = HashSet::new();
    for left in &mesh.left {
        let node = &mesh.nodes[left.node];
        let pairs = failed
            .iter()
            .filter(|pair| pair.a == left.node || pair.b == left.node)
            .count();
        found.push(outlier(
            node.name.clone(),
            format!(
                "{} left ({}); {pairs} of its pairs were not measured",
                node.name, left.reason
            ),
        ));
        explained.extend((0..node.ports.len()).map(|rail| (left.node, rail)));
    }
    for (number, node) in mesh.nodes.iter().enumerate() {
        for rail in 0..node.ports.len() {
            if explained.contains(&(number, rail)) {
                continue;
            }
            let touches = |pair: &&Pair| {
                pair.rail == rail
                    && (pair.a == number || pair.b == number)
                    && !explained.contains(&(pair.a + pair.b - number, rail))
            };
            let all = mesh.pairs.iter().filter(touches).count();
            let bad = failed.iter().copied().filter(touches).count();
            if all >= 2 && bad == all {
                let name = node.port_name(rail);
                let reason = failed
                    .iter()
                    .copied()
                    .find(touches)
                    .and_then(|pair| pair.failure.as_deref())
                    .unwrap_or_default();
                found.push(outlier(
                    name.clone(),
                    format!("{name} failed with all of its {all} peers: {reason}"),
                ));
                explained.insert((number, rail));
            }
        }
    }
    for pair in failed {
        if explained.contains(&(pair.a, pair.rail)) || explained.contains(&(pair.b, pair.rail)) {
            continue;
        }
        let name = format!(
            "{} <-> {}",
            mesh.nodes[pair.a].port_name(pair.rail),
            mesh.nodes[pair.b].port_name(pair.rail)
        );
        let reason = pair.failure.as_deref().unwrap_or_default();
        found.push(outlier(name.clone(), format!("{name} failed: {reason}")));
    }
    found
}
