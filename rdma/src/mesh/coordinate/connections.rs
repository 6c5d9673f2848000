//! Connections: a thread that accepts, and one for each connection that reads its lines.

use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use crate::mesh::MeshError;
use crate::mesh::line::{LineReader, Wire};
use crate::mesh::message::{FromAgent, FromCoordinator};
use crate::mesh::session::Input;
use crate::security::{Identity, Stream};

/// A connection's thread holds one line, and shakes hands.
const STACK: usize = 512 << 10;

/// What connections tell.
pub(super) enum Incoming {
    /// A first line arrived on this connection.
    Wire {
        connection: usize,
        wire: Wire,
        join: Input,
    },
    /// Anything else.
    News(Input),
}

/// Accepts until dropped.
pub(super) struct Acceptor {
    ends: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Acceptor {
    pub(super) fn start(
        listener: TcpListener,
        identity: Option<Arc<Identity>>,
        send: Sender<Incoming>,
        most: usize,
    ) -> Result<Acceptor, MeshError> {
        let system = |source| MeshError::System {
            attempted: "listen for nodes",
            source,
        };
        listener.set_nonblocking(true).map_err(system)?;
        let ends = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ends);
        let thread = thread::Builder::new()
            .name("mesh-accept".to_owned())
            .spawn(move || {
                let open = Arc::new(AtomicUsize::new(0));
                for connection in 0.. {
                    let Some((stream, from)) = accept(&listener, &seen) else {
                        return;
                    };
                    // Whoever comes while too many are here is cut off.
                    if open.fetch_add(1, Ordering::Relaxed) >= most {
                        open.fetch_sub(1, Ordering::Relaxed);
                        continue;
                    }
                    let (send, open) = (send.clone(), Arc::clone(&open));
                    let identity = identity.clone();
                    let reader = thread::Builder::new()
                        .name("mesh-reader".to_owned())
                        .stack_size(STACK)
                        .spawn(move || {
                            read(connection, stream, from, identity.as_deref(), &send);
                            open.fetch_sub(1, Ordering::Relaxed);
                        });
                    if let Err(error) = reader {
                        tracing::warn!(%error, "cannot start a thread for a node");
                    }
                }
            })
            .map_err(system)?;
        Ok(Acceptor {
            ends,
            thread: Some(thread),
        })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn accept(listener: &TcpListener, ends: &AtomicBool) -> Option<(TcpStream, IpAddr)> {
    while !ends.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, from)) => {
                if stream.set_nonblocking(false).is_ok() && stream.set_nodelay(true).is_ok() {
                    return Some((stream, from.ip().to_canonical()));
                }
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "cannot accept a node's connection");
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
    None
}

/// Reads one connection to its end.
fn read(
    connection: usize,
    stream: TcpStream,
    from: IpAddr,
    identity: Option<&Identity>,
    send: &Sender<Incoming>,
) {
    let news = |input| send.send(Incoming::News(input)).is_ok();
    let stranger = |reason: String| {
        let from = from.to_string();
        news(Input::Stranger { from, reason });
    };
    let (wire, mut lines) = match open(stream, identity) {
        Ok(opened) => opened,
        Err(reason) => return stranger(reason),
    };
    let first = match lines.next() {
        Ok(Some(line)) => FromAgent::decode(&line),
        Ok(None) => Err("it closed the connection without a word".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    match first {
        Ok(FromAgent::Join { node, address, .. }) => {
            let join = Input::Join {
                connection,
                from,
                node,
                address,
                certificate: wire.peer(),
            };
            let incoming = Incoming::Wire {
                connection,
                wire,
                join,
            };
            if send.send(incoming).is_err() {
                return;
            }
        }
        Ok(_) => return stranger("it did not say who it is".to_owned()),
        Err(reason) => {
            let refusal = FromCoordinator::Refuse {
                reason: reason.clone(),
            };
            wire.write(&refusal).ok();
            return stranger(reason);
        }
    }
    let reason = loop {
        match lines.next() {
            Ok(Some(line)) => match Input::said(connection, &line) {
                Input::Ended { reason, .. } => break reason,
                said => {
                    if !news(said) {
                        return;
                    }
                }
            },
            Ok(None) => break "it closed the connection".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    news(Input::Ended { connection, reason });
}

/// Shakes hands where an identity is shown; why not, otherwise.
fn open(stream: TcpStream, identity: Option<&Identity>) -> Result<(Wire, LineReader), String> {
    let stream: Box<dyn Stream> = match identity {
        Some(identity) => identity.accept(stream).map_err(|error| error.to_string())?,
        None => Box::new(stream),
    };
    let wire = Wire::new(stream).map_err(|error| error.to_string())?;
    let lines = LineReader::new(wire.clone()).map_err(|error| error.to_string())?;
    Ok((wire, lines))
}
