//! A node's part: does what the coordinator says, on the node's own devices.

use std::io;
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::line::{ALIVE_EVERY, LineReader, Wire};
use super::message::{FromAgent, FromCoordinator, VERSION};
use super::{MeshError, Node, NodePort};
use crate::bench::{self, BenchError, Plan, Serve, Target};
use crate::security::{Fingerprint, Identity, Stream};

/// How often a coordinator that is not there yet is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// One port that takes part.
#[derive(Debug, Clone)]
pub struct AgentRail {
    /// How to open it.
    pub target: Target,
    /// What others call it.
    pub port: NodePort,
}

/// How to take part.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// This node's name.
    pub name: String,
    /// Its ports, in the order of the rails.
    pub rails: Vec<AgentRail>,
    /// The coordinator: host and port.
    pub meet: String,
    /// With it, the coordinator and the other nodes are met over mutual TLS; without, over plain TCP.
    pub identity: Option<Arc<Identity>>,
    /// Where other nodes reach this one; otherwise where the coordinator sees it.
    pub address: Option<IpAddr>,
    /// How long to wait for a coordinator that is not there yet.
    pub patience: Duration,
    /// How long the server of a test waits for its client.
    pub client_patience: Duration,
}

impl AgentOptions {
    /// What suits the clients of tests on a busy network.
    pub const CLIENT_PATIENCE: Duration = Duration::from_secs(20);
}

/// What an agent tells while it works.
pub enum AgentProgress {
    /// The coordinator took it in.
    Welcome {
        /// How many nodes will take part.
        nodes: usize,
    },
    /// It takes part in a test.
    Test,
}

/// Takes part until the coordinator says that all is measured.
pub fn join(
    options: &AgentOptions,
    progress: &mut dyn FnMut(AgentProgress),
) -> Result<(), MeshError> {
    let node = Node {
        name: options.name.clone(),
        ports: options.rails.iter().map(|rail| rail.port.clone()).collect(),
    };
    super::message::check_node(&node).map_err(MeshError::Options)?;
    let stream = connect(&options.meet, options.patience)?;
    let stream: Box<dyn Stream> = match &options.identity {
        Some(identity) => identity.connect(stream, &options.meet)?,
        None => Box::new(stream),
    };
    let lost = |source| MeshError::Lost {
        doing: "greeting it",
        source,
    };
    let wire = Wire::new(stream).map_err(lost)?;
    let mut lines = LineReader::new(wire.clone()).map_err(lost)?;
    let join = FromAgent::Join {
        version: VERSION,
        software: concat!("trackbed ", env!("CARGO_PKG_VERSION")).to_owned(),
        node,
        address: options.address,
    };
    // One that refuses to listen has said why.
    wire.write(&join).ok();
    let heart = Heart::start(wire.clone());
    let outcome = obey(options, &mut lines, &wire, progress);
    drop(heart);
    wire.cut();
    outcome
}

fn obey(
    options: &AgentOptions,
    lines: &mut LineReader,
    wire: &Wire,
    progress: &mut dyn FnMut(AgentProgress),
) -> Result<(), MeshError> {
    let mut is_welcome = false;
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            ended => return Err(left(ended.err(), is_welcome)),
        };
        match FromCoordinator::decode(&line).map_err(MeshError::Stranger)? {
            FromCoordinator::Welcome { nodes, .. } => {
                is_welcome = true;
                progress(AgentProgress::Welcome { nodes });
            }
            FromCoordinator::Refuse { reason } => return Err(MeshError::Refused(reason)),
            FromCoordinator::Alive => {}
            FromCoordinator::Finished => return Ok(()),
            FromCoordinator::Serve { test, rail, plan } => {
                progress(AgentProgress::Test);
                let target = target(options, rail)?;
                let patience = options.client_patience;
                part(wire, test, move |tell| {
                    serve(&target, &plan, test, patience, tell)
                })?;
            }
            FromCoordinator::Run {
                test,
                rail,
                plan,
                host,
                port,
                certificate,
            } => {
                progress(AgentProgress::Test);
                let target = towards(certificate, target(options, rail)?)?;
                part(wire, test, move |_| run(&target, &plan, test, host, port))?;
            }
        }
    }
}

