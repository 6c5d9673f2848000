//! The coordinator against agents that exist in a queue of events only.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use super::*;

/// How an agent behaves.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// Its connection breaks at this time.
    Leaves(Duration),
    /// From this time on it says nothing, without leaving.
    Silent(Duration),
    /// Each test of this rail fails.
    Fails(usize),
}

/// How long a server waits for its client.
const PATIENCE: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);

struct Simulation {
    coordinator: Coordinator,
    moods: Vec<Mood>,
    due: BinaryHeap<Reverse<(Duration, u64)>>,
    events: HashMap<u64, Event>,
    sequence: u64,
    /// Ports in use (node, rail), and by which test.
    busy: HashMap<(usize, usize), u64>,
    /// The rail of each test.
    rails: HashMap<u64, usize>,
    /// Tests whose client was told to begin.
    begun: HashSet<u64>,
    done: Vec<Pair>,
    left: Vec<usize>,
    rounds: usize,
    finished: bool,
}

type Known = HashSet<(usize, usize, usize)>;

fn simulate(plan: MeshPlan, rails: Vec<usize>, moods: &[Mood], known: Known) -> Simulation {
    let mut simulation = Simulation {
        coordinator: Coordinator::new(plan, rails, known),
        moods: moods.to_vec(),
        due: BinaryHeap::new(),
        events: HashMap::new(),
        sequence: 0,
        busy: HashMap::new(),
        rails: HashMap::new(),
        begun: HashSet::new(),
        done: Vec::new(),
        left: Vec::new(),
        rounds: 0,
        finished: false,
    };
    simulation.run();
    simulation
}

