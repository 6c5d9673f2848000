//! The `trackbed` command: one binary, a subcommand per role.
//!
//! This file reads the command line, sets up logging and hands over to the role. A role answers
//! with an exit code of [`exit`], having said in one sentence on stderr what went wrong, on what,
//! why, and what to do next.

mod controller;
mod crds;
mod dataset;
mod demo;
mod device_plugin;
mod doctor;
mod exit;
mod in_use;
mod job;
mod keeper;
mod mount;
mod node;
mod output;
mod plot;
mod queue;
mod rdma;
mod simulate;
mod size;
mod top;
mod traces;

use clap::{Parser, Subcommand};
use output::Output;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

const AFTER_HELP: &str = "\
Examples:
  trackbed demo                        three nodes, one dataset, every byte checked
  trackbed demo --dataset /data/kitti  the same with files of your own
  trackbed demo --output json          one object for a script
  trackbed node --config node.yaml     the daemon that runs on every node
  trackbed rdma devices                which RDMA devices are here, and in what state
  trackbed top --kubernetes            nodes, datasets, devices and jobs as they are now

Exit status:
  0    done
  1    it ran and the outcome is wrong, or something failed underway
  2    the command line, the configuration or the input is at fault
       (trackbed rdma: too uncertain to tell; what is at fault ends with 3)
  3    this machine cannot do what was asked; the message says what can
  130  interrupted";

#[derive(Parser)]
#[command(
    name = "trackbed",
    version,
    about = "The RDMA and storage data plane under AI training on Kubernetes",
    after_help = AFTER_HELP,
    arg_required_else_help = true
)]
struct Command {
    /// What to log to stderr: error, warn, info, debug, trace, or a filter such as
    /// `info,trackbed_cache=debug`
    #[arg(
        long,
        env = "TRACKBED_LOG",
        global = true,
        value_name = "FILTER",
        display_order = 900
    )]
    log: Option<String>,

    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    Demo(demo::DemoArgs),
    Node(Box<node::NodeArgs>),
    Keeper(keeper::KeeperArgs),
    Dataset(dataset::DatasetArgs),
    Mount(mount::MountArgs),
    Crds(crds::CrdsArgs),
    Rdma(rdma::RdmaArgs),
    DevicePlugin(device_plugin::DevicePluginArgs),
    Doctor(doctor::DoctorArgs),
    InUse(in_use::InUseArgs),
    Controller(controller::ControllerArgs),
    Queue(queue::QueueArgs),
    Job(job::JobArgs),
    Simulate(simulate::SimulateArgs),
    Top(top::TopArgs),
}

impl Role {
    /// Where the role's traces go, and what it is called there.
    fn traced(&self) -> (Option<&traces::TracesArgs>, &'static str) {
        match self {
            Role::Node(args) => (Some(args.traces()), "trackbed-agent"),
            Role::DevicePlugin(args) => (args.traces(), "trackbed-device-plugin"),
            Role::Controller(args) => (Some(args.traces()), "trackbed-controller"),
            _ => (None, "trackbed"),
        }
    }
}

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => return refuse(&error),
    };
    let default = match &command.role {
        Role::Node(_) | Role::Keeper(_) | Role::Mount(_) | Role::Controller(_) => "info",
        Role::DevicePlugin(args) if args.serves() => "info",
        _ => "warn",
    };
    let (traced, service) = command.role.traced();
    let traces = match traces::Traces::start(traced, service) {
        Ok(traces) => traces,
        Err(failure) => return exit::report(failure),
    };
    let filter = command.log.as_deref().unwrap_or(default);
    if let Err(failure) = log_to_stderr(filter, traces.as_ref()) {
        return exit::report(failure);
    }
    let outcome = match command.role {
        Role::Demo(args) => demo::run(args),
        Role::Node(args) => node::run(*args),
        Role::Keeper(args) => keeper::run(&args),
        Role::Dataset(args) => dataset::run(args),
        Role::Mount(args) => mount::run(&args),
        Role::Crds(args) => crds::run(&args),
        Role::Rdma(args) => rdma::run(args),
        Role::DevicePlugin(args) => device_plugin::run(args),
        Role::Doctor(args) => doctor::run(&args),
        Role::InUse(args) => in_use::run(&args),
        Role::Controller(args) => controller::run(args),
        Role::Queue(args) => queue::run(&args),
        Role::Job(args) => job::run(&args),
        Role::Simulate(args) => simulate::run(&args),
        Role::Top(args) => top::run(args),
    };
    if let Some(traces) = traces {
        traces.end();
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => exit::report(failure),
    }
}

/// Says what is wrong with the command line, or shows the help that was asked for. Under
/// `trackbed rdma` 2 means something else, and wrong words are a matter of set-up.
fn refuse(error: &clap::Error) -> ExitCode {
    // A reader that has left (`--help | head`) is no failure.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let role = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    ExitCode::from(if role.as_deref() == Some("rdma") {
        3
    } else {
        2
    })
}

/// Logs, and hands spans to the traces if there are any.
fn log_to_stderr(filter: &str, traces: Option<&traces::Traces>) -> Result<(), exit::Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        exit::Failure::usage(format!(
            "--log {filter}: {error}: give a level (error, warn, info, debug, trace) or \
             target=level pairs"
        ))
    })?;
    // Spans are for traces alone.
    let spans = format!("{}=off", traces::TARGET);
    let filter = filter.add_directive(spans.parse().expect("a directive"));
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_filter(filter);
    let traced = traces.map(traces::Traces::layer);
    tracing_subscriber::registry().with(log).with(traced).init();
    Ok(())
}
