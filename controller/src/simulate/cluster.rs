//! A cluster that is only a description.

use crate::plan::{Amounts, Node, Snapshot};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Nodes in a rack; a rack's nodes are in the same group of rails.
const RACK: u32 = 16;

/// The most nodes of a cluster.
const MOST: u32 = 100_000;

/// Nodes of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGroup {
    /// How many.
    pub nodes: u32,
    /// Accelerators of each.
    pub gpus: u32,
    /// What they are.
    pub hardware: String,
}

/// A cluster: groups of nodes. Written as `20x8:v100,4x8:p100`: 20 nodes with 8 V100 each and 4 with 8 P100.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its nodes.
    pub groups: Vec<NodeGroup>,
}

/// Why a description is none of a cluster.
#[derive(Debug, Error)]
#[error(
    "{text}: {why}: describe nodes as NUMBERxGPUS:HARDWARE, such as 20x8:v100, several with commas between"
)]
pub struct ClusterError {
    text: String,
    why: &'static str,
}

impl Cluster {
    /// Accelerators of all nodes.
    pub fn gpus(&self) -> u64 {
        let of = |group: &NodeGroup| u64::from(group.nodes) * u64::from(group.gpus);
        self.groups.iter().map(of).sum()
    }

    /// The most accelerators of a node.
    pub fn largest_node(&self) -> u32 {
        self.groups
            .iter()
            .map(|group| group.gpus)
            .max()
            .unwrap_or(0)
    }

    /// With more nodes of the first kind, or fewer.
    pub fn with_nodes(mut self, more: i64) -> Self {
        if let Some(first) = self.groups.first_mut() {
            let nodes = i64::from(first.nodes).saturating_add(more);
            first.nodes = u32::try_from(nodes.clamp(1, MOST.into())).expect("clamped");
        }
        self
    }

    /// The empty cluster.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for group in &self.groups {
            let hardware = snapshot.hardware(&group.hardware, 1.0);
            let rail_group = snapshot.domain(&format!("rails-{}", group.hardware));
            for index in 0..group.nodes {
                let rack = snapshot.domains.len() as u32;
                let rack = if index % RACK == 0 {
                    snapshot.domains.push(format!("rack-{rack}"));
                    rack
                } else {
                    rack - 1
                };
                let allocatable = Amounts {
                    gpus: group.gpus,
                    pods: 110,
                    ..Amounts::default()
                };
                let mut node = Node::new(
                    &format!("{}-{index}", group.hardware),
                    hardware,
                    allocatable,
                );
                node.rack = Some(crate::plan::DomainId(rack));
                node.rail_group = Some(rail_group);
                snapshot.nodes.push(node);
            }
        }
        snapshot
    }
}

impl FromStr for Cluster {
    type Err = ClusterError;

    fn from_str(text: &str) -> Result<Self, ClusterError> {
        let wrong = |why| ClusterError {
            text: text.to_owned(),
            why,
        };
        let mut groups: Vec<NodeGroup> = Vec::new();
        for part in text.split(',') {
            let (size, hardware) = part
                .split_once(':')
                .ok_or_else(|| wrong("there is no colon"))?;
            let (nodes, gpus) = size.split_once('x').ok_or_else(|| wrong("there is no x"))?;
            let nodes = nodes
                .trim()
                .parse()
                .map_err(|_| wrong("the number of nodes is none"))?;
            let gpus = gpus
                .parse()
                .map_err(|_| wrong("the number of GPUs is none"))?;
            if !(1..=MOST).contains(&nodes) || !(1..=64).contains(&gpus) {
                return Err(wrong("a group has 1 to 100,000 nodes of 1 to 64 GPUs"));
            }
            if hardware.is_empty() || groups.iter().any(|group| group.hardware == hardware) {
                return Err(wrong("each group has hardware of its own"));
            }
            groups.push(NodeGroup {
                nodes,
                gpus,
                hardware: hardware.to_owned(),
            });
        }
        Ok(Cluster { groups })
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, group) in self.groups.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(
                f,
                "{comma}{}x{}:{}",
                group.nodes, group.gpus, group.hardware
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_read_as_it_is_written() {
        let text = "20x8:v100,4x4:p100";
        let cluster: Cluster = text.parse().expect("a cluster");
        assert_eq!(cluster.to_string(), text);
        assert_eq!(cluster.gpus(), 176);
        assert_eq!(cluster.with_nodes(-30).groups[0].nodes, 1);
        for wrong in [
            "",
            "20",
            "20x8",
            "x8:v100",
            "0x8:v100",
            "1x65:v100",
            "1x8:",
            "1x8:a,1x8:a",
            "-1x8:a",
        ] {
            let error = wrong.parse::<Cluster>().expect_err(wrong);
            assert!(error.to_string().contains("20x8:v100"), "{error}");
        }
    }

    #[test]
    fn every_node_is_in_a_rack_of_at_most_sixteen() {
        let snapshot = "40x8:v100,3x8:p100"
            .parse::<Cluster>()
            .expect("a cluster")
            .snapshot();
        let mut racks = std::collections::BTreeMap::new();
        for node in &snapshot.nodes {
            *racks.entry((node.hardware, node.rack)).or_insert(0) += 1;
        }
        assert_eq!(racks.values().copied().collect::<Vec<_>>(), [16, 16, 8, 3]);
    }
}
