//! Server, client, and both in one process.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::channel::{Channel, Stream, unexpected};
use super::meet::{About, Connection, Target, as_client, as_server, hello};
use super::message::Message;
use super::network::{accept, connect, listen};
use super::plan::{Measure, Plan, PlanError, Verb};
use super::{BenchError, Report, Row, bandwidth, latency};
use crate::verbs::Piece;

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
pub enum Progress<'a> {
    /// The server listens here.
    Listening(SocketAddr),
    /// A size was measured.
    Measured(&'a Row),
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
    // The device first: without it, nobody needs to come.
    target.open()?;
    let listener = listen(port)?;
    let address = listener
        .local_addr()
        .map_err(|source| BenchError::Channel {
            doing: "asking where it listens",
            source,
        })?;
    progress(Progress::Listening(address));
    let stream = accept(&listener, patience)?;
    serve_on(Box::new(stream), target, serve, progress)
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
    target.open()?;
    let stream = connect(host, port)?;
    run_on(Box::new(stream), target, plan, "client", progress)
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
    let (plan, kind, peer) = hello(channel, serve)?;
    let (about, rows) = match plan.measure {
        Measure::Bandwidth => {
            let mut end: Connection<Arc<Piece>> = as_server(channel, target, &plan, kind, &peer)?;
            (sizes(channel, &plan, |channel, bytes| {
                bandwidth::server(&mut end, channel, &plan, bytes)
            }))
            .map(|rows| (end.about, rows))
        }
        Measure::Latency => {
            let mut end: Connection<Piece> = as_server(channel, target, &plan, kind, &peer)?;
            (sizes(channel, &plan, |channel, bytes| {
                latency::server(&mut end, channel, &plan, bytes)
            }))
            .map(|rows| (end.about, rows))
        }
    }?;
    rows.iter()
        .for_each(|row| progress(Progress::Measured(row)));
    Ok(about.report("server", &plan, rows))
}

/// Does the server's part for each size that the client begins.
fn sizes(
    channel: &mut Channel,
    plan: &Plan,
    mut part: impl FnMut(&mut Channel, u64) -> Result<(), BenchError>,
) -> Result<Vec<Row>, BenchError> {
    loop {
        match channel.receive("waiting for the next size")? {
            Message::Begin { bytes } if plan.sizes.contains(&bytes) => part(channel, bytes)?,
            Message::Finished { rows } => return Ok(rows),
            other => return Err(unexpected(&other, "the next size")),
        }
    }
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
    if plan.verb != Verb::Write {
        let (what, remedy) = ("so far only writes are measured", "ask for a write");
        return Err(PlanError::Senseless { what, remedy }.into());
    }
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        progress(Progress::Measured(&row));
        rows.push(row);
    };
    let about = match plan.measure {
        Measure::Bandwidth => {
            let mut end: Connection<Arc<Piece>> = as_client(channel, target, plan)?;
            for (bytes, seed) in plan.sizes.iter().zip(1..) {
                add(bandwidth::client(&mut end, channel, plan, *bytes, seed)?);
            }
            end.about
        }
        Measure::Latency => {
            let mut end: Connection<Piece> = as_client(channel, target, plan)?;
            for bytes in &plan.sizes {
                add(latency::client(&mut end, channel, plan, *bytes)?);
            }
            end.about
        }
    };
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
mod tests {
    use super::*;
    use crate::bench::{DeviceChoice, Length};

    fn mock(name: &str) -> Target {
        let context = crate::mock::open(name).expect("the mock device");
        Target {
            device: DeviceChoice::Open(context),
            ..Target::default()
        }
    }

    fn short(measure: Measure) -> Plan {
        let plan = Plan::new(Verb::Write, measure);
        Plan {
            length: Length::Iterations(1000),
            warmup: 10,
            ..plan
        }
    }

    #[test]
    fn every_message_of_every_size_is_counted_and_compared() {
        for (sizes, post_list, signal_every, depth) in [
            (vec![1, 60, 61, 4096], 16, 64, 128),
            (vec![100], 3, 1, 7),
            (vec![8], 1, 1, 1),
        ] {
            let plan = Plan {
                sizes: sizes.clone(),
                post_list,
                signal_every,
                depth,
                ..short(Measure::Bandwidth)
            };
            let mut seen = Vec::new();
            let report = run_local(&mock("mock0"), &mock("mock1"), &plan, &mut |progress| {
                if let Progress::Measured(row) = progress {
                    seen.push(row.bytes);
                }
            })
            .expect("measured");
            assert_eq!(seen, sizes);
            assert_eq!(report.mtu, 1024);
            for row in &report.rows {
                assert_eq!(row.messages, 1000);
                assert!(row.mib_per_second.is_some_and(|speed| speed > 0.0));
            }
        }
    }

