//! Who measures with whom and when: a state machine without clock, sockets or threads.
//!
//! Events go in, actions come out. A round begins when the one before has ended, and a round ends when
//! each of its tests has: reported by both ends, or given up at its deadline. An end that has not
//! reported by then is dropped, so nobody who might still be busy is asked to measure again.

mod under_way;

use std::collections::HashSet;
use std::time::Duration;

use super::schedule::{estimate, round, rounds};
use super::{MeshPlan, Pair};
use crate::bench::Plan;
use under_way::{Test, Tests};

/// What a test may take besides measuring. A node that is gone is noticed sooner, by its silence, and a
/// measurement that hangs by bench's own limits; so this may be generous with slow ones.
const SLACK: Duration = Duration::from_secs(180);
/// How many times longer than estimated measuring may take.
const SLOWER: u32 = 10;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    Listening {
        node: usize,
        test: u64,
        port: u16,
    },
    Served {
        node: usize,
        test: u64,
    },
    Measured {
        node: usize,
        test: u64,
        figure: f64,
    },
    Failed {
        node: usize,
        test: u64,
        reason: String,
    },
    /// A node left.
    Gone {
        node: usize,
        reason: String,
    },
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    Serve {
        node: usize,
        test: u64,
        rail: usize,
        step: Step,
    },
    Run {
        node: usize,
        test: u64,
        rail: usize,
        step: Step,
        server: usize,
        port: u16,
    },
    /// Break the connection to a node.
    Drop { node: usize, reason: String },
    /// A round begins, with this many pairs.
    Round { number: usize, pairs: usize },
    /// A pair is done, well or not.
    Done(Pair),
    /// A node left: it is named.
    Left { node: usize, reason: String },
    /// All is done.
    Finished,
}

/// What a pair measures, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    There,
    Back,
    Latency,
}

impl Step {
    fn next(self) -> Option<Step> {
        match self {
            Step::There => Some(Step::Back),
            Step::Back => Some(Step::Latency),
            Step::Latency => None,
        }
    }

    pub(super) fn plan(self, plan: &MeshPlan) -> &Plan {
        match self {
            Step::There | Step::Back => &plan.bandwidth,
            Step::Latency => &plan.latency,
        }
    }
}

pub(super) struct Coordinator {
    plan: MeshPlan,
    /// The rails of each node.
    rails: Vec<usize>,
    gone: Vec<Option<String>>,
    /// Pairs that need not be measured again.
    known: HashSet<(usize, usize, usize)>,
    /// The next round, and the rail whose turn it is when they take turns.
    next: (usize, usize),
    tests: Tests,
    /// No test is late before.
    earliest_deadline: Duration,
    finished: bool,
    now: Duration,
}

impl Coordinator {
    /// For nodes with this many rails each; `known` pairs (lower node, higher node, rail) are left out.
    pub(super) fn new(
        plan: MeshPlan,
        rails: Vec<usize>,
        known: HashSet<(usize, usize, usize)>,
    ) -> Coordinator {
        Coordinator {
            plan,
            gone: vec![None; rails.len()],
            rails,
            known,
            next: (0, 0),
            tests: Tests::default(),
            earliest_deadline: Duration::MAX,
            finished: false,
            now: Duration::ZERO,
        }
    }

    /// Begins.
    pub(super) fn start(&mut self, now: Duration) -> Vec<Action> {
        self.now = now;
        let mut actions = Vec::new();
        self.advance(&mut actions);
        actions
    }

