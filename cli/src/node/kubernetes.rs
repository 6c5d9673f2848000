//! A node in Kubernetes: its members are CacheNode objects, its datasets Dataset objects.
//!
//! What the API server says is kept as a [`view::View`], which watches keep up to date and nothing but
//! pure functions read; the cache asks that and never waits for the API server. It is on the disk too, so
//! that a node that starts while the API server is away knows what it knew. The node tells of itself
//! (`announce`) at a fixed pace, and tends to the datasets (`tend`): one node, chosen by rendezvous
//! hashing, lists a dataset's origin and keeps its status; each warms what it is to warm.
//!
//! What a node needs to be allowed: `get`, `list` and `watch` of datasets and cachenodes, `create` and
//! `patch` of cachenodes, `patch` of `datasets/status` and `cachenodes/status`, and `get` of secrets in
//! the namespaces whose datasets name some.

mod announce;
mod judge;
mod origin;
mod registry;
mod secrets;
mod tend;
mod view;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};

use crate::exit::Failure;

pub(crate) use origin::check_folders;
pub(crate) use registry::KubernetesRegistry;
pub(crate) use secrets::ApiSecrets;
pub(crate) use tend::tend;
pub(crate) use trackbed_controller::reconcile::reason;

/// The field manager of what a node says of itself.
const MANAGER: &str = "trackbed-node";

/// The field manager of the versions that a dataset has.
const VERSIONS: &str = "trackbed-versions";

/// The field manager of the rest of a dataset's status: one for all nodes, as one at a time keeps it.
const KEEPER_OF_STATUS: &str = "trackbed-status";

/// How long the API server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How a node takes part in a cluster.
#[derive(Clone, Debug)]
pub(crate) struct KubernetesConfig {
    /// Where peers reach its control interface, as host:port.
    pub(crate) address: String,
    /// From one report to the next.
    pub(crate) report_every: Duration,
    /// `None` leaves it to whoever sets it in the object.
    pub(crate) weight: Option<u32>,
    pub(crate) zone: Option<String>,
    pub(crate) rack: Option<String>,
    /// Below which datasets may have folders of this machine as their origin.
    pub(crate) shared_folders: Vec<PathBuf>,
    /// Whether datasets that name no credentials may use those of the node.
    pub(crate) share_credentials: bool,
}

/// Connects as the pod's service account, or as KUBECONFIG says.
pub(crate) async fn connect() -> Result<Client, Failure> {
    let refuse = |why: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "--kubernetes: no way to an API server: {why}: run in a pod with a service account, or name \
             a file in KUBECONFIG"
        ))
    };
    let mut config = Config::infer().await.map_err(|error| refuse(&error))?;
    config.read_timeout = None;
    // Who asks bounds the answer; a request that failed is made anew by the next round.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| refuse(&error))
}

/// Starts what keeps the registry up to date and tells of this node, until the runtime ends.
pub(crate) fn run(registry: &Arc<KubernetesRegistry>) {
    tokio::spawn(watch::nodes(registry.clone()));
    tokio::spawn(watch::datasets(registry.clone()));
}
