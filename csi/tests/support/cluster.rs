//! A driver on a socket of its own, with datasets in memory, and a client as kubelet is one.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::mount::{MntFlags, umount2};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use trackbed_cache::Digest;
use trackbed_cache::registry::{DatasetName, DatasetRecord, Namespace};
use trackbed_csi::driver::{Datasets, Driver, DriverConfig, DriverError, OpenFailure};
use trackbed_csi::expose::VersionView;
use trackbed_csi::expose::fuse::InProcess;
use trackbed_csi::expose::mountinfo::MountTable;
use trackbed_csi::expose::native::{Choice, NativeFirst};
use trackbed_proto::csi::v1::controller_client::ControllerClient;
use trackbed_proto::csi::v1::identity_client::IdentityClient;
use trackbed_proto::csi::v1::node_client::NodeClient;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use trackbed_proto::csi::v1::{
    CreateSnapshotRequest, CreateVolumeRequest, NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, Snapshot, Volume, VolumeCapability, VolumeCondition,
};

use super::{MemoryVersion, abort_connection};

/// Datasets in memory.
pub(crate) struct MemoryDatasets {
    records: Mutex<HashMap<DatasetName, DatasetRecord>>,
    versions: Mutex<HashMap<Digest, Arc<MemoryVersion>>>,
    /// Opening takes a permit: take them away to hold it up.
    pub(crate) gate: Semaphore,
    pub(crate) opening: tokio::sync::watch::Sender<usize>,
    pub(crate) down: Mutex<bool>,
}

impl MemoryDatasets {
    pub(crate) fn new() -> Arc<MemoryDatasets> {
        Arc::new(MemoryDatasets {
            records: Mutex::default(),
            versions: Mutex::default(),
            gate: Semaphore::new(1000),
            opening: tokio::sync::watch::Sender::new(0),
            down: Mutex::new(false),
        })
    }

    /// Makes this the dataset's current version.
    pub(crate) fn put(&self, name: &str, version: &Arc<MemoryVersion>) {
        let digest = version.manifest().digest();
        self.versions.lock().insert(digest, version.clone());
        let name: DatasetName = name.parse().expect("a name");
        let origin = "file:///data".parse().expect("a URL");
        let mut records = self.records.lock();
        let mut record = DatasetRecord::new(name.clone(), origin, digest);
        if let Some(before) = records.remove(&name) {
            record = record.following(before);
        }
        records.insert(name, record);
    }

    /// Lets only these namespaces read a dataset.
    pub(crate) fn only_for(&self, name: &str, namespaces: &[&str]) {
        let names = namespaces.iter().map(|name| Namespace::parse(name));
        let name: DatasetName = name.parse().expect("a name");
        let mut records = self.records.lock();
        let record = records.get_mut(&name).expect("registered");
        record.namespaces = Some(names.map(|name| name.expect("valid")).collect());
    }

    /// Takes a dataset out of the registry.
    pub(crate) fn forget(&self, name: &str) {
        let name: DatasetName = name.parse().expect("a name");
        self.records.lock().remove(&name).expect("registered");
    }
}

impl Datasets for MemoryDatasets {
    fn record(&self, dataset: &DatasetName) -> Result<Option<DatasetRecord>, OpenFailure> {
        Ok(self.records.lock().get(dataset).cloned())
    }

    fn open<'a>(
        &'a self,
        dataset: &'a DatasetName,
        version: Option<Digest>,
    ) -> BoxFuture<'a, Result<Arc<dyn VersionView>, OpenFailure>> {
        async move {
            self.opening.send_modify(|count| *count += 1);
            let _permit = self.gate.acquire().await.expect("never closed");
            if *self.down.lock() {
                return Err(OpenFailure::Unavailable("no peer answers".to_owned()));
            }
            let current = self
                .records
                .lock()
                .get(dataset)
                .map(|record| record.version);
            current
                .map(|current| version.unwrap_or(current))
                .and_then(|digest| self.versions.lock().get(&digest).cloned())
                .map(|version| version as Arc<dyn VersionView>)
                .ok_or_else(|| OpenFailure::Unknown(format!("there is no dataset {dataset}")))
        }
        .boxed()
    }

    fn capacity(&self) -> u64 {
        1 << 40
    }
}

/// A folder that goes with all that is mounted in it, also when its test fails.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let table = MountTable::read().expect("reads");
        for mount in table.mounts().iter().rev() {
            if mount.mount_point.starts_with(self.path()) {
                // What is left shows in the tests' own checks.
                let _ = umount2(&mount.mount_point, MntFlags::MNT_DETACH);
            }
        }
    }
}

/// Tells which versions are mounted.
pub(crate) type Mounted = Arc<dyn Fn() -> HashSet<Digest> + Send + Sync>;

/// A running driver.
pub(crate) struct Cluster {
    pub(crate) folder: Folder,
    pub(crate) node: NodeClient<Channel>,
    pub(crate) identity: IdentityClient<Channel>,
    pub(crate) controller: ControllerClient<Channel>,
    /// What the driver says is mounted.
    pub(crate) mounted: Mounted,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), DriverError>>,
}

impl Cluster {
    pub(crate) async fn start(datasets: &Arc<MemoryDatasets>) -> Cluster {
        Cluster::start_with(datasets.clone()).await
    }

    pub(crate) async fn start_with(datasets: Arc<dyn Datasets>) -> Cluster {
        Cluster::start_in(Folder::new(), datasets, true).await
    }

    pub(crate) async fn start_in(
        folder: Folder,
        datasets: Arc<dyn Datasets>,
        unmount_on_exit: bool,
    ) -> Cluster {
        Cluster::start_showing(folder, None, datasets, unmount_on_exit, Choice::Auto).await
    }