    #[test]
    fn a_measurement_by_time_ends_and_counts() {
        let plan = Plan {
            length: Length::Milliseconds(20),
            ..short(Measure::Bandwidth)
        };
        let report =
            run_local(&mock("mock0"), &mock("mock0"), &plan, &mut |_| {}).expect("measured");
        assert!(report.rows[0].messages > 0);
    }

    #[test]
    fn latency_is_measured_over_all_round_trips() {
        let plan = Plan {
            sizes: vec![2, 300],
            ..short(Measure::Latency)
        };
        let report =
            run_local(&mock("mock0"), &mock("mock1"), &plan, &mut |_| {}).expect("measured");
        for row in &report.rows {
            assert_eq!(row.messages, 1000);
            let latency = row.latency.expect("a summary");
            assert!(latency.min_us <= latency.p50_us && latency.p50_us <= latency.max_us);
        }
    }

    #[test]
    fn two_processes_meet_over_tcp_and_agree() {
        let (tell, told) = std::sync::mpsc::channel();
        let server = thread::spawn(move || {
            serve(
                &mock("mock1"),
                &Serve::default(),
                0,
                Duration::from_secs(30),
                &mut |progress| {
                    if let Progress::Listening(address) = progress {
                        tell.send(address.port()).expect("the test listens");
                    }
                },
            )
        });
        let port = told.recv().expect("listening");
        let plan = short(Measure::Bandwidth);
        let ours = run(&mock("mock0"), &plan, "localhost", port, &mut |_| {}).expect("measured");
        let theirs = server.join().expect("no panic").expect("served");
        let counted = |report: &Report| -> Vec<(u64, u64)> {
            report
                .rows
                .iter()
                .map(|row| (row.bytes, row.messages))
                .collect()
        };
        assert_eq!(counted(&ours), [(65536, 1000)]);
        assert_eq!(counted(&ours), counted(&theirs));
        assert_eq!(
            (ours.role.as_str(), theirs.role.as_str()),
            ("client", "server")
        );
    }

    fn conflicting(serve: Serve) -> (BenchError, BenchError) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let server =
            thread::spawn(move || serve_on(Box::new(theirs), &mock("mock0"), &serve, &mut |_| {}));
        let plan = short(Measure::Bandwidth);
        let client = run_on(Box::new(ours), &mock("mock0"), &plan, "client", &mut |_| {});
        let server = server.join().expect("no panic");
        (client.expect_err("refused"), server.expect_err("refused"))
    }

    #[test]
    fn ends_that_were_told_different_things_both_say_so() {
        let told = Plan {
            sizes: vec![1],
            mtu: Some(4096),
            depth: 9,
            ..short(Measure::Bandwidth)
        };
        for (option, says) in [
            ("size", "--size 1,"),
            ("mtu", "--mtu 4096,"),
            ("depth", "--depth 9, the client asks for 128"),
        ] {
            let serve = Serve::insist(&told, |name| name == option);
            let (client, server) = conflicting(serve);
            assert!(client.to_string().contains(says), "{client}");
            assert!(server.to_string().contains(says), "{server}");
            assert!(client.is_setup() && server.is_setup());
        }
        let serve = Serve::insist(&short(Measure::Latency), |_| false);
        assert!(conflicting(serve).0.to_string().contains("write latency"));
    }

    #[test]
    fn more_than_the_device_allows_is_refused_by_its_limit() {
        let plan = Plan {
            depth: 16384,
            ..short(Measure::Bandwidth)
        };
        let error = run_local(&mock("mock0"), &mock("mock0"), &plan, &mut |_| {})
            .expect_err("the mock has 16384, and one is the drain's");
        assert!(error.to_string().contains("queue depth"), "{error}");
    }

    #[test]
    fn a_server_nobody_comes_to_and_a_host_nobody_listens_on_end_with_a_sentence() {
        let waited = Duration::from_millis(1);
        let error = serve(&mock("mock0"), &Serve::default(), 0, waited, &mut |_| {});
        assert!(matches!(error, Err(BenchError::NoClient { .. })));
        let plan = short(Measure::Bandwidth);
        let error = run(&mock("mock0"), &plan, "host.invalid", 1, &mut |_| {});
        assert!(matches!(error, Err(BenchError::Connect { .. })));
        let error = run(&mock("mock0"), &plan, "localhost:port", 1, &mut |_| {});
        assert!(
            error
                .expect_err("no port")
                .to_string()
                .contains("is no port")
        );
    }
}
