//! What is to be done to ports: decided over what was found, before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use thiserror::Error;

use super::identity::Identity;
use super::wanted::VirtualFunctions;
use super::{PortState, Setting, Switch};
use crate::allocate::Held;
use crate::function::{Function, PciAddress};

/// Ports as they were when they were looked at.
pub type Ports = BTreeMap<PciAddress, PortState>;

/// One port's change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The physical function.
    pub physical: PciAddress,
    /// How many virtual functions it has.
    pub from: u32,
    /// How many it is to have.
    pub to: u32,
    /// What of their settings differs.
    pub changes: Vec<Change>,
    /// What its virtual functions are to be set to as far as that is said, by index.
    #[serde(skip)]
    pub(super) wanted: Vec<Vec<Setting>>,
    /// What they were set to, to be put back.
    #[serde(skip)]
    pub(super) before: Vec<Vec<Setting>>,
}

/// A setting that is to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which of the port's virtual functions.
    pub function: u32,
    /// What of it.
    pub setting: &'static str,
    /// What it is; `None` if that is not known, or if the function is not there yet.
    pub from: Option<Setting>,
    /// What it is to be.
    pub to: Setting,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step {
            physical, from, to, ..
        } = self;
        if from == to {
            return write!(f, "{physical}: settings of its virtual functions");
        }
        write!(f, "{physical}: {to} virtual functions instead of {from}")
    }
}

/// Why nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// Nothing of that name or address is here.
    #[error(
        "there is no physical function {0} here: `trackbed rdma devices` and `ip link` name what there is"
    )]
    Missing(String),
    /// It can't have that many.
    #[error(
        "{physical} can have {most} virtual functions and is to have {count}: lower `count`, or raise the \
             number in the adapter's firmware"
    )]
    TooMany {
        /// The physical function.
        physical: PciAddress,
        /// What it can have.
        most: u32,
        /// What it is to have.
        count: u32,
    },
    /// Two entries want something else of it.
    #[error("two entries of `virtual-functions` want something else of {0}: name it once")]
    Contradiction(PciAddress),
    /// A pod has one of those that would go or change.
    #[error("{physical} can't be changed: {holders}; drain the node first")]
    Held {
        /// The physical function.
        physical: PciAddress,
        /// Which device is held by whom.
        holders: String,
    },
    /// It does not say what it is like.
    #[error("the settings of {physical} can't be read: {why}")]
    Unreadable {
        /// The physical function.
        physical: PciAddress,
        /// What the system said.
        why: String,
    },
    /// Nothing names the port that addresses could be made of.
    #[error(
        "{0} has neither a serial number nor a hardware address of its own that `stable` addresses could be \
         made of: write them down with `functions`"
    )]
    NoIdentity(PciAddress),
    /// Two virtual functions would have the same address.
    #[error("two virtual functions are to have the {name} {address}: give each another one")]
    Twice {
        /// Which setting.
        name: &'static str,
        /// The address.
        address: String,
    },
    /// Their vectors can't be moved, or there are not so many.
    #[error(
        "the virtual functions of {physical} are to have {wanted} interrupt vectors (`msix`), and share {}: \
         lower `msix`, or leave it out",
        .most.map_or("none that could be moved".to_owned(), |most| most.to_string())
    )]
    Vectors {
        /// The physical function.
        physical: PciAddress,
        /// What they are to have together.
        wanted: u64,
        /// What there is.
        most: Option<u32>,
    },
}

/// Looks at those ports whose settings matter for the plan.
pub fn look(
    wanted: &[VirtualFunctions],
    found: &[Function],
    switch: &dyn Switch,
) -> Result<Ports, PlanError> {
    let mut ports = Ports::new();
    for (physical, (entry, function)) in entries(wanted, found)? {
        // Those that go are put back as they were if another port fails.
        let go = function.vfs > 0 && function.vfs != entry.count;
        if !entry.has_settings() && !go {
            continue;
        }
        let state = switch
            .port(physical)
            .map_err(|error| PlanError::Unreadable {
                physical,
                why: error.to_string(),
            })?;
        ports.insert(physical, state);
    }
    Ok(ports)
}

