//! `trackbed simulate`: what a trace of jobs would see of a cluster, with the controller's own planner.

mod show;

use crate::exit::Failure;
use crate::output::{Output, print};
use clap::{ArgGroup, Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};
use trackbed_controller::simulate::{Cluster, Outcome, Policy, Trace, generate, simulate};

const AFTER_HELP: &str = "\
Examples:
  trackbed simulate --generate 2000 --compare         a made trace, all policies, a table
  trackbed simulate --trace jobs.csv --cluster 40x8:h100
  trackbed simulate --trace jobs.csv --cluster 40x8:h100 --add-nodes 8
                                                      what eight nodes more would change
  trackbed simulate --trace 0e4a51.trace.gz --compare --wrong-by 3 --plot waits.html
                                                      run times said wrongly by up to 3x, drawn

A trace is a table (CSV, or CSV gzipped) with a line a job, times in seconds:
  name,team,gpus,submitted,run
or one of Gavel's (tab-separated, steps rather than seconds; throughputs.json beside it).

A job takes whole nodes and what is left of it a part of one; pods ask for GPUs alone. All policies
place alike (docs/scheduling.md says how) and are told the same, except sjf, which always knows the
true run times. Utilisation is of the GPUs that jobs could have used: busy ones over those that were
asked for, at most the cluster.

Exit status: 0 done, 2 the trace, the cluster or the command line is at fault";

/// Play a trace of jobs on a cluster that is only a description, with the controller's planner
#[derive(Args)]
#[command(after_help = AFTER_HELP, group = ArgGroup::new("jobs").required(true))]
pub(crate) struct SimulateArgs {
    /// The trace
    #[arg(long, value_name = "FILE", group = "jobs")]
    trace: Option<PathBuf>,

    /// Instead of a trace, make so many jobs in the shape of public traces
    #[arg(long, value_name = "JOBS", group = "jobs", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    generate: Option<u32>,

    /// What the jobs are made from, and the errors of --wrong-by
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// How much work is made: the share of the cluster's GPUs that it would keep busy
    #[arg(
        long,
        default_value_t = 0.9,
        value_name = "SHARE",
        requires = "generate"
    )]
    load: f64,

    /// Write the jobs as a table, too
    #[arg(long, value_name = "FILE")]
    save_trace: Option<PathBuf>,

    /// Steps a second of the jobs of one of Gavel's traces [default: throughputs.json(.gz) beside it]
    #[arg(long, value_name = "FILE", requires = "trace")]
    throughputs: Option<PathBuf>,

    /// The cluster, as NODESxGPUS:HARDWARE, several kinds with commas between
    #[arg(long, default_value = "20x8:v100", value_name = "CLUSTER")]
    cluster: Cluster,

    /// Show what so many nodes more of the first kind would change, or fewer
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    add_nodes: Option<i64>,

    /// Who decides
    #[arg(long, value_enum, default_value_t = PolicyName::Trackbed)]
    policy: PolicyName,

    /// Let every policy decide
    #[arg(long, conflicts_with = "policy")]
    compare: bool,

    /// Say run times wrongly, by a factor of up to this in either direction
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    wrong_by: f64,

    /// Draw waits and completion times as one HTML file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// How to print the result
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// A policy, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PolicyName {
    /// Trackbed's own: the least work first, ageing, room held for the first that does not fit
    Trackbed,
    /// First come, first served
    Fifo,
    /// First come, first served, who does not fit is skipped
    SkipFifo,
    /// EASY backfill
    Easy,
    /// Dominant resource fairness between teams, a gang at a time
    Drf,
    /// The shortest run time first
    Sjf,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Policy {
        match name {
            PolicyName::Trackbed => Policy::Trackbed,
            PolicyName::Fifo => Policy::Fifo,
            PolicyName::SkipFifo => Policy::SkipFifo,
            PolicyName::Easy => Policy::Easy,
            PolicyName::Drf => Policy::Drf,
            PolicyName::Sjf => Policy::Sjf,
        }
    }
}

