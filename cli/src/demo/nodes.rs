//! The demo's nodes: ordinary `trackbed node` processes, each in its place in the network.

use super::certificates::Identity;
use super::network::Place;
use super::roce;
use super::workdir::private_dir;
use crate::exit::Failure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};
use trackbed_proto::node::v1::GetCountersRequest;
use trackbed_proto::node::v1::node_control_client::NodeControlClient;

/// The port of every node's control interface: each has an address of its own.
const CONTROL_PORT: u16 = 7420;

/// How long a node may take to serve, on a slow and busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long a node may take to end when asked to.
const END_WITHIN: Duration = Duration::from_secs(8);

/// Lines of a failed node's log that are shown.
const TAIL_LINES: usize = 12;

/// Pinned memory of a node: little, as several share one machine, and the more chunks are under way
/// at once the longer each takes where packets are made by software.
const MEMORY: &str = "96MiB";

/// No peer dies in a demo, but an emulated or busy machine may be slow.
const PEER_TIMEOUT_SECONDS: &str = "60";

/// Warnings of a node that are shown when the outcome is wrong.
const WARNINGS_SHOWN: usize = 3;

/// Levels a node logs to its file when nothing else is said.
const NODE_LOG: &str = "info";

/// A node: where things of it are, and its process once it runs.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) control: SocketAddr,
    child: Option<Child>,
}

/// What all nodes of a run are started with.
pub(crate) struct Start<'a> {
    pub(crate) registry: &'a Path,
    /// "tcp" or "verbs".
    pub(crate) fabric: &'static str,
    pub(crate) log: Option<&'a str>,
}

impl Node {
    /// Node number `index` (from 0) of the demo in `work`, at `place`.
    pub(crate) fn new(work: &Path, index: usize, place: &Place) -> Result<Node, Failure> {
        let name = format!("node-{}", index + 1);
        let folder = work.join(&name);
        private_dir(&folder).map_err(|error| {
            Failure::failed(format!("cannot make {}: {error}", folder.display()))
        })?;
        let control = SocketAddr::new(place.address, CONTROL_PORT);
        Ok(Node {
            name,
            folder,
            control,
            child: None,
        })
    }

    /// Starts the process in its place.
    pub(crate) fn start(
        &mut self,
        index: usize,
        place: &Place,
        identity: &Identity,
        start: &Start<'_>,
    ) -> Result<(), Failure> {
        let refuse = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("cannot start {}: {error}", self.name))
        };
        let program = std::env::current_exe().map_err(|error| refuse(&error))?;
        let log = File::create(self.log()).map_err(|error| refuse(&error))?;
        let mut command = Command::new(program);
        command
            .args([
                "--log",
                start.log.unwrap_or(NODE_LOG),
                "node",
                "--name",
                &self.name,
            ])
            .args([
                "--control-listen",
                &self.control.to_string(),
                "--fabric",
                start.fabric,
            ])
            .arg("--registry")
            .arg(start.registry)
            .arg("--cache-dir")
            .arg(self.folder.join("cache"))
            .arg("--tls-ca")
            .arg(&identity.ca)
            .arg("--tls-cert")
            .arg(&identity.certificate)
            .arg("--tls-key")
            .arg(&identity.key)
            .arg("--admin-socket")
            .arg(self.admin_socket())
            .arg("--csi-endpoint")
            .arg(format!("unix://{}", self.csi_socket().display()))
            .arg("--unmount-on-exit")
            .args(["--memory", MEMORY, "--peer-timeout", PEER_TIMEOUT_SECONDS])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| refuse(&error))?)
            .stderr(log)
            // Ctrl-C at a terminal is for the conductor, which ends the nodes in order.
            .process_group(0)
            .kill_on_drop(true);
        if start.fabric == "verbs" && place.is_namespace() {
            command.args(["--rdma-device", &roce::device_name(index)]);
        }
        let runtime = tokio::runtime::Handle::current();
        let spawned = place.run(|| {
            let _current = runtime.enter();
            command.spawn()
        })?;
        self.child = Some(spawned.map_err(|error| refuse(&error))?);
        Ok(())
    }

    /// Waits until the node answers on its admin socket.
    pub(crate) async fn ready(&mut self) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            self.check_alive()?;
            if let Ok(mut client) = self.admin().await
                && client.get_counters(GetCountersRequest {}).await.is_ok()
            {
                return Ok(());
            }
            if start.elapsed() > READY_WITHIN {
                let why = format!("does not answer within {READY_WITHIN:?}");
                return Err(self.failed(&why));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// An error when the process has ended.
    pub(crate) fn check_alive(&mut self) -> Result<(), Failure> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Err(self.failed(&format!("ended ({status})"))),
            _ => Ok(()),
        }
    }

    /// A failure of this node, with the end of its log.
    pub(crate) fn failed(&self, why: &str) -> Failure {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
        Failure::failed(format!(
            "{} {why}; the end of its log:\n  {tail}",
            self.name
        ))
    }

    /// The last warnings and errors of its log.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let grave = log
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        let lines: Vec<_> = grave.map(|line| format!("{}: {line}", self.name)).collect();
        lines[lines.len().saturating_sub(WARNINGS_SHOWN)..].to_vec()
    }

    /// A client of the admin socket.
    pub(crate) async fn admin(&self) -> Result<NodeControlClient<Channel>, Failure> {
        Ok(NodeControlClient::new(
            unix_channel(&self.admin_socket()).await?,
        ))
    }

    /// The socket of the CSI driver.
    pub(crate) fn csi_socket(&self) -> PathBuf {
        self.folder.join("csi.sock")
    }

    fn admin_socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Asks for the end.
    pub(crate) fn ask_to_end(&self) {
        if let Some(pid) = self.child.as_ref().and_then(Child::id) {
            // Already gone: just what is asked for.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
    }

    /// Waits for the end that was asked for; kills what takes too long. What was wrong, if
    /// anything was.
    pub(crate) async fn ended(&mut self) -> Option<String> {
        let child = self.child.as_mut()?;
        match tokio::time::timeout(END_WITHIN, child.wait()).await {
            Ok(Ok(status)) if status.success() => None,
            Ok(Ok(status)) => Some(format!("{} ended with {status}", self.name)),
            Ok(Err(error)) => Some(format!("{}: {error}", self.name)),
            Err(_) => {
                // Its namespaces go in any case; nobody shall wait for them.
                let _ = child.start_kill();
                Some(format!(
                    "{} did not end within {END_WITHIN:?} and was killed",
                    self.name
                ))
            }
        }
    }
}

/// A gRPC channel over a unix socket.
pub(crate) async fn unix_channel(socket: &Path) -> Result<Channel, Failure> {
    let refuse = |error: tonic::transport::Error| {
        Failure::failed(format!("cannot connect to {}: {error}", socket.display()))
    };
    Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(refuse)?
        .connect()
        .await
        .map_err(refuse)
}
