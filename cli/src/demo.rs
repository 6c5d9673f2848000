//! The role `trackbed demo`: a dataset, fetched once, read on two of three nodes, every byte
//! compared with the origin.
//!
//! Nothing of it outlives it, however it ends: see [`sandbox`]. The nodes are ordinary `trackbed
//! node` processes, driven through their public interfaces: the admin socket and the CSI socket.

mod certificates;
mod conductor;
mod dataset;
mod mounts;
mod network;
mod nodes;
mod progress;
mod registry;
mod report;
mod roce;
mod sandbox;
mod scene;
mod supervise;
mod tree;
mod workdir;

use crate::exit::Failure;
use crate::node::FabricChoice;
use crate::output::Output;
use clap::{Args, ValueEnum};
use sandbox::{InnerRole, Inside};
use std::path::PathBuf;
use workdir::WorkDir;

const AFTER_HELP: &str = "\
Examples:
  trackbed demo                              the machine's own /usr/share, over what is fastest
  trackbed demo --dataset /data --nodes 5    a folder of yours, five nodes
  trackbed demo --dataset 's3://bucket/set?endpoint=http://127.0.0.1:9000&region=us-east-1'
  trackbed demo --fabric verbs               RDMA; without hardware: hack/vm run -- trackbed demo …
  trackbed demo --output json | jq .origin_bytes

Two nodes read the dataset through mounts; the others own a share of its chunks and serve peers.
Ctrl-C at any time leaves no mount, process, namespace or file behind.";

/// Start nodes, mount a dataset on two of them, read every byte, and say where it came from
#[derive(Args, Clone)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DemoArgs {
    /// A folder, or the URL of one (file://, s3://) [default: /usr/share]
    #[arg(long, value_name = "PATH")]
    dataset: Option<String>,

    /// How many nodes to start
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=16))]
    nodes: u8,

    /// What carries data between the nodes
    #[arg(long, value_enum, default_value_t = FabricChoice::Auto, value_name = "KIND")]
    fabric: FabricChoice,

    /// How the nodes are joined
    #[arg(long, value_enum, default_value_t = NetworkChoice::Auto, value_name = "HOW")]
    network: NetworkChoice,

    /// What to print on stdout
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    output: Output,

    /// Where to put caches, sockets and logs; a fresh folder in it, removed at the end
    #[arg(long, env = "TRACKBED_DEMO_WORK_DIR", value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    work_dir: PathBuf,

    /// After the report, leave the nodes running until Ctrl-C
    #[arg(long)]
    keep: bool,

    /// What the nodes log to their files, shown when one fails [default: info]
    #[arg(long, value_name = "FILTER")]
    node_log: Option<String>,

    /// For the demo's own inner processes.
    #[arg(long, hide = true, value_parser = parse_inside)]
    inside: Option<Inside>,
}

/// How the nodes are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkChoice {
    /// A network namespace each where that can be had, loopback otherwise
    Auto,
    /// A network namespace each, or an error
    Namespaces,
    /// Loopback addresses of this machine
    Loopback,
}

fn parse_inside(text: &str) -> Result<Inside, serde_json::Error> {
    serde_json::from_str(text)
}

/// Runs whichever of the demo's three processes this is.
pub(crate) fn run(args: DemoArgs) -> Result<(), Failure> {
    let code = match args.inside.clone() {
        None => {
            let own_network = dataset::is_local(args.dataset.as_deref())
                && args.network != NetworkChoice::Loopback;
            // From here on there is something to remove.
            sandbox::hold_signals()?;
            let work = WorkDir::create(&args.work_dir)?;
            sandbox::supervise(work.path(), own_network)?
        }
        Some(inside) if inside.role == InnerRole::Init => sandbox::init(inside)?,
        Some(inside) => return conductor::conduct(args, inside),
    };
    match code {
        0 => Ok(()),
        // The process inside has said why.
        code => Err(Failure::silent(code)),
    }
}