/// What came of one policy on one cluster.
struct Played {
    policy: Policy,
    cluster: Cluster,
    outcome: Outcome,
}

/// The figures of one policy on one cluster.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    policy: &'static str,
    cluster: String,
    jobs: usize,
    mean_jct_hours: f64,
    mean_wait_hours: f64,
    p50_wait_hours: f64,
    p99_wait_hours: f64,
    utilisation: f64,
    makespan_hours: f64,
}

/// Plays, and shows.
pub(crate) fn run(args: &SimulateArgs) -> Result<(), Failure> {
    for (name, value, least, most) in [
        ("--wrong-by", args.wrong_by, 1.0, 100.0),
        ("--load", args.load, 0.01, 10.0),
    ] {
        if !(least..=most).contains(&value) {
            return Err(Failure::usage(format!(
                "{name} {value}: give a number from {least} to {most}"
            )));
        }
    }
    let trace = jobs(args)?;
    if let Some(path) = &args.save_trace {
        write(path, &trace.table(&args.cluster.groups[0].hardware))?;
    }
    let trace = trace.misjudged(args.wrong_by, args.seed);
    let policies = if args.compare {
        Policy::ALL.to_vec()
    } else {
        vec![args.policy.into()]
    };
    let mut clusters = vec![args.cluster.clone()];
    clusters.extend(
        args.add_nodes
            .map(|more| args.cluster.clone().with_nodes(more)),
    );

    let bar = ProgressBar::new((trace.jobs.len() * policies.len() * clusters.len()) as u64);
    bar.set_style(
        ProgressStyle::with_template("{msg:10} {wide_bar} {pos} of {len} jobs, {eta} left")
            .map_err(|error| Failure::failed(format!("the progress bar: {error}")))?,
    );
    let mut played = Vec::new();
    for cluster in &clusters {
        for &policy in &policies {
            bar.set_message(policy.name());
            let before = (played.len() * trace.jobs.len()) as u64;
            let mut progress = |ended: usize| bar.set_position(before + ended as u64);
            let outcome =
                simulate(&trace, cluster, policy, &mut progress).map_err(Failure::usage)?;
            played.push(Played {
                policy,
                cluster: cluster.clone(),
                outcome,
            });
        }
    }
    bar.finish_and_clear();
    if let Some(path) = &args.plot {
        let page = show::page(&played)
            .map_err(|error| Failure::failed(format!("the plots can't be drawn: {error}")))?;
        write(path, &page)?;
    }
    let summaries: Vec<Summary> = played.iter().map(Summary::of).collect();
    match args.output {
        Output::Table => print(&show::table(&summaries)),
        Output::Json => print(
            &serde_json::to_string_pretty(&summaries)
                .map_err(|error| Failure::failed(format!("the result as JSON: {error}")))?,
        ),
    }
}

fn jobs(args: &SimulateArgs) -> Result<Trace, Failure> {
    match (&args.trace, args.generate) {
        (Some(path), _) => Trace::read(path, args.throughputs.as_deref()).map_err(Failure::usage),
        (None, jobs) => {
            let jobs = jobs.unwrap_or(0) as usize;
            Ok(generate(jobs, args.cluster.gpus(), args.load, args.seed))
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

impl Summary {
    fn of(played: &Played) -> Self {
        let hours = |time: f64| time / 3_600_000.0;
        let outcome = &played.outcome;
        Summary {
            policy: played.policy.name(),
            cluster: played.cluster.to_string(),
            jobs: outcome.jobs.len(),
            mean_jct_hours: hours(outcome.mean_jct()),
            mean_wait_hours: hours(outcome.mean_wait()),
            p50_wait_hours: hours(outcome.wait(0.5) as f64),
            p99_wait_hours: hours(outcome.wait(0.99) as f64),
            utilisation: outcome.utilisation(),
            makespan_hours: hours(outcome.makespan() as f64),
        }
    }
}
