//! Connections: a thread that accepts, and one for each connection that reads its lines.

use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use crate::mesh::line::{LineReader, write};
use crate::mesh::message::{FromAgent, FromCoordinator};
use crate::mesh::{MeshError, Node};

/// A connection's thread holds one line.
const STACK: usize = 256 << 10;

/// What connections tell.
pub(super) enum Incoming {
    /// A first line arrived on this connection.
    Join {
        connection: usize,
        stream: TcpStream,
        from: IpAddr,
        node: Node,
        address: Option<IpAddr>,
    },
    Said {
        connection: usize,
        message: FromAgent,
    },
    /// The connection ended.
    Ended { connection: usize, reason: String },
    /// Somebody who is no agent.
    Stranger { from: String, reason: String },
}

/// Accepts until dropped.
pub(super) struct Acceptor {
    ends: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Acceptor {
    pub(super) fn start(
        listener: TcpListener,
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
                    let reader = thread::Builder::new()
                        .name("mesh-reader".to_owned())
                        .stack_size(STACK)
                        .spawn(move || {
                            read(connection, stream, from, &send);
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
                if stream.set_nonblocking(false).is_ok() {
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
fn read(connection: usize, stream: TcpStream, from: IpAddr, send: &Sender<Incoming>) {
    let stranger = |reason: String| {
        send.send(Incoming::Stranger {
            from: from.to_string(),
            reason,
        })
        .ok();
    };
    let lines = stream.try_clone().and_then(LineReader::new);
    let mut lines = match lines {
        Ok(lines) => lines,
        Err(error) => return stranger(error.to_string()),
    };
    let first = match lines.next() {
        Ok(Some(line)) => FromAgent::decode(&line),
        Ok(None) => Err("it closed the connection without a word".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    match first {
        Ok(FromAgent::Join { node, address, .. }) => {
            let join = Incoming::Join {
                connection,
                stream,
                from,
                node,
                address,
            };
            if send.send(join).is_err() {
                return;
            }
        }
        Ok(_) => return stranger("it did not say who it is".to_owned()),
        Err(reason) => {
            let mut stream = stream;
            let refusal = FromCoordinator::Refuse {
                reason: reason.clone(),
            };
            write(&mut stream, &refusal).ok();
            return stranger(reason);
        }
    }
    let reason = loop {
        match lines.next() {
            Ok(Some(line)) => match FromAgent::decode(&line) {
                Ok(message) => {
                    if send
                        .send(Incoming::Said {
                            connection,
                            message,
                        })
                        .is_err()
                    {
                        return;
                    }
                }
                Err(reason) => break reason,
            },
            Ok(None) => break "it closed the connection".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    send.send(Incoming::Ended { connection, reason }).ok();
}
