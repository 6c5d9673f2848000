//! Nodes that exist in a queue of events only, around the session that the sockets drive.
//!
//! Time is what the queue says, so that the same world gives the same mesh each time. The world checks as
//! it goes what must hold whatever nodes do: a port is asked for one test at a time, who left is asked for
//! nothing more, and a client is sent to where its server is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{Input, Output, Session};
use crate::bench::Measure;
use crate::mesh::journal::Journal;
use crate::mesh::message::{FromAgent, FromCoordinator, VERSION};
use crate::mesh::{Mesh, MeshError, Node, NodePort, Pair, Progress};

pub(super) const SECOND: Duration = Duration::from_secs(1);
/// What an answer takes.
const REPLY: Duration = Duration::from_millis(1);
/// How long a server waits for its client, and an end for one that fell silent.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where servers listen.
const PORT: u16 = 7;
/// Why a node leaves that will come back.
const POWER: &str = "its power went";
/// What is no message.
const NONSENSE: &[u8] = b"{\"message\":\"measured\",\"test\":0,\"figure\":-1}";

/// How a node behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mood {
    Well,
    /// Comes this late, and takes as much longer for each test.
    Late(Duration),
    /// Each test of this rail fails.
    Fails(usize),
    /// From this time on it says nothing, without leaving.
    Silent(Duration),
    /// Its connection breaks at this time, and it comes back.
    Leaves(Duration),
    /// From this time on it answers with what is no message.
    Raves(Duration),
    /// Does its part, and reports on tests that are none of its own.
    Gossips,
}

/// What happens at a time.
enum Happening {
    Comes(usize),
    Says(usize, FromAgent),
    Raves(usize),
    /// Reports on tests that are none of its own.
    Gossips(usize),
    Ends(usize, &'static str),
    /// The server of a test has waited long enough for its client.
    NobodyCame(u64),
}

/// A test that was asked for.
struct Seen {
    server: usize,
    rail: usize,
    client: Option<usize>,
}

struct Link {
    node: usize,
    open: bool,
    /// The coordinator has done with it.
    cut: bool,
}

/// What two nodes would measure on a rail, from the first to the second: Gb/s, or microseconds.
pub(super) type Physics = fn(usize, usize, usize, Measure) -> f64;

pub(super) struct World {
    moods: Vec<Mood>,
    /// The ports of each node.
    ports: Vec<usize>,
    physics: Physics,
    /// Whether any client may fail to come.
    may_lose_nodes: bool,
    links: Vec<Link>,
    due: BTreeMap<Duration, Vec<Happening>>,
    now: Duration,
    /// By which test a port is used.
    busy: Vec<Vec<Option<u64>>>,
    tests: Vec<Seen>,
    /// What was told.
    pub(super) done: Vec<Pair>,
    pub(super) left: Vec<String>,
    pub(super) refused: Vec<String>,
    pub(super) rounds: usize,
}

impl World {
    /// Of nodes with these ports and moods.
    pub(super) fn new(ports: Vec<usize>, moods: Vec<Mood>, physics: Physics) -> World {
        assert_eq!(ports.len(), moods.len());
        World {
            may_lose_nodes: moods
                .iter()
                .any(|mood| matches!(mood, Mood::Silent(_) | Mood::Leaves(_) | Mood::Raves(_))),
            busy: ports.iter().map(|ports| vec![None; *ports]).collect(),
            moods,
            ports,
            physics,
            links: Vec::new(),
            due: BTreeMap::new(),
            now: Duration::ZERO,
            tests: Vec::new(),
            done: Vec::new(),
            left: Vec::new(),
            refused: Vec::new(),
            rounds: 0,
        }
    }

