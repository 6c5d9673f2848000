//! Waiting for the nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::{Input, Member, Output, refuse, tell_all};
use crate::mesh::journal::Journal;
use crate::mesh::message::{FromCoordinator, VERSION};
use crate::mesh::{MeshError, Node, Progress};

pub(super) struct Gathering {
    nodes: usize,
    patience: Duration,
    /// Who came, by connection.
    came: BTreeMap<usize, (Node, Member)>,
}

impl Gathering {
    pub(super) fn new(nodes: usize, patience: Duration) -> Gathering {
        Gathering {
            nodes,
            patience,
            came: BTreeMap::new(),
        }
    }

    pub(super) fn handle(
        &mut self,
        input: Input,
        now: Duration,
        outputs: &mut Vec<Output>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), MeshError> {
        match input {
            Input::Join {
                connection,
                from,
                node,
                address,
                certificate,
            } => {
                let address = address.unwrap_or(from);
                if let Some(reason) = self.conflict(&node, address) {
                    refuse(connection, from, &reason, outputs, progress);
                    return Ok(());
                }
                let message = FromCoordinator::Welcome {
                    version: VERSION,
                    nodes: self.nodes,
                };
                outputs.push(Output::Tell {
                    connection,
                    message,
                });
                progress(Progress::Joined {
                    node: &node,
                    came: self.came.len() + 1,
                });
                let member = Member {
                    connection,
                    address,
                    certificate,
                };
                self.came.insert(connection, (node, member));
            }
            Input::Ended { connection, reason } => {
                if let Some((node, _)) = self.came.remove(&connection) {
                    progress(Progress::Left {
                        name: &node.name,
                        reason: &reason,
                    });
                }
            }
            Input::Stranger { from, reason } => progress(Progress::Refused {
                from,
                reason: &reason,
            }),
            Input::Tick if now > self.patience => {
                let reason = "not all nodes came".to_owned();
                tell_all(self.members(), &FromCoordinator::Refuse { reason }, outputs);
                let mut names: Vec<String> = self
                    .came
                    .values()
                    .map(|(node, _)| node.name.clone())
                    .collect();
                names.sort();
                return Err(MeshError::Missing {
                    nodes: self.nodes,
                    came: names.len(),
                    names,
                    waited: self.patience,
                });
            }
            Input::Said { .. } | Input::Tick => {}
        }
        Ok(())
    }

    pub(super) fn is_whole(&self) -> bool {
        self.came.len() == self.nodes
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.came.values().map(|(_, member)| member)
    }

    /// All of them, in the order of their places in the journal. New nodes get theirs by name, so that it
    /// does not matter who came first.
    pub(super) fn place(
        &mut self,
        journal: &mut Journal,
    ) -> Result<Vec<(usize, Member)>, MeshError> {
        let mut came: Vec<(Node, Member)> = std::mem::take(&mut self.came).into_values().collect();
        came.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let mut placed = Vec::with_capacity(came.len());
        for (node, member) in came {
            placed.push((journal.node(&node)?, member));
        }
        placed.sort_by_key(|(place, _)| *place);
        Ok(placed)
    }

    /// Why a node can't be taken beside those that came.
    fn conflict(&self, node: &Node, address: IpAddr) -> Option<String> {
        for (other, member) in self.came.values() {
            if other.name == node.name {
                return Some(format!(
                    "there is a node called {} already: give each its own --name",
                    node.name
                ));
            }
            if other.ports.len() != node.ports.len() {
                tracing::warn!(
                    "{} has {} ports and {} has {}: they meet on the rails both have",
                    node.name,
                    node.ports.len(),
                    other.name,
                    other.ports.len()
                );
            }
            if member.address.is_loopback() != address.is_loopback() {
                let (local, far) = if address.is_loopback() {
                    (node, other)
                } else {
                    (other, node)
                };
                return Some(format!(
                    "{} would be looked for at a loopback address, where {} can't reach it: \
                     give it --address, or --meet with an address that others use",
                    local.name, far.name
                ));
            }
        }
        None
    }
}
