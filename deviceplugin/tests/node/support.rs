//! A machine as files, a kubelet on real sockets, and the plugin between them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use trackbed_deviceplugin::config::Config;
use trackbed_deviceplugin::function::PciAddress;
use trackbed_deviceplugin::plugin::{Plugin, PluginConfig, PluginError};
use trackbed_deviceplugin::probe::Probe;
use trackbed_tests::kubelet::Kubelet;
use trackbed_tests::machine::Machine;

/// Devices that do not work when they are tried.
#[derive(Default)]
pub(crate) struct Broken(pub(crate) Mutex<BTreeSet<PciAddress>>);

impl Probe for Broken {
    fn probe(&self, address: PciAddress) -> Result<(), String> {
        match self.0.lock().expect("no panic").contains(&address) {
            true => Err("bytes are lost".to_owned()),
            false => Ok(()),
        }
    }
}

/// A node: its machine, its kubelet, and the plugin while it runs.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) kubelet: Kubelet,
    pub(crate) broken: Arc<Broken>,
    config: String,
    running: Option<(Arc<Plugin>, JoinHandle<PluginError>)>,
}

impl Node {
    pub(crate) fn new(machine: Machine, config: &str) -> Node {
        Node {
            kubelet: Kubelet::new(),
            machine,
            broken: Arc::default(),
            config: config.to_owned(),
            running: None,
        }
    }

    fn settings(&self) -> PluginConfig {
        PluginConfig {
            config: Config::parse(&self.config).expect("a configuration"),
            root: self.machine.root(),
            state_dir: self.state_dir(),
            kubelet_dir: self.kubelet.folder(),
            pod_resources: self.kubelet.pod_resources(),
        }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.kubelet.folder().with_file_name("state")
    }

    /// Starts the plugin.
    pub(crate) async fn start(&mut self) {
        let (plugin, looker) = self.prepare().await.expect("prepares");
        let running = Arc::clone(&plugin);
        let task = tokio::spawn(async move { running.run(looker).await });
        self.running = Some((plugin, task));
    }

    pub(crate) async fn prepare(
        &self,
    ) -> Result<(Arc<Plugin>, trackbed_deviceplugin::plugin::Looker), PluginError> {
        Plugin::prepare(self.settings(), Arc::clone(&self.broken) as _).await
    }

    pub(crate) fn plugin(&self) -> &Arc<Plugin> {
        &self.running.as_ref().expect("it runs").0
    }

    /// Ends the plugin as `kill -9` does, as far as that can be had in one process: nothing of it goes on.
    pub(crate) async fn kill(&mut self) {
        let (plugin, task) = self.running.take().expect("it runs");
        task.abort();
        let _ = task.await;
        drop(plugin);
        self.kubelet.forget();
    }
}
