//! `trackbed rdma mesh`.

mod show;
mod take_part;

use crate::Output;
use crate::exit::Failure;
use clap::{Args, Subcommand, ValueEnum};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use trackbed_rdma::bench::{Length, Plan};
use trackbed_rdma::check::Selection;
use trackbed_rdma::mesh::{
    DEFAULT_PORT, MOST_NODES, MOST_RAILS, MeshError, MeshPlan, Schedule, Tolerance,
};

const AFTER_HELP: &str = "\
Examples:
  trackbed rdma mesh --meet node-1 --nodes 16                    the same on each of 16 nodes
  trackbed rdma mesh --meet node-1 --nodes 16 --state mesh.jsonl again: goes on where it was
  trackbed rdma mesh --local --device mlx5_0 --device mlx5_1     two ports of this machine
  trackbed rdma mesh plan --nodes 1000 --rails 8
  trackbed rdma mesh show mesh.jsonl
  trackbed rdma report mesh.jsonl -o mesh.html

The node that --meet names coordinates and takes part; it prints the result. Each port of a node is
a rail: the n-th port given meets the n-th of every other node. docs/rdma-mesh.md says more.
Exit status: 0 all measured and nothing stands out, 1 something stands out or failed, 2 not all was
measured or there are too few nodes to tell, 3 it could not be set up.";