    /// With a kubelet whose folder of registration sockets is `kubelet`, if there is one.
    pub(crate) async fn start_below(
        folder: Folder,
        kubelet: Option<PathBuf>,
        datasets: Arc<dyn Datasets>,
        unmount_on_exit: bool,
    ) -> Cluster {
        Cluster::start_showing(folder, kubelet, datasets, unmount_on_exit, Choice::Auto).await
    }

    pub(crate) async fn start_showing(
        folder: Folder,
        kubelet: Option<PathBuf>,
        datasets: Arc<dyn Datasets>,
        unmount_on_exit: bool,
        expose: Choice,
    ) -> Cluster {
        let expose = NativeFirst::new(Arc::new(InProcess), expose);
        Cluster::start_exposing(folder, kubelet, datasets, unmount_on_exit, expose).await
    }

    pub(crate) async fn start_exposing(
        folder: Folder,
        kubelet: Option<PathBuf>,
        datasets: Arc<dyn Datasets>,
        unmount_on_exit: bool,
        expose: NativeFirst,
    ) -> Cluster {
        let config = DriverConfig {
            plugins_registry: kubelet,
            node_id: "node-1".to_owned(),
            state_dir: folder.path().join("state"),
            registry: folder.path().join("registry"),
            topology: [("zone".to_owned(), "a".to_owned())].into(),
            unmount_on_exit,
        };
        let driver = Driver::new(config, datasets, Arc::new(expose));
        let driver = driver.expect("a driver");
        let mounted = Arc::new(driver.mounted());
        let endpoint = format!("unix://{}/csi.sock", folder.path().display());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(driver.serve(
            endpoint.parse().expect("an endpoint"),
            stopped.map(|_: Result<(), _>| ()),
        ));
        let endpoint = Endpoint::from_shared(endpoint).expect("an endpoint");
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(error) => {
                    assert!(!served.is_finished(), "the driver ended: {error}");
                    tokio::task::yield_now().await;
                }
            }
        };
        Cluster {
            folder,
            node: NodeClient::new(channel.clone()),
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel),
            mounted,
            stop,
            served,
        }
    }

    /// Creates a volume, which has to succeed.
    pub(crate) async fn create(&mut self, request: CreateVolumeRequest) -> Volume {
        let created = self.controller.create_volume(request).await;
        let volume = created.expect("creates").into_inner().volume;
        volume.expect("a volume")
    }

    /// Takes a snapshot, which has to succeed.
    pub(crate) async fn snapshot(&mut self, request: CreateSnapshotRequest) -> Snapshot {
        let taken = self.controller.create_snapshot(request).await;
        let snapshot = taken.expect("takes").into_inner().snapshot;
        let snapshot = snapshot.expect("a snapshot");
        assert!(snapshot.ready_to_use && snapshot.creation_time.is_some());
        snapshot
    }

    /// Ends the driver as a signal would, and gives its folder.
    pub(crate) async fn stop(self) -> (Folder, Result<(), DriverError>) {
        drop((self.node, self.identity, self.controller));
        self.stop.send(()).expect("it runs");
        (self.folder, self.served.await.expect("no panic"))
    }

    /// Waits for the driver to end by itself, and gives its folder.
    pub(crate) async fn ended(self) -> (Folder, Result<(), DriverError>) {
        drop((self.node, self.identity, self.controller));
        (self.folder, self.served.await.expect("no panic"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    pub(crate) fn stage(&self, volume: &str) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: self.text(&format!("staging-{volume}")),
            volume_capability: Some(capability(Mode::MultiNodeReaderOnly)),
            ..Default::default()
        }
    }

    pub(crate) fn unstage(&self, volume: &str) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: self.text(&format!("staging-{volume}")),
        }
    }

    pub(crate) fn publish(&self, volume: &str, target: &str) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: self.text(&format!("staging-{volume}")),
            target_path: self.text(target),
            volume_capability: Some(capability(Mode::MultiNodeReaderOnly)),
            ..Default::default()
        }
    }

    pub(crate) fn unpublish(&self, volume: &str, target: &str) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: self.text(target),
        }
    }

    pub(crate) async fn condition(&mut self, volume: &str, path: &str) -> VolumeCondition {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: self.text(path),
            ..Default::default()
        };
        let stats = self.node.node_get_volume_stats(request).await;
        let stats = stats.expect("known").into_inner();
        stats.volume_condition.expect("a condition")
    }

    /// The FUSE connection of what is mounted there.
    pub(crate) fn connection(&self, name: &str) -> u32 {
        let table = MountTable::read().expect("reads");
        let top = table.top(&self.resolved(name)).expect("mounted");
        top.device.1
    }

    /// Ends what serves a mount, as `kill -9` would, and waits until the driver has noticed.
    pub(crate) async fn kill_mount(&mut self, volume: &str, name: &str) -> VolumeCondition {
        abort_connection(self.connection(name));
        loop {
            let condition = self.condition(volume, name).await;
            if condition.abnormal {
                return condition;
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn is_mounted(&self, name: &str) -> bool {
        let table = MountTable::read().expect("reads");
        table.top(&self.resolved(name)).is_some()
    }

    pub(crate) fn resolved(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().expect("there").join(name)
    }
}

pub(crate) fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

/// How many mounts there are at or below a folder.
pub(crate) fn mounts_below(folder: &Path) -> usize {
    let folder = folder.canonicalize().expect("there");
    let table = MountTable::read().expect("reads");
    let below = table.mounts().iter();
    below
        .filter(|mount| mount.mount_point.starts_with(&folder))
        .count()
}
