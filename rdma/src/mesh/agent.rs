//! A node's part: does what the coordinator says, on the node's own devices.

use std::io;
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::line::{ALIVE_EVERY, LineReader, write};
use super::message::{FromAgent, FromCoordinator, VERSION};
use super::{MeshError, Node, NodePort};
use crate::bench::{self, BenchError, Plan, Serve, Target};

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
    let lost = |doing| move |source| MeshError::Lost { doing, source };
    let mut lines = stream
        .try_clone()
        .and_then(LineReader::new)
        .map_err(lost("greeting it"))?;
    let writer = Arc::new(Mutex::new(stream));
    let join = FromAgent::Join {
        version: VERSION,
        software: concat!("trackbed ", env!("CARGO_PKG_VERSION")).to_owned(),
        node,
        address: options.address,
    };
    write(&mut writer.lock(), &join).map_err(lost("greeting it"))?;
    let heart = Heart::start(Arc::clone(&writer));
    let outcome = obey(options, &mut lines, &writer, progress);
    drop(heart);
    writer.lock().shutdown(std::net::Shutdown::Both).ok();
    outcome
}

fn obey(
    options: &AgentOptions,
    lines: &mut LineReader,
    writer: &Arc<Mutex<TcpStream>>,
    progress: &mut dyn FnMut(AgentProgress),
) -> Result<(), MeshError> {
    let doing = "waiting for what to measure";
    loop {
        let line = lines
            .next()
            .map_err(|source| MeshError::Lost { doing, source })?
            .ok_or_else(|| MeshError::Lost {
                doing,
                source: io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"),
            })?;
        match FromCoordinator::decode(&line).map_err(MeshError::Stranger)? {
            FromCoordinator::Welcome { nodes, .. } => progress(AgentProgress::Welcome { nodes }),
            FromCoordinator::Refuse { reason } => return Err(MeshError::Refused(reason)),
            FromCoordinator::Alive => {}
            FromCoordinator::Finished => return Ok(()),
            FromCoordinator::Serve { test, rail, plan } => {
                progress(AgentProgress::Test);
                let target = target(options, rail)?;
                let patience = options.client_patience;
                part(writer, test, move |tell| {
                    serve(&target, &plan, test, patience, tell)
                })?;
            }
            FromCoordinator::Run {
                test,
                rail,
                plan,
                host,
                port,
            } => {
                progress(AgentProgress::Test);
                let target = target(options, rail)?;
                part(writer, test, move |_| run(&target, &plan, test, host, port))?;
            }
        }
    }
}

fn target(options: &AgentOptions, rail: usize) -> Result<Target, MeshError> {
    let rails = &options.rails;
    rails
        .get(rail)
        .map(|rail| rail.target.clone())
        .ok_or_else(|| MeshError::Stranger(format!("it asks for rail {rail} of {}", rails.len())))
}

type Tell<'a> = &'a mut dyn FnMut(&FromAgent);

/// Does one end of a test in a thread of its own, and reports how it ended. The coordinator asks a port
/// for one test at a time, and one that doesn't is held up by the device.
fn part(
    writer: &Arc<Mutex<TcpStream>>,
    test: u64,
    work: impl FnOnce(Tell<'_>) -> Result<FromAgent, BenchError> + Send + 'static,
) -> Result<(), MeshError> {
    let writer = Arc::clone(writer);
    thread::Builder::new()
        .name("mesh-test".to_owned())
        .spawn(move || {
            // Who can't be told any more is gone: the reading side notices.
            let mut tell = |message: &FromAgent| {
                write(&mut writer.lock(), message).ok();
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
                        Ok(stream) => return Ok(stream),
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
    fn start(writer: Arc<Mutex<TcpStream>>) -> Heart {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = thread::Builder::new()
            .name("mesh-alive".to_owned())
            .spawn(move || {
                while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
                    stopped.recv_timeout(ALIVE_EVERY)
                {
                    if write(&mut writer.lock(), &FromAgent::Alive).is_err() {
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
