//! What each team may use, what it may borrow, and what it uses.

use super::{HardwareId, Snapshot, TeamId};
use std::collections::BTreeMap;

/// A team, and its share of the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Team {
    /// Its name.
    pub name: String,
    /// Accelerators of each kind that it is sure of. A team without any quota at all is bounded by the
    /// cluster alone.
    pub quotas: BTreeMap<HardwareId, Quota>,
}

/// Accelerators of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// What it is sure of.
    pub nominal: u32,
    /// What it may use beyond while others leave it; none: as much as is free.
    pub borrow: Option<u32>,
}

/// Whether a gang's accelerators are within its team's quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// They are.
    Within,
    /// They are borrowed.
    Borrowing,
    /// They are more than the team may borrow; by so many.
    Beyond(u64),
}

impl Team {
    /// A team without a quota.
    pub fn new(name: &str) -> Self {
        Team {
            name: name.to_owned(),
            quotas: BTreeMap::new(),
        }
    }
}

/// What every team uses.
pub(super) struct Usage<'a> {
    teams: &'a [Team],
    gpus: BTreeMap<(TeamId, HardwareId), u64>,
}

impl<'a> Usage<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut usage = Usage {
            teams: &snapshot.teams,
            gpus: BTreeMap::new(),
        };
        for running in &snapshot.running {
            let gpus = running
                .holds
                .iter()
                .map(|(_, held)| u64::from(held.gpus))
                .sum();
            usage.add(running.team, running.hardware, gpus);
        }
        usage
    }

    pub(super) fn add(&mut self, team: TeamId, hardware: HardwareId, gpus: u64) {
        *self.gpus.entry((team, hardware)).or_default() += gpus;
    }

    pub(super) fn remove(&mut self, team: TeamId, hardware: HardwareId, gpus: u64) {
        let used = self.gpus.entry((team, hardware)).or_default();
        *used = used.saturating_sub(gpus);
    }

    fn used(&self, team: TeamId, hardware: HardwareId) -> u64 {
        self.gpus.get(&(team, hardware)).copied().unwrap_or(0)
    }

    /// All that a team uses.
    pub(super) fn total(&self, team: TeamId) -> u64 {
        let own = self
            .gpus
            .range((team, HardwareId(0))..=(team, HardwareId(u16::MAX)));
        own.map(|(_, used)| used).sum()
    }

    /// How a team would stand with so many more.
    pub(super) fn standing(&self, team: TeamId, hardware: HardwareId, gpus: u64) -> Standing {
        let quotas = &self.teams[team.0 as usize].quotas;
        if quotas.is_empty() || gpus == 0 {
            return Standing::Within;
        }
        let quota = quotas.get(&hardware).copied().unwrap_or(Quota {
            nominal: 0,
            borrow: None,
        });
        let beyond = (self.used(team, hardware) + gpus).saturating_sub(quota.nominal.into());
        match quota.borrow {
            _ if beyond == 0 => Standing::Within,
            Some(borrow) if beyond > u64::from(borrow) => {
                Standing::Beyond(beyond - u64::from(borrow))
            }
            _ => Standing::Borrowing,
        }
    }

    /// What a team has borrowed.
    pub(super) fn borrowed(&self, team: TeamId, hardware: HardwareId) -> u64 {
        let quotas = &self.teams[team.0 as usize].quotas;
        if quotas.is_empty() {
            return 0;
        }
        let nominal = quotas.get(&hardware).map_or(0, |quota| quota.nominal);
        self.used(team, hardware).saturating_sub(nominal.into())
    }

    /// How far a team is beyond its share: what it borrowed over what it is sure of, the largest of
    /// all kinds.
    pub(super) fn excess(&self, team: TeamId) -> f64 {
        let quotas = &self.teams[team.0 as usize].quotas;
        let of = |(hardware, quota): (&HardwareId, &Quota)| {
            let beyond = self
                .used(team, *hardware)
                .saturating_sub(quota.nominal.into());
            beyond as f64 / f64::from(quota.nominal.max(1))
        };
        quotas.iter().map(of).fold(0.0, f64::max)
    }
}
