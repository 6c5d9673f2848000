//! `trackbed rdma bench`.

mod arguments;
mod live;
mod plan;
mod print;
mod quantity;

use super::{print, print_json};
use crate::Output;
use crate::exit::Failure;
pub(crate) use arguments::BenchArgs;
use live::Live;
use plan::{expectation, interval, plan, serve, target};
use std::time::Duration;
use trackbed_rdma::bench::{
    self, BenchError, DeviceChoice, Outcome, Progress, Report, Target, judge,
};

pub(crate) fn run(args: BenchArgs) -> Result<(), Failure> {
    let (plan, target) = (plan(&args)?, target(&args)?);
    let mut live = Live::new(&plan, interval(&args)?, false);
    let mut tell = |progress: Progress<'_>| {
        live.tell(&progress);
        if let Progress::Served(outcome) = progress {
            served(&args, outcome);
        }
    };
    let port = args.meeting.tcp_port;
    let outcome = if let Some(host) = &args.host {
        bench::run(&target, &plan, host, port, &mut tell)
    } else if args.ends.local || args.ends.peer_device.is_some() {
        bench::run_local(&target, &peer(&args, &target), &plan, &mut tell)
    } else if args.meeting.persistent {
        match bench::serve_all(&target, &serve(&args, &plan), port, &mut tell) {
            Err(error) => Err(error),
            Ok(never) => match never {},
        }
    } else {
        let patience = Duration::from_secs(args.meeting.wait);
        bench::serve(&target, &serve(&args, &plan), port, patience, &mut tell)
    };
    drop(live);
    let report = judged(&args, outcome.map_err(failure)?)?;
    match args.output {
        Output::Json => print_json(&report)?,
        Output::Table => print(&print::text(&report))?,
    }
    match report.verdict.map(|verdict| verdict.outcome) {
        None | Some(Outcome::Pass) => Ok(()),
        Some(Outcome::Fail) => Err(Failure::silent(1)),
        Some(Outcome::Inconclusive) => Err(Failure::silent(2)),
    }
}

/// The other end of a measurement within this process.
fn peer(args: &BenchArgs, target: &Target) -> Target {
    args.ends.peer_device.clone().map_or_else(
        || target.clone(),
        |name| Target {
            device: DeviceChoice::Named(name),
            memory: target.memory,
            numa: target.numa,
            ..Target::default()
        },
    )
}

/// Adds the verdict to a report, where something was expected.
fn judged(args: &BenchArgs, mut report: Report) -> Result<Report, Failure> {
    if let Some(expectation) = expectation(args, &report)? {
        report.verdict = judge(expectation, &report.rows);
    }
    Ok(report)
}

/// What a persistent server says of a client that it is done with: with JSON an object a line.
fn served(args: &BenchArgs, outcome: &Result<Report, BenchError>) {
    let printed = match outcome {
        Err(error) => {
            eprintln!("trackbed: {error}");
            return;
        }
        Ok(report) => judged(args, report.clone()).and_then(|report| match args.output {
            Output::Json => serde_json::to_string(&report)
                .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))
                .and_then(|line| print(&line)),
            Output::Table => print(&format!("{}\n", print::text(&report))),
        }),
    };
    // The next client shall be served all the same.
    if let Err(failure) = printed {
        eprintln!("trackbed: {failure}");
    }
}

fn failure(error: BenchError) -> Failure {
    if error.is_setup() {
        Failure::unable(error)
    } else {
        Failure::failed(error)
    }
}
