//! The CSI driver: kubelet's calls on a unix socket, answered with mounted datasets.
//!
//! It serves the Identity, Controller and Node services of CSI v1.12. Every call may come twice, at
//! the same time as another, or after a crash, and ends in the same state with the code CSI has for
//! it. A volume shows one version of one dataset, settled when it is created or, for volumes that an
//! administrator wrote down, when it is staged, and the same until it is unstaged.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, Either, select};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use trackbed_cache::Digest;
use trackbed_cache::registry::{DatasetName, DatasetRecord};
use trackbed_proto::csi::v1::controller_server::ControllerServer;
use trackbed_proto::csi::v1::identity_server::IdentityServer;
use trackbed_proto::csi::v1::node_server::NodeServer;
use trackbed_proto::endpoint::{Endpoint, EndpointError, listen};

use crate::expose::{Expose, VersionView};
use crate::register::{RegisterError, Registration};

mod busy;
mod controller;
mod empty;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod identity;
mod ledger;
mod node;
mod path;
mod record;
mod spec;
mod volume;
mod volumes;

use controller::ControllerService;
use identity::IdentityService;
use ledger::Ledger;
use node::NodeService;
use record::Records;
use volumes::Volumes;

/// The driver's name, as in the CSIDriver object and in every volume that uses it.
pub const DRIVER_NAME: &str = "csi.trackbed.io";

/// The topology key that every node has, its value being the node's id.
pub const TOPOLOGY_NODE: &str = "topology.csi.trackbed.io/node";

/// The longest node id that CSI v1.12 allows, in bytes.
const MAX_NODE_ID_BYTES: usize = 256;

/// How long calls under way may take to end once shutting down: everything that can last longer
/// goes on without its caller anyway.
const DRAIN: Duration = Duration::from_secs(5);

/// The datasets that can be mounted: the cache's agent, or a test's.
pub trait Datasets: Send + Sync + 'static {
    /// What the registry says of a dataset, if it knows it. May wait for the disk.
    fn record(&self, dataset: &DatasetName) -> Result<Option<DatasetRecord>, OpenFailure>;

    /// Opens a version of a dataset, the current one if `version` is `None`.
    fn open<'a>(
        &'a self,
        dataset: &'a DatasetName,
        version: Option<Digest>,
    ) -> BoxFuture<'a, Result<Arc<dyn VersionView>, OpenFailure>>;

    /// The most bytes of datasets that this node can hold. May wait for the disk.
    fn capacity(&self) -> u64;
}

/// Why a dataset cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenFailure {
    /// There is no such dataset or version.
    #[error("{0}")]
    Unknown(String),
    /// It is known, but cannot be had at the moment.
    #[error("{0}")]
    Unavailable(String),
}

/// What a driver is started with.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// The node's id: its Kubernetes name. 1 to 256 bytes.
    pub node_id: String,
    /// Where the driver keeps its few small files; survives reboots.
    pub state_dir: PathBuf,
    /// The registry's folder, in which all nodes find the volumes and snapshots that were created.
    pub registry: PathBuf,
    /// More topology of this node, such as its zone; [`TOPOLOGY_NODE`] is always there.
    pub topology: BTreeMap<String, String>,
    /// kubelet's folder of registration sockets (`/var/lib/kubelet/plugins_registry`): the driver
    /// registers itself there, and looks after what is mounted below the folder that it is in.
    /// `None` where there is no kubelet, or something else registers.
    pub plugins_registry: Option<PathBuf>,
    /// Take all mounts away at the end. In a cluster they are left for the next driver, which
    /// mounts them again.
    pub unmount_on_exit: bool,
}

/// Why the driver cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The node's id is not one.
    #[error("node id {0:?} has {len} bytes: CSI takes 1 to {MAX_NODE_ID_BYTES}", len = .0.len())]
    NodeId(String),
    /// The state directory is of no use.
    #[error("cannot use the state directory {}: {source}", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No socket.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// kubelet does not want it.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The gRPC server ended by itself.
    #[error("the CSI server ended: {0}")]
    Server(#[from] tonic::transport::Error),
    /// Something stays mounted.
    #[error("the CSI driver ended, but something stays mounted: {0}")]
    StaysMounted(String),
}

