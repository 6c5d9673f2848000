//! A device as it is offered, held and shown.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::config::PoolName;
use crate::function::PciAddress;

/// A device as it is offered: a virtual function, or a share of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What kubelet calls it: at most 63 characters.
    pub id: String,
    /// Where it sits.
    pub place: Place,
    /// What it must have again when it comes back from a pod.
    pub marks: Marks,
    /// Whether it can be given.
    pub health: Health,
}

/// Where a device sits, which says how near it is to others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Its own address.
    pub address: PciAddress,
    /// The physical function it is of: its rail.
    pub physical: PciAddress,
    /// The bridges above it, the root port first.
    pub bridges: Vec<PciAddress>,
    /// NUMA node, if the platform says.
    pub numa_node: Option<u32>,
}

/// What tells that a device is as it was: pods may change their own, and drivers lose it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// The hardware address of its net device.
    pub mac: Option<String>,
    /// The node GUID of its RDMA device.
    pub node_guid: Option<String>,
}

/// Whether a device can be given, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It can.
    Healthy,
    /// It can't, for this reason.
    Unhealthy(String),
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Who has a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The pod, once kubelet has said which.
    pub pod: Option<Pod>,
    /// Since when.
    pub since: SystemTime,
}

/// A device that somebody has, as it outlives a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Whose resource it is.
    pub pool: PoolName,
    /// The device as it was when it was given.
    pub offer: Offer,
    /// Who has it; nobody does any more while it is on its way back.
    pub holder: Option<Holder>,
}

/// A device as it is shown to people and to kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The device.
    pub id: String,
    /// Where it sits.
    pub place: Place,
    /// Whether it can be given.
    pub health: Health,
    /// Who has it.
    pub holder: Option<Holder>,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Marks {
    /// Why what was given with these marks is not as it was.
    pub(super) fn differ(&self, now: &Marks) -> Option<String> {
        let differ = |what: &str, before: &Option<String>, now: &Option<String>| {
            let before = before.as_ref()?;
            match now {
                Some(now) if now == before => None,
                Some(now) => Some(format!("it came back with {what} {now} and had {before}")),
                None => Some(format!("it came back without its {what} {before}")),
            }
        };
        differ("MAC", &self.mac, &now.mac)
            .or_else(|| differ("node GUID", &self.node_guid, &now.node_guid))
    }
}
