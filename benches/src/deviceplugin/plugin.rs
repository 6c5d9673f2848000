//! The plugin as a process, between a machine of files and a kubelet.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::Channel;
use trackbed_proto::deviceplugin::v1beta1::device_plugin_client::DevicePluginClient;
use trackbed_proto::deviceplugin::v1beta1::{AllocateRequest, ContainerAllocateRequest};
use trackbed_tests::kubelet::{Kubelet, PATIENCE};
use trackbed_tests::machine::{Adapter, Machine};

use super::milliseconds;
use crate::BenchError;

/// Virtual functions: eight ports with 127 each.
pub(super) const VFS: usize = PORTS as usize * OF_A_PORT as usize;
const PORTS: u8 = 8;
const OF_A_PORT: u32 = 127;
const RESOURCE: &str = "trackbed.io/vf";
/// In memory, as sysfs is.
const MEMORY: &str = "/dev/shm";

/// The n-th port's adapter, and the number of its RDMA device.
fn port(number: u8) -> (Adapter, u32) {
    let adapter = Adapter {
        bus: 0x10 + 0x10 * number,
        serial: None,
        numa_node: u32::from(number / 4),
        ..Adapter::ROCE
    };
    (adapter, 200 * u32::from(number))
}

/// A machine with all of them.
pub(super) fn machine() -> Result<Machine, BenchError> {
    if !Path::new(MEMORY).is_dir() {
        return Err(BenchError::Unavailable(format!(
            "{MEMORY} is not there: the machine's files must be in memory as sysfs is"
        )));
    }
    let machine = Machine::below(Path::new(MEMORY));
    for (adapter, number) in (0..PORTS).map(port) {
        machine.adapter(&adapter, number);
        machine.virtual_functions(&adapter, OF_A_PORT, number + 1);
    }
    Ok(machine)
}

/// The plugin's process and the kubelet that knows it.
pub(super) struct Running<'a> {
    machine: &'a Machine,
    kubelet: Kubelet,
    process: Child,
    client: DevicePluginClient<Channel>,
    ids: Vec<String>,
    _folder: TempDir,
}

impl<'a> Running<'a> {
    /// Starts both, and waits until kubelet has all devices.
    pub(super) async fn start(machine: &'a Machine) -> Result<Running<'a>, BenchError> {
        let folder = tempfile::tempdir_in(MEMORY).map_err(BenchError::io("making a folder"))?;
        let config = folder.path().join("config.yaml");
        let text = "pools: [{name: vf, select: {rdma: true}}]";
        std::fs::write(&config, text).map_err(BenchError::io("writing a configuration"))?;
        let mut kubelet = Kubelet::new();
        kubelet.start();
        // In a network namespace of its own, in which a link can be set up and down: the kernel tells of
        // that as it tells of a port.
        // It ends with this program, however that ends.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--"])
            .arg(program())
            .args(["--log", "error", "device-plugin", "run", "--config"])
            .arg(config)
            .arg("--root")
            .arg(machine.root())
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .arg("--kubelet-dir")
            .arg(kubelet.folder())
            .arg("--pod-resources")
            .arg(kubelet.pod_resources())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| BenchError::Start {
                program: "setpriv".to_owned(),
                source,
                remedy: "install util-linux, and run as root",
            })?;
        let list = kubelet.healthy(RESOURCE, VFS).await;
        let client = kubelet.plugin(RESOURCE).await;
        Ok(Running {
            machine,
            process,
            client,
            ids: list.into_iter().map(|device| device.id).collect(),
            kubelet,
            _folder: folder,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id().unwrap_or_default()
    }

    /// Of all devices, by which kubelet knows them.
    pub(super) fn ids(&self) -> &[String] {
        &self.ids
    }

    /// Milliseconds that an allocation takes, the way there and back included.
    pub(super) async fn allocate(&self, id: &str) -> Result<f64, BenchError> {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices_ids: vec![id.to_owned()],
            }],
        };
        let mut client = self.client.clone();
        let began = Instant::now();
        let answered = client.allocate(request).await;
        let took = milliseconds(began);
        let refused = |status: tonic::Status| BenchError::Unavailable(status.message().to_owned());
        answered.map_err(refused).map(|_| took)
    }

    /// Milliseconds from a port's fall to the list without its device, and puts it up again.
    pub(super) async fn fault(&self) -> Result<f64, BenchError> {
        let (adapter, number) = port(3);
        let address = adapter.vf(5);
        // A link of this namespace that changes makes the kernel tell, in the order that ports do.
        let began = Instant::now();
        self.machine.set_port(&adapter, &address, number + 6, false);
        let told = self.tell("up").await;
        let took = match told {
            Ok(()) => {
                self.kubelet.healthy(RESOURCE, VFS - 1).await;
                Ok(milliseconds(began))
            }
            Err(error) => Err(error),
        };
        self.machine.set_port(&adapter, &address, number + 6, true);
        took
    }

    async fn tell(&self, state: &str) -> Result<(), BenchError> {
        let pid = self.pid().to_string();
        let command = ["--target", &pid, "--net", "ip", "link", "set", "lo", state];
        let status = Command::new("nsenter").args(command).status().await;
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(BenchError::Unavailable(format!(
                "`nsenter {}` ended with {status}: run as root",
                command.join(" ")
            ))),
            Err(source) => Err(BenchError::Start {
                program: "nsenter".to_owned(),
                source,
                remedy: "install util-linux and iproute2",
            }),
        }
    }

    /// Milliseconds from kubelet's start, after it was killed, to all devices on its list.
    pub(super) async fn restart_kubelet(&mut self) -> Result<f64, BenchError> {
        self.kubelet.kill().await;
        // Long enough for the plugin to notice.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        self.kubelet.start();
        self.kubelet.healthy(RESOURCE, VFS).await;
        Ok(milliseconds(began))
    }

    /// Ends the plugin.
    pub(super) async fn stop(mut self) {
        let _ = self.process.start_kill();
        let _ = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        self.kubelet.kill().await;
    }
}

/// `trackbed` beside this program.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("trackbed")
}
