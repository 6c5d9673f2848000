//! The plan itself: goes through the queue, and says for each gang what becomes of it.

use super::{
    Amounts, Discipline, Gang, HardwareId, Millis, NodeId, OriginId, Peer, Snapshot, TeamId,
    free::Free,
    hopeless::Hopeless,
    order::longest_wait,
    place::{Placement, Rules, place},
    quota::{Standing, Usage},
    reclaim::victims,
    reserve::{Held, end, hold},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
};

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The gangs that start, with all their pods.
    pub admissions: Vec<Admission>,
    /// The running gangs that are to end, to give back what their teams borrowed.
    pub reclaims: Vec<Reclaim>,
    /// For whom room is held: the first in the order that did not fit.
    pub reservation: Option<Reservation>,
    /// What is in the way of every other gang, in the order in which they were asked.
    pub blocked: Vec<(usize, Blocked)>,
    /// The datasets that are to be brought now, by their places, in the order of the gangs that wait for
    /// them.
    pub warm: Vec<usize>,
    /// When the same gangs and nodes would make another plan, if nothing else happens before.
    pub review_at: Option<Millis>,
}

/// A gang that starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The gang, by its place in the queue.
    pub gang: usize,
    /// What all its pods run on.
    pub hardware: HardwareId,
    /// For each role the node of each of its pods.
    pub nodes: Vec<Vec<NodeId>>,
}

/// A running gang that is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// It, by its place in [`Snapshot::running`].
    pub running: usize,
    /// For whom, by its place in the queue.
    pub gang: usize,
}

/// Room that is held for a gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The gang, by its place in the queue.
    pub gang: usize,
    /// When it will fit, if running gangs end as they say.
    pub at: Millis,
    /// Where.
    pub nodes: Vec<NodeId>,
}

/// What is in a gang's way.
#[derive(Clone, Debug, PartialEq)]
pub enum Blocked {
    /// It waits out a failed start.
    NotBefore(Millis),
    /// Its team may not use so many more accelerators.
    Quota {
        /// How many are too many.
        beyond: u64,
    },
    /// Too little of its dataset is cached yet; it is being brought.
    DatasetCold {
        /// The share that is cached.
        cached: f64,
        /// The share that it waits for.
        needed: f64,
    },
    /// Its dataset waits for the origin, which gives others theirs.
    OriginBusy(OriginId),
    /// There is no room for all of it.
    NoRoom {
        /// The accelerators that it asks for.
        wanted: u64,
        /// Those that are free on hardware that it may use, wherever they are.
        free: u64,
    },
    /// It would fit, but room is held for this gang of the queue, which has waited longer.
    Held(usize),
    /// Nobody overtakes this gang of the queue.
    Behind(usize),
}

/// Decides what starts now. `now` is in the same time as all times of the snapshot and the queue.
pub fn plan(snapshot: &Snapshot, queue: &[Gang], now: Millis, discipline: &Discipline) -> Plan {
    let rules = Rules::of(snapshot, queue);
    let mut planner = Planner {
        snapshot,
        queue,
        now,
        discipline,
        free: Free::of(snapshot),
        rules,
        usage: Usage::of(snapshot),
        started: Vec::new(),
        held: None,
        hopeless: Hopeless::default(),
        least_cache: snapshot
            .nodes
            .iter()
            .map(|node| node.cache_free)
            .min()
            .unwrap_or(0),
        bringing: BTreeMap::new(),
        plan: Plan::default(),
    };
    for dataset in snapshot.datasets.iter().filter(|dataset| dataset.warming) {
        if let Some(origin) = dataset.origin {
            *planner.bringing.entry(origin).or_default() += 1;
        }
    }
    planner.go();
    planner.plan
}

/// For each team its gangs: place in the order, place in the queue.
type Waiting = BTreeMap<TeamId, VecDeque<(usize, usize)>>;

