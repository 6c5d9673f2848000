//! Holds room for the first gang that does not fit: when running gangs will have made room for it, and
//! where.

use super::{
    Amounts, Gang, HardwareId, Millis, Snapshot,
    free::Free,
    place::{Rules, place},
};
use std::collections::BTreeMap;

/// When and where a gang will fit.
pub(super) struct Held {
    pub(super) at: Millis,
    /// What others may use of each of its nodes even if they stay longer.
    pub(super) left: Vec<(super::NodeId, Amounts)>,
}

/// A running gang that is past its said end is taken to run this much longer, of what it has run.
const OVERRUN: i64 = 4;

/// How long a pod that is ending is taken to need for it: Kubernetes's grace unless it asks for more.
const GRACE: Millis = 30_000;

/// When a running gang is taken to end; never, if it does not say.
pub(super) fn end(started: Millis, ends: Option<Millis>, now: Millis) -> Option<Millis> {
    ends.map(|ends| {
        if ends > now {
            ends
        } else {
            now.saturating_add(now.saturating_sub(started).max(OVERRUN) / OVERRUN)
        }
    })
}

/// The earliest time at which the gang fits, if those that run end as they say.
pub(super) fn hold(
    snapshot: &Snapshot,
    free: &Free<'_>,
    rules: &Rules<'_>,
    gang: &Gang,
    hardware: &[HardwareId],
    started: &[(Millis, Vec<(super::NodeId, Amounts)>)],
    now: Millis,
) -> Option<Held> {
    let mut endings: BTreeMap<Millis, Vec<(super::NodeId, &Amounts)>> = BTreeMap::new();
    for running in &snapshot.running {
        if let Some(at) = end(running.started, running.ends, now) {
            let held = running.holds.iter().map(|(node, held)| (*node, held));
            endings.entry(at).or_default().extend(held);
        }
    }
    for (node, held) in &snapshot.leaving {
        let at = now.saturating_add(GRACE);
        endings.entry(at).or_default().push((*node, held));
    }
    for (at, held) in started {
        let held = held.iter().map(|(node, held)| (*node, held));
        endings.entry(*at).or_default().extend(held);
    }
    let times: Vec<Millis> = endings.keys().copied().collect();
    let after = |last: usize| {
        let mut later = free.clone();
        for (node, held) in endings.values().take(last + 1).flatten() {
            later.give(*node, held);
        }
        later
    };
    let fits = |later: &Free<'_>| {
        hardware
            .iter()
            .find_map(|hardware| place(later, rules, gang, *hardware, false))
    };
    // More room never makes it fit less, so that the first time can be found by halving.
    let (mut low, mut high) = (0, times.len());
    while low < high {
        let middle = (low + high) / 2;
        if fits(&after(middle)).is_some() {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let at = *times.get(low)?;
    let mut later = after(low);
    let placement = fits(&later)?;
    for (role, node, times) in &placement.pods {
        later.take(*node, &gang.roles[*role].request, *times, false);
    }
    let left = placement
        .pods
        .iter()
        .map(|(_, node, _)| (*node, later.on(*node).clone()));
    let left = left.collect();
    Some(Held { at, left })
}
