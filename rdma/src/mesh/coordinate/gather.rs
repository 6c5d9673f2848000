//! Waiting for the nodes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::connections::Incoming;
use super::{Agent, Progress, TICK, no_acceptor};
use crate::mesh::journal::Journal;
use crate::mesh::line::{ALIVE_EVERY, write};
use crate::mesh::message::{FromCoordinator, VERSION};
use crate::mesh::{MeshError, Node};

/// The nodes that came, in the order of their places in the journal.
pub(super) struct Gathered {
    pub(super) agents: Vec<Agent>,
    pub(super) of_connection: HashMap<usize, usize>,
    pub(super) places: Vec<usize>,
}

/// Takes nodes in until all are there.
pub(super) fn gather(
    nodes: usize,
    patience: Duration,
    journal: &mut Journal,
    receive: &Receiver<Incoming>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Gathered, MeshError> {
    let start = Instant::now();
    let mut beat = start;
    let mut came: HashMap<usize, (Node, Agent)> = HashMap::new();
    while came.len() < nodes {
        if start.elapsed() > patience {
            let mut names: Vec<String> = came.values().map(|(node, _)| node.name.clone()).collect();
            names.sort();
            for (_, agent) in came.values_mut() {
                let reason = "not all nodes came".to_owned();
                write(&mut agent.stream, &FromCoordinator::Refuse { reason }).ok();
            }
            return Err(MeshError::Missing {
                nodes,
                came: names.len(),
                names,
                waited: patience,
            });
        }
        if beat.elapsed() > ALIVE_EVERY {
            beat = Instant::now();
            for (_, agent) in came.values_mut() {
                // Who is gone is noticed by its reader.
                write(&mut agent.stream, &FromCoordinator::Alive).ok();
            }
        }
        match receive.recv_timeout(TICK) {
            Ok(Incoming::Join {
                connection,
                mut stream,
                from,
                node,
                address,
            }) => {
                let address = address.unwrap_or(from);
                if let Some(reason) = conflict(&node, address, &came) {
                    let refusal = FromCoordinator::Refuse {
                        reason: reason.clone(),
                    };
                    write(&mut stream, &refusal).ok();
                    progress(Progress::Refused {
                        from: from.to_string(),
                        reason: &reason,
                    });
                    continue;
                }
                let welcome = FromCoordinator::Welcome {
                    version: VERSION,
                    nodes,
                };
                if write(&mut stream, &welcome).is_ok() {
                    progress(Progress::Joined {
                        node: &node,
                        came: came.len() + 1,
                    });
                    came.insert(connection, (node, Agent { stream, address }));
                }
            }
            Ok(Incoming::Ended { connection, reason }) => {
                if let Some((node, _)) = came.remove(&connection) {
                    progress(Progress::Left {
                        name: &node.name,
                        reason: &reason,
                    });
                }
            }
            Ok(Incoming::Stranger { from, reason }) => progress(Progress::Refused {
                from,
                reason: &reason,
            }),
            Ok(Incoming::Said { .. }) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(no_acceptor()),
        }
    }
    // New nodes get their places by name, so that it does not matter who came first.
    let mut came: Vec<(usize, Node, Agent)> = came
        .into_iter()
        .map(|(connection, (node, agent))| (connection, node, agent))
        .collect();
    came.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let mut placed = Vec::new();
    for (connection, node, agent) in came {
        placed.push((journal.node(&node)?, connection, agent));
    }
    journal.sync()?;
    placed.sort_by_key(|(place, ..)| *place);
    let mut gathered = Gathered {
        agents: Vec::new(),
        of_connection: HashMap::new(),
        places: Vec::new(),
    };
    for (place, connection, agent) in placed {
        gathered
            .of_connection
            .insert(connection, gathered.agents.len());
        gathered.places.push(place);
        gathered.agents.push(agent);
    }
    Ok(gathered)
}

/// Why a node can't be taken beside those that came.
fn conflict(node: &Node, address: IpAddr, came: &HashMap<usize, (Node, Agent)>) -> Option<String> {
    for (other, agent) in came.values() {
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
        if agent.address.is_loopback() != address.is_loopback() {
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
