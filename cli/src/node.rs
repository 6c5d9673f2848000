//! The role `trackbed node`: the daemon that runs on every node.
//!
//! It holds the cache, talks to its peers over mutual TLS, serves the CSI socket to kubelet, an
//! admin socket to whoever runs `trackbed dataset` on the machine, and metrics to Prometheus.
//! Everything it starts it ends again on SIGTERM or SIGINT, mounts included.

mod identity;
mod metrics;
mod peer_service;
mod peers;
mod settings;

use crate::exit::Failure;
use clap::Args;
use std::path::PathBuf;

pub(crate) use settings::FabricChoice;

/// Run the daemon of one node: cache, peers, CSI driver, metrics
#[derive(Args)]
pub(crate) struct NodeArgs {
    /// YAML file of settings: the flags below without their dashes are its keys
    #[arg(long, env = "TRACKBED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: settings::Settings,
}

/// Runs the node until it is asked to end.
pub(crate) fn run(args: NodeArgs) -> Result<(), Failure> {
    let config = settings::resolve(args.settings, args.config.as_deref())?;
    let _identity = identity::Identity::load(&config)?;
    Ok(())
}