    /// Takes an event in. Times must not go back.
    pub(super) fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        self.now = now;
        let mut actions = Vec::new();
        match event {
            Event::Listening { node, test, port } => self.listening(node, test, port, &mut actions),
            Event::Served { node, test } => self.report(node, test, Ok(None), &mut actions),
            Event::Measured { node, test, figure } => {
                self.report(node, test, Ok(Some(figure)), &mut actions);
            }
            Event::Failed { node, test, reason } => {
                self.report(node, test, Err(reason), &mut actions);
            }
            Event::Gone { node, reason } => self.leave(node, reason, &mut actions),
            Event::Tick => self.expire(&mut actions),
        }
        if self.tests.is_empty() && !self.finished {
            self.advance(&mut actions);
        }
        actions
    }

    fn listening(&mut self, node: usize, id: u64, port: u16, actions: &mut Vec<Action>) {
        let Some(test) = self.tests.get_mut(id) else {
            return;
        };
        if test.server != node || test.started || test.server_done || test.client_done {
            return;
        }
        test.started = true;
        actions.push(Action::Run {
            node: test.client,
            test: id,
            rail: test.pair.rail,
            step: test.step,
            server: node,
            port,
        });
    }

    /// One end of a test is done.
    fn report(
        &mut self,
        node: usize,
        id: u64,
        outcome: Result<Option<f64>, String>,
        actions: &mut Vec<Action>,
    ) {
        let Some(test) = self.tests.get_mut(id) else {
            return;
        };
        match (node == test.server, node == test.client) {
            (true, _) => test.server_done = true,
            (_, true) => test.client_done = true,
            // Of somebody else's test: nonsense, and without consequence.
            _ => return,
        }
        match outcome {
            Ok(figure) => {
                if node == test.client {
                    test.figure = figure;
                }
            }
            Err(reason) => {
                test.failure.get_or_insert(reason);
                // A server that failed before the client was asked leaves nothing to wait for.
                if !test.started {
                    test.client_done = true;
                }
            }
        }
        if test.server_done && test.client_done {
            self.settle(id, actions);
        }
    }

    /// A node is gone: its tests fail, and wait only for their other end.
    fn leave(&mut self, node: usize, reason: String, actions: &mut Vec<Action>) {
        match self.gone.get_mut(node) {
            Some(gone @ None) => *gone = Some(reason.clone()),
            _ => return,
        }
        let failure = format!("node {node} left: {reason}");
        actions.push(Action::Left { node, reason });
        let touched: Vec<u64> = self
            .tests
            .iter()
            .filter(|(_, test)| test.server == node || test.client == node)
            .map(|(id, _)| id)
            .collect();
        for id in touched {
            let Some(test) = self.tests.get_mut(id) else {
                continue;
            };
            test.failure.get_or_insert_with(|| failure.clone());
            if test.server == node {
                test.server_done = true;
            } else {
                test.client_done = true;
            }
            if !test.started {
                // The server gives up by itself when nobody comes, and says so.
                test.client_done = true;
            }
            if test.server_done && test.client_done {
                self.settle(id, actions);
            }
        }
    }

    /// Drops whoever has not reported in time.
    fn expire(&mut self, actions: &mut Vec<Action>) {
        if self.now < self.earliest_deadline {
            return;
        }
        let late: Vec<usize> = self
            .tests
            .iter()
            .map(|(_, test)| test)
            .filter(|test| test.deadline <= self.now)
            .flat_map(|test| {
                let server = (!test.server_done).then_some(test.server);
                let client = (!test.client_done && test.started).then_some(test.client);
                server.into_iter().chain(client)
            })
            .collect();
        for node in late {
            if self.gone.get(node).is_some_and(Option::is_none) {
                let reason = "it did not end a test in time".to_owned();
                actions.push(Action::Drop {
                    node,
                    reason: reason.clone(),
                });
                self.leave(node, reason, actions);
            }
        }
        let deadlines = self.tests.iter().map(|(_, test)| test.deadline);
        self.earliest_deadline = deadlines.min().unwrap_or(Duration::MAX);
    }

    /// Both ends are done: the pair's next step, or its end.
    fn settle(&mut self, id: u64, actions: &mut Vec<Action>) {
        let Some(test) = self.tests.remove(id) else {
            return;
        };
        let mut pair = test.pair;
        match (test.failure, test.figure) {
            (None, Some(figure)) => match test.step {
                Step::There => pair.there_gbps = Some(figure),
                Step::Back => pair.back_gbps = Some(figure),
                Step::Latency => pair.latency_us = Some(figure),
            },
            (failure, _) => {
                let reason = failure.unwrap_or_else(|| "it ended without a figure".to_owned());
                pair.failure = Some(reason);
            }
        }
        match (test.step.next(), &pair.failure) {
            (Some(step), None) => self.begin(pair, step, actions),
            _ => actions.push(Action::Done(pair)),
        }
    }

    fn begin(&mut self, mut pair: Pair, step: Step, actions: &mut Vec<Action>) {
        for node in [pair.a, pair.b] {
            if let Some(Some(reason)) = self.gone.get(node) {
                pair.failure = Some(format!("node {node} left: {reason}"));
                actions.push(Action::Done(pair));
                return;
            }
        }
        let (client, server) = match step {
            Step::There | Step::Latency => (pair.a, pair.b),
            Step::Back => (pair.b, pair.a),
        };
        let deadline = self.now + estimate(step.plan(&self.plan)) * SLOWER + SLACK;
        let id = self.tests.begin(Test {
            pair: pair.clone(),
            step,
            server,
            client,
            deadline,
            started: false,
            figure: None,
            failure: None,
            server_done: false,
            client_done: false,
        });
        self.earliest_deadline = self.earliest_deadline.min(deadline);
        actions.push(Action::Serve {
            node: server,
            test: id,
            rail: pair.rail,
            step,
        });
    }

    /// Begins rounds until one has something to wait for.
    fn advance(&mut self, actions: &mut Vec<Action>) {
        let nodes = self.rails.len();
        let most = self.rails.iter().copied().max().unwrap_or(0);
        while self.tests.is_empty() {
            let (number, turn) = self.next;
            if number >= rounds(nodes) {
                self.finished = true;
                actions.push(Action::Finished);
                return;
            }
            let turns = if self.plan.rails_apart { most } else { 1 };
            self.next = if turn + 1 < turns {
                (number, turn + 1)
            } else {
                (number + 1, 0)
            };
            let mut pairs = Vec::new();
            for (a, b) in round(nodes, number) {
                let rails = self.rails[a].min(self.rails[b]);
                let wanted = if self.plan.rails_apart {
                    turn..rails.min(turn + 1)
                } else {
                    0..rails
                };
                for rail in wanted {
                    if !self.known.contains(&(a, b, rail)) {
                        pairs.push((a, b, rail));
                    }
                }
            }
            if pairs.is_empty() {
                continue;
            }
            actions.push(Action::Round {
                number,
                pairs: pairs.len(),
            });
            for (a, b, rail) in pairs {
                let pair = Pair {
                    a,
                    b,
                    rail,
                    there_gbps: None,
                    back_gbps: None,
                    latency_us: None,
                    failure: None,
                };
                self.begin(pair, Step::There, actions);
            }
        }
    }
}

#[cfg(test)]
mod tests;
