//! How many virtual functions each physical function is to have: planned as a whole, then carried out.
//!
//! Linux changes a number of virtual functions that is not 0 only through 0: all of that port's go and
//! come again. So a port is left alone if it has the number already, and refused to be changed while a
//! pod has one of its functions.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::allocate::Held;
use crate::function::{Function, PciAddress};

/// How long a port may take to have its functions: 125 of some adapters take more than a minute.
const DEADLINE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What some ports are to have.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VirtualFunctions {
    /// Net devices of physical functions, such as ens1f0.
    #[serde(default)]
    pub pf_names: Vec<String>,
    /// PCI addresses of physical functions.
    #[serde(default)]
    pub addresses: Vec<PciAddress>,
    /// How many virtual functions each is to have.
    pub count: u32,
}

/// One port's change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The physical function.
    pub physical: PciAddress,
    /// How many it has.
    pub from: u32,
    /// How many it is to have.
    pub to: u32,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { physical, from, to } = self;
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
    #[error("{physical} is to have {one} virtual functions and {other} as well: name it once")]
    Contradiction {
        /// The physical function.
        physical: PciAddress,
        /// What the first entry says.
        one: u32,
        /// What another one says.
        other: u32,
    },
    /// A pod has one of those that would go.
    #[error("{physical} can't be changed: {holders}; drain the node first")]
    Held {
        /// The physical function.
        physical: PciAddress,
        /// Which device is held by whom.
        holders: String,
    },
}

/// What is to be done, by PCI address; nothing for ports that are as they are to be. Everything is looked at
/// before anything is changed.
pub fn plan(
    wanted: &[VirtualFunctions],
    found: &[Function],
    held: &[Held],
) -> Result<Vec<Step>, PlanError> {
    let mut counts: BTreeMap<PciAddress, (u32, &Function)> = BTreeMap::new();
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
            let (one, _) = *counts.entry(physical).or_insert((entry.count, function));
            if one != entry.count {
                return Err(PlanError::Contradiction {
                    physical,
                    one,
                    other: entry.count,
                });
            }
        }
    }
    let mut steps = Vec::new();
    for (physical, (to, function)) in counts {
        let from = function.vfs;
        if from == to {
            continue;
        }
        let of_it = held.iter().filter(|it| {
            let place = &it.offer.place;
            place.physical == physical && it.holder.is_some()
        });
        let holders: Vec<_> = of_it.map(holder).collect();
        if !holders.is_empty() {
            let holders = holders.join(", ");
            return Err(PlanError::Held { physical, holders });
        }
        steps.push(Step { physical, from, to });
    }
    Ok(steps)
}

fn holder(held: &Held) -> String {
    let pod = held.holder.as_ref().and_then(|holder| holder.pod.as_ref());
    match pod {
        Some(pod) => format!("pod {pod} has {}", held.offer.id),
        None => format!("a container has {}", held.offer.id),
    }
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

/// What carries out a step.
pub trait Switch: Sync {
    /// Has the kernel make so many virtual functions of a port that has none, or remove all.
    fn set(&self, physical: PciAddress, count: u32) -> io::Result<()>;

    /// How many there are.
    fn count(&self, physical: PciAddress) -> io::Result<u32>;
}

/// The kernel's, by sysfs.
#[derive(Debug)]
pub struct Sysfs {
    /// Below which `/sys` lies.
    pub root: PathBuf,
}

impl Sysfs {
    fn path(&self, physical: PciAddress) -> PathBuf {
        let file = format!("sys/bus/pci/devices/{physical}/sriov_numvfs");
        self.root.join(Path::new(&file))
    }
}

impl Switch for Sysfs {
    fn set(&self, physical: PciAddress, count: u32) -> io::Result<()> {
        fs::write(self.path(physical), count.to_string())
    }

    fn count(&self, physical: PciAddress) -> io::Result<u32> {
        let text = fs::read_to_string(self.path(physical))?;
        text.trim().parse().map_err(io::Error::other)
    }
}

/// A change that was not made, or could not be.
#[derive(Debug, Error)]
#[error("{step}: {source}{}", match .undone {
    true => "; every port is as it was before",
    false => "; and not every port could be put back: `trackbed device-plugin plan` shows what is left to do",
})]
pub struct ApplyError {
    /// What was attempted.
    pub step: Step,
    /// Whether all is as it was.
    pub undone: bool,
    /// What the system said.
    pub source: io::Error,
}

/// Carries out all steps, the ports at the same time; if one fails, those that are done are undone. Blocks.
pub fn apply(steps: &[Step], switch: &dyn Switch) -> Result<(), ApplyError> {
    let outcomes = at_once(steps, |step| change(step.physical, step.to, switch));
    let failed = outcomes.into_iter().zip(steps);
    let failed = failed.filter_map(|(outcome, step)| Some((outcome.err()?, step)));
    let Some((source, step)) = failed.into_iter().next() else {
        return Ok(());
    };
    let undone = at_once(steps, |step| change(step.physical, step.from, switch));
    Err(ApplyError {
        step: step.clone(),
        undone: undone.iter().all(Result::is_ok),
        source,
    })
}

fn at_once(steps: &[Step], change: impl Fn(&Step) -> io::Result<()> + Sync) -> Vec<io::Result<()>> {
    thread::scope(|scope| {
        let threads: Vec<_> = steps
            .iter()
            .map(|step| scope.spawn(|| change(step)))
            .collect();
        let broke = |_| Err(io::Error::other("the thread that changed it broke"));
        let join = |it: thread::ScopedJoinHandle<'_, _>| it.join().unwrap_or_else(broke);
        threads.into_iter().map(join).collect()
    })
}

fn change(physical: PciAddress, to: u32, switch: &dyn Switch) -> io::Result<()> {
    if switch.count(physical)? == to {
        return Ok(());
    }
    switch.set(physical, 0)?;
    if to > 0 {
        switch.set(physical, to)?;
    }
    // Most drivers return when all are there, some before.
    let began = Instant::now();
    while switch.count(physical)? != to {
        if began.elapsed() > DEADLINE {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("they are not there after {DEADLINE:?}"),
            ));
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
