//! `trackbed device-plugin run`: the daemon.

use super::lock::{User, lock};
use super::{STATE_DIR, functions, read_config, show};
use crate::exit::Failure;
use crate::node::{engine, metrics};
use crate::traces::TracesArgs;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use trackbed_deviceplugin::kubelet::{FOLDER, POD_RESOURCES};
use trackbed_deviceplugin::plugin::{Plugin, PluginConfig, PluginError};
use trackbed_deviceplugin::probe::VerbsProbe;

/// Serve this node's pools to kubelet
#[derive(Args)]
pub(crate) struct RunArgs {
    /// Which devices form which resource
    #[arg(long, env = "TRACKBED_CONFIG", value_name = "FILE")]
    config: PathBuf,

    /// Folder for what was given away; one that a reboot empties will do, and in memory is fastest
    #[arg(long, env = "TRACKBED_STATE_DIR", value_name = "FOLDER", default_value = STATE_DIR)]
    state_dir: PathBuf,

    /// Kubelet's folder of device plugins' sockets
    #[arg(long, env = "TRACKBED_KUBELET_DIR", value_name = "FOLDER", default_value = FOLDER)]
    kubelet_dir: PathBuf,

    /// Kubelet's socket that tells which pod has what
    #[arg(long, env = "TRACKBED_POD_RESOURCES", value_name = "SOCKET", default_value = POD_RESOURCES)]
    pod_resources: PathBuf,

    /// Serve Prometheus metrics over HTTP there [default: not at all]
    #[arg(long, env = "TRACKBED_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,

    /// First give ports the virtual functions that the configuration wants, as `apply` does; nothing is
    /// changed while a pod has one that the change would reach
    #[arg(long, env = "TRACKBED_APPLY")]
    apply: bool,

    /// Folder below which /sys and /dev lie: another one than / only for trying things out
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    root: PathBuf,

    #[command(flatten)]
    traces: TracesArgs,
}

impl RunArgs {
    /// Where its traces go.
    pub(super) fn traces(&self) -> &TracesArgs {
        &self.traces
    }
}

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let _lock = lock(&args.state_dir, User::Plugin)?;
    if args.apply {
        functions::make_unless_held(&read_config(&args.config)?, &args.root, &args.state_dir)?;
    }
    let config = PluginConfig {
        config: read_config(&args.config)?,
        root: args.root.clone(),
        state_dir: args.state_dir.clone(),
        kubelet_dir: args.kubelet_dir,
        pod_resources: args.pod_resources,
    };
    // One thread: kubelet calls now and then, and what blocks has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(serve(config, args.metrics_listen))
}

async fn serve(config: PluginConfig, metrics_listen: Option<SocketAddr>) -> Result<(), Failure> {
    let mut ending = engine::ending()?;
    let (root, state_dir) = (config.root.clone(), config.state_dir.clone());
    let probe = Arc::new(VerbsProbe { root });
    let (plugin, looker) = Plugin::prepare(config, probe).await.map_err(failure)?;
    for pool in plugin.state.status() {
        tracing::info!(
            resource = pool.resource,
            devices = pool.devices.len(),
            "a pool"
        );
    }
    let state = Arc::clone(&plugin.state);
    let pages = metrics::Pages {
        metrics: Arc::new(move || trackbed_deviceplugin::metrics::text(&state)),
        checks: Vec::new(),
    };
    let serving_metrics = metrics::serve_at(metrics::listen(metrics_listen).await?, pages);
    tokio::select! {
        error = plugin.run(looker) => Err(failure(error)),
        () = show::keep_written(&state_dir, &plugin.state) => Ok(()),
        () = serving_metrics => Ok(()),
        _ = ending.recv() => Ok(()),
    }
}

fn failure(error: PluginError) -> Failure {
    match error {
        PluginError::Config(_) | PluginError::Socket(_) => Failure::usage(error),
        _ => Failure::failed(error),
    }
}
