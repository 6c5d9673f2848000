//! One `trackbed device-plugin run` process, with the machine it looks at and the kubelet it serves.

use std::{fs, io, path::Path};

use crate::{cluster::trackbed, daemon::Daemon, kubelet::Kubelet, machine::Machine};

/// The one pool, which selects all virtual functions.
pub const VF: &str = "trackbed.io/vf";

/// A device plugin, which runs or does not; dropping it kills the process.
pub struct DevicePlugin {
    /// The process. Dropped before what it uses.
    pub daemon: Daemon,
    /// Kubelet, which runs.
    pub kubelet: Kubelet,
    /// Its machine.
    pub machine: Machine,
    _folder: tempfile::TempDir,
}

impl DevicePlugin {
    /// With a kubelet that runs; the plugin does not yet.
    pub fn new(machine: Machine) -> io::Result<DevicePlugin> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("pools.yaml");
        fs::write(&config, "pools: [{name: vf}]")?;
        let mut kubelet = Kubelet::new();
        kubelet.start();
        let command = [&trackbed().display().to_string(), "device-plugin", "run"];
        let command = command.map(str::to_owned).to_vec();
        let mut daemon = Daemon::new(command, folder.path().join("log"));
        let flag = |daemon: &mut Daemon, name, path: &Path| daemon.flag(name, path.display());
        flag(&mut daemon, "--config", &config);
        flag(&mut daemon, "--root", &machine.root());
        flag(&mut daemon, "--state-dir", &folder.path().join("state"));
        flag(&mut daemon, "--kubelet-dir", &kubelet.folder());
        flag(&mut daemon, "--pod-resources", &kubelet.pod_resources());
        Ok(DevicePlugin {
            daemon,
            kubelet,
            machine,
            _folder: folder,
        })
    }
}
