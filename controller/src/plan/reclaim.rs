//! Takes back what teams have borrowed, for a gang that is within its own team's quota.

use super::{
    Gang, HardwareId, Snapshot,
    free::Free,
    place::{Rules, place},
    quota::Usage,
};

/// The running gangs, by their places, that are to end so that `gang` fits, once those that are ending already
/// have; none if it then does: of teams that have borrowed and
/// no more than they have, the lowest priority and the latest start first, and none that need not.
pub(super) fn victims(
    snapshot: &Snapshot,
    free: &Free<'_>,
    rules: &Rules<'_>,
    usage: &Usage<'_>,
    gang: &Gang,
    hardware: HardwareId,
) -> Option<Vec<usize>> {
    let mut candidates: Vec<usize> = (0..snapshot.running.len())
        .filter(|&index| {
            let running = &snapshot.running[index];
            running.reclaimable && running.hardware == hardware && running.team != gang.team
        })
        .collect();
    candidates.sort_by_key(|&index| {
        let running = &snapshot.running[index];
        (
            running.priority,
            std::cmp::Reverse(running.started),
            &running.name,
        )
    });
    let gpus = |index: usize| -> u64 {
        let held = snapshot.running[index].holds.iter();
        held.map(|(_, held)| u64::from(held.gpus)).sum()
    };
    let mut free = free.clone();
    for (node, held) in &snapshot.leaving {
        free.give(*node, held);
    }
    if place(&free, rules, gang, hardware, false).is_some() {
        return Some(Vec::new());
    }
    let mut borrowed = std::collections::HashMap::new();
    let mut chosen = Vec::new();
    let mut later = free.clone();
    let mut fits = false;
    for index in candidates {
        let running = &snapshot.running[index];
        let team = borrowed
            .entry(running.team)
            .or_insert_with(|| usage.borrowed(running.team, hardware));
        if *team == 0 {
            continue;
        }
        *team = team.saturating_sub(gpus(index));
        for (node, held) in &running.holds {
            later.give(*node, held);
        }
        chosen.push(index);
        fits = place(&later, rules, gang, hardware, false).is_some();
        if fits {
            break;
        }
    }
    if !fits {
        return None;
    }
    // What came before the last may not have been needed for it.
    let mut index = 0;
    while index < chosen.len() && chosen.len() > 1 {
        let mut fewer = free.clone();
        for other in chosen.iter().filter(|&&other| other != chosen[index]) {
            for (node, held) in &snapshot.running[*other].holds {
                fewer.give(*node, held);
            }
        }
        if place(&fewer, rules, gang, hardware, false).is_some() {
            chosen.remove(index);
        } else {
            index += 1;
        }
    }
    Some(chosen)
}
