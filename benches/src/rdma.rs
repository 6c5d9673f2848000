//! RDMA writes beside perftest's `ib_write_bw`, on the same two devices.
//!
//! Both move messages of one size over one reliable connection with the same depth, for the same
//! number of messages; a first run of ours says how many take about the wanted time here. Server
//! and client of either are processes of their own.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use crate::{
    BenchError,
    command::{output, start},
    paired::{Better, Pair},
    row::{Case, Row},
    soft_roce::{End, SoftRoce},
};

/// Pairs on every change, and in the long run.
const PAIRS: (usize, usize) = (8, 75);
/// The ratio wanted on every change, and in the long run.
const GOALS: (f64, f64) = (0.90, 0.98);
/// Messages on their way at most.
const DEPTH: &str = "128";
/// How long one run may take; a run is made to last one or two seconds.
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// Where the two ends of the first run meet; each run has a port of its own.
const FIRST_PORT: u16 = 21_000;

/// Which devices, and what is sent.
#[derive(Debug, Args)]
pub struct Options {
    /// Our device [default: a soft-RoCE link made for the occasion].
    #[arg(long, requires = "peer_device")]
    device: Option<String>,
    /// The device on the other end of the link, on this machine too.
    #[arg(long, requires = "device")]
    peer_device: Option<String>,
    /// Index of the GID that both ends use.
    #[arg(long, default_value_t = 1)]
    gid_index: u8,
    /// Message sizes in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 65_536, 1 << 20])]
    sizes: Vec<u64>,
    /// Pairs of runs for each size [default: 8, with --long 75].
    #[arg(long)]
    pairs: Option<usize>,
}