/// The CSI driver of one node.
pub struct Driver {
    config: DriverConfig,
    datasets: Arc<dyn Datasets>,
    ledger: Arc<Ledger>,
    volumes: Arc<Volumes>,
}

impl Driver {
    /// A driver that knows what an earlier one had staged, shows datasets by `expose`, and serves
    /// nothing yet. Reads small files: call it where waiting is fine.
    pub fn new(
        config: DriverConfig,
        datasets: Arc<dyn Datasets>,
        expose: Arc<dyn Expose>,
    ) -> Result<Driver, DriverError> {
        if config.node_id.is_empty() || config.node_id.len() > MAX_NODE_ID_BYTES {
            return Err(DriverError::NodeId(config.node_id));
        }
        let registry = config.plugins_registry.as_deref();
        let kubelet = registry
            .and_then(Path::parent)
            .and_then(|root| root.canonicalize().ok());
        let volumes = Records::open(&config.state_dir)
            .and_then(|records| Volumes::new(datasets.clone(), expose, records, kubelet))
            .map_err(|source| DriverError::StateDir {
                path: config.state_dir.clone(),
                source,
            })?;
        Ok(Driver {
            ledger: Arc::new(Ledger::new(&config.registry)),
            config,
            datasets,
            volumes,
        })
    }

    /// Tells which versions are mounted on this node, or were and may still be: from its records and
    /// the mount table, whichever process has mounted them. Goes on to do so when the driver has ended.
    pub fn mounted(&self) -> impl Fn() -> HashSet<Digest> + Send + Sync + use<> {
        self.volumes.mounted()
    }

    /// Serves on `endpoint`, registered with kubelet if it is to be, until `shutdown` or until
    /// kubelet refuses. Volumes that an earlier driver left as dead mounts
    /// are mounted again meanwhile.
    pub async fn serve(
        self,
        endpoint: Endpoint,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), DriverError> {
        let (listener, socket_file) = listen(&endpoint)?;
        tracing::info!(%endpoint, node = self.config.node_id, "serving CSI");
        let registration = match &self.config.plugins_registry {
            Some(folder) => Some(Registration::listen(folder, &endpoint)?),
            None => None,
        };
        let recovery = tokio::spawn(self.volumes.clone().recover());
        let mut topology = self.config.topology;
        topology.insert(TOPOLOGY_NODE.to_owned(), self.config.node_id.clone());
        let node = NodeService {
            node_id: self.config.node_id,
            topology,
            ledger: self.ledger.clone(),
            volumes: self.volumes.clone(),
        };
        let controller = ControllerService {
            ledger: self.ledger,
            datasets: self.datasets,
            volumes: self.volumes.clone(),
        };

        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = pin!(
            Server::builder()
                .add_service(IdentityServer::new(IdentityService))
                .add_service(ControllerServer::new(controller))
                .add_service(NodeServer::new(node))
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                    // Also when the sender is dropped: nobody could stop the server any more.
                    let _ = stopped.await;
                })
        );
        let refused = async {
            match registration {
                Some(registration) => registration.serve().await,
                None => std::future::pending().await,
            }
        };
        let end = async {
            tokio::select! {
                () = shutdown => Ok(()),
                error = refused => Err(DriverError::from(error)),
            }
        };
        let served = match select(server, pin!(end)).await {
            Either::Left((ended, _)) => ended.map_err(DriverError::from),
            Either::Right((end, server)) => {
                self.volumes.give_up_waiting();
                // The receiver is in `server`; if that has ended, there is nothing to stop.
                let _ = stop.send(());
                let drained = tokio::time::timeout(DRAIN, server).await.unwrap_or(Ok(()));
                end.and(drained.map_err(DriverError::from))
            }
        };
        drop(socket_file);
        recovery.abort();
        self.volumes
            .shut_down(self.config.unmount_on_exit)
            .await
            .map_err(|error| DriverError::StaysMounted(error.to_string()))
            .and(served)
    }
}