impl Simulation {
    fn run(&mut self) {
        for (node, mood) in self.moods.clone().into_iter().enumerate() {
            if let Mood::Leaves(at) = mood {
                let reason = "its power went".to_owned();
                self.at(at, Event::Gone { node, reason });
            }
        }
        let actions = self.coordinator.start(Duration::ZERO);
        self.act(actions, Duration::ZERO);
        let mut tick = SECOND;
        while !self.finished {
            assert!(tick < SECOND * 100_000, "it does not end");
            let next = self.due.peek().map(|Reverse((at, _))| *at);
            if next.is_none_or(|next| tick <= next) {
                let actions = self.coordinator.handle(Event::Tick, tick);
                self.act(actions, tick);
                tick += SECOND;
                continue;
            }
            let Some(Reverse((now, id))) = self.due.pop() else {
                continue;
            };
            let event = self.events.remove(&id).expect("an event");
            let ended = match &event {
                Event::Served { node, test }
                | Event::Measured { node, test, .. }
                | Event::Failed { node, test, .. } => Some((*node, *test)),
                _ => None,
            };
            if let Some((node, test)) = ended {
                let nobody_came =
                    matches!(&event, Event::Failed { reason, .. } if reason == "nobody came");
                if nobody_came && self.begun.contains(&test) {
                    continue;
                }
                if self.left.contains(&node) {
                    continue;
                }
                let rail = self.rails[&test];
                assert_eq!(self.busy.remove(&(node, rail)), Some(test));
            }
            let actions = self.coordinator.handle(event, now);
            self.act(actions, now);
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.events.insert(self.sequence, event);
        self.due.push(Reverse((at, self.sequence)));
    }

    fn answers(&self, node: usize, now: Duration) -> bool {
        match self.moods[node] {
            Mood::Leaves(at) | Mood::Silent(at) => now < at,
            Mood::Well | Mood::Fails(_) => true,
        }
    }

    fn take(&mut self, node: usize, rail: usize, test: u64) {
        assert!(
            !self.left.contains(&node),
            "{node} was asked although it left"
        );
        let before = self.busy.insert((node, rail), test);
        assert_eq!(before, None, "port {rail} of {node} in two tests at a time");
    }

    fn act(&mut self, actions: Vec<Action>, now: Duration) {
        for action in actions {
            match action {
                Action::Serve {
                    node, test, rail, ..
                } => {
                    self.take(node, rail, test);
                    self.rails.insert(test, rail);
                    if self.answers(node, now) {
                        self.at(
                            now + SECOND / 1000,
                            Event::Listening {
                                node,
                                test,
                                port: 7,
                            },
                        );
                        let reason = "nobody came".to_owned();
                        self.at(now + PATIENCE, Event::Failed { node, test, reason });
                    }
                }
                Action::Run {
                    node,
                    test,
                    rail,
                    server,
                    ..
                } => {
                    self.take(node, rail, test);
                    self.begun.insert(test);
                    let at = now + SECOND;
                    let both = self.answers(node, at) && self.answers(server, at);
                    let moods = [self.moods[node], self.moods[server]];
                    let fails = !both || moods.contains(&Mood::Fails(rail));
                    // Whoever lost its peer notices after a while.
                    let at = if both { at } else { at + PATIENCE };
                    for end in [node, server] {
                        if !self.answers(end, at) {
                            continue;
                        }
                        let event = if fails {
                            let reason = "it broke".to_owned();
                            Event::Failed {
                                node: end,
                                test,
                                reason,
                            }
                        } else if end == node {
                            Event::Measured {
                                node,
                                test,
                                figure: 100.0,
                            }
                        } else {
                            Event::Served { node: end, test }
                        };
                        self.at(at, event);
                    }
                }
                Action::Drop { .. } => {}
                Action::Left { node, .. } => {
                    self.left.push(node);
                    self.busy.retain(|(other, _), _| *other != node);
                }
                Action::Round { .. } => {
                    assert!(
                        self.busy.is_empty(),
                        "a round begins while {:?} are busy",
                        self.busy
                    );
                    self.rounds += 1;
                }
                Action::Done(pair) => self.done.push(pair),
                Action::Finished => self.finished = true,
            }
        }
    }

    /// How many different pairs are done: each exactly once, or this fails.
    fn pairs(&self) -> usize {
        let keys: HashSet<_> = self
            .done
            .iter()
            .map(|pair| (pair.a, pair.b, pair.rail))
            .collect();
        assert_eq!(keys.len(), self.done.len(), "a pair is done twice");
        keys.len()
    }

    fn failed(&self) -> impl Iterator<Item = &Pair> {
        self.done.iter().filter(|pair| pair.failure.is_some())
    }
}

fn all(nodes: usize, rails: usize) -> usize {
    nodes * (nodes - 1) / 2 * rails
}

#[test]
fn every_pair_of_a_healthy_mesh_is_measured_once_in_all_three_ways() {
    for (nodes, rails) in [(2, 1), (3, 2), (8, 8), (17, 3), (200, 1)] {
        let moods = vec![Mood::Well; nodes];
        let done = simulate(
            MeshPlan::default(),
            vec![rails; nodes],
            &moods,
            Known::new(),
        );
        assert_eq!(done.pairs(), all(nodes, rails));
        assert_eq!(done.rounds, rounds(nodes));
        assert!(done.done.iter().all(|pair| {
            pair.failure.is_none()
                && pair.there_gbps.is_some()
                && pair.back_gbps.is_some()
                && pair.latency_us.is_some()
        }));
    }
}

#[test]
fn a_thousand_nodes_go_on_where_an_interrupted_run_stopped() {
    let nodes = 1000;
    let last = rounds(nodes) - 20;
    let known: Known = (0..last)
        .flat_map(|number| round(nodes, number))
        .map(|(a, b)| (a, b, 0))
        .collect();
    let left = all(nodes, 1) - known.len();
    let done = simulate(
        MeshPlan::default(),
        vec![1; nodes],
        &vec![Mood::Well; nodes],
        known.clone(),
    );
    assert_eq!((done.pairs(), done.rounds), (left, 20));
    assert!(
        done.done
            .iter()
            .all(|pair| !known.contains(&(pair.a, pair.b, pair.rail)))
    );
}

#[test]
fn rails_that_take_turns_are_never_measured_together() {
    let plan = MeshPlan {
        rails_apart: true,
        ..MeshPlan::default()
    };
    let done = simulate(plan, vec![4; 6], &[Mood::Well; 6], Known::new());
    assert_eq!((done.pairs(), done.rounds), (all(6, 4), 5 * 4));
}

#[test]
fn nodes_with_fewer_ports_take_part_on_the_rails_they_have() {
    let done = simulate(
        MeshPlan::default(),
        vec![2, 1, 2, 0],
        &[Mood::Well; 4],
        Known::new(),
    );
    assert_eq!(done.pairs(), 3 + 1);
}

#[test]
fn nodes_that_leave_or_fall_silent_are_named_and_the_rest_is_measured() {
    let nodes = 60;
    let mut moods = vec![Mood::Well; nodes];
    moods[7] = Mood::Leaves(Duration::from_millis(25_500));
    moods[20] = Mood::Silent(Duration::from_millis(40_200));
    moods[41] = Mood::Leaves(Duration::ZERO);
    let done = simulate(MeshPlan::default(), vec![2; nodes], &moods, Known::new());
    assert_eq!(done.pairs(), all(nodes, 2), "every pair has an outcome");
    let mut left = done.left.clone();
    left.sort_unstable();
    assert_eq!(left, [7, 20, 41]);
    for pair in done.failed() {
        assert!(
            [pair.a, pair.b].iter().any(|node| left.contains(node)),
            "{pair:?} failed though both nodes are well"
        );
        assert!(pair.failure.is_some());
    }
    let among_the_well = done
        .done
        .iter()
        .filter(|pair| pair.failure.is_none())
        .filter(|pair| ![pair.a, pair.b].iter().any(|node| left.contains(node)))
        .count();
    assert_eq!(among_the_well, all(nodes - 3, 2));
}

#[test]
fn a_broken_rail_of_one_node_costs_only_its_own_pairs() {
    let mut moods = vec![Mood::Well; 9];
    moods[4] = Mood::Fails(1);
    let done = simulate(MeshPlan::default(), vec![2; 9], &moods, Known::new());
    assert_eq!(done.left, Vec::<usize>::new());
    let failed: Vec<_> = done.failed().collect();
    assert_eq!(failed.len(), 8);
    assert!(
        failed
            .iter()
            .all(|pair| pair.rail == 1 && [pair.a, pair.b].contains(&4))
    );
}

#[test]
fn a_mesh_all_of_whose_nodes_leave_still_ends() {
    let moods = [Mood::Leaves(SECOND / 2); 5];
    let done = simulate(MeshPlan::default(), vec![1; 5], &moods, Known::new());
    assert_eq!(done.failed().count(), all(5, 1));
}

#[test]
fn reports_about_tests_of_others_or_of_the_past_change_nothing() {
    let mut coordinator = Coordinator::new(MeshPlan::default(), vec![1; 4], Known::new());
    coordinator.start(Duration::ZERO);
    let before = coordinator.tests.len();
    let nonsense = [
        Event::Measured {
            node: 3,
            test: 999,
            figure: 1.0,
        },
        Event::Served { node: 77, test: 0 },
        Event::Listening {
            node: 77,
            test: 0,
            port: 1,
        },
        Event::Gone {
            node: 77,
            reason: String::new(),
        },
    ];
    for event in nonsense {
        assert_eq!(coordinator.handle(event, SECOND), []);
    }
    assert_eq!(coordinator.tests.len(), before);
}
