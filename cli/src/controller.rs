//! The role `trackbed controller`: Caffe2 jobs whose pods start together.

use crate::exit::Failure;
use crate::node::kubernetes::connect;
use crate::node::{engine, metrics};
use crate::traces::TracesArgs;
use clap::{Args, Subcommand};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use trackbed_controller::reconcile::{self, ControllerConfig, LeaseSettings, Metrics};

/// The largest configuration that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Run Caffe2 jobs whose pods start together, where hardware and data are
///
/// docs/jobs.md has an example of a job. `trackbed queue` shows what waits and runs, `trackbed job why NAME`
/// what keeps a job from starting.
#[derive(Args)]
pub(crate) struct ControllerArgs {
    #[command(subcommand)]
    command: ControllerCommand,
}

#[derive(Subcommand)]
enum ControllerCommand {
    Run(RunArgs),
}

const AFTER_HELP: &str = "\
The configuration is YAML; every key may be left out:
  teams:                        # without any, a team is a name without a quota
    - name: vision
      quotas: { NVIDIA-H100-80GB-HBM3: { nominal: 64, borrow: 32 } }
  hardware: [{ name: NVIDIA-H100-80GB-HBM3, speed: 1.0 }]
  hardware-label: nvidia.com/gpu.product
  accelerators: [nvidia.com/gpu, amd.com/gpu]
  rdma-resource: trackbed.io/rdma
  bind-seconds: 30              # pods that are not on their nodes by then give them back
  retry-seconds: 10             # from a failure to the next attempt; doubled by each
  redis-image: docker.io/library/redis:7-alpine";

/// Watch the API server and carry jobs out, if this controller is the one of several that leads
///
/// Asks the API server as the pod's service account, or as KUBECONFIG says.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
struct RunArgs {
    /// Teams, hardware and times [default: no team has a quota]
    #[arg(long, env = "TRACKBED_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// The namespace of the Lease by which one of several controllers leads
    #[arg(
        long,
        env = "TRACKBED_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "trackbed"
    )]
    namespace: String,

    /// What this controller is called there: the pod's name, and no other controller's
    #[arg(long, env = "TRACKBED_NAME", value_name = "NAME")]
    name: String,

    /// Where to answer Prometheus (/metrics) and kubelet's probes (/healthz, /readyz), such as 0.0.0.0:7424
    /// [default: nowhere]
    #[arg(long, env = "TRACKBED_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,

    #[command(flatten)]
    traces: TracesArgs,
}

impl ControllerArgs {
    /// Where its traces go.
    pub(crate) fn traces(&self) -> &TracesArgs {
        let ControllerCommand::Run(args) = &self.command;
        &args.traces
    }
}

/// Runs until a signal comes.
pub(crate) fn run(args: ControllerArgs) -> Result<(), Failure> {
    let ControllerCommand::Run(args) = args.command;
    let config = read_config(args.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The planner keeps one busy while the other renews the lease.
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let mut ending = engine::ending()?;
        let client = connect().await?;
        let lease = LeaseSettings::new(&args.namespace, &args.name);
        let listener = metrics::listen(args.metrics_listen).await?;
        let numbers = Arc::new(Metrics::default());
        let serving = metrics::serve_at(listener, pages(&numbers));
        let stop = async {
            tokio::select! {
                _ = ending.recv() => {}
                () = serving => {}
            }
        };
        reconcile::run(client, config, lease, numbers, stop).await;
        Ok(())
    })
}

fn pages(numbers: &Arc<Metrics>) -> metrics::Pages {
    let (text, alive, ready) = (numbers.clone(), numbers.clone(), numbers.clone());
    metrics::Pages {
        metrics: Arc::new(move || text.text()),
        checks: vec![
            ("/healthz", Arc::new(move || alive.is_alive())),
            ("/readyz", Arc::new(move || ready.is_ready())),
        ],
    }
}

/// The configuration in a file, or the default.
pub(crate) fn read_config(path: Option<&Path>) -> Result<ControllerConfig, Failure> {
    let Some(path) = path else {
        return Ok(ControllerConfig::default());
    };
    let refuse =
        |why: &dyn std::fmt::Display| Failure::usage(format!("--config {}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| refuse(&error))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| refuse(&error))?;
    let config: ControllerConfig = serde_saphyr::from_str(&text).map_err(|error| refuse(&error))?;
    config.check().map_err(|error| refuse(&error))?;
    Ok(config)
}
