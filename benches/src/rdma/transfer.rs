//! Messages over one reliable connection, beside the program that everybody compares with.
//!
//! Server and client of either side are processes of their own, on the same two devices. Both are
//! told the same: so many messages of one size, the same depth, no list of posts, one completion in
//! 64 (perftest: `-Q`; above 8 KiB it asks for each, so both do), the same limit for inline data,
//! MTU 4096, and nothing before the clock starts. A first run of ours says how many messages take
//! about the wanted time on this machine.

use std::{cell::Cell, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{Settings, perftest};
use crate::{
    BenchError,
    command::{output, start},
    paired::Better,
    row::Case,
    session::Session,
    soft_roce::End,
};

/// Messages on their way at most, for bandwidth.
pub(super) const DEPTH: u64 = 128;
/// One message in this many asks for a completion, up to this size; above, each does.
pub(super) const SIGNAL_EVERY: (u64, u64) = (64, 8192);
/// Messages up to this size are copied into the work request: perftest's own limits.
pub(super) const INLINE: (u64, u64) = (0, 220);
/// How long one run may take.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// How long the messages of a run shall take: on every change, where setting a run up takes as long, and
/// in the long run.
const WANTED_SECONDS: (f64, f64) = (0.5, 1.0);
/// Where the two ends of the first run meet; each run has a port of its own.
const FIRST_PORT: u16 = 21_000;

/// The operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Write,
    Read,
    Send,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Send => "send",
        }
    }
}

/// What of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// Many messages on their way. Gb/s.
    Bandwidth,
    /// One message at a time, found by polling. Median, in microseconds: one way for writes and
    /// sends, there and back for reads, as perftest counts.
    Latency,
    /// One message at a time, each end asleep until the next. Mean, one way, in microseconds.
    LatencyEvents,
}

/// Messages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) verb: Verb,
    pub(super) figure: Figure,
    pub(super) size: u64,
}

/// What one run is told beside what its case says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) count: u64,
    pub(super) gid: u8,
    pub(super) port: u16,
}

/// The cases of these sizes.
pub(super) fn all(sizes: &[u64]) -> Vec<Transfer> {
    /// Event mode is about sleeping and waking; large messages add nothing to that.
    const LARGEST_WITH_EVENTS: u64 = 4096;
    let mut all = Vec::new();
    for figure in [Figure::Bandwidth, Figure::Latency] {
        for verb in [Verb::Write, Verb::Read, Verb::Send] {
            all.extend(sizes.iter().map(|&size| Transfer { verb, figure, size }));
        }
    }
    let small = sizes.iter().filter(|&&size| size <= LARGEST_WITH_EVENTS);
    all.extend(small.map(|&size| Transfer {
        verb: Verb::Send,
        figure: Figure::LatencyEvents,
        size,
    }));
    all
}

impl Transfer {
    pub(super) fn name(&self) -> String {
        let figure = match self.figure {
            Figure::Bandwidth => "bandwidth",
            Figure::Latency => "latency",
            Figure::LatencyEvents => "latency-events",
        };
        format!("{}/{figure}/{}", self.verb.name(), self.size)
    }

    /// On every change, and in the long run: the first allows for the noise of few pairs.
    fn goal(&self, long: bool) -> f64 {
        match (self.figure, long) {
            (Figure::Bandwidth, false) => 0.90,
            (Figure::Bandwidth, true) => 0.98,
            (Figure::Latency | Figure::LatencyEvents, false) => 1.0 / 1.10,
            (Figure::Latency | Figure::LatencyEvents, true) => 1.0 / 1.02,
        }
    }

    fn case(&self, long: bool) -> Case {
        let (peer_name, unit, better) = match self.figure {
            Figure::Bandwidth => ("perftest", "Gb/s", Better::Higher),
            Figure::Latency => ("perftest", "us", Better::Lower),
            Figure::LatencyEvents => ("ibv_rc_pingpong", "us", Better::Lower),
        };
        Case {
            bench: "rdma",
            name: self.name(),
            peer_name,
            unit,
            better,
            goal: self.goal(long),
        }
    }

    /// Measures it between the two ends.
    pub(super) fn measure(&self, session: &mut Session<'_>, settings: &Settings, ends: &[End; 2]) {
        // Ports are not used twice: a connection that ended keeps its port for a while.
        thread_local! {
            static NEXT_PORT: Cell<u16> = const { Cell::new(FIRST_PORT) };
        }
        let run = |count| Run {
            count,
            gid: settings.gid_index,
            port: NEXT_PORT.replace(NEXT_PORT.get().checked_add(1).unwrap_or(FIRST_PORT)),
        };
        let case = self.case(settings.long);
        let wanted = if settings.long {
            WANTED_SECONDS.1
        } else {
            WANTED_SECONDS.0
        };
        let probe = || self.probe(ends, &run, wanted);
        let count = match probe().or_else(|_| probe()) {
            Ok(count) => count,
            Err(error) => {
                session.fail(&case.name, &error);
                return session.row(case.row(&[]));
            }
        };
        session.measure(
            &case,
            settings.pairs,
            &mut || self.ours(ends, run(count)),
            &mut || perftest::measure(self, ends, run(count)),
        );
    }

