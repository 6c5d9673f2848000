//! How many gangs a second a controller admits: a process, beside the tests' API server in this one. A gang
//! is admitted when all its pods are pinned to their nodes and let go.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trackbed_apiserver::{ApiServer, Machines};
use trackbed_tests::cluster::trackbed;

use crate::BenchError;

/// Gangs that wait when the controller starts.
const GANGS: usize = 500;
/// Pods of each, with an accelerator each.
const PODS: usize = 4;
/// Nodes of eight accelerators: all gangs fit at once.
const NODES: usize = GANGS * PODS / 8;
/// Within which they must be admitted: less than the timer after which pods that nobody binds are taken back.
const PATIENCE: Duration = Duration::from_secs(25);

/// Gangs a second, from the controller's first look at the jobs to the last pod let go.
pub(super) fn rate() -> Result<f64, BenchError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The API server takes more than the controller does.
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(BenchError::io("starting a runtime"))?;
    runtime.block_on(measure())
}

struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn measure() -> Result<f64, BenchError> {
    let definitions = definitions()?;
    let api = ApiServer::start(&definitions)
        .await
        .map_err(BenchError::io("starting an API server"))?;
    {
        // Nodes, but nobody who binds or runs pods: that is not what is measured.
        let machines = Machines::start(&api);
        for node in 0..NODES {
            machines.add(&api, &format!("node-{node}"), 8);
        }
    }
    let template = json!({ "spec": { "containers": [{ "name": "caffe2", "image": "caffe2",
        "resources": { "limits": { "nvidia.com/gpu": "1" } } }] } });
    for gang in 0..GANGS {
        api.create(
            &json!({ "apiVersion": "trackbed.io/v1", "kind": "Caffe2Job",
            "metadata": { "name": format!("gang-{gang}"), "namespace": "bench" },
            "spec": { "roles": [{ "name": "worker", "replicas": PODS, "template": template }],
                "rendezvous": { "type": "FileStore", "path": "/share" } } }),
        );
    }
    let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig())
        .map_err(BenchError::io("writing a kubeconfig"))?;
    let process = Command::new(trackbed())
        .args(["controller", "run", "--name", "bench", "--log", "error"])
        .env("KUBECONFIG", &kubeconfig)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|source| BenchError::Start {
            program: trackbed().display().to_string(),
            source,
            remedy: "build it with `cargo build --release -p trackbed`",
        })?;
    let _controller = Controller(process);
    let called = |verb: &str, resource: &str| {
        let calls = api.calls();
        calls
            .get(&(verb.to_owned(), resource.to_owned()))
            .copied()
            .unwrap_or(0)
    };
    let listed = until(|| called("list", "caffe2jobs.trackbed.io") > 0).await?;
    // What is written once a pod is cheap to ask; whether all are let go is looked at once it may be so.
    let patches = (GANGS * PODS) as u64;
    let done = until(|| called("patch", "pods") >= patches && held(&api) == 0).await?;
    Ok(GANGS as f64 / done.duration_since(listed).as_secs_f64())
}

/// When it was so.
async fn until(mut so: impl FnMut() -> bool) -> Result<Instant, BenchError> {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        if Instant::now() > deadline {
            return Err(BenchError::Unavailable(format!(
                "not all of {GANGS} gangs were admitted within {PATIENCE:?}: the controller's log is above"
            )));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(Instant::now())
}

/// Pods that are not there yet, or not let go.
fn held(api: &ApiServer) -> usize {
    let pods = api.all("Pod");
    let free = |pod: &&Value| {
        pod["spec"]["schedulingGates"]
            .as_array()
            .is_none_or(Vec::is_empty)
    };
    (GANGS * PODS).saturating_sub(pods.iter().filter(free).count())
}

/// The custom resources' definitions.
fn definitions() -> Result<Vec<Value>, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Unavailable(error.to_string());
    let manifests = trackbed_controller::api::manifests().map_err(|error| failed(&error))?;
    let parsed = manifests
        .into_iter()
        .map(|(_, text)| serde_saphyr::from_str(&text));
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| failed(&error))
}
