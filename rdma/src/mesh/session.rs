//! The coordinator without sockets, threads and clock: what connections say goes in, what they are to be
//! told comes out.
//!
//! It waits for the nodes, has every pair measured, and keeps what comes of it in the journal. The sockets
//! of [`super::coordinate`] and the simulated nodes of the tests drive the same code.

mod gathering;
mod measuring;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use super::journal::Journal;
use super::line::ALIVE_EVERY;
use super::message::{FromAgent, FromCoordinator};
use super::{MOST_NODES, Mesh, MeshError, Node, Progress};
use crate::security::Fingerprint;
use gathering::Gathering;
use measuring::Measuring;

/// What connections tell.
#[derive(Debug)]
pub(super) enum Input {
    /// A first line arrived on this connection.
    Join {
        connection: usize,
        from: IpAddr,
        node: Node,
        /// Where it wants to be reached, if not where it came from.
        address: Option<IpAddr>,
        /// Of the certificate that it showed.
        certificate: Option<Fingerprint>,
    },
    Said {
        connection: usize,
        message: FromAgent,
    },
    /// The connection ended.
    Ended { connection: usize, reason: String },
    /// Somebody who is no agent.
    Stranger { from: String, reason: String },
    /// Time passed.
    Tick,
}

impl Input {
    /// What a line on a connection says after the first one; who says what makes no sense has left.
    pub(super) fn said(connection: usize, line: &[u8]) -> Input {
        match FromAgent::decode(line) {
            Ok(message) => Input::Said {
                connection,
                message,
            },
            Err(reason) => Input::Ended { connection, reason },
        }
    }
}

/// What is to be done with connections, in this order. One that can't be told anything has ended.
#[derive(Debug)]
pub(super) enum Output {
    Tell {
        connection: usize,
        message: FromCoordinator,
    },
    /// End it.
    Cut { connection: usize },
}

/// A node that was taken in.
struct Member {
    connection: usize,
    /// Where others reach it.
    address: IpAddr,
    certificate: Option<Fingerprint>,
}

pub(super) struct Session {
    journal: Journal,
    phase: Phase,
    /// When all were last told that the coordinator is there.
    beat: Duration,
}

enum Phase {
    Gathering(Gathering),
    Measuring(Box<Measuring>),
    Over,
}

impl Session {
    /// For this many nodes, which are waited for as long as `patience`. What the journal knows already is
    /// not measured again.
    pub(super) fn new(
        nodes: usize,
        patience: Duration,
        journal: Journal,
    ) -> Result<Session, MeshError> {
        if !(2..=MOST_NODES).contains(&nodes) {
            return Err(MeshError::Options(format!(
                "a mesh of {nodes} nodes: 2 to {MOST_NODES} can take part"
            )));
        }
        journal.mesh().plan.check()?;
        Ok(Session {
            journal,
            phase: Phase::Gathering(Gathering::new(nodes, patience)),
            beat: Duration::ZERO,
        })
    }

    /// Takes in what happened by `now`, the time since the beginning, which must not go back, and brings
    /// what is known then to the disk. What comes out is to be done after that, even where this fails.
    pub(super) fn step(
        &mut self,
        inputs: &mut Vec<Input>,
        now: Duration,
        outputs: &mut Vec<Output>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), MeshError> {
        let handled = inputs
            .drain(..)
            .try_for_each(|input| self.handle(input, now, outputs, progress));
        handled.and(self.journal.sync())
    }

    fn handle(
        &mut self,
        input: Input,
        now: Duration,
        outputs: &mut Vec<Output>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), MeshError> {
        let is_tick = matches!(input, Input::Tick);
        match &mut self.phase {
            Phase::Gathering(gathering) => {
                gathering.handle(input, now, outputs, progress)?;
                if gathering.is_whole() {
                    let members = gathering.place(&mut self.journal)?;
                    let journal = &mut self.journal;
                    let measuring = Measuring::start(members, journal, now, outputs, progress)?;
                    self.phase = Phase::Measuring(Box::new(measuring));
                }
            }
            Phase::Measuring(measuring) => {
                measuring.handle(input, now, &mut self.journal, outputs, progress)?;
            }
            Phase::Over => return Ok(()),
        }
        if let Phase::Measuring(measuring) = &self.phase
            && measuring.is_finished()
        {
            tell_all(measuring.members(), &FromCoordinator::Finished, outputs);
            self.phase = Phase::Over;
        } else if is_tick && now.saturating_sub(self.beat) > ALIVE_EVERY {
            self.beat = now;
            match &self.phase {
                Phase::Gathering(gathering) => {
                    tell_all(gathering.members(), &FromCoordinator::Alive, outputs);
                }
                Phase::Measuring(measuring) => {
                    tell_all(measuring.members(), &FromCoordinator::Alive, outputs);
                }
                Phase::Over => {}
            }
        }
        Ok(())
    }

    /// Whether all is measured.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    pub(super) fn into_mesh(self) -> Mesh {
        self.journal.into_mesh()
    }
}

fn tell_all<'a>(
    members: impl Iterator<Item = &'a Member>,
    message: &FromCoordinator,
    outputs: &mut Vec<Output>,
) {
    outputs.extend(members.map(|member| Output::Tell {
        connection: member.connection,
        message: message.clone(),
    }));
}

/// Says why somebody is not taken in, to them and to whoever watches.
fn refuse(
    connection: usize,
    from: IpAddr,
    reason: &str,
    outputs: &mut Vec<Output>,
    progress: &mut dyn FnMut(Progress<'_>),
) {
    outputs.push(Output::Tell {
        connection,
        message: FromCoordinator::Refuse {
            reason: reason.to_owned(),
        },
    });
    outputs.push(Output::Cut { connection });
    progress(Progress::Refused {
        from: from.to_string(),
        reason,
    });
}
