//! Server, client, and both in one process.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::channel::{Channel, unexpected};
use super::meet::{About, as_client, as_server, hello};
use super::message::Message;
use super::network::{accept, connect, listen};
use super::numa::Bound;
use super::plan::{Measure, Plan, PlanError};
use super::target::Target;
use super::{BenchError, Report, Row, bandwidth, latency};
use crate::security::Stream;

/// How long a persistent server waits after the network failed it.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a server was told about the measurement: only what the client must agree with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serve {
    /// What is measured, when given.
    pub name: Option<String>,
    /// Options that were given, as [`Plan::options`] names them and shows their values.
    pub options: Vec<(&'static str, String)>,
}

impl Serve {
    /// Insists on what is measured, and on those options of `plan` that are `given`.
    pub fn insist(plan: &Plan, given: impl Fn(&str) -> bool) -> Serve {
        let mut options = plan.options();
        options.retain(|(name, _)| given(name));
        Serve {
            name: Some(plan.name()),
            options,
        }
    }

    pub(super) fn check(&self, plan: &Plan) -> Result<(), PlanError> {
        let conflict = |what: &str, ours: &str, theirs: &str| {
            Err(PlanError::Conflict {
                what: what.to_owned(),
                ours: ours.to_owned(),
                theirs: theirs.to_owned(),
            })
        };
        if let Some(name) = &self.name
            && *name != plan.name()
        {
            return conflict("the measurement", name, &plan.name());
        }
        for ((name, theirs), told) in plan.options().iter().flat_map(|option| {
            let told = self.options.iter().filter(|told| told.0 == option.0);
            told.map(|told| (option.clone(), told))
        }) {
            if *told.1 != theirs {
                return conflict(&format!("--{name}"), &told.1, &theirs);
            }
        }
        Ok(())
    }
}

/// What a role tells while it works.
#[non_exhaustive]
pub enum Progress<'a> {
    /// The server listens here.
    Listening(SocketAddr),
    /// A client or server of this address was met.
    Met(SocketAddr),
    /// A size is being measured; told a few times a second.
    Measuring(Stage),
    /// A size was measured.
    Measured(&'a Row),
    /// A persistent server is done with a client, and waits for the next one.
    Served(&'a Result<Report, BenchError>),
}

/// How far a measurement is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stage {
    /// The message size.
    pub bytes: u64,
    /// Which of its runs, from 1; 0 while it warms up.
    pub run: u32,
    /// How long that run has taken.
    pub elapsed: Duration,
    /// Gb/s since it began, of this end; for latency the median in microseconds.
    pub figure: f64,
}