struct Planner<'a> {
    snapshot: &'a Snapshot,
    queue: &'a [Gang],
    now: Millis,
    discipline: &'a Discipline,
    free: Free<'a>,
    rules: Rules<'a>,
    usage: Usage<'a>,
    /// When those that start now are said to end, and what they give back.
    started: Vec<(Millis, Vec<(NodeId, Amounts)>)>,
    held: Option<(usize, Held)>,
    /// What did not fit.
    hopeless: Hopeless<'a>,
    /// What the node with the least room for datasets has.
    least_cache: u64,
    /// How many datasets each origin is giving.
    bringing: BTreeMap<OriginId, u32>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn go(&mut self) {
        let order = self.discipline.order(self.queue, self.now);
        match self.discipline {
            Discipline::Peer(Peer::DrfGang) => {
                self.fairly(&order, |usage, team| usage.total(team) as f64)
            }
            _ => self.in_order(&order),
        }
        self.take_back();
    }

    /// Those within their teams' quotas first, then those that borrow, fairly.
    fn in_order(&mut self, order: &[usize]) {
        let mut borrowers: Vec<usize> = Vec::new();
        let mut stuck = None;
        for &index in order {
            if let Some(first) = stuck {
                self.plan.blocked.push((index, Blocked::Behind(first)));
            } else if self.borrows(index) {
                borrowers.push(index);
            } else if !self.ask(index) && *self.discipline == Discipline::Peer(Peer::Fifo) {
                stuck = Some(index);
            }
        }
        self.fairly(&borrowers, Usage::excess);
    }

    /// Of the highest priority, a gang of the team with the least share, again and again; of equal teams,
    /// the one whose gang stands first.
    fn fairly(&mut self, order: &[usize], share: fn(&Usage<'a>, TeamId) -> f64) {
        let mut classes: BTreeMap<Reverse<i32>, Waiting> = BTreeMap::new();
        for (place, &index) in order.iter().enumerate() {
            let gang = &self.queue[index];
            let teams = classes.entry(Reverse(gang.priority)).or_default();
            teams
                .entry(gang.team)
                .or_default()
                .push_back((place, index));
        }
        for mut teams in classes.into_values() {
            let mut shares: BTreeMap<TeamId, f64> = teams
                .keys()
                .map(|team| (*team, share(&self.usage, *team)))
                .collect();
            while let Some(team) = teams
                .iter()
                .min_by(|(a, first), (b, second)| {
                    let places = || first.front().cmp(&second.front());
                    shares[*a].total_cmp(&shares[*b]).then_with(places)
                })
                .map(|(team, _)| *team)
            {
                let waiting = teams.get_mut(&team).expect("found above");
                let (_, index) = waiting
                    .pop_front()
                    .expect("a team without gangs is taken out");
                if waiting.is_empty() {
                    teams.remove(&team);
                }
                if self.ask(index) {
                    shares.insert(team, share(&self.usage, team));
                }
            }
        }
    }

    /// Whether a gang would use more than its team is sure of, on all hardware that it may use.
    fn borrows(&self, index: usize) -> bool {
        let gang = &self.queue[index];
        let standing =
            |hardware: &HardwareId| self.usage.standing(gang.team, *hardware, gang.gpus());
        !self
            .hardware(gang)
            .iter()
            .any(|hardware| standing(hardware) == Standing::Within)
    }

    /// What a gang may use: where it is done first comes first.
    fn hardware(&self, gang: &Gang) -> Vec<HardwareId> {
        let all = 0..self.snapshot.hardware.len() as u16;
        let mut kinds: Vec<HardwareId> = match gang.hardware.as_slice() {
            [] => all.map(HardwareId).collect(),
            some => some.to_vec(),
        };
        let run_time = |kind: &HardwareId| {
            let speed = self.snapshot.hardware[usize::from(kind.0)].speed;
            gang.run_time_on(*kind, speed)
                .unwrap_or((1e6 / speed.max(1e-3)) as Millis)
        };
        kinds.sort_by_cached_key(run_time);
        kinds
    }

    /// Admits a gang, or says what is in its way. Whether it was admitted.
    fn ask(&mut self, index: usize) -> bool {
        match self.attempt(index) {
            Ok(()) => true,
            Err(blocked) => {
                self.plan.blocked.push((index, blocked));
                false
            }
        }
    }

    fn attempt(&mut self, index: usize) -> Result<(), Blocked> {
        let queue = self.queue;
        let gang = &queue[index];
        if gang.not_before > self.now {
            self.review(gang.not_before);
            return Err(Blocked::NotBefore(gang.not_before));
        }
        self.warm(gang)?;
        let (mut beyond, mut allowed) = (u64::MAX, Vec::new());
        for hardware in self.hardware(gang) {
            match self.usage.standing(gang.team, hardware, gang.gpus()) {
                Standing::Beyond(by) => beyond = beyond.min(by),
                _ => allowed.push(hardware),
            }
        }
        if allowed.is_empty() {
            return Err(Blocked::Quota { beyond });
        }
        let outlasts = self.outlasts(gang, &allowed);
        if let Some(placement) = self.find(index, &allowed, outlasts) {
            self.admit(index, placement, outlasts);
            return Ok(());
        }
        let first = self.held.as_ref().map(|(first, _)| *first);
        let blocked = match first {
            Some(first) if outlasts && self.find(index, &allowed, false).is_some() => {
                Blocked::Held(first)
            }
            _ => Blocked::NoRoom {
                wanted: gang.gpus(),
                free: allowed
                    .iter()
                    .map(|&hardware| self.free.gpus_of(hardware))
                    .sum(),
            },
        };
        self.consider(index, &allowed);
        Err(blocked)
    }

    /// A place on the first of these kinds of hardware that has one.
    fn find(&mut self, index: usize, hardware: &[HardwareId], outlasts: bool) -> Option<Placement> {
        let queue = self.queue;
        let gang = &queue[index];
        let bytes = |need: super::DatasetNeed| self.snapshot.datasets[need.dataset].bytes;
        let lacks_cache = gang
            .dataset
            .is_some_and(|need| bytes(need) > self.least_cache);
        hardware.iter().find_map(|&hardware| {
            if self
                .hopeless
                .knows(index, gang, &self.rules, hardware, outlasts)
            {
                return None;
            }
            let placement = place(&self.free, &self.rules, gang, hardware, outlasts);
            if placement.is_none() {
                self.hopeless
                    .note(index, gang, &self.rules, hardware, outlasts, lacks_cache);
            }
            placement
        })
    }

    /// Whether enough of a gang's dataset is cached; if not, has it brought.
    fn warm(&mut self, gang: &Gang) -> Result<(), Blocked> {
        let Some(need) = gang.dataset else {
            return Ok(());
        };
        let dataset = &self.snapshot.datasets[need.dataset];
        if dataset.cached_share >= 1.0 {
            return Ok(());
        }
        let mut blocked = Blocked::DatasetCold {
            cached: dataset.cached_share,
            needed: need.warm_share,
        };
        if !dataset.warming && !self.plan.warm.contains(&need.dataset) {
            let room = dataset.origin.is_none_or(|origin| {
                let bringing = self.bringing.entry(origin).or_default();
                let room = *bringing < self.snapshot.origins[origin.0 as usize].at_once;
                *bringing += u32::from(room);
                room
            });
            if room {
                self.plan.warm.push(need.dataset);
            } else if let Some(origin) = dataset.origin {
                blocked = Blocked::OriginBusy(origin);
            }
        }
        if dataset.cached_share >= need.warm_share && !matches!(blocked, Blocked::OriginBusy(_)) {
            return Ok(());
        }
        Err(blocked)
    }

    /// Whether a gang would still run when the one that room is held for is to start.
    fn outlasts(&self, gang: &Gang, hardware: &[HardwareId]) -> bool {
        let Some((_, held)) = &self.held else {
            return false;
        };
        let run_time = |kind: &HardwareId| {
            let speed = self.snapshot.hardware[usize::from(kind.0)].speed;
            gang.run_time_on(*kind, speed)
        };
        let longest = hardware
            .iter()
            .map(run_time)
            .collect::<Option<Vec<Millis>>>();
        let longest = longest.and_then(|times| times.into_iter().max());
        longest.is_none_or(|longest| self.now.saturating_add(longest) > held.at)
    }

    /// Holds room for a gang that does not fit, if it is its turn.
    fn consider(&mut self, index: usize, hardware: &[HardwareId]) {
        let gang = &self.queue[index];
        let holds = matches!(
            self.discipline,
            Discipline::Trackbed(_) | Discipline::Peer(Peer::Easy)
        );
        if !holds || self.held.is_some() {
            return;
        }
        let held = hold(
            self.snapshot,
            &self.free,
            &self.rules,
            gang,
            hardware,
            &self.started,
            self.now,
        );
        if let Some(held) = held {
            for (node, left) in &held.left {
                self.free.hold(*node, left.clone());
            }
            self.plan.reservation = Some(Reservation {
                gang: index,
                at: held.at,
                nodes: held.left.iter().map(|(node, _)| *node).collect(),
            });
            self.held = Some((index, held));
        }
    }

    fn admit(&mut self, index: usize, placement: Placement, outlasts: bool) {
        let gang = &self.queue[index];
        let mut nodes = vec![Vec::new(); gang.roles.len()];
        let mut holds: BTreeMap<NodeId, Amounts> = BTreeMap::new();
        for (role, node, times) in placement.pods {
            let request = &gang.roles[role].request;
            self.free.take(node, request, times, outlasts);
            holds.entry(node).or_default().give(request, times);
            nodes[role].extend((0..times).map(|_| node));
        }
        self.usage.add(gang.team, placement.hardware, gang.gpus());
        let speed = self.snapshot.hardware[usize::from(placement.hardware.0)].speed;
        if let Some(run_time) = gang.run_time_on(placement.hardware, speed) {
            let at = end(self.now, Some(self.now.saturating_add(run_time)), self.now);
            self.started
                .extend(at.map(|at| (at, holds.into_iter().collect())));
        }
        self.plan.admissions.push(Admission {
            gang: index,
            hardware: placement.hardware,
            nodes,
        });
    }

    /// For the gang within its team's quota that has waited longest: ends what others borrowed.
    fn take_back(&mut self) {
        if matches!(self.discipline, Discipline::Peer(_)) {
            return;
        }
        let first = |(index, blocked): &(usize, Blocked)| {
            let no_room = matches!(blocked, Blocked::NoRoom { .. } | Blocked::Held(_));
            let quotas = &self.snapshot.teams[self.queue[*index].team.0 as usize].quotas;
            (no_room && !quotas.is_empty() && !self.borrows(*index)).then_some(*index)
        };
        let sure: Vec<usize> = self.plan.blocked.iter().filter_map(first).collect();
        let by_wait = |a: &usize, b: &usize| {
            let (a, b) = (&self.queue[*a], &self.queue[*b]);
            b.priority.cmp(&a.priority).then_with(|| longest_wait(a, b))
        };
        let Some(index) = sure.into_iter().min_by(by_wait) else {
            return;
        };
        let gang = &self.queue[index];
        for hardware in self.hardware(gang) {
            if self.usage.standing(gang.team, hardware, gang.gpus()) != Standing::Within {
                continue;
            }
            let ended = victims(
                self.snapshot,
                &self.free,
                &self.rules,
                &self.usage,
                gang,
                hardware,
            );
            if let Some(ended) = ended {
                for running in ended {
                    let it = &self.snapshot.running[running];
                    let gpus = it.holds.iter().map(|(_, held)| u64::from(held.gpus)).sum();
                    self.usage.remove(it.team, it.hardware, gpus);
                    self.plan.reclaims.push(Reclaim {
                        running,
                        gang: index,
                    });
                }
                return;
            }
        }
    }

    fn review(&mut self, at: Millis) {
        self.plan.review_at = Some(self.plan.review_at.map_or(at, |known| known.min(at)));
    }
}
