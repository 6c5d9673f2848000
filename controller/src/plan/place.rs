//! Puts all pods of a gang somewhere, or none: on one kind of hardware, in as few racks and rail groups as
//! can be, where least is left over, and of equal places where most of its dataset is.

use super::{
    Constraint, Gang, HardwareId, NodeId, Snapshot, Taint, Topology, free::Cell, free::Free,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Of nodes that fit a pod equally well, how many are compared by what they have of the dataset.
const COMPARED: usize = 64;

/// Where the pods of a gang go.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Placement {
    pub(super) hardware: HardwareId,
    /// Role, node, how many pods of the role.
    pub(super) pods: Vec<(usize, NodeId, u32)>,
}

/// Which roles may use which nodes. Nodes that no constraint tells apart are looked at once.
pub(super) struct Rules<'a> {
    snapshot: &'a Snapshot,
    class_of: Vec<u32>,
    numbers: HashMap<&'a Constraint, usize>,
    /// For each constraint and class what it says, once it was asked.
    known: RefCell<Vec<Vec<Option<bool>>>>,
}

impl<'a> Rules<'a> {
    pub(super) fn of(snapshot: &'a Snapshot, queue: &'a [Gang]) -> Self {
        let mut numbers = HashMap::new();
        let mut keys = HashSet::new();
        for role in queue.iter().flat_map(|gang| &gang.roles) {
            let next = numbers.len();
            numbers.entry(&role.constraint).or_insert_with(|| {
                keys.extend(role.constraint.keys());
                next
            });
        }
        let mut classes: HashMap<(Vec<Option<&String>>, &[Taint]), u32> = HashMap::new();
        let class_of = snapshot
            .nodes
            .iter()
            .map(|node| {
                let values = keys.iter().map(|key| node.labels.get(*key)).collect();
                let next = classes.len() as u32;
                *classes.entry((values, &node.taints)).or_insert(next)
            })
            .collect();
        let known = RefCell::new(vec![vec![None; classes.len()]; numbers.len()]);
        Rules {
            snapshot,
            class_of,
            numbers,
            known,
        }
    }

    /// The number of a role's constraint: equal ones have the same.
    pub(super) fn number(&self, constraint: &Constraint) -> usize {
        self.numbers[constraint]
    }

    fn allows(&self, constraint: &Constraint, number: usize, node: NodeId) -> bool {
        let it = self.snapshot.node(node);
        let ask = || constraint.allows(&it.name, &it.labels, &it.taints);
        if constraint.names_nodes() {
            return ask();
        }
        let class = self.class_of[node.0 as usize];
        *self.known.borrow_mut()[number][class as usize].get_or_insert_with(ask)
    }
}

/// Puts a gang somewhere on `hardware`, if it can be. One that `outlasts` what is held for another leaves
/// that alone.
pub(super) fn place(
    free: &Free<'_>,
    rules: &Rules<'_>,
    gang: &Gang,
    hardware: HardwareId,
    outlasts: bool,
) -> Option<Placement> {
    let needed = gang.gpus();
    let roles = || {
        gang.roles
            .iter()
            .map(|role| (role.request.gpus, u64::from(role.count)))
    };
    if roles().any(|(gpus, count)| free.bound(hardware, gpus) < count) {
        return None;
    }
    let cells = &free.by_hardware[usize::from(hardware.0)];
    let fits =
        |cell: &Cell| cell.gpus >= needed && roles().all(|(gpus, count)| cell.bound(gpus) >= count);
    let attempt = |cells: &[usize]| Attempt::new(free, rules, gang, outlasts).all(cells);
    let made = |pods| Some(Placement { hardware, pods });

    let mut racks: Vec<usize> = cells
        .iter()
        .copied()
        .filter(|&cell| free.cells[cell].in_a_rack && fits(&free.cells[cell]))
        .collect();
    let missing = missing(free, gang);
    racks.sort_by_cached_key(|cell| {
        (
            missing.get(cell).copied().unwrap_or(10),
            free.cells[*cell].gpus,
        )
    });
    for rack in racks {
        if let Some(pods) = attempt(&[rack]) {
            return made(pods);
        }
    }
    if gang.topology == Topology::OneRack {
        return None;
    }

    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for &cell in cells {
        if let Some(group) = free.cells[cell].rail_group {
            groups.entry(group).or_default().push(cell);
        }
    }
    let room = |cells: &[usize]| cells.iter().map(|&cell| free.cells[cell].gpus).sum::<u64>();
    let mut groups: Vec<Vec<usize>> = groups
        .into_values()
        .filter(|cells| room(cells) >= needed)
        .collect();
    groups.sort_by_cached_key(|cells| room(cells));
    for group in groups {
        if let Some(pods) = attempt(&group) {
            return made(pods);
        }
    }
    if gang.topology == Topology::OneRailGroup {
        return None;
    }
    attempt(cells).and_then(made)
}

/// Tenths of the gang's dataset that the best node of a rack is missing, where that is not all of it. A
/// rack that has the dataset is worth more than one that fits a little better.
fn missing(free: &Free<'_>, gang: &Gang) -> HashMap<usize, u64> {
    let mut missing = HashMap::new();
    let Some(need) = gang.dataset else {
        return missing;
    };
    let dataset = &free.snapshot.datasets[need.dataset];
    for node in dataset.on.keys() {
        if let Some(cell) = free.cell_of(*node) {
            let tenths = (10 * dataset.missing_on(*node))
                .checked_div(dataset.bytes)
                .unwrap_or(0);
            let least = missing.entry(cell).or_insert(tenths);
            *least = tenths.min(*least);
        }
    }
    missing
}