/// What is to be done, by PCI address; nothing for ports that are as they are to be. Everything is looked at
/// before anything is changed.
pub fn plan(
    wanted: &[VirtualFunctions],
    found: &[Function],
    held: &[Held],
    ports: &Ports,
) -> Result<Vec<Step>, PlanError> {
    let mut steps = Vec::new();
    let mut addresses = BTreeSet::new();
    let held: Vec<_> = held.iter().filter(|it| it.holder.is_some()).collect();
    for (physical, (entry, function)) in entries(wanted, found)? {
        let (from, to) = (function.vfs, entry.count);
        let none = PortState::default();
        let port = ports.get(&physical).unwrap_or(&none);
        let mut wanted = settings(entry, function, port)?;
        for setting in wanted.iter().flatten() {
            let (name, address) = match setting {
                Setting::Mac(_) | Setting::NodeGuid(_) | Setting::PortGuid(_) => {
                    (setting.name(), setting.to_string())
                }
                _ => continue,
            };
            if !addresses.insert((name, address.clone())) {
                return Err(PlanError::Twice { name, address });
            }
        }
        let of_it = held.iter().filter(|it| it.offer.place.physical == physical);
        let mut holders: Vec<&Held> = of_it.copied().collect();
        let mut changes = Vec::new();
        for (index, wanted) in (0..).zip(&mut wanted) {
            // All of them are made anew if their number changes.
            let now = match from == to {
                true => port.functions.get(index as usize).map(Vec::as_slice),
                false => None,
            };
            let now = now.unwrap_or_default();
            if from == to && at(found, physical, index).is_some_and(|it| is_held(&holders, it)) {
                // What can't be seen of a function that is in a pod's network namespace.
                wanted.retain(|setting| setting.like(now).is_some());
            }
            let different = wanted.iter().filter(|setting| !now.contains(setting));
            changes.extend(different.map(|to| Change {
                function: index,
                setting: to.name(),
                from: to.like(now).copied(),
                to: *to,
            }));
        }
        if from == to {
            if changes.is_empty() {
                continue;
            }
            let changed: BTreeSet<_> = changes
                .iter()
                .filter_map(|change| at(found, physical, change.function))
                .collect();
            holders.retain(|it| changed.contains(&it.offer.place.address));
        }
        if !holders.is_empty() {
            let holders: Vec<_> = holders.into_iter().map(holder).collect();
            let holders = holders.join(", ");
            return Err(PlanError::Held { physical, holders });
        }
        steps.push(Step {
            physical,
            from,
            to,
            changes,
            wanted,
            before: port.functions.clone(),
        });
    }
    Ok(steps)
}

/// What each of a port's virtual functions is to be set to.
fn settings(
    entry: &VirtualFunctions,
    function: &Function,
    port: &PortState,
) -> Result<Vec<Vec<Setting>>, PlanError> {
    let physical = function.address;
    let serial = function.serial.as_deref();
    let identity = Identity::new(serial, port.permanent.as_deref());
    let (mut all, mut vectors) = (Vec::new(), 0_u64);
    for index in 0..entry.count {
        let wanted = entry.of(index);
        if wanted.wants_identity() && identity == Identity::Unknown {
            return Err(PlanError::NoIdentity(physical));
        }
        vectors += wanted.msix.map_or(0, |count| u64::from(count.0));
        all.push(wanted.resolve(&identity, index));
    }
    let most = port.vectors;
    if vectors > most.unwrap_or(0).into() {
        return Err(PlanError::Vectors {
            physical,
            wanted: vectors,
            most,
        });
    }
    Ok(all)
}

fn at(found: &[Function], physical: PciAddress, index: u32) -> Option<PciAddress> {
    let it = found
        .iter()
        .find(|it| it.virtual_of == Some((physical, index)));
    Some(it?.address)
}

fn is_held(held: &[&Held], address: PciAddress) -> bool {
    held.iter().any(|it| it.offer.place.address == address)
}

fn holder(held: &Held) -> String {
    let pod = held.holder.as_ref().and_then(|holder| holder.pod.as_ref());
    match pod {
        Some(pod) => format!("pod {pod} has {}", held.offer.id),
        None => format!("a container has {}", held.offer.id),
    }
}

/// What is wanted of each port that is named.
fn entries<'a>(
    wanted: &'a [VirtualFunctions],
    found: &'a [Function],
) -> Result<BTreeMap<PciAddress, (&'a VirtualFunctions, &'a Function)>, PlanError> {
    let mut entries: BTreeMap<_, (&VirtualFunctions, &Function)> = BTreeMap::new();
    for entry in wanted {
        for function in selected(entry, found)? {
            let physical = function.address;
            if entry.count > function.total_vfs {
                return Err(PlanError::TooMany {
                    physical,
                    most: function.total_vfs,
                    count: entry.count,
                });
            }
            let (one, _) = *entries.entry(physical).or_insert((entry, function));
            let same = |other: &VirtualFunctions| {
                one.count == other.count
                    && one.settings == other.settings
                    && one.functions == other.functions
            };
            if !same(entry) {
                return Err(PlanError::Contradiction(physical));
            }
        }
    }
    Ok(entries)
}

fn selected<'a>(
    entry: &VirtualFunctions,
    found: &'a [Function],
) -> Result<Vec<&'a Function>, PlanError> {
    let physical = || found.iter().filter(|it| !it.is_virtual());
    let by_name = entry.pf_names.iter().map(|name| {
        let one = physical().find(|it| it.net_devices.contains(name));
        one.ok_or_else(|| PlanError::Missing(name.clone()))
    });
    let by_address = entry.addresses.iter().map(|address| {
        let one = physical().find(|it| it.address == *address);
        one.ok_or_else(|| PlanError::Missing(address.to_string()))
    });
    by_name.chain(by_address).collect()
}