    /// Runs until all is measured, or until so many pairs have an outcome: then the coordinator dies, and
    /// there is no mesh but what its journal holds.
    pub(super) fn run(
        &mut self,
        journal: Journal,
        stop_after: usize,
    ) -> Result<Option<Mesh>, MeshError> {
        let mut session = Session::new(self.ports.len(), 100 * SECOND, journal)?;
        // They come in any order.
        for node in (0..self.ports.len()).rev() {
            let late = match self.moods[node] {
                Mood::Late(late) => late,
                _ => Duration::ZERO,
            };
            self.at(late, Happening::Comes(node));
        }
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        while !session.is_over() {
            if self.done.len() >= stop_after {
                return Ok(None);
            }
            assert!(self.now < SECOND * 1_000_000, "it does not end");
            let tick = self.now + SECOND;
            let next = self.due.first_key_value().map(|(at, _)| *at);
            self.now = next.map_or(tick, |next| next.min(tick));
            for happening in self.due.remove(&self.now).unwrap_or_default() {
                self.happen(happening, &mut inputs);
            }
            inputs.push(Input::Tick);
            let (done, left, refused, rounds) = (
                &mut self.done,
                &mut self.left,
                &mut self.refused,
                &mut self.rounds,
            );
            let mut tell = |progress: Progress<'_>| match progress {
                Progress::Done(pair, _) => done.push(pair.clone()),
                Progress::Left { name, .. } => left.push(name.to_owned()),
                Progress::Refused { reason, .. } => refused.push(reason.to_owned()),
                Progress::Round { .. } => *rounds += 1,
                Progress::Joined { .. } | Progress::Begins { .. } => {}
            };
            let outcome = session.step(&mut inputs, self.now, &mut outputs, &mut tell);
            for output in outputs.drain(..) {
                self.carry_out(output);
            }
            outcome?;
        }
        Ok(Some(session.into_mesh()))
    }

    fn at(&mut self, at: Duration, happening: Happening) {
        self.due.entry(at).or_default().push(happening);
    }

    fn says(&mut self, after: Duration, connection: usize, message: FromAgent) {
        self.at(self.now + after, Happening::Says(connection, message));
    }

    /// What the coordinator's sockets would make of it.
    fn happen(&mut self, happening: Happening, inputs: &mut Vec<Input>) {
        match happening {
            Happening::Comes(node) => {
                let connection = self.links.len();
                self.links.push(Link {
                    node,
                    open: true,
                    cut: false,
                });
                if let Mood::Leaves(at) = self.moods[node]
                    && at > self.now
                {
                    self.at(at, Happening::Ends(connection, POWER));
                }
                inputs.push(Input::Join {
                    connection,
                    from: address(node),
                    node: description(node, self.ports[node]),
                    address: None,
                    certificate: None,
                });
            }
            Happening::Says(connection, message) => {
                if self.links[connection].open {
                    self.release(connection, &message);
                    inputs.push(Input::Said {
                        connection,
                        message,
                    });
                }
            }
            Happening::Raves(connection) => {
                if self.close(connection) {
                    inputs.push(Input::said(connection, NONSENSE));
                }
            }
            Happening::Gossips(connection) => {
                if self.links[connection].open {
                    self.gossip(connection, inputs);
                }
            }
            Happening::Ends(connection, reason) => {
                if self.close(connection) {
                    if reason == POWER {
                        let node = self.links[connection].node;
                        self.at(self.now + SECOND, Happening::Comes(node));
                    }
                    let reason = reason.to_owned();
                    inputs.push(Input::Ended { connection, reason });
                }
            }
            Happening::NobodyCame(test) => {
                let seen = &self.tests[test as usize];
                if seen.client.is_none() {
                    let reason = "nobody came".to_owned();
                    let message = FromAgent::Failed { test, reason };
                    self.happen(Happening::Says(seen.server, message), inputs);
                }
            }
        }
    }

    /// An end of a test that reports is free again.
    fn release(&mut self, connection: usize, message: &FromAgent) {
        let (FromAgent::Served { test }
        | FromAgent::Measured { test, .. }
        | FromAgent::Failed { test, .. }) = message
        else {
            return;
        };
        let node = self.links[connection].node;
        let mut ports = self.busy[node].iter_mut();
        if let Some(port) = ports.find(|port| **port == Some(*test)) {
            *port = None;
        }
    }

    /// Ends a connection; whether it was open.
    fn close(&mut self, connection: usize) -> bool {
        let link = &mut self.links[connection];
        if link.open {
            self.busy[link.node].fill(None);
        }
        std::mem::take(&mut link.open)
    }

    fn carry_out(&mut self, output: Output) {
        let (connection, message) = match output {
            Output::Tell {
                connection,
                message,
            } => (connection, message),
            Output::Cut { connection } => {
                self.links[connection].cut = true;
                self.busy[self.links[connection].node].fill(None);
                return self.at(self.now + REPLY, Happening::Ends(connection, "it was cut"));
            }
        };
        match message {
            FromCoordinator::Serve { test, rail, .. } => {
                assert_eq!(test, self.tests.len() as u64);
                self.tests.push(Seen {
                    server: connection,
                    rail,
                    client: None,
                });
                self.take(connection, rail, test);
                self.serve(connection, test);
            }
            FromCoordinator::Run {
                test,
                rail,
                plan,
                host,
                port,
                ..
            } => {
                let seen = &mut self.tests[test as usize];
                assert_eq!(seen.client.replace(connection), None, "begun twice");
                let (server, expected) = (seen.server, seen.rail);
                assert_eq!((rail, port), (expected, PORT));
                assert_eq!(host, address(self.links[server].node));
                self.take(connection, rail, test);
                self.measure(connection, server, test, plan.measure);
            }
            FromCoordinator::Welcome { .. }
            | FromCoordinator::Refuse { .. }
            | FromCoordinator::Alive
            | FromCoordinator::Finished => {}
        }
    }

