//! What is free, indexed so that the nodes that fit a pod best are found without looking at the others.

use super::{Amounts, DomainId, HardwareId, NodeId, Snapshot, Zone};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Nodes of one kind of hardware in one rack, by their free accelerators.
#[derive(Clone)]
pub(super) struct Cell {
    pub(super) rail_group: Option<DomainId>,
    pub(super) in_a_rack: bool,
    by_gpus: BTreeMap<u32, BTreeSet<NodeId>>,
    pub(super) gpus: u64,
}

/// What is free on a node.
#[derive(Clone)]
struct Room {
    free: Amounts,
    zones: Vec<Zone>,
    cell: Option<usize>,
}

/// What is free in the cluster.
#[derive(Clone)]
pub(super) struct Free<'a> {
    pub(super) snapshot: &'a Snapshot,
    rooms: Vec<Room>,
    pub(super) cells: Vec<Cell>,
    pub(super) by_hardware: Vec<Vec<usize>>,
    /// For each kind of hardware how many nodes have how many free accelerators.
    histograms: Vec<BTreeMap<u32, u32>>,
    /// What a gang may use of a node that is held for another, if it outlasts the other's wait.
    held: BTreeMap<NodeId, Amounts>,
}

impl<'a> Free<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut free = Free {
            snapshot,
            rooms: Vec::with_capacity(snapshot.nodes.len()),
            cells: Vec::new(),
            by_hardware: vec![Vec::new(); snapshot.hardware.len()],
            histograms: vec![BTreeMap::new(); snapshot.hardware.len()],
            held: BTreeMap::new(),
        };
        let mut cells: HashMap<(HardwareId, Option<DomainId>, Option<DomainId>), usize> =
            HashMap::new();
        for (id, node) in snapshot.node_ids().zip(&snapshot.nodes) {
            let mut room = Room {
                free: node.free.clone(),
                zones: node.zones.clone(),
                cell: None,
            };
            if node.unusable.is_none() {
                let index = *cells
                    .entry((node.hardware, node.rail_group, node.rack))
                    .or_insert_with(|| {
                        free.cells.push(Cell {
                            rail_group: node.rail_group,
                            in_a_rack: node.rack.is_some(),
                            by_gpus: BTreeMap::new(),
                            gpus: 0,
                        });
                        free.by_hardware[usize::from(node.hardware.0)].push(free.cells.len() - 1);
                        free.cells.len() - 1
                    });
                free.cells[index].insert(id, room.free.gpus);
                *free.histograms[usize::from(node.hardware.0)]
                    .entry(room.free.gpus)
                    .or_default() += 1;
                room.cell = Some(index);
            }
            free.rooms.push(room);
        }
        free
    }

    /// How many pods that ask for `request` fit on a node, at most `most`, once `before` has been put there,
    /// too. One that `outlasts` what is held leaves that alone.
    pub(super) fn times<'r>(
        &self,
        node: NodeId,
        before: impl Iterator<Item = (&'r Amounts, u32)>,
        request: &Amounts,
        most: u32,
        outlasts: bool,
    ) -> u32 {
        let held = self.held.get(&node).filter(|_| outlasts);
        let mut before = before.peekable();
        if before.peek().is_none() {
            let times = self.rooms[node.0 as usize].times(request, most);
            return held.map_or(times, |left| left.times(request, times));
        }
        let (mut room, mut held) = (self.rooms[node.0 as usize].clone(), held.cloned());
        for (request, times) in before {
            room.take(request, times);
            if let Some(left) = &mut held {
                left.take(request, times);
            }
        }
        let times = room.times(request, most);
        held.map_or(times, |left| left.times(request, times))
    }

    /// Puts `times` pods on a node.
    pub(super) fn take(&mut self, node: NodeId, request: &Amounts, times: u32, outlasts: bool) {
        let room = &mut self.rooms[node.0 as usize];
        let before = room.free.gpus;
        room.take(request, times);
        let (cell, now) = (room.cell, room.free.gpus);
        self.moved(cell, node, before, now);
        if outlasts && let Some(left) = self.held.get_mut(&node) {
            left.take(request, times);
        }
    }

    /// Gives back what a gang held of a node. Which NUMA node it was in is not known: all of them may
    /// have it.
    pub(super) fn give(&mut self, node: NodeId, held: &Amounts) {
        let room = &mut self.rooms[node.0 as usize];
        let before = room.free.gpus;
        room.free.give(held, 1);
        for zone in &mut room.zones {
            zone.gpus += held.gpus;
            zone.vfs += held.vfs;
        }
        let (cell, now) = (room.cell, room.free.gpus);
        self.moved(cell, node, before, now);
    }

    /// What is free on a node.
    pub(super) fn on(&self, node: NodeId) -> &Amounts {
        &self.rooms[node.0 as usize].free
    }

    /// The cell that a node is in, if it can be used.
    pub(super) fn cell_of(&self, node: NodeId) -> Option<usize> {
        self.rooms[node.0 as usize].cell
    }

    /// From now on only this much of a node is for gangs that outlast what the rest is held for.
    pub(super) fn hold(&mut self, node: NodeId, left: Amounts) {
        self.held.insert(node, left);
    }

    /// All accelerators that are free on nodes of a kind.
    pub(super) fn gpus_of(&self, hardware: HardwareId) -> u64 {
        let histogram = &self.histograms[usize::from(hardware.0)];
        histogram
            .iter()
            .map(|(free, nodes)| u64::from(*free) * u64::from(*nodes))
            .sum()
    }

    /// How many pods of so many accelerators fit on nodes of a kind at most.
    pub(super) fn bound(&self, hardware: HardwareId, gpus: u32) -> u64 {
        let fitting = self.histograms[usize::from(hardware.0)].range(gpus..);
        fitting
            .map(|(free, nodes)| pods(*free, gpus, u64::from(*nodes)))
            .sum()
    }

    fn moved(&mut self, cell: Option<usize>, node: NodeId, before: u32, now: u32) {
        if let Some(cell) = cell.map(|index| &mut self.cells[index])
            && before != now
        {
            cell.remove(node, before);
            cell.insert(node, now);
            let hardware = self.snapshot.node(node).hardware;
            let histogram = &mut self.histograms[usize::from(hardware.0)];
            *histogram.entry(now).or_default() += 1;
            if let Some(nodes) = histogram.get_mut(&before) {
                *nodes -= 1;
                if *nodes == 0 {
                    histogram.remove(&before);
                }
            }
        }
    }
}

