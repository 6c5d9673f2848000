//! The measuring: between [`Coordinator`], which knows nodes by number, and connections, places in the
//! journal and names.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{Input, Member, Output, refuse};
use crate::mesh::coordinator::{Action, Coordinator, Event};
use crate::mesh::journal::Journal;
use crate::mesh::message::{FromAgent, FromCoordinator};
use crate::mesh::schedule::rounds;
use crate::mesh::{Left, MeshError, MeshPlan, Progress};

pub(super) struct Measuring {
    plan: MeshPlan,
    members: Vec<Member>,
    /// Where each member's node is in the journal.
    places: Vec<usize>,
    of_connection: HashMap<usize, usize>,
    coordinator: Coordinator,
    finished: bool,
}

impl Measuring {
    /// Begins, with nodes in the order of their places in the journal.
    pub(super) fn start(
        placed: Vec<(usize, Member)>,
        journal: &mut Journal,
        now: Duration,
        outputs: &mut Vec<Output>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Measuring, MeshError> {
        let (places, members): (Vec<usize>, Vec<Member>) = placed.into_iter().unzip();
        let nodes = &journal.mesh().nodes;
        let rails: Vec<usize> = places
            .iter()
            .map(|place| nodes[*place].ports.len())
            .collect();
        let of_place: HashMap<usize, usize> = places.iter().copied().zip(0..).collect();
        let known = journal
            .complete()
            .into_iter()
            .filter_map(|(a, b, rail)| Some((*of_place.get(&a)?, *of_place.get(&b)?, rail)))
            .collect::<HashSet<_>>();
        let pairs = (0..rails.len())
            .flat_map(|a| (a + 1..rails.len()).map(move |b| (a, b)))
            .map(|(a, b)| rails[a].min(rails[b]))
            .sum();
        progress(Progress::Begins {
            pairs,
            known: known.len(),
        });
        let plan = journal.mesh().plan.clone();
        let of_connection = members
            .iter()
            .map(|member| member.connection)
            .zip(0..)
            .collect();
        let mut coordinator = Coordinator::new(plan.clone(), rails, known);
        let actions = coordinator.start(now);
        let mut measuring = Measuring {
            plan,
            members,
            places,
            of_connection,
            coordinator,
            finished: false,
        };
        measuring.act(actions, journal, outputs, progress)?;
        Ok(measuring)
    }

    pub(super) fn handle(
        &mut self,
        input: Input,
        now: Duration,
        journal: &mut Journal,
        outputs: &mut Vec<Output>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), MeshError> {
        match self.event(input, outputs, progress) {
            Some(event) => {
                let actions = self.coordinator.handle(event, now);
                self.act(actions, journal, outputs, progress)
            }
            None => Ok(()),
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    /// What is news for the state machine.
    fn event(
        &mut self,
        input: Input,
        outputs: &mut Vec<Output>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Option<Event> {
        match input {
            Input::Said {
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
            Input::Ended { connection, reason } => {
                let node = self.of_connection.remove(&connection)?;
                Some(Event::Gone { node, reason })
            }
            Input::Join {
                connection, from, ..
            } => {
                let reason = "the mesh has begun: this node can take part in the next run";
                refuse(connection, from, reason, outputs, progress);
                None
            }
            Input::Stranger { from, reason } => {
                progress(Progress::Refused {
                    from,
                    reason: &reason,
                });
                None
            }
            Input::Tick => Some(Event::Tick),
        }
    }

    fn act(
        &mut self,
        actions: Vec<Action>,
        journal: &mut Journal,
        outputs: &mut Vec<Output>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), MeshError> {
        for action in actions {
            let (node, message) = match action {
                Action::Serve {
                    node,
                    test,
                    rail,
                    step,
                } => {
                    let plan = step.plan(&self.plan).clone();
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
                    let server = &self.members[server];
                    let message = FromCoordinator::Run {
                        test,
                        rail,
                        plan: step.plan(&self.plan).clone(),
                        host: server.address,
                        port,
                        certificate: server.certificate.clone(),
                    };
                    (node, message)
                }
                Action::Drop { node, reason } => {
                    let connection = self.members[node].connection;
                    let message = FromCoordinator::Refuse { reason };
                    outputs.push(Output::Tell {
                        connection,
                        message,
                    });
                    outputs.push(Output::Cut { connection });
                    continue;
                }
                Action::Round { number, pairs } => {
                    progress(Progress::Round {
                        number: number + 1,
                        of: rounds(self.members.len()),
                        pairs,
                    });
                    continue;
                }
                Action::Done(mut pair) => {
                    (pair.a, pair.b) = (self.places[pair.a], self.places[pair.b]);
                    if let Some(failure) = &mut pair.failure {
                        *failure = self.named(failure, journal);
                    }
                    progress(Progress::Done(&pair, &journal.mesh().nodes));
                    journal.pair(pair)?;
                    continue;
                }
                Action::Left { node, reason } => {
                    let node = self.places[node];
                    progress(Progress::Left {
                        name: &journal.mesh().nodes[node].name,
                        reason: &reason,
                    });
                    journal.left(Left { node, reason })?;
                    continue;
                }
                Action::Finished => {
                    self.finished = true;
                    continue;
                }
            };
            let connection = self.members[node].connection;
            outputs.push(Output::Tell {
                connection,
                message,
            });
        }
        Ok(())
    }

    /// The state machine knows nodes by number; people know them by name.
    fn named(&self, failure: &str, journal: &Journal) -> String {
        let number = failure.strip_prefix("node ").and_then(|rest| {
            let (number, rest) = rest.split_once(" left: ")?;
            Some((number.parse::<usize>().ok()?, rest))
        });
        match number.and_then(|(number, rest)| Some((*self.places.get(number)?, rest))) {
            Some((place, rest)) => {
                format!("{} left: {rest}", journal.mesh().nodes[place].name)
            }
            None => failure.to_owned(),
        }
    }
}
