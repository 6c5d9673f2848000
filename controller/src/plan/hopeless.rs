//! What has not fitted anywhere. Within a plan room only gets less, so that neither it nor anything that asks
//! for as much or more does later.

use super::{Amounts, Gang, HardwareId, Topology, place::Rules};
use std::collections::{HashMap, HashSet};

/// Pods that did not fit: how near to one another, how many, what each asked for.
struct Failed<'a> {
    topology: Topology,
    outlasts: bool,
    count: u32,
    request: &'a Amounts,
}

/// What has not fitted.
#[derive(Default)]
pub(super) struct Hopeless<'a> {
    /// Gangs of one role, by their constraint and hardware.
    roles: HashMap<(usize, HardwareId), Vec<Failed<'a>>>,
    /// Other gangs, by their place in the queue.
    gangs: HashSet<(usize, HardwareId, bool)>,
}

impl<'a> Hopeless<'a> {
    /// Whether a gang is known not to fit: it, or one of its roles alone.
    pub(super) fn knows(
        &self,
        index: usize,
        gang: &Gang,
        rules: &Rules<'_>,
        hardware: HardwareId,
        outlasts: bool,
    ) -> bool {
        self.gangs.contains(&(index, hardware, outlasts))
            || gang.roles.iter().any(|role| {
                let wanted = Failed {
                    topology: gang.topology,
                    outlasts,
                    count: role.count,
                    request: &role.request,
                };
                let failed = self.roles.get(&(rules.number(&role.constraint), hardware));
                failed.is_some_and(|failed| failed.iter().any(|failed| failed.is_within(&wanted)))
            })
    }

    /// Notes that a gang did not fit. One that may only have lacked room for its dataset says nothing
    /// about others.
    pub(super) fn note(
        &mut self,
        index: usize,
        gang: &'a Gang,
        rules: &Rules<'_>,
        hardware: HardwareId,
        outlasts: bool,
        lacks_cache: bool,
    ) {
        match gang.roles.as_slice() {
            [role] if !lacks_cache => {
                let new = Failed {
                    topology: gang.topology,
                    outlasts,
                    count: role.count,
                    request: &role.request,
                };
                let failed = self
                    .roles
                    .entry((rules.number(&role.constraint), hardware))
                    .or_default();
                failed.retain(|known| !new.is_within(known));
                failed.push(new);
            }
            _ => {
                self.gangs.insert((index, hardware, outlasts));
            }
        }
    }
}

impl Failed<'_> {
    /// Whether `other` asks for as much in every way.
    fn is_within(&self, other: &Failed<'_>) -> bool {
        (self.topology == Topology::Prefer || self.topology == other.topology)
            && (!self.outlasts || other.outlasts)
            && self.count <= other.count
            && self.request.is_within(other.request)
    }
}