    fn take(&mut self, connection: usize, rail: usize, test: u64) {
        let link = &self.links[connection];
        assert!(!link.cut, "{} is asked though it was dropped", link.node);
        // What is told to one that has just gone is lost.
        if link.open {
            let before = self.busy[link.node][rail].replace(test);
            assert_eq!(before, None, "port {rail} of {} twice", link.node);
        }
    }

    fn serve(&mut self, connection: usize, test: u64) {
        let node = self.links[connection].node;
        match self.moods[node] {
            Mood::Silent(from) if self.now >= from => return,
            Mood::Raves(from) if self.now >= from => {
                return self.at(self.now + REPLY, Happening::Raves(connection));
            }
            Mood::Gossips => self.at(self.now + SECOND / 2, Happening::Gossips(connection)),
            _ => {}
        }
        self.says(REPLY, connection, FromAgent::Listening { test, port: PORT });
        if self.may_lose_nodes {
            self.at(self.now + PATIENCE, Happening::NobodyCame(test));
        }
    }

    /// Says what is a message and none of its business.
    fn gossip(&mut self, connection: usize, inputs: &mut Vec<Input>) {
        let recent = self.tests.iter().enumerate().rev().take(50);
        let others = recent
            .filter(|(_, seen)| seen.client.is_some_and(|client| client != connection))
            .filter(|(_, seen)| seen.server != connection)
            .map(|(test, _)| test as u64);
        for test in others.chain([999_999_999]) {
            let reason = "so they say".to_owned();
            for message in [
                FromAgent::Listening { test, port: 9 },
                FromAgent::Served { test },
                FromAgent::Measured { test, figure: 1e9 },
                FromAgent::Failed { test, reason },
            ] {
                inputs.push(Input::Said {
                    connection,
                    message,
                });
            }
        }
        let again = FromAgent::Join {
            version: VERSION,
            software: String::new(),
            node: description(0, 1),
            address: None,
        };
        inputs.push(Input::Said {
            connection,
            message: again,
        });
    }

    /// Both ends report, as far as they do.
    fn measure(&mut self, client: usize, server: usize, test: u64, measure: Measure) {
        let rail = self.tests[test as usize].rail;
        let nodes = [client, server].map(|connection| self.links[connection].node);
        let moods = nodes.map(|node| self.moods[node]);
        let late = moods.map(|mood| match mood {
            Mood::Late(late) => late,
            _ => Duration::ZERO,
        });
        let takes = SECOND + late[0] + late[1];
        let ends = self.now + takes;
        let answers = moods.map(|mood| match mood {
            Mood::Silent(from) | Mood::Raves(from) => ends < from,
            // One that is asked later has come back before the mesh began.
            Mood::Leaves(at) => ends < at || self.now >= at,
            _ => true,
        });
        let both = answers == [true, true];
        let fails = !both || moods.contains(&Mood::Fails(rail));
        // Whoever lost its peer notices after a while.
        let after = if both { takes } else { takes + PATIENCE };
        for (end, connection) in [client, server].into_iter().enumerate() {
            if let Mood::Raves(from) = moods[end]
                && ends >= from
            {
                self.at(ends, Happening::Raves(connection));
            } else if answers[end] && fails {
                let reason = "it broke".to_owned();
                self.says(after, connection, FromAgent::Failed { test, reason });
            } else if answers[end] && end == 0 {
                let figure = (self.physics)(nodes[0], nodes[1], rail, measure);
                self.says(after, connection, FromAgent::Measured { test, figure });
            } else if answers[end] {
                self.says(after, connection, FromAgent::Served { test });
            }
        }
    }
}

fn address(node: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + node as u32).into()
}

/// Nodes are numbered as their names are sorted.
fn description(node: usize, ports: usize) -> Node {
    Node {
        name: format!("node-{node:04}"),
        ports: (0..ports)
            .map(|port| NodePort {
                device: format!("mlx5_{port}"),
                port: 1,
            })
            .collect(),
    }
}

/// All nodes, with as many ports each.
pub(super) fn descriptions(nodes: usize, ports: usize) -> impl Iterator<Item = Node> {
    (0..nodes).map(move |node| description(node, ports))
}
