//! The coordinator's sockets, threads and clock around [`Session`].
//!
//! A thread a connection reads lines and sends what it read; one loop takes that in, brings the journal to
//! the disk, and writes to agents.

mod connections;

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::journal::Journal;
use super::line::Wire;
use super::session::{Input, Output, Session};
use super::{Mesh, MeshError, Node, Pair};
use crate::security::Identity;
use connections::{Acceptor, Incoming};

/// Connections beyond the nodes that are awaited: strangers, and nodes that come twice.
const SPARE_CONNECTIONS: usize = 64;
/// How often time passes for the session.
const TICK: Duration = Duration::from_millis(500);

/// How to coordinate.
pub struct CoordinateOptions {
    /// Where agents come.
    pub listener: TcpListener,
    /// With it, agents are met over mutual TLS; without, over plain TCP.
    pub identity: Option<Arc<Identity>>,
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

/// Waits for the nodes, has every pair measured, and returns what is known then.
pub fn coordinate(
    options: CoordinateOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Mesh, MeshError> {
    let mut session = Session::new(options.nodes, options.patience, options.journal)?;
    let (send, receive) = mpsc::channel();
    let most = options.nodes + SPARE_CONNECTIONS;
    let acceptor = Acceptor::start(options.listener, options.identity, send, most)?;
    let outcome = drive(&mut session, &receive, progress);
    drop(acceptor);
    outcome?;
    Ok(session.into_mesh())
}

/// Brings the session and the connections together until all is measured.
fn drive(
    session: &mut Session,
    receive: &Receiver<Incoming>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), MeshError> {
    let start = Instant::now();
    let mut wires: HashMap<usize, Wire> = HashMap::new();
    let mut inputs = Vec::new();
    let mut outputs = Vec::new();
    loop {
        match receive.recv_timeout(TICK) {
            Ok(incoming) => inputs.push(taken_in(incoming, &mut wires)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(MeshError::System {
                    attempted: "listen for nodes",
                    source: io::Error::other("the listening thread ended"),
                });
            }
        }
        while let Ok(incoming) = receive.try_recv() {
            inputs.push(taken_in(incoming, &mut wires));
        }
        inputs.push(Input::Tick);
        // What is done may make inputs: who can't be told anything has left.
        while !inputs.is_empty() {
            let outcome = session.step(&mut inputs, start.elapsed(), &mut outputs, progress);
            for output in outputs.drain(..) {
                inputs.extend(carry_out(output, &mut wires));
            }
            outcome?;
        }
        if session.is_over() {
            return Ok(());
        }
    }
}

/// What came is kept to answer, as long as it is there.
fn taken_in(incoming: Incoming, wires: &mut HashMap<usize, Wire>) -> Input {
    match incoming {
        Incoming::Wire {
            connection,
            wire,
            join,
        } => {
            wires.insert(connection, wire);
            join
        }
        Incoming::News(input) => {
            if let Input::Ended { connection, .. } = &input {
                wires.remove(connection);
            }
            input
        }
    }
}

/// Does what the session wants; what came of it.
fn carry_out(output: Output, wires: &mut HashMap<usize, Wire>) -> Option<Input> {
    match output {
        Output::Tell {
            connection,
            message,
        } => {
            let error = wires.get(&connection)?.write(&message).err()?;
            wires.remove(&connection);
            let reason = format!("it can't be told anything: {error}");
            Some(Input::Ended { connection, reason })
        }
        Output::Cut { connection } => {
            wires.get(&connection)?.cut();
            None
        }
    }
}
