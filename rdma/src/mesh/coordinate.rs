//! The coordinator's sockets, threads and clock around [`Coordinator`].
//!
//! A thread a connection reads lines and sends events; one loop takes them in, writes to agents and to
//! the journal.

mod connections;
mod gather;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::coordinator::{Action, Coordinator, Event};
use super::journal::Journal;
use super::line::{ALIVE_EVERY, write};
use super::message::{FromAgent, FromCoordinator};
use super::schedule::rounds;
use super::{Left, MOST_NODES, Mesh, MeshError, Node, Pair};
use connections::{Acceptor, Incoming};
use gather::gather;

/// Connections beyond the nodes that are awaited: strangers, and nodes that come twice.
const SPARE_CONNECTIONS: usize = 64;
/// How often time passes for the state machine.
const TICK: Duration = Duration::from_millis(500);

/// How to coordinate.
pub struct CoordinateOptions {
    /// Where agents come.
    pub listener: TcpListener,
    /// How many nodes take part.
    pub nodes: usize,
    /// How long to wait for all of them.
    pub patience: Duration,
    /// What is known already, and where to keep what comes.
    pub journal: Journal,
}

/// What a coordinator tells while it works.
pub enum Progress<'a> {
    /// A node came.
    Joined {
        /// It.
        node: &'a Node,
        /// How many there are now.
        came: usize,
    },
    /// A connection that could not be taken.
    Refused {
        /// Where it came from.
        from: String,
        /// Why.
        reason: &'a str,
    },
    /// All are there: so many pairs are to be measured.
    Begins {
        /// Pairs of ports.
        pairs: usize,
        /// Of these, known from the journal.
        known: usize,
    },
    /// A round begins.
    Round {
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        of: usize,
        /// Its pairs.
        pairs: usize,
    },
    /// A pair is done.
    Done(&'a Pair, &'a [Node]),
    /// A node left.
    Left {
        /// Its name.
        name: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// An agent that was taken in.
struct Agent {
    stream: TcpStream,
    address: IpAddr,
}

/// Waits for the nodes, has every pair measured, and returns what is known then.
pub fn coordinate(
    options: CoordinateOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Mesh, MeshError> {
    if !(2..=MOST_NODES).contains(&options.nodes) {
        return Err(MeshError::Options(format!(
            "a mesh of {} nodes: 2 to {MOST_NODES} can take part",
            options.nodes
        )));
    }
    options.journal.mesh().plan.check()?;
    let (send, receive) = mpsc::channel();
    let acceptor = Acceptor::start(options.listener, send, options.nodes + SPARE_CONNECTIONS)?;
    let mut journal = options.journal;
    let gathered = gather(
        options.nodes,
        options.patience,
        &mut journal,
        &receive,
        progress,
    )?;
    let outcome = Run {
        agents: gathered.agents,
        of_connection: gathered.of_connection,
        places: gathered.places,
        journal: &mut journal,
        progress,
    }
    .run(&receive);
    drop(acceptor);
    outcome?;
    Ok(journal.into_mesh())
}

fn no_acceptor() -> MeshError {
    MeshError::System {
        attempted: "listen for nodes",
        source: io::Error::other("the listening thread ended"),
    }
}

/// The measuring itself.
struct Run<'a> {
    agents: Vec<Agent>,
    of_connection: HashMap<usize, usize>,
    /// Where each agent's node is in the mesh.
    places: Vec<usize>,
    journal: &'a mut Journal,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl Run<'_> {
    fn run(mut self, receive: &Receiver<Incoming>) -> Result<(), MeshError> {
        let plan = self.journal.mesh().plan.clone();
        let nodes = &self.journal.mesh().nodes;
        let rails: Vec<usize> = self
            .places
            .iter()
            .map(|place| nodes[*place].ports.len())
            .collect();
        let of_place: HashMap<usize, usize> = self
            .places
            .iter()
            .enumerate()
            .map(|(agent, place)| (*place, agent))
            .collect();
        let known = self
            .journal
            .complete()
            .into_iter()
            .filter_map(|(a, b, rail)| Some((*of_place.get(&a)?, *of_place.get(&b)?, rail)))
            .collect::<HashSet<_>>();
        let pairs = (0..rails.len())
            .flat_map(|a| (a + 1..rails.len()).map(move |b| (a, b)))
            .map(|(a, b)| rails[a].min(rails[b]))
            .sum();
        (self.progress)(Progress::Begins {
            pairs,
            known: known.len(),
        });
        let mut coordinator = Coordinator::new(plan.clone(), rails, known);
        let start = Instant::now();
        let mut beat = start;
        let mut events: Vec<Event> = Vec::new();
        let mut actions = coordinator.start(start.elapsed());
        loop {
            // Acting may make events: a write that fails is a node that left.
            while !actions.is_empty() || !events.is_empty() {
                for action in std::mem::take(&mut actions) {
                    if action == Action::Finished {
                        self.journal.sync()?;
                        self.tell_all(&FromCoordinator::Finished);
                        return Ok(());
                    }
                    self.act(action, &plan, &mut events)?;
                }
                for event in std::mem::take(&mut events) {
                    actions.extend(coordinator.handle(event, start.elapsed()));
                }
            }
            self.journal.sync()?;
            match receive.recv_timeout(TICK) {
                Ok(incoming) => {
                    events.extend(self.event(incoming));
                    while let Ok(incoming) = receive.try_recv() {
                        events.extend(self.event(incoming));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(no_acceptor()),
            }
            events.push(Event::Tick);
            if beat.elapsed() > ALIVE_EVERY {
                beat = Instant::now();
                self.tell_all(&FromCoordinator::Alive);
            }
        }
    }

    /// Tells all agents; who can't be told is noticed by its reader.
    fn tell_all(&mut self, message: &FromCoordinator) {
        for agent in &mut self.agents {
            write(&mut agent.stream, message).ok();
        }
    }

    /// What a connection's news is for the state machine.
    fn event(&mut self, incoming: Incoming) -> Option<Event> {
        match incoming {
            Incoming::Said {
                connection,
                message,
            } => {
                let node = *self.of_connection.get(&connection)?;
                match message {
                    FromAgent::Listening { test, port } => {
                        Some(Event::Listening { node, test, port })
                    }
                    FromAgent::Served { test } => Some(Event::Served { node, test }),
                    FromAgent::Measured { test, figure } => {
                        Some(Event::Measured { node, test, figure })
                    }
                    FromAgent::Failed { test, reason } => {
                        Some(Event::Failed { node, test, reason })
                    }
                    FromAgent::Alive | FromAgent::Join { .. } => None,
                }
            }
            Incoming::Ended { connection, reason } => {
                let node = self.of_connection.remove(&connection)?;
                Some(Event::Gone { node, reason })
            }
            Incoming::Join {
                mut stream, from, ..
            } => {
                let reason = "the mesh has begun: this node can take part in the next run";
                let refusal = FromCoordinator::Refuse {
                    reason: reason.to_owned(),
                };
                write(&mut stream, &refusal).ok();
                (self.progress)(Progress::Refused {
                    from: from.to_string(),
                    reason,
                });
                None
            }
            Incoming::Stranger { from, reason } => {
                (self.progress)(Progress::Refused {
                    from,
                    reason: &reason,
                });
                None
            }
        }
    }

    fn act(
        &mut self,
        action: Action,
        plan: &super::MeshPlan,
        events: &mut Vec<Event>,
    ) -> Result<(), MeshError> {
        let (node, message) = match action {
            Action::Serve {
                node,
                test,
                rail,
                step,
            } => {
                let plan = step.plan(plan).clone();
                (node, FromCoordinator::Serve { test, rail, plan })
            }
            Action::Run {
                node,
                test,
                rail,
                step,
                server,
                port,
            } => {
                let message = FromCoordinator::Run {
                    test,
                    rail,
                    plan: step.plan(plan).clone(),
                    host: self.agents[server].address,
                    port,
                };
                (node, message)
            }
            Action::Drop { node, reason } => {
                let stream = &mut self.agents[node].stream;
                write(stream, &FromCoordinator::Refuse { reason }).ok();
                stream.shutdown(std::net::Shutdown::Both).ok();
                return Ok(());
            }
            Action::Round { number, pairs } => {
                (self.progress)(Progress::Round {
                    number: number + 1,
                    of: rounds(self.agents.len()),
                    pairs,
                });
                return Ok(());
            }
            Action::Done(mut pair) => {
                (pair.a, pair.b) = (self.places[pair.a], self.places[pair.b]);
                if let Some(failure) = &mut pair.failure {
                    *failure = self.named(failure);
                }
                (self.progress)(Progress::Done(&pair, &self.journal.mesh().nodes));
                return self.journal.pair(pair);
            }
            Action::Left { node, reason } => {
                let place = self.places[node];
                let name = &self.journal.mesh().nodes[place].name;
                (self.progress)(Progress::Left {
                    name,
                    reason: &reason,
                });
                return self.journal.left(Left {
                    node: place,
                    reason,
                });
            }
            Action::Finished => return Ok(()),
        };
        if let Err(error) = write(&mut self.agents[node].stream, &message) {
            let reason = format!("it can't be told anything: {error}");
            events.push(Event::Gone { node, reason });
        }
        Ok(())
    }

    /// The state machine knows nodes by number; people know them by name.
    fn named(&self, failure: &str) -> String {
        let number = failure.strip_prefix("node ").and_then(|rest| {
            let (number, rest) = rest.split_once(" left: ")?;
            Some((number.parse::<usize>().ok()?, rest))
        });
        match number.and_then(|(number, rest)| Some((*self.places.get(number)?, rest))) {
            Some((place, rest)) => {
                format!("{} left: {rest}", self.journal.mesh().nodes[place].name)
            }
            None => failure.to_owned(),
        }
    }
}
