//! What the API server has said, and what follows from it: members and datasets. No time passes in here,
//! and nothing is asked: events go in, answers come out.
//!
//! A member whose heartbeats stop drops out. What counts is not a clock but this node's own heartbeats,
//! which come back by the same watch: a member is left out when several of ours have been seen since its
//! last. So nobody drops out while the API server is away or a watch stalls, and the clocks of the
//! machines need not agree.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use trackbed_cache::registry::{DatasetRecord, Member, Namespace};
use trackbed_cache::{DatasetName, Digest};
use trackbed_controller::api::{CacheNode, CachedDataset, Dataset};

/// Heartbeats that a member may miss.
const MAY_MISS: u32 = 3;

/// A member's weight if nobody has set one.
const USUAL_WEIGHT: u32 = 100;

/// What was known last, for a node that starts while the API server is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) members: Vec<Member>,
    pub(super) datasets: Vec<DatasetRecord>,
}

/// The objects of the cluster.
pub(super) struct View {
    own: Member,
    report_every: Duration,
    nodes: BTreeMap<String, Seen>,
    datasets: BTreeMap<DatasetName, Dataset>,
    nodes_listed: bool,
    datasets_listed: bool,
    remembered: Remembered,
}

struct Seen {
    object: CacheNode,
    /// How many heartbeats of this node were seen since its last.
    missed: u32,
}

impl View {
    pub(super) fn new(own: Member, report_every: Duration, remembered: Remembered) -> View {
        View {
            own,
            report_every,
            nodes: BTreeMap::new(),
            datasets: BTreeMap::new(),
            nodes_listed: false,
            datasets_listed: false,
            remembered,
        }
    }

    /// Whether both kinds were listed once.
    pub(super) fn is_whole(&self) -> bool {
        self.nodes_listed && self.datasets_listed
    }

    /// A node is there, or has changed.
    pub(super) fn node(&mut self, object: CacheNode, now: Timestamp) {
        let name = object.name_any();
        let beat = heartbeat(&object);
        let own = name == self.own.name;
        let known = self.nodes.get(&name);
        let beaten = known.is_some_and(|seen| heartbeat(&seen.object) != beat);
        let missed = match known {
            Some(_) if beaten => 0,
            Some(seen) => seen.missed,
            // Its age, by clocks that may differ, until its next heartbeat tells better.
            None => self.missed_by_age(beat, now),
        };
        self.nodes.insert(name.clone(), Seen { object, missed });
        if own && beaten {
            let others = self.nodes.iter_mut().filter(|(other, _)| **other != name);
            others.for_each(|(_, seen)| seen.missed = seen.missed.saturating_add(1));
        }
    }

    fn missed_by_age(&self, beat: Option<Timestamp>, now: Timestamp) -> u32 {
        let Some(beat) = beat else { return 0 };
        let age = now.as_second().saturating_sub(beat.as_second()).max(0);
        let every = self.report_every.as_secs().max(1);
        u32::try_from(age.unsigned_abs() / every).unwrap_or(u32::MAX)
    }

