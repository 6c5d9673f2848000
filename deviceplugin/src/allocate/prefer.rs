//! Which of the free devices are the best ones together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Place;

/// Chooses `size` of the devices that are available, those that must be included first. `None` if that
/// can't be.
///
/// Several devices are for several rails: each is of another physical function as far as there are any.
/// Those of one NUMA node come before the rest, and rails in the order of their PCI addresses, which is
/// the same on all nodes of a kind: the n-th device of a pod is then on the same rail everywhere.
pub fn prefer(available: &[(&str, &Place)], must: &[&str], size: usize) -> Option<Vec<String>> {
    let known: BTreeMap<&str, &Place> = available.iter().copied().collect();
    let required: BTreeSet<&str> = must.iter().copied().collect();
    let fixed: Option<Vec<&Place>> = required.iter().map(|id| known.get(id).copied()).collect();
    let fixed = fixed?;
    if required.len() > size || size > known.len() {
        return None;
    }
    let mut rails: BTreeMap<_, Vec<(&Place, &str)>> = BTreeMap::new();
    for (&id, &place) in &known {
        if !required.contains(id) {
            rails.entry(place.physical).or_default().push((place, id));
        }
    }
    for rail in rails.values_mut() {
        // Taken from the end.
        rail.sort_by(|one, other| other.cmp(one));
    }
    let mut used: BTreeMap<_, usize> = BTreeMap::new();
    for place in &fixed {
        *used.entry(place.physical).or_default() += 1;
    }
    let near = nearest(&rails, &fixed, size - fixed.len());
    let mut chosen: Vec<(&Place, &str)> = fixed.into_iter().zip(required).collect();
    while chosen.len() < size {
        let (rail, free) = rails
            .iter_mut()
            .filter(|(_, free)| !free.is_empty())
            .min_by_key(|(rail, free)| {
                let far = free
                    .last()
                    .is_some_and(|(place, _)| place.numa_node != near);
                (used.get(*rail).copied().unwrap_or(0), far, **rail)
            })?;
        *used.entry(*rail).or_default() += 1;
        chosen.push(free.pop()?);
    }
    chosen.sort();
    Some(chosen.into_iter().map(|(_, id)| id.to_owned()).collect())
}

/// The NUMA node to take the rest from: that of what is fixed, else the one with just enough rails, else
/// the one with the most.
fn nearest<K: Ord>(
    rails: &BTreeMap<K, Vec<(&Place, &str)>>,
    fixed: &[&Place],
    wanted: usize,
) -> Option<u32> {
    if let Some(place) = fixed.first() {
        return place.numa_node;
    }
    let mut nodes: BTreeMap<Option<u32>, usize> = BTreeMap::new();
    for (place, _) in rails.values().filter_map(|rail| rail.last()) {
        *nodes.entry(place.numa_node).or_default() += 1;
    }
    let enough = nodes.iter().filter(|(_, rails)| **rails >= wanted);
    let best = enough.min_by_key(|(_, rails)| **rails);
    let most = || {
        nodes
            .iter()
            .max_by_key(|(node, rails)| (**rails, Reverse(**node)))
    };
    best.or_else(most).and_then(|(node, _)| *node)
}