/// An attempt to put a gang into some cells.
struct Attempt<'a, 'b> {
    free: &'b Free<'a>,
    rules: &'b Rules<'a>,
    gang: &'b Gang,
    outlasts: bool,
    /// The roles' constraints, by number.
    constraints: Vec<usize>,
    pods: Vec<(usize, NodeId, u32)>,
    /// Which pods have been put on a node: role, how many.
    put: BTreeMap<NodeId, Vec<(usize, u32)>>,
}

impl<'a, 'b> Attempt<'a, 'b> {
    fn new(free: &'b Free<'a>, rules: &'b Rules<'a>, gang: &'b Gang, outlasts: bool) -> Self {
        let numbers = gang.roles.iter().map(|role| rules.number(&role.constraint));
        Attempt {
            free,
            rules,
            gang,
            outlasts,
            constraints: numbers.collect(),
            pods: Vec::new(),
            put: BTreeMap::new(),
        }
    }

    /// All roles, those with the largest pods first, into the cells.
    fn all(mut self, cells: &[usize]) -> Option<Vec<(usize, NodeId, u32)>> {
        let mut roles: Vec<usize> = (0..self.gang.roles.len()).collect();
        roles.sort_by_key(|&role| std::cmp::Reverse(self.gang.roles[role].request.gpus));
        let mut used = HashSet::new();
        for role in roles {
            self.role(role, cells, &mut used)?;
        }
        Some(self.pods)
    }

    /// A role's pods: all into the cell that they leave least of, or else the most into the one that has
    /// the most room, and so on.
    fn role(&mut self, role: usize, cells: &[usize], used: &mut HashSet<usize>) -> Option<()> {
        let wanted = &self.gang.roles[role];
        let mut left = wanted.count;
        let bound = |cell: usize| self.free.cells[cell].bound(wanted.request.gpus);
        let mut cells: Vec<(usize, u64)> = cells.iter().map(|&cell| (cell, bound(cell))).collect();
        cells.retain(|(_, bound)| *bound > 0);
        if cells.iter().map(|(_, bound)| bound).sum::<u64>() < u64::from(left) {
            return None;
        }
        while left > 0 {
            let whole = |bound: u64| bound >= u64::from(left);
            let best = (0..cells.len()).min_by_key(|&index| {
                let (cell, bound) = cells[index];
                let spare = if whole(bound) {
                    bound
                } else {
                    u64::MAX - bound
                };
                (!whole(bound), !used.contains(&cell), spare, cell)
            })?;
            let (cell, _) = cells.swap_remove(best);
            let put = self.fill_cell(role, cell, left);
            if put > 0 {
                used.insert(cell);
            }
            left -= put;
        }
        Some(())
    }

    /// As many of a role's pods as fit into a cell, at most `left`: on the fewest nodes, and the last of
    /// them on the node that they leave least of. Says how many.
    fn fill_cell(&mut self, role: usize, cell: usize, mut left: u32) -> u32 {
        let (before, free) = (left, self.free);
        let (cell, gpus) = (&free.cells[cell], self.gang.roles[role].request.gpus);
        let mut buckets: Vec<_> = cell.from(gpus).collect();
        let capacity = |free: u32| free.checked_div(gpus).unwrap_or(u32::MAX);
        buckets.sort_by_key(|(free, _)| (std::cmp::Reverse(capacity(*free)), *free));
        let mut tried = u32::MAX;
        for (free, node) in buckets
            .into_iter()
            .flat_map(|(free, nodes)| nodes.iter().map(move |node| (free, *node)))
        {
            // Once a node could take all that is left, the one that fits best does.
            if capacity(free) >= left && tried != left {
                tried = left;
                if self.last(role, cell, left) {
                    return before;
                }
            }
            let times = self.times(role, node, left);
            if times > 0 {
                self.put(role, node, times);
                left -= times;
            }
            if left == 0 {
                break;
            }
        }
        before - left
    }

    /// Puts all that is left on one node, the one that it leaves the least of, if there is one.
    fn last(&mut self, role: usize, cell: &Cell, left: u32) -> bool {
        let needed = self.gang.roles[role].request.gpus.saturating_mul(left);
        for (_, nodes) in cell.from(needed) {
            let fitting = nodes
                .iter()
                .copied()
                .filter(|&node| self.times(role, node, left) == left);
            let best = match self.gang.dataset {
                None => fitting.take(1).next(),
                Some(need) => {
                    let dataset = &self.free.snapshot.datasets[need.dataset];
                    fitting
                        .take(COMPARED)
                        .min_by_key(|&node| dataset.missing_on(node))
                }
            };
            if let Some(node) = best {
                self.put(role, node, left);
                return true;
            }
        }
        false
    }

    /// How many of a role's pods fit on a node, at most `most`.
    fn times(&self, role: usize, node: NodeId, most: u32) -> u32 {
        let wanted = &self.gang.roles[role];
        if !self
            .rules
            .allows(&wanted.constraint, self.constraints[role], node)
        {
            return 0;
        }
        if let Some(need) = self.gang.dataset {
            let missing = self.free.snapshot.datasets[need.dataset].missing_on(node);
            if missing > self.free.snapshot.node(node).cache_free {
                return 0;
            }
        }
        let before = self.put.get(&node).into_iter().flatten();
        let before = before.map(|(role, times)| (&self.gang.roles[*role].request, *times));
        self.free
            .times(node, before, &wanted.request, most, self.outlasts)
    }

    fn put(&mut self, role: usize, node: NodeId, times: u32) {
        self.put.entry(node).or_default().push((role, times));
        self.pods.push((role, node, times));
    }
}