/// Serves one client: waits for it up to `patience`, does its part of the measurement, and returns
/// what the client measured.
pub fn serve(
    target: &Target,
    serve: &Serve,
    port: u16,
    patience: Duration,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, BenchError> {
    let listener = prepare(target, port, progress)?;
    serve_next(&listener, target, serve, Some(patience), progress)
}

/// Serves clients one after another, for ever; `Err` only when it can't go on. What comes of each is
/// told as [`Progress::Served`].
pub fn serve_all(
    target: &Target,
    serve: &Serve,
    port: u16,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Infallible, BenchError> {
    let listener = prepare(target, port, progress)?;
    loop {
        let outcome = serve_next(&listener, target, serve, None, progress);
        progress(Progress::Served(&outcome));
        // The network, not a client, is what fails here; a moment's wait keeps this from spinning.
        if let Err(BenchError::Accept { .. }) = outcome {
            thread::sleep(ACCEPT_PAUSE);
        }
    }
}

fn prepare(
    target: &Target,
    port: u16,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<TcpListener, BenchError> {
    // The device first: without it, nobody needs to come.
    target.open()?.local_port(target.port, &target.gid)?;
    let listener = listen(port)?;
    let address = listener
        .local_addr()
        .map_err(|source| BenchError::Accept { source })?;
    progress(Progress::Listening(address));
    Ok(listener)
}

fn serve_next(
    listener: &TcpListener,
    target: &Target,
    serve: &Serve,
    patience: Option<Duration>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, BenchError> {
    let (stream, peer) = accept(listener, patience)?;
    progress(Progress::Met(peer));
    let stream: Box<dyn Stream> = match &target.identity {
        Some(identity) => identity.accept(stream)?,
        None => Box::new(stream),
    };
    serve_on(stream, target, serve, progress)
}

/// Measures against the server on `host` (with or without a port) and returns the result.
pub fn run(
    target: &Target,
    plan: &Plan,
    host: &str,
    port: u16,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, BenchError> {
    plan.check()?;
    target.open()?.local_port(target.port, &target.gid)?;
    let stream = connect(host, port)?;
    if let Ok(peer) = stream.peer_addr() {
        progress(Progress::Met(peer));
    }
    let stream: Box<dyn Stream> = match &target.identity {
        Some(identity) => identity.connect(stream, host)?,
        None => Box::new(stream),
    };
    run_on(stream, target, plan, "client", progress)
}

/// Measures between two devices (or one and itself) of this machine.
pub fn run_local(
    target: &Target,
    peer: &Target,
    plan: &Plan,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, BenchError> {
    plan.check()?;
    let socket = |source| BenchError::Channel {
        doing: "making a socket pair",
        source,
    };
    let (ours, theirs) = UnixStream::pair().map_err(socket)?;
    let peer = peer.clone();
    let server = thread::Builder::new()
        .name("bench-server".to_owned())
        .spawn(move || serve_on(Box::new(theirs), &peer, &Serve::default(), &mut |_| {}))
        .map_err(|source| BenchError::Channel {
            doing: "starting the server's thread",
            source,
        })?;
    let outcome = run_on(Box::new(ours), target, plan, "local", progress);
    match (outcome, server.join()) {
        // The server's own reason says more than that it gave up.
        (Err(BenchError::PeerFailed { .. } | BenchError::Channel { .. }), Ok(Err(error))) => {
            Err(error)
        }
        (Ok(_), Ok(Err(error))) => Err(error),
        (outcome, _) => outcome,
    }
}

fn serve_on(
    stream: Box<dyn Stream>,
    target: &Target,
    serve: &Serve,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, BenchError> {
    let mut channel = Channel::open(stream)?;
    let outcome = serve_client(&mut channel, target, serve, progress);
    tell_failure(&mut channel, &outcome);
    outcome
}

fn serve_client(
    channel: &mut Channel,
    target: &Target,
    serve: &Serve,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, BenchError> {
    let _bound = target.numa.map(Bound::to).transpose()?;
    let wish = hello(channel, serve)?;
    let (mut end, about) = as_server(channel, target, &wish)?;
    let plan = &wish.plan;
    let rows = loop {
        match channel.receive("waiting for the next size")? {
            Message::Begin { bytes, seed } if plan.sizes.contains(&bytes) => match plan.measure {
                Measure::Bandwidth => {
                    bandwidth::server(&mut end, channel, plan, (bytes, seed))?;
                }
                Measure::Latency => latency::server(&mut end, channel, plan, (bytes, seed))?,
            },
            Message::Finished { rows } if rows.len() == plan.sizes.len() => break rows,
            other => return Err(unexpected(&other, "the next size")),
        }
    };
    rows.iter()
        .for_each(|row| progress(Progress::Measured(row)));
    Ok(about.report("server", plan, rows))
}

fn run_on(
    stream: Box<dyn Stream>,
    target: &Target,
    plan: &Plan,
    role: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, BenchError> {
    let mut channel = Channel::open(stream)?;
    let outcome = measure(&mut channel, target, plan, progress);
    tell_failure(&mut channel, &outcome);
    let (about, rows) = outcome?;
    Ok(about.report(role, plan, rows))
}

fn measure(
    channel: &mut Channel,
    target: &Target,
    plan: &Plan,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(About, Vec<Row>), BenchError> {
    let _bound = target.numa.map(Bound::to).transpose()?;
    let (mut end, about) = as_client(channel, target, plan)?;
    let mut rows = Vec::new();
    for (bytes, seed) in plan.sizes.iter().copied().zip(1..) {
        let mut tell = |stage| progress(Progress::Measuring(stage));
        let size = (bytes, seed);
        let row = match plan.measure {
            Measure::Bandwidth => {
                let line_rate = about.line_rate;
                bandwidth::client(&mut end, channel, plan, size, line_rate, &mut tell)?
            }
            Measure::Latency => latency::client(&mut end, channel, plan, size, &mut tell)?,
        };
        progress(Progress::Measured(&row));
        rows.push(row);
    }
    channel.send(&Message::Finished { rows: rows.clone() })?;
    Ok((about, rows))
}

/// Lets the other end know why there is no more to come; it may be gone itself.
fn tell_failure<T>(channel: &mut Channel, outcome: &Result<T, BenchError>) {
    if let Err(error) = outcome
        && !matches!(
            error,
            BenchError::PeerFailed { .. } | BenchError::Channel { .. }
        )
    {
        channel
            .send(&Message::Refuse {
                reason: error.to_string(),
            })
            .ok();
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod secure;
#[cfg(test)]
mod tests;