/// Why there is no more to hear: one that ended before its welcome was never ours.
fn left(error: Option<io::Error>, is_welcome: bool) -> MeshError {
    match (error, is_welcome) {
        (error, true) => MeshError::Lost {
            doing: "waiting for what to measure",
            source: error.unwrap_or_else(|| {
                io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")
            }),
        },
        (Some(error), false) => MeshError::Stranger(error.to_string()),
        (None, false) => MeshError::Stranger(
            "it closed the connection without a welcome: its own output says why".to_owned(),
        ),
    }
}

fn target(options: &AgentOptions, rail: usize) -> Result<Target, MeshError> {
    let rails = &options.rails;
    rails
        .get(rail)
        .map(|rail| Target {
            identity: options.identity.clone(),
            ..rail.target.clone()
        })
        .ok_or_else(|| MeshError::Stranger(format!("it asks for rail {rail} of {}", rails.len())))
}

/// A target that takes only the node whose certificate the coordinator saw.
fn towards(certificate: Option<Fingerprint>, target: Target) -> Result<Target, MeshError> {
    let identity = match (&target.identity, certificate) {
        (Some(identity), Some(certificate)) => Some(Arc::new(identity.expecting(certificate))),
        (None, None) => None,
        _ => {
            return Err(MeshError::Stranger(
                "it does not say which certificate a node shows".to_owned(),
            ));
        }
    };
    Ok(Target { identity, ..target })
}

type Tell<'a> = &'a mut dyn FnMut(&FromAgent);

/// Does one end of a test in a thread of its own, and reports how it ended. The coordinator asks a port
/// for one test at a time, and one that doesn't is held up by the device.
fn part(
    wire: &Wire,
    test: u64,
    work: impl FnOnce(Tell<'_>) -> Result<FromAgent, BenchError> + Send + 'static,
) -> Result<(), MeshError> {
    let wire = wire.clone();
    thread::Builder::new()
        .name("mesh-test".to_owned())
        .spawn(move || {
            // Who can't be told any more is gone: the reading side notices.
            let mut tell = |message: &FromAgent| {
                wire.write(message).ok();
            };
            let report = work(&mut tell).unwrap_or_else(|error| FromAgent::Failed {
                test,
                reason: error.to_string(),
            });
            tell(&report);
        })
        .map(drop)
        .map_err(|source| MeshError::System {
            attempted: "start a thread for a test",
            source,
        })
}

fn serve(
    target: &Target,
    plan: &Plan,
    test: u64,
    patience: Duration,
    tell: Tell<'_>,
) -> Result<FromAgent, BenchError> {
    let agreed = Serve {
        name: Some(plan.name()),
        ..Serve::default()
    };
    bench::serve(target, &agreed, 0, patience, &mut |progress| {
        if let bench::Progress::Listening(address) = progress {
            let port = address.port();
            tell(&FromAgent::Listening { test, port });
        }
    })?;
    Ok(FromAgent::Served { test })
}

fn run(
    target: &Target,
    plan: &Plan,
    test: u64,
    host: IpAddr,
    port: u16,
) -> Result<FromAgent, BenchError> {
    let report = bench::run(target, plan, &host.to_string(), port, &mut |_| {})?;
    let row = report.rows.first().ok_or_else(|| BenchError::Stranger {
        reason: "it ended without a result".to_owned(),
    })?;
    let (figure, _) = row.figure();
    Ok(FromAgent::Measured { test, figure })
}

fn connect(meet: &str, patience: Duration) -> Result<TcpStream, MeshError> {
    let failed = |source| MeshError::Connect {
        address: meet.to_owned(),
        source,
    };
    let deadline = Instant::now() + patience;
    loop {
        let error = match meet.to_socket_addrs() {
            Ok(addresses) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
                for address in addresses {
                    match TcpStream::connect_timeout(&address, Duration::from_secs(10)) {
                        Ok(stream) => {
                            stream.set_nodelay(true).map_err(failed)?;
                            return Ok(stream);
                        }
                        Err(error) => last = error,
                    }
                }
                last
            }
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(failed(error));
        }
        thread::sleep(AGAIN);
    }
}

/// Says that we are there, until dropped.
struct Heart {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Heart {
    fn start(wire: Wire) -> Heart {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = thread::Builder::new()
            .name("mesh-alive".to_owned())
            .spawn(move || {
                while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
                    stopped.recv_timeout(ALIVE_EVERY)
                {
                    if wire.write(&FromAgent::Alive).is_err() {
                        return;
                    }
                }
            })
            .ok();
        Heart {
            stop: Some(stop),
            thread,
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