    /// How many messages take about the wanted time here.
    fn probe(
        &self,
        ends: &[End; 2],
        run: &dyn Fn(u64) -> Run,
        wanted_seconds: f64,
    ) -> Result<u64, BenchError> {
        const BANDWIDTH: (u64, u64) = (DEPTH, 1_000_000);
        const LATENCY: (u64, u64) = (30, 100_000);
        let first = match self.figure {
            // Of large messages, as many as have to be on their way take long enough to tell.
            Figure::Bandwidth if self.size > 65_536 => DEPTH,
            Figure::Bandwidth => 2 * DEPTH,
            Figure::Latency | Figure::LatencyEvents => 60,
        };
        let figure = self.ours(ends, run(first))?;
        let (seconds, (fewest, most)) = match self.figure {
            Figure::Bandwidth => (self.size as f64 * 8.0 / 1e9 / figure, BANDWIDTH),
            // A write or send is answered by another one.
            _ if self.verb != Verb::Read => (2.0 * figure / 1e6, LATENCY),
            _ => (figure / 1e6, LATENCY),
        };
        Ok(((wanted_seconds / seconds) as u64).clamp(fewest, most))
    }

    /// Runs both of our ends to their end.
    fn ours(&self, [client, server]: &[End; 2], run: Run) -> Result<f64, BenchError> {
        both(
            self.command(server, run, None),
            self.command(client, run, Some(&server.address)),
            run.port,
            |printed| self.figure(printed),
        )
    }

    fn command(&self, end: &End, run: Run, peer: Option<&str>) -> std::process::Command {
        let measure = match self.figure {
            Figure::Bandwidth => "bandwidth",
            Figure::Latency | Figure::LatencyEvents => "latency",
        };
        let mut words: Vec<String> = ["rdma", "bench", self.verb.name(), measure]
            .into_iter()
            .chain(peer)
            .map(str::to_owned)
            .collect();
        let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
        option("--device", end.device.clone());
        option("--gid-index", run.gid.to_string());
        option("--tcp-port", run.port.to_string());
        option("--output", "json".to_owned());
        // The client decides what is measured, the server takes it.
        if peer.is_some() {
            option("--size", self.size.to_string());
            option("--iterations", run.count.to_string());
            option("--warmup", "0".to_owned());
            option("--inline", self.inline().to_string());
            if self.figure == Figure::Bandwidth {
                option("--depth", DEPTH.to_string());
                option("--post-list", "1".to_owned());
                option("--signal-every", self.signal_every().to_string());
            }
            if self.figure == Figure::LatencyEvents {
                words.push("--events".to_owned());
            }
        }
        let mut command = end.command(&trackbed().to_string_lossy());
        command.args(words);
        command
    }

    pub(super) fn inline(&self) -> u64 {
        match (self.figure, self.verb) {
            // A read has nothing to send along.
            (Figure::Latency, Verb::Write | Verb::Send) => INLINE.1,
            _ => INLINE.0,
        }
    }

    pub(super) fn signal_every(&self) -> u64 {
        if self.size <= SIGNAL_EVERY.1 {
            SIGNAL_EVERY.0
        } else {
            1
        }
    }

    /// Reads `trackbed rdma bench --output json`.
    fn figure(&self, printed: &str) -> Result<f64, BenchError> {
        #[derive(Deserialize)]
        struct Report {
            rows: Vec<ReportRow>,
        }
        #[derive(Deserialize)]
        struct ReportRow {
            gbit_per_second: Option<f64>,
            latency: Option<Latency>,
        }
        #[derive(Deserialize)]
        struct Latency {
            p50_us: f64,
            mean_us: f64,
        }
        let row = serde_json::from_str::<Report>(printed)
            .ok()
            .and_then(|report| report.rows.into_iter().next());
        let figure = row.and_then(|row| match self.figure {
            Figure::Bandwidth => row.gbit_per_second,
            Figure::Latency => row.latency.map(|latency| latency.p50_us),
            Figure::LatencyEvents => row.latency.map(|latency| latency.mean_us),
        });
        figure.ok_or_else(|| BenchError::Output {
            program: "trackbed rdma bench".to_owned(),
            output: printed.trim().to_owned(),
        })
    }
}

/// Runs a server and then its client to their end; the figure is in what the client prints.
pub(super) fn both(
    mut server: std::process::Command,
    mut client: std::process::Command,
    port: u16,
    figure: impl FnOnce(&str) -> Result<f64, BenchError>,
) -> Result<f64, BenchError> {
    let serving = start(&mut server)?.listening(port, RUN_LIMIT)?;
    let printed = output(&mut client)?;
    let figure = figure(&printed)?;
    serving.finish(RUN_LIMIT)?;
    Ok(figure)
}

/// The `trackbed` binary next to this one.
fn trackbed() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("trackbed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(figure: Figure) -> Transfer {
        Transfer {
            verb: Verb::Send,
            figure,
            size: 4096,
        }
    }

    #[test]
    fn our_report_is_read_as_it_is_printed() {
        let bandwidth = r#"{"bench":"x","rows":[{"bytes":1,"gbit_per_second":0.5}]}"#;
        let figure = transfer(Figure::Bandwidth).figure(bandwidth);
        assert_eq!(figure.expect("a figure"), 0.5);
        let latency = r#"{"rows":[{"latency":{"min_us":1.0,"p50_us":2.0,"mean_us":3.0}}]}"#;
        let figure = transfer(Figure::Latency).figure(latency);
        assert_eq!(figure.expect("a figure"), 2.0);
        let figure = transfer(Figure::LatencyEvents).figure(latency);
        assert_eq!(figure.expect("a figure"), 3.0);
        let error = transfer(Figure::Latency).figure(bandwidth);
        assert!(matches!(error, Err(BenchError::Output { .. })));
    }

    #[test]
    fn event_mode_is_measured_with_small_messages_only() {
        let with_events: Vec<u64> = all(&[64, 4096, 65536])
            .into_iter()
            .filter(|transfer| transfer.figure == Figure::LatencyEvents)
            .map(|transfer| transfer.size)
            .collect();
        assert_eq!(with_events, [64, 4096]);
    }
}