/// Measures each size and hands over its row when it is done.
pub fn measure(
    options: &Options,
    long: bool,
    print: &mut dyn FnMut(Row),
) -> Result<(), BenchError> {
    // The link must live as long as the measurement.
    let (_link, ends) = match (&options.device, &options.peer_device) {
        (Some(device), Some(peer)) => (None, [End::here(device), End::here(peer)]),
        _ => {
            let link = SoftRoce::new()?;
            let ends = link.ends.clone();
            (Some(link), ends)
        }
    };
    let [client, server] = &ends;
    let pairs = options
        .pairs
        .unwrap_or(if long { PAIRS.1 } else { PAIRS.0 });
    let bar = ProgressBar::new((options.sizes.len() * pairs) as u64).with_style(
        ProgressStyle::with_template("{msg:32} {bar:30} {pos}/{len} pairs, {eta} left")
            .expect("the template is a constant"),
    );
    let mut ports = FIRST_PORT..;
    for &size in &options.sizes {
        let case = Case {
            bench: "rdma",
            name: format!("write/bandwidth/{size}"),
            peer_name: "perftest",
            unit: "Gb/s",
            better: Better::Higher,
            goal: if long { GOALS.1 } else { GOALS.0 },
        };
        bar.set_message(case.name.clone());
        let mut run = |program: Program, messages: Messages| {
            let port = ports.next().expect("there are fewer runs than ports");
            program.run(
                client,
                server,
                Run {
                    size,
                    messages,
                    gid: options.gid_index,
                    port,
                },
            )
        };
        let probe = run(Program::Trackbed, Messages::For("0.7"))?;
        let bits = size as f64 * 8.0 / 1e9;
        let messages = Messages::Count(((probe / bits * 1.5) as u64).clamp(256, 1_000_000));
        let mut measured = Vec::with_capacity(pairs);
        for index in 0..pairs {
            // Each goes first half of the time, so that neither always meets a warm machine.
            let pair = if index % 2 == 0 {
                let ours = run(Program::Trackbed, messages)?;
                Pair {
                    ours,
                    peer: run(Program::Perftest, messages)?,
                }
            } else {
                let peer = run(Program::Perftest, messages)?;
                Pair {
                    ours: run(Program::Trackbed, messages)?,
                    peer,
                }
            };
            measured.push(pair);
            bar.inc(1);
        }
        bar.suspend(|| print(case.row(&measured)));
    }
    bar.finish_and_clear();
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Messages {
    /// As many as go through in so many seconds.
    For(&'static str),
    /// So many.
    Count(u64),
}

#[derive(Debug, Clone, Copy)]
struct Run {
    size: u64,
    messages: Messages,
    gid: u8,
    port: u16,
}

#[derive(Debug, Clone, Copy)]
enum Program {
    Trackbed,
    Perftest,
}

/// What is read of `trackbed rdma bench --output json`.
#[derive(Debug, Deserialize)]
struct Report {
    rows: Vec<ReportRow>,
}

#[derive(Debug, Deserialize)]
struct ReportRow {
    gbit_per_second: f64,
}

impl Program {
    /// Runs both ends to their end; the figure is in Gb/s.
    fn run(self, client: &End, server: &End, run: Run) -> Result<f64, BenchError> {
        let serving = start(&mut self.command(server, run, None))?;
        let serving = serving.listening(run.port, RUN_LIMIT)?;
        let printed = output(&mut self.command(client, run, Some(&server.address)))?;
        serving.finish(RUN_LIMIT)?;
        self.figure(&printed)
    }

    fn command(self, end: &End, run: Run, peer: Option<&str>) -> std::process::Command {
        let words = match self {
            Self::Trackbed => {
                let length = match run.messages {
                    Messages::For(seconds) => ["--duration".to_owned(), seconds.to_owned()],
                    Messages::Count(count) => ["--iterations".to_owned(), count.to_string()],
                };
                let size = run.size.to_string();
                let mut words: Vec<String> = ["rdma", "bench", "write", "bandwidth"]
                    .into_iter()
                    .chain(peer)
                    .chain([
                        "--device",
                        &end.device,
                        "--output",
                        "json",
                        "--depth",
                        DEPTH,
                    ])
                    .chain(["--size", &size])
                    .map(str::to_owned)
                    .collect();
                words.extend(["--gid-index".to_owned(), run.gid.to_string()]);
                words.extend(["--tcp-port".to_owned(), run.port.to_string()]);
                // The client decides what is measured, the server takes it.
                words.extend(peer.is_some().then_some(length).into_iter().flatten());
                words
            }
            Self::Perftest => {
                let count = match run.messages {
                    Messages::For(_) => 256,
                    Messages::Count(count) => count,
                };
                let mut words: Vec<String> = [
                    "-d",
                    &end.device,
                    "-t",
                    DEPTH,
                    "-F",
                    "--report_gbits",
                    "--output=bandwidth",
                ]
                .map(str::to_owned)
                .to_vec();
                words.extend(["-x".to_owned(), run.gid.to_string()]);
                words.extend(["-s".to_owned(), run.size.to_string()]);
                words.extend(["-n".to_owned(), count.to_string()]);
                words.extend(["-p".to_owned(), run.port.to_string()]);
                words.extend(peer.map(str::to_owned));
                words
            }
        };
        let mut command = match self {
            Self::Trackbed => end.command(&trackbed().to_string_lossy()),
            Self::Perftest => end.command("ib_write_bw"),
        };
        command.args(words);
        command
    }

    fn figure(self, printed: &str) -> Result<f64, BenchError> {
        let unreadable = || BenchError::Output {
            program: format!("{self:?}"),
            output: printed.trim().to_owned(),
        };
        match self {
            Self::Trackbed => {
                let report: Report = serde_json::from_str(printed).map_err(|_| unreadable())?;
                report
                    .rows
                    .first()
                    .map(|row| row.gbit_per_second)
                    .ok_or_else(unreadable)
            }
            // `--output=bandwidth` prints the average alone, after whatever else it has to say.
            Self::Perftest => printed
                .split_whitespace()
                .next_back()
                .and_then(|word| word.parse().ok())
                .ok_or_else(unreadable),
        }
    }
}

/// The `trackbed` binary next to this one.
fn trackbed() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("trackbed")
}