    /// A node's object was deleted.
    pub(super) fn node_gone(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// These are all nodes.
    pub(super) fn all_nodes(&mut self, objects: Vec<CacheNode>, now: Timestamp) {
        let names: Vec<_> = objects.iter().map(ResourceExt::name_any).collect();
        self.nodes.retain(|name, _| names.contains(name));
        for object in objects {
            self.node(object, now);
        }
        self.nodes_listed = true;
    }

    /// A dataset is there, or has changed.
    pub(super) fn dataset(&mut self, object: Dataset) {
        let Some(name) = name_of(&object) else { return };
        let known = self.datasets.get(&name);
        // What was just written is known from its answer, before the watch has caught up with it.
        if known.is_none_or(|known| !is_older(&object, known)) {
            self.datasets.insert(name, object);
        }
    }

    /// A dataset was deleted.
    pub(super) fn dataset_gone(&mut self, object: &Dataset) {
        if let Some(name) = name_of(object) {
            self.datasets.remove(&name);
        }
    }

    /// These are all datasets.
    pub(super) fn all_datasets(&mut self, objects: Vec<Dataset>) {
        self.datasets.clear();
        objects.into_iter().for_each(|object| self.dataset(object));
        self.datasets_listed = true;
    }

    /// The members, this node always among them.
    pub(super) fn members(&self) -> Vec<Member> {
        let mut members: Vec<_> = if self.nodes_listed {
            let live = self
                .live_nodes()
                .filter(|node| node.name_any() != self.own.name);
            live.map(member).collect()
        } else {
            let others = self.remembered.members.iter();
            others
                .filter(|member| member.name != self.own.name)
                .cloned()
                .collect()
        };
        let mut own = self.own.clone();
        if let Some(seen) = self.nodes.get(&own.name) {
            own.weight = member(&seen.object).weight;
        }
        members.push(own);
        members
    }

    /// The nodes whose heartbeats have not stopped, and this one.
    pub(super) fn live_nodes(&self) -> impl Iterator<Item = &CacheNode> {
        let live = self.nodes.values().filter(|seen| {
            seen.object.name_any() == self.own.name || seen.missed <= self.may_miss(&seen.object)
        });
        live.map(|seen| &seen.object)
    }

    /// A node that reports less often than this one may miss more of this one's heartbeats.
    fn may_miss(&self, node: &CacheNode) -> u32 {
        let own = u32::try_from(self.report_every.as_secs())
            .unwrap_or(u32::MAX)
            .max(1);
        let theirs = node
            .status
            .as_ref()
            .and_then(|status| status.report_every_seconds);
        let theirs = theirs
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(own);
        (MAY_MISS.saturating_mul(theirs))
            .div_ceil(own)
            .max(MAY_MISS)
    }

    /// What a node has told of a dataset.
    pub(super) fn told<'n>(
        node: &'n CacheNode,
        namespace: &str,
        name: &str,
    ) -> Option<&'n CachedDataset> {
        let datasets = &node.status.as_ref()?.datasets;
        datasets
            .iter()
            .find(|told| told.namespace == namespace && told.name == name)
    }

    /// This node's own object.
    pub(super) fn own_node(&self) -> Option<&CacheNode> {
        self.nodes.get(&self.own.name).map(|seen| &seen.object)
    }

    /// All dataset objects, by the names under which the cache knows them.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&DatasetName, &Dataset)> {
        self.datasets.iter()
    }

    /// A dataset's object.
    pub(super) fn object(&self, name: &DatasetName) -> Option<&Dataset> {
        self.datasets.get(name)
    }

    /// A dataset that has a version.
    pub(super) fn record(&self, name: &DatasetName) -> Option<DatasetRecord> {
        if !self.datasets_listed {
            let known = &self.remembered.datasets;
            return known.iter().find(|record| record.name == *name).cloned();
        }
        record(name, self.datasets.get(name)?)
    }

    /// All datasets that have a version.
    pub(super) fn records(&self) -> Vec<DatasetRecord> {
        if !self.datasets_listed {
            return self.remembered.datasets.clone();
        }
        let records = self
            .datasets
            .iter()
            .filter_map(|(name, object)| record(name, object));
        records.collect()
    }

    /// What to remember of all this.
    pub(super) fn to_remember(&self) -> Remembered {
        Remembered {
            members: self.members(),
            datasets: self.records(),
        }
    }
}

/// Whether this is an earlier state of the same object. Resource versions are numbers that grow
/// (Kubernetes, KEP-5504); where they are not, nothing is known to be older.
fn is_older(object: &Dataset, known: &Dataset) -> bool {
    let number = |of: &Dataset| of.resource_version()?.parse::<u128>().ok();
    object.uid() == known.uid()
        && matches!((number(object), number(known)), (Some(new), Some(old)) if new < old)
}

fn heartbeat(node: &CacheNode) -> Option<Timestamp> {
    node.status.as_ref()?.heartbeat.as_ref().map(|time| time.0)
}

fn member(node: &CacheNode) -> Member {
    let weight = node.spec.weight.map(u32::try_from);
    Member {
        name: node.name_any(),
        control: node.spec.address.clone(),
        weight: weight
            .and_then(Result::ok)
            .unwrap_or(USUAL_WEIGHT)
            .min(1000),
    }
}

/// The name under which the cache knows a dataset: its namespace, a dot, its name. A namespace has no dot
/// in it, so no two datasets get the same.
pub(super) fn name_of(object: &Dataset) -> Option<DatasetName> {
    let namespace = object.namespace()?;
    match format!("{namespace}.{}", object.name_any()).parse() {
        Ok(name) => Some(name),
        Err(error) => {
            tracing::warn!(%error, namespace, "left a Dataset object out");
            None
        }
    }
}

/// The namespace and the name of a Dataset object, of the cache's name for it.
pub(super) fn object_of(name: &DatasetName) -> Option<(&str, &str)> {
    name.as_str().split_once('.')
}

fn record(name: &DatasetName, object: &Dataset) -> Option<DatasetRecord> {
    let status = object.status.as_ref()?;
    let version: Digest = object.shown_version()?.parse().ok()?;
    let origin = status.origin.as_deref()?.parse().ok()?;
    let own = object.namespace();
    let readers = own.iter().chain(&object.spec.shared_with);
    let had = status.version.iter().chain(&status.earlier_versions);
    let had = had.filter_map(|text| text.parse::<Digest>().ok());
    let mut record = DatasetRecord::new(name.clone(), origin, version);
    record.earlier = had.filter(|had| *had != version).collect();
    record.namespaces = Some(readers.filter_map(|name| Namespace::parse(name)).collect());
    Some(record)
}

#[cfg(test)]
mod tests;
