//! What a cluster is at one moment.

use super::{Amounts, Millis, ResourceId, Taint, Team};
use std::collections::BTreeMap;

/// A node, by its place in [`Snapshot::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// A kind of hardware, by its place in [`Snapshot::hardware`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HardwareId(pub u16);

/// A team, by its place in [`Snapshot::teams`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TeamId(pub u32);

/// A rack or a group of rails, as [`Snapshot::domain`] numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u32);

/// An origin of datasets, by its place in [`Snapshot::origins`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginId(pub u32);

/// What a cluster is at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The kinds of hardware.
    pub hardware: Vec<Hardware>,
    /// Every node.
    pub nodes: Vec<Node>,
    /// Every gang that has been admitted and has not ended.
    pub running: Vec<Running>,
    /// What pods that are ending still hold of nodes: it is not free yet, and will be without anybody's
    /// doing.
    pub leaving: Vec<(NodeId, Amounts)>,
    /// Every team.
    pub teams: Vec<Team>,
    /// Every dataset that a gang names.
    pub datasets: Vec<CachedDataset>,
    /// Where the datasets come from.
    pub origins: Vec<Origin>,
    /// The names of racks and groups of rails.
    pub domains: Vec<String>,
    /// The names of resources that have no field in [`Amounts`].
    pub resources: Vec<String>,
}

/// A kind of hardware: what a gang's pods must all have the same of.
#[derive(Clone, Debug, PartialEq)]
pub struct Hardware {
    /// Such as `NVIDIA-H100-80GB-HBM3`; empty for nodes without accelerators.
    pub name: String,
    /// How fast it is beside the others, 1 being what run times are given for.
    pub speed: f64,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it is.
    pub hardware: HardwareId,
    /// What no pod holds: what it can allocate, less what every pod on it asks for.
    pub free: Amounts,
    /// What it could allocate if no pod were there.
    pub allocatable: Amounts,
    /// What is free in each NUMA node, where that matters.
    pub zones: Vec<Zone>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Its rack.
    pub rack: Option<DomainId>,
    /// The group of nodes whose rails meet in the same switches.
    pub rail_group: Option<DomainId>,
    /// Why it takes no pods at present: not ready, cordoned, not trusted after a failed start.
    pub unusable: Option<String>,
    /// Bytes that are free for the cache.
    pub cache_free: u64,
}

/// What is free in a NUMA node of a node that gives each pod all it asks for from one NUMA node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// Accelerators.
    pub gpus: u32,
    /// Virtual functions.
    pub vfs: u32,
}

/// A gang that has been admitted and has not ended.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Whose quota it takes.
    pub team: TeamId,
    /// Its priority.
    pub priority: i32,
    /// What it runs on.
    pub hardware: HardwareId,
    /// When it was admitted.
    pub started: Millis,
    /// When it is said to end. One that has run longer is taken to end soon.
    pub ends: Option<Millis>,
    /// Where its pods are, and what they hold of each node together.
    pub holds: Vec<(NodeId, Amounts)>,
    /// Whether it may be ended to give back what its team borrowed.
    pub reclaimable: bool,
}

/// A dataset, and where it is cached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CachedDataset {
    /// namespace/name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// How many of them each node has.
    pub on: BTreeMap<NodeId, u64>,
    /// The share of it, from 0 to 1, that is in the cache somewhere.
    pub cached_share: f64,
    /// Where it comes from.
    pub origin: Option<OriginId>,
    /// Whether it is being brought already.
    pub warming: bool,
}

/// An origin of datasets.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// Its name, such as `s3://bucket`.
    pub name: String,
    /// Bytes a second that it gives, as measured.
    pub bytes_per_second: f64,
    /// Datasets that may be brought from it at the same time.
    pub at_once: u32,
}

impl Snapshot {
    /// The number of a kind of hardware, made if it is new.
    pub fn hardware(&mut self, name: &str, speed: f64) -> HardwareId {
        let known = self
            .hardware
            .iter()
            .position(|hardware| hardware.name == name);
        let index = known.unwrap_or_else(|| {
            self.hardware.push(Hardware {
                name: name.to_owned(),
                speed,
            });
            self.hardware.len() - 1
        });
        HardwareId(u16::try_from(index).expect("a cluster has fewer than 65,536 kinds of hardware"))
    }

    /// The number of a team, made without a quota if it is new.
    pub fn team(&mut self, name: &str) -> TeamId {
        let known = self.teams.iter().position(|team| team.name == name);
        let index = known.unwrap_or_else(|| {
            self.teams.push(Team::new(name));
            self.teams.len() - 1
        });
        TeamId(index as u32)
    }

    /// The number of a rack or a group of rails, made if it is new.
    pub fn domain(&mut self, name: &str) -> DomainId {
        let known = self.domains.iter().position(|domain| domain == name);
        let index = known.unwrap_or_else(|| {
            self.domains.push(name.to_owned());
            self.domains.len() - 1
        });
        DomainId(index as u32)
    }

    /// The number of a resource that has no field in [`Amounts`], made if it is new.
    pub fn resource(&mut self, name: &str) -> ResourceId {
        let known = self.resources.iter().position(|resource| resource == name);
        let index = known.unwrap_or_else(|| {
            self.resources.push(name.to_owned());
            self.resources.len() - 1
        });
        ResourceId(u16::try_from(index).expect("a cluster has fewer than 65,536 resources"))
    }

    /// A node, by its number.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The numbers of all nodes.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }
}

impl Node {
    /// A node of which all is free.
    pub fn new(name: &str, hardware: HardwareId, allocatable: Amounts) -> Self {
        Node {
            name: name.to_owned(),
            hardware,
            free: allocatable.clone(),
            allocatable,
            zones: Vec::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            rack: None,
            rail_group: None,
            unusable: None,
            cache_free: u64::MAX,
        }
    }
}

impl CachedDataset {
    /// Bytes that a node has yet to bring.
    pub fn missing_on(&self, node: NodeId) -> u64 {
        self.bytes
            .saturating_sub(self.on.get(&node).copied().unwrap_or(0))
    }
}
