//! A gang that waits: pods that start together or not at all.

use super::{Amounts, Constraint, HardwareId, Millis, TeamId};

/// Pods that start together or not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct Gang {
    /// Its name, unique in the queue: namespace/name.
    pub name: String,
    /// Whose quota it takes.
    pub team: TeamId,
    /// Higher is asked first.
    pub priority: i32,
    /// When it was put into the queue. A gang that comes back after a failed start keeps it.
    pub submitted: Millis,
    /// How long it is said to run, on hardware of speed 1.
    pub run_time: Option<Millis>,
    /// How long it is said to run on some hardware, where that is known better than by the speed.
    pub run_time_on: Vec<(HardwareId, Millis)>,
    /// Its pods.
    pub roles: Vec<Role>,
    /// The hardware it may use, all pods the same; empty: any.
    pub hardware: Vec<HardwareId>,
    /// How near to one another its pods must be.
    pub topology: Topology,
    /// The dataset it reads.
    pub dataset: Option<DatasetNeed>,
    /// Not to be started before: it waits out a failed start.
    pub not_before: Millis,
}

/// Pods of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// Its name within the gang.
    pub name: String,
    /// How many pods.
    pub count: u32,
    /// What each asks for.
    pub request: Amounts,
    /// Which nodes they may use.
    pub constraint: Constraint,
}

/// How near to one another a gang's pods must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Topology {
    /// In as few racks and rail groups as possible.
    #[default]
    Prefer,
    /// In one rack, or it does not start.
    OneRack,
    /// In one group of rails, or it does not start.
    OneRailGroup,
}

/// A dataset that a gang reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DatasetNeed {
    /// The dataset, by its place in [`Snapshot::datasets`](super::Snapshot::datasets).
    pub dataset: usize,
    /// The share of it, from 0 to 1, that must be cached somewhere in the cluster before the start.
    pub warm_share: f64,
}

impl Gang {
    /// A gang that asks for nothing but its roles.
    pub fn new(name: &str, team: TeamId, submitted: Millis, roles: Vec<Role>) -> Self {
        Gang {
            name: name.to_owned(),
            team,
            priority: 0,
            submitted,
            run_time: None,
            run_time_on: Vec::new(),
            roles,
            hardware: Vec::new(),
            topology: Topology::Prefer,
            dataset: None,
            not_before: Millis::MIN,
        }
    }

    /// Accelerators of all its pods.
    pub fn gpus(&self) -> u64 {
        let of = |role: &Role| u64::from(role.count) * u64::from(role.request.gpus);
        self.roles.iter().map(of).sum()
    }

    /// All its pods.
    pub fn pods(&self) -> u64 {
        self.roles.iter().map(|role| u64::from(role.count)).sum()
    }

    /// How long it is said to run on this hardware of this speed.
    pub fn run_time_on(&self, hardware: HardwareId, speed: f64) -> Option<Millis> {
        let known = self.run_time_on.iter().find(|(id, _)| *id == hardware);
        known.map(|(_, run_time)| *run_time).or_else(|| {
            // A run time is a guess; a speed of nothing would make it endless.
            self.run_time
                .map(|run_time| (run_time as f64 / speed.max(1e-3)) as Millis)
        })
    }

    /// The least time that it is said to run.
    pub(super) fn shortest(&self) -> Option<Millis> {
        let known = self.run_time_on.iter().map(|(_, run_time)| *run_time);
        known.chain(self.run_time).min()
    }
}

impl Role {
    /// Pods that may use every node without taints.
    pub fn new(name: &str, count: u32, request: Amounts) -> Self {
        Role {
            name: name.to_owned(),
            count,
            request,
            constraint: Constraint::default(),
        }
    }
}
