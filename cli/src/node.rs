//! The role `trackbed node`: the daemon that runs on every node.
//!
//! It holds the cache, talks to its peers over mutual TLS, serves the CSI socket to kubelet, an
//! admin socket to whoever runs `trackbed dataset` on the machine, and metrics to Prometheus.
//! Everything it starts it ends again on SIGTERM or SIGINT. Only the keeper, which serves the
//! mounts, goes on, unless mounts are to be taken away at the end.

mod admin;
mod daemon;
pub(crate) mod engine;
mod host;
mod identity;
mod images;
pub(crate) mod keeper;
pub(crate) mod kubernetes;
pub(crate) mod metrics;
mod peer_service;
mod peers;
mod settings;
mod transport;

use crate::exit::Failure;
use crate::traces::TracesArgs;
use clap::Args;
use std::path::PathBuf;

pub(crate) use images::Images;
pub(crate) use settings::{DEFAULT_MEMORY, ExposeChoice, FabricChoice};

const AFTER_HELP: &str = "\
A configuration file, every key of which is also a flag and a TRACKBED_* variable:
  name: node-1
  registry: /var/lib/trackbed/registry
  cache-dir: /mnt/nvme/trackbed
  cache-capacity: 2TiB
  tls-ca: /etc/trackbed/ca.pem
  tls-cert: /etc/trackbed/tls.pem
  tls-key: /etc/trackbed/tls.key
  csi-endpoint: unix:///var/lib/kubelet/plugins/csi.trackbed.io/csi.sock
  kubelet-plugins-registry: /var/lib/kubelet/plugins_registry
  metrics-listen: 0.0.0.0:7422

The registry is a folder that all nodes see; its members.json names them:
  {\"members\": [{\"name\": \"node-1\", \"control\": \"10.0.0.1:7420\", \"weight\": 100}]}

Then: trackbed dataset register --admin-socket /mnt/nvme/trackbed/admin.sock cats file:///data/cats";

/// Run the daemon of one node: cache, peers, CSI driver, metrics
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct NodeArgs {
    /// YAML file of settings: the flags below without their dashes are its keys
    #[arg(long, env = "TRACKBED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: settings::Settings,

    #[command(flatten)]
    traces: TracesArgs,
}

impl NodeArgs {
    /// Where its traces go.
    pub(crate) fn traces(&self) -> &TracesArgs {
        &self.traces
    }
}

/// Runs the node until it is asked to end.
pub(crate) fn run(args: NodeArgs) -> Result<(), Failure> {
    let config = settings::resolve(args.settings, args.config.as_deref())?;
    let identity = identity::Identity::load(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Failure::unable(format!("cannot start the control threads: {error}")))?;
    let outcome = runtime.block_on(daemon::run(config, identity));
    runtime.shutdown_background();
    outcome
}