/// How many pods of so many accelerators fit on nodes that have so many free, as far as those decide.
fn pods(free: u32, gpus: u32, nodes: u64) -> u64 {
    u64::from(free.checked_div(gpus).unwrap_or(u32::MAX)).saturating_mul(nodes)
}

impl Room {
    fn times(&self, request: &Amounts, most: u32) -> u32 {
        let times = self.free.times(request, most);
        if times == 0 || self.zones.is_empty() || (request.gpus == 0 && request.vfs == 0) {
            return times;
        }
        let fits = |zone: &Zone| zone.times(request, most);
        times.min(self.zones.iter().map(fits).fold(0, u32::saturating_add))
    }

    /// Each pod into the NUMA node that it leaves the least of, as kubelet's topology manager prefers.
    fn take(&mut self, request: &Amounts, times: u32) {
        self.free.take(request, times);
        if self.zones.is_empty() || (request.gpus == 0 && request.vfs == 0) {
            return;
        }
        for _ in 0..times {
            let fitting = self
                .zones
                .iter_mut()
                .filter(|zone| zone.times(request, 1) > 0);
            if let Some(zone) = fitting.min_by_key(|zone| (zone.gpus, zone.vfs)) {
                zone.gpus -= request.gpus;
                zone.vfs -= request.vfs;
            }
        }
    }
}

impl Cell {
    /// How many pods of so many accelerators fit at most, as far as those decide.
    pub(super) fn bound(&self, gpus: u32) -> u64 {
        let of = |(free, nodes): (&u32, &BTreeSet<NodeId>)| pods(*free, gpus, nodes.len() as u64);
        self.by_gpus.range(gpus..).map(of).sum()
    }

    /// The nodes with so many free accelerators or more, those with the fewest first.
    pub(super) fn from(&self, gpus: u32) -> impl Iterator<Item = (u32, &BTreeSet<NodeId>)> {
        self.by_gpus
            .range(gpus..)
            .map(|(free, nodes)| (*free, nodes))
    }

    fn insert(&mut self, node: NodeId, gpus: u32) {
        self.by_gpus.entry(gpus).or_default().insert(node);
        self.gpus += u64::from(gpus);
    }

    fn remove(&mut self, node: NodeId, gpus: u32) {
        if let Some(nodes) = self.by_gpus.get_mut(&gpus)
            && nodes.remove(&node)
        {
            self.gpus -= u64::from(gpus);
            if nodes.is_empty() {
                self.by_gpus.remove(&gpus);
            }
        }
    }
}

impl Zone {
    fn times(&self, request: &Amounts, most: u32) -> u32 {
        let of = |have: u32, want: u32| have.checked_div(want).unwrap_or(most);
        most.min(of(self.gpus, request.gpus))
            .min(of(self.vfs, request.vfs))
    }
}
