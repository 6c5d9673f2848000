//! One `trackbed controller run` process, and what users ask of the same API server.

use std::{
    fs, io,
    process::Command,
    time::{Duration, Instant},
};

use kube::CustomResourceExt;
use trackbed_apiserver::ApiServer;
use trackbed_controller::api::{CacheNode, Caffe2Job, Dataset, KubeflowCaffe2Job};

use crate::{
    cluster::trackbed,
    daemon::{Daemon, free_address},
};

/// Far beyond what anything here takes, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// An API server that knows Trackbed's custom resources.
pub async fn api_server() -> ApiServer {
    let definitions = [
        Dataset::crd(),
        CacheNode::crd(),
        Caffe2Job::crd(),
        KubeflowCaffe2Job::crd(),
    ];
    let definitions = definitions.map(|it| serde_json::to_value(it).expect("JSON"));
    ApiServer::start(&definitions).await.expect("serves")
}

/// A controller, which runs or does not; dropping it kills the process.
pub struct Controller {
    /// The process. Dropped before its folder.
    pub daemon: Daemon,
    /// Where it answers Prometheus.
    pub metrics: String,
    folder: tempfile::TempDir,
}

impl Controller {
    /// Starts one of this name.
    pub fn start(api: &ApiServer, name: &str) -> io::Result<Controller> {
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig())?;
        let command = [&trackbed().display().to_string(), "controller", "run"];
        let command = command.map(str::to_owned).to_vec();
        let mut daemon = Daemon::new(command, folder.path().join("log"));
        daemon.env("TRACKBED_NAME", name);
        daemon.env("KUBECONFIG", &kubeconfig.display().to_string());
        let metrics = free_address();
        daemon.env("TRACKBED_METRICS_LISTEN", &metrics);
        daemon.start()?;
        Ok(Controller {
            daemon,
            metrics,
            folder,
        })
    }

    /// Runs `trackbed …` as a user of the same API server; gives its exit status and what it prints or
    /// says.
    pub async fn command(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(trackbed());
        command.args(words);
        command.env("KUBECONFIG", self.folder.path().join("kubeconfig"));
        let ran = tokio::task::spawn_blocking(move || command.output()).await;
        let ran = ran.expect("no panic").expect("runs");
        let said = if ran.status.success() {
            ran.stdout
        } else {
            ran.stderr
        };
        (
            ran.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// Waits until something is there, and gives it.
    pub async fn until<T>(&self, mut there: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(there) = there() {
                return there;
            }
            assert!(
                Instant::now() < deadline,
                "it did not become so: {}",
                self.daemon.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