/// Measure all pairs among many nodes, and name what is slow
#[derive(Args)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct MeshArgs {
    #[command(subcommand)]
    command: Option<MeshCommand>,

    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum MeshCommand {
    Plan(PlanArgs),
    Show(ShowArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Where all meet: a name or address of the node that coordinates, with or without a port
    #[arg(long, value_name = "HOST[:PORT]", required_unless_present = "local")]
    meet: Option<String>,

    /// How many nodes take part
    #[arg(long, value_name = "COUNT", required_unless_present = "local")]
    nodes: Option<usize>,

    /// This node's name [default: the host's]
    #[arg(long)]
    name: Option<String>,

    /// A port of this node, in the order of the rails [default: each active port]
    #[arg(long, value_name = "DEVICE[/PORT]")]
    device: Vec<Selection>,

    /// Where other nodes reach this one [default: where the coordinator sees it]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,

    /// Whether this process coordinates, takes part, or both
    #[arg(long, value_enum, default_value_t = Role::Auto)]
    role: Role,

    /// Each device is a node of its own, in this process: for trying it out
    #[arg(long, conflicts_with_all = ["meet", "nodes", "name", "address", "role", "tls_certificate"])]
    local: bool,

    /// Keep what is measured in this file, and go on from what it holds; on the coordinator
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Seconds to wait for all nodes
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    wait: u64,

    #[command(flatten)]
    tls: super::tls::TlsArgs,

    #[command(flatten)]
    measure: MeasureArgs,

    #[command(flatten)]
    judge: JudgeArgs,

    /// The form of what is printed
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    output: Output,
}

/// What the coordinator has each pair measure.
#[derive(Args)]
struct MeasureArgs {
    /// Seconds of writes in each direction
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    duration: f64,

    /// Bytes of a message
    #[arg(long, default_value_t = 65536, value_name = "BYTES")]
    size: u64,

    /// Round trips for latency
    #[arg(long, default_value_t = 1000, value_name = "COUNT")]
    iterations: u64,

    /// Measure one rail at a time
    #[arg(long)]
    rails_apart: bool,
}

#[derive(Args)]
struct JudgeArgs {
    /// Name what has this much less bandwidth than the others, in percent
    #[arg(long, default_value_t = 10.0, value_name = "PERCENT")]
    bandwidth_tolerance: f64,

    /// Name what has this much more latency than the others, in percent
    #[arg(long, default_value_t = 25.0, value_name = "PERCENT")]
    latency_tolerance: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Coordinate and take part where --meet leads here; else take part
    Auto,
    /// Coordinate only, on a machine without devices
    Coordinate,
    /// Take part only
    Join,
}

/// Print how many rounds a mesh takes, and how long
#[derive(Args)]
struct PlanArgs {
    /// How many nodes take part
    #[arg(long, value_name = "COUNT")]
    nodes: usize,

    /// Ports of each node
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    rails: usize,

    #[command(flatten)]
    measure: MeasureArgs,

    /// The form of what is printed
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    output: Output,
}

/// Print and judge what a state file holds
#[derive(Args)]
struct ShowArgs {
    /// The file that --state named
    file: PathBuf,

    #[command(flatten)]
    judge: JudgeArgs,

    /// The form of what is printed
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    output: Output,
}

pub(crate) fn run(args: MeshArgs) -> Result<(), Failure> {
    match args.command {
        Some(MeshCommand::Plan(args)) => plan(&args),
        Some(MeshCommand::Show(args)) => {
            let mesh = trackbed_rdma::mesh::Journal::load(&args.file).map_err(Failure::unable)?;
            show::show(&mesh, &args.judge.tolerance()?, args.output)
        }
        None => take_part::run(&args.run),
    }
}

impl MeasureArgs {
    fn plan(&self) -> Result<MeshPlan, Failure> {
        let milliseconds = Duration::try_from_secs_f64(self.duration)
            .ok()
            .and_then(|time| u64::try_from(time.as_millis()).ok())
            .ok_or_else(|| Failure::unable(format!("--duration {} is no time", self.duration)))?;
        let usual = MeshPlan::default();
        let plan = MeshPlan {
            bandwidth: Plan {
                length: Length::Milliseconds(milliseconds),
                sizes: vec![self.size],
                ..usual.bandwidth
            },
            latency: Plan {
                length: Length::Iterations(self.iterations),
                ..usual.latency
            },
            rails_apart: self.rails_apart,
        };
        plan.check().map_err(Failure::unable)?;
        Ok(plan)
    }
}

impl JudgeArgs {
    fn tolerance(&self) -> Result<Tolerance, Failure> {
        let share = |option: &str, percent: f64, most: f64| {
            if percent >= 0.0 && percent < most {
                Ok(percent / 100.0)
            } else {
                Err(Failure::unable(format!(
                    "--{option} {percent}: give 0 to {most} percent"
                )))
            }
        };
        Ok(Tolerance {
            bandwidth: share("bandwidth-tolerance", self.bandwidth_tolerance, 100.0)?,
            latency: share("latency-tolerance", self.latency_tolerance, 10_000.0)?,
        })
    }
}

fn plan(args: &PlanArgs) -> Result<(), Failure> {
    if !(2..=MOST_NODES).contains(&args.nodes) || !(1..=MOST_RAILS).contains(&args.rails) {
        return Err(Failure::unable(format!(
            "{} nodes with {} rails: 2 to {MOST_NODES} nodes with 1 to {MOST_RAILS} rails can take part",
            args.nodes, args.rails
        )));
    }
    let schedule = Schedule::new(args.nodes, args.rails, &args.measure.plan()?);
    match args.output {
        Output::Json => super::print_json(&serde_json::json!({
            "nodes": schedule.nodes,
            "rails": schedule.rails,
            "rounds": schedule.rounds,
            "pairs": schedule.pairs,
            "at_once": schedule.at_once,
            "seconds": schedule.time.as_secs(),
        })),
        Output::Table => super::print(&format!(
            "{} nodes with {} rails: {} pairs of ports in {} rounds, {} at once, about {}",
            schedule.nodes,
            schedule.rails,
            schedule.pairs,
            schedule.rounds,
            schedule.at_once,
            words(schedule.time)
        )),
    }
}

/// A time as people say it.
fn words(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How a mesh's error ends the process.
fn failure(error: MeshError) -> Failure {
    match &error {
        MeshError::Bench(bench) if !bench.is_setup() => Failure::failed(error),
        MeshError::Lost { .. } => Failure::failed(error),
        _ => Failure::unable(error),
    }
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]` or an IPv6 address, always with a port after.
fn with_port(meet: &str) -> String {
    if let Ok(address) = meet.parse::<IpAddr>() {
        return std::net::SocketAddr::new(address, DEFAULT_PORT).to_string();
    }
    let has_port = meet
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if has_port {
        meet.to_owned()
    } else {
        format!("{meet}:{DEFAULT_PORT}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: MeshArgs,
    }

    fn parsed(line: &str) -> Result<MeshArgs, clap::Error> {
        Command::try_parse_from(line.split_whitespace()).map(|command| command.args)
    }

    #[test]
    fn the_same_line_serves_on_every_node() {
        let args = parsed("mesh --meet node-1 --nodes 16").expect("a good line");
        assert!(args.command.is_none());
        assert_eq!(args.run.nodes, Some(16));
        assert!(args.run.role == Role::Auto);
        assert!(
            parsed("mesh plan --nodes 1000 --rails 8")
                .expect("a plan")
                .command
                .is_some()
        );
        assert!(parsed("mesh --local --device rxe0 --device rxe1").is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "mesh",
            "mesh --meet node-1",
            "mesh --local --meet node-1",
            "mesh --meet node-1 --nodes 4 --tls-certificate a.pem",
            "mesh --local --tls-certificate a.pem --tls-key a.key --tls-ca ca.pem",
            "mesh --meet node-1 --nodes 4 --device mlx5_0/x",
            "mesh --meet node-1 --nodes 4 plan --nodes 5",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        for line in ["--duration=-1", "--size 0", "--iterations 0"] {
            let args = parsed(&format!("mesh --local {line}")).expect("parsed");
            assert_eq!(
                args.run.measure.plan().expect_err("refused").code(),
                3,
                "{line}"
            );
        }
        let args = parsed("mesh --local --bandwidth-tolerance 100").expect("parsed");
        assert!(args.run.judge.tolerance().is_err());
    }

    #[test]
    fn a_meeting_place_gets_its_port_when_it_has_none() {
        for (given, full) in [
            ("node-1", "node-1:18621"),
            ("node-1:7", "node-1:7"),
            ("10.0.0.1", "10.0.0.1:18621"),
            ("fd00::1", "[fd00::1]:18621"),
            ("[fd00::1]:9", "[fd00::1]:9"),
        ] {
            assert_eq!(with_port(given), full);
        }
    }

    #[test]
    fn a_coordinator_that_is_none_of_ours_is_a_matter_of_set_up_and_one_that_is_lost_a_failure() {
        let reason = "mutual TLS failed: it doesn't speak TLS".to_owned();
        assert_eq!(failure(MeshError::Stranger(reason)).code(), 3);
        let lost = MeshError::Lost {
            doing: "waiting for what to measure",
            source: std::io::ErrorKind::ConnectionReset.into(),
        };
        assert_eq!(failure(lost).code(), 1);
    }

    #[test]
    fn times_are_said_as_people_do() {
        assert_eq!(words(Duration::from_secs(50)), "50 s");
        assert_eq!(words(Duration::from_secs(3000)), "50 min");
        assert_eq!(words(Duration::from_secs(9000)), "2 h 30 min");
    }
}
