//! One `trackbed node` process, and what kubelet and an administrator say to it.

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::Pid,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use trackbed_proto::{
    csi::v1::{
        NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
        NodeUnstageVolumeRequest, VolumeCapability,
        controller_client::ControllerClient,
        node_client::NodeClient,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    node::v1::{
        Counters, Dataset, DatasetStatus, GetCountersRequest, GetDatasetStatusRequest,
        RegisterDatasetRequest, VerifyDatasetRequest, VerifyReport, WarmDatasetRequest,
        node_control_client::NodeControlClient, register_dataset_event::Event,
        verify_dataset_event,
    },
    pluginregistration::v1::registration_client::RegistrationClient,
};

use crate::daemon::Daemon;

/// How long a node may take until it answers; far beyond what it needs, as the machine may be busy.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A running node; dropping it kills the process, ends its keeper and takes its mounts away.
pub struct Node {
    /// Its name in the registry and in its certificate.
    pub name: String,
    /// Loopback address that is this node's alone.
    pub address: Ipv4Addr,
    /// Its folder: cache, sockets, log, volumes.
    pub folder: PathBuf,
    daemon: Daemon,
}

impl Node {
    pub(crate) fn new(
        name: &str,
        address: Ipv4Addr,
        folder: PathBuf,
        command: Vec<String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            address,
            daemon: Daemon::new(command, folder.join("node.log")),
            folder,
        }
    }

    /// Gives the process, not yet started, one more flag.
    pub fn flag(&mut self, name: &str, value: impl ToString) {
        self.daemon.flag(name, value);
    }

    /// Gives the process, not yet started, a variable of its environment.
    pub fn env(&mut self, name: &str, value: &str) {
        self.daemon.env(name, value);
    }

    /// Has the process, not yet started, be started by another program.
    pub fn prefix(&mut self, words: &[&str]) {
        self.daemon.prefix(words);
    }

    /// Has another build be started from now on.
    pub fn program(&mut self, program: &Path) {
        self.daemon.program(program);
    }

    /// Starts the process; returns when its sockets answer.
    pub async fn start(&mut self) -> io::Result<()> {
        self.daemon.start()?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let failed = match self.counters().await {
                Ok(_) => return Ok(()),
                Err(status) => status,
            };
            let ended = self.daemon.ended();
            if ended.is_some() || Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "{} is not ready ({failed}; ended: {ended:?}); its log:\n{}",
                    self.name,
                    self.log()
                )));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// What the node wrote to its log so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// The folder of the node's cache.
    pub fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }

    /// Where a volume is published for its pod.
    pub fn target(&self, volume: &str) -> PathBuf {
        self.folder.join("pods").join(volume).join("mount")
    }

    fn staging(&self, volume: &str) -> PathBuf {
        self.folder.join("staging").join(volume)
    }

    /// Kills the process as a crash or an out-of-memory kill would.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Asks the process to end, as an upgrade does, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.daemon.terminate()
    }

    /// The socket of the keeper that serves the node's mounts, and outlives it.
    pub fn keeper(&self) -> PathBuf {
        self.cache().join("keeper.sock")
    }

    /// The process that serves that socket.
    ///
    /// # Panics
    ///
    /// If none does.
    pub fn keeper_process(&self) -> Pid {
        let stream =
            std::os::unix::net::UnixStream::connect(self.keeper()).expect("the keeper answers");
        let peer = getsockopt(&stream, PeerCredentials).expect("it is a process");
        Pid::from_raw(peer.pid())
    }

    /// Asks the node's keeper, if it has one, to take its mounts away and end.
    fn end_keeper(&self) {
        if self.keeper().exists() {
            // One that was killed has left its socket, and does not answer.
            let _ = Command::new(crate::cluster::trackbed())
                .args(["keeper", "--end", "--socket"])
                .arg(self.keeper())
                .stderr(Stdio::null())
                .status();
        }
    }

    /// The node's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.pid()
    }

    /// Registers what is at `origin` now as the dataset `name`.
    pub async fn register(&self, name: &str, origin: &str) -> Result<Dataset, Status> {
        let request = RegisterDatasetRequest {
            name: name.to_owned(),
            origin: origin.to_owned(),
            readers: None,
        };
        let channel = channel(self.folder.join("admin.sock")).await?;
        let mut events = NodeControlClient::new(channel)
            .register_dataset(request)
            .await?
            .into_inner();
        while let Some(event) = events.message().await? {
            if let Some(Event::Registered(dataset)) = event.event {
                return Ok(dataset);
            }
        }
        Err(Status::internal("the stream ended without a dataset"))
    }

    /// How much of a dataset the node has, and how it shows it.
    pub async fn status(&self, dataset: &str) -> Result<DatasetStatus, Status> {
        let request = GetDatasetStatusRequest {
            name: dataset.to_owned(),
        };
        let channel = channel(self.folder.join("admin.sock")).await?;
        let answer = NodeControlClient::new(channel)
            .get_dataset_status(request)
            .await?;
        Ok(answer.into_inner())
    }

    /// Checks all of a dataset that is on the node's disk, and has what is damaged mended.
    pub async fn verify(&self, dataset: &str) -> Result<VerifyReport, Status> {
        let request = VerifyDatasetRequest {
            name: dataset.to_owned(),
        };
        let channel = channel(self.folder.join("admin.sock")).await?;
        let mut told = NodeControlClient::new(channel)
            .verify_dataset(request)
            .await?
            .into_inner();
        while let Some(event) = told.message().await? {
            if let Some(verify_dataset_event::Event::Report(report)) = event.event {
                return Ok(report);
            }
        }
        Err(Status::internal("the stream ended without a report"))
    }

    /// Brings a dataset to the node's disk, and waits until it can be shown to pods natively.
    pub async fn complete(&self, dataset: &str) -> Result<(), Status> {
        self.warm(dataset).await?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let status = self.status(dataset).await?;
            if status.native {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Status::deadline_exceeded(status.not_native_because));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Brings a dataset to the node's disk.
    pub async fn warm(&self, dataset: &str) -> Result<(), Status> {
        self.warm_share(dataset, 1000).await
    }

    /// Brings a share of a dataset, in thousandths, to the node's disk.
    pub async fn warm_share(&self, dataset: &str, permille: u32) -> Result<(), Status> {
        let request = WarmDatasetRequest {
            name: dataset.to_owned(),
            permille,
            ..Default::default()
        };
        let channel = channel(self.folder.join("admin.sock")).await?;
        let mut told = NodeControlClient::new(channel)
            .warm_dataset(request)
            .await?
            .into_inner();
        while told.message().await?.is_some() {}
        Ok(())
    }

    /// What the node has moved so far.
    pub async fn counters(&self) -> Result<Counters, Status> {
        let channel = channel(self.folder.join("admin.sock")).await?;
        let answer = NodeControlClient::new(channel)
            .get_counters(GetCountersRequest {})
            .await?;
        Ok(answer.into_inner())
    }

    /// The node's CSI service.
    pub async fn csi(&self) -> Result<NodeClient<Channel>, Status> {
        Ok(NodeClient::new(
            channel(self.folder.join("csi.sock")).await?,
        ))
    }

    /// The node's CSI controller, as the provisioner reaches it.
    pub async fn controller(&self) -> Result<ControllerClient<Channel>, Status> {
        Ok(ControllerClient::new(
            channel(self.folder.join("csi.sock")).await?,
        ))
    }

    /// The node's socket in kubelet's folder of such sockets.
    pub async fn registration(&self, folder: &Path) -> Result<RegistrationClient<Channel>, Status> {
        Ok(RegistrationClient::new(
            channel(folder.join("csi.trackbed.io-reg.sock")).await?,
        ))
    }

    /// Waits for the process to end by itself, and gives its exit status.
    pub fn wait(&mut self) -> Option<i32> {
        self.daemon.wait()?.code()
    }

    /// Stages and publishes a dataset as kubelet does, and returns the mount for the pod.
    pub async fn mount(&self, dataset: &str) -> Result<PathBuf, Status> {
        self.mount_for(dataset, None).await
    }

    /// The same for a pod of this namespace.
    pub async fn mount_for(
        &self,
        dataset: &str,
        namespace: Option<&str>,
    ) -> Result<PathBuf, Status> {
        let (staging, target) = (self.staging(dataset), self.target(dataset));
        match std::fs::create_dir_all(&staging) {
            // A dead mount is there and cannot be looked at.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        std::fs::create_dir_all(target.parent().expect("a target lies in its pod's folder"))?;
        let stage = stage_request(dataset, &staging);
        let mut publish = publish_request(dataset, &staging, &target);
        publish.volume_context.extend(namespace.map(|namespace| {
            let key = "csi.storage.k8s.io/pod.namespace";
            (key.to_owned(), namespace.to_owned())
        }));
        as_kubelet(async || self.csi().await?.node_stage_volume(stage.clone()).await).await?;
        as_kubelet(async || self.csi().await?.node_publish_volume(publish.clone()).await).await?;
        Ok(target)
    }

    /// Takes a dataset's mounts away again, as kubelet does.
    pub async fn unmount(&self, dataset: &str) -> Result<(), Status> {
        let mut csi = self.csi().await?;
        csi.node_unpublish_volume(NodeUnpublishVolumeRequest {
            volume_id: dataset.to_owned(),
            target_path: text(&self.target(dataset)),
        })
        .await?;
        csi.node_unstage_volume(NodeUnstageVolumeRequest {
            volume_id: dataset.to_owned(),
            staging_target_path: text(&self.staging(dataset)),
        })
        .await?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        self.end_keeper();
        // A killed driver leaves its mounts behind, dead; kubelet would clean up, here we do.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut ours: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|mount| Path::new(mount).starts_with(&self.folder))
            .collect();
        ours.reverse();
        for mount in ours {
            // What fails here shows as a busy temporary folder.
            let _ = Command::new("umount").args(["--lazy", mount]).status();
        }
    }
}

/// Makes a call, and makes it again as kubelet does while another operation on the volume goes on:
/// a node that has just started takes its mounts up again by itself.
async fn as_kubelet<T>(call: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        match call().await {
            Err(status) if status.code() == Code::Aborted && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}

/// What kubelet sends to stage a dataset.
pub fn stage_request(dataset: &str, staging: &Path) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: dataset.to_owned(),
        staging_target_path: text(staging),
        volume_capability: Some(read_only_mount()),
        ..Default::default()
    }
}

/// What kubelet sends to publish a staged dataset for a pod.
pub fn publish_request(dataset: &str, staging: &Path, target: &Path) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: dataset.to_owned(),
        staging_target_path: text(staging),
        target_path: text(target),
        volume_capability: Some(read_only_mount()),
        readonly: true,
        ..Default::default()
    }
}

fn read_only_mount() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::MultiNodeReaderOnly as i32,
        }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn text(path: &Path) -> String {
    path.to_str()
        .expect("test folders have plain names")
        .to_owned()
}

async fn channel(socket: PathBuf) -> Result<Channel, Status> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}
