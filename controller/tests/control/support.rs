//! A cluster with controllers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, CustomResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use trackbed_apiserver::{ApiServer, Machines};
use trackbed_controller::api::{CacheNode, Caffe2Job, Dataset, KubeflowCaffe2Job};
use trackbed_controller::reconcile::{self, ControllerConfig, LeaseSettings, Metrics};

/// Far beyond what anything here takes, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// An API server with nodes and controllers; dropping it ends all.
pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    pub(crate) machines: Machines,
    pub(crate) config: ControllerConfig,
    controllers: Vec<JoinHandle<()>>,
    /// Of the controllers, in the order in which they were started.
    pub(crate) metrics: Vec<Arc<Metrics>>,
}

impl Cluster {
    /// One without a controller: as many nodes of eight accelerators, named n0 and so on.
    pub(crate) async fn idle(nodes: usize) -> Cluster {
        let definitions = [
            Dataset::crd(),
            CacheNode::crd(),
            Caffe2Job::crd(),
            KubeflowCaffe2Job::crd(),
        ];
        let definitions = definitions.map(|it| serde_json::to_value(it).expect("JSON"));
        let api = ApiServer::start(&definitions).await.expect("serves");
        let machines = Machines::start(&api);
        for node in 0..nodes {
            machines.add(&api, &format!("n{node}"), 8);
        }
        let config = ControllerConfig {
            retry_seconds: 1,
            ..ControllerConfig::default()
        };
        Cluster {
            api,
            machines,
            config,
            controllers: Vec::new(),
            metrics: Vec::new(),
        }
    }

    /// One with a controller.
    pub(crate) async fn start(nodes: usize) -> Cluster {
        let mut cluster = Cluster::idle(nodes).await;
        cluster.controller("one").await;
        cluster
    }

    /// One whose controller waits but shortly for pods to get to their nodes.
    pub(crate) async fn impatient(nodes: usize) -> Cluster {
        let mut cluster = Cluster::idle(nodes).await;
        cluster.config.bind_seconds = 2;
        cluster.controller("one").await;
        cluster
    }

    /// Starts a controller of this name.
    pub(crate) async fn controller(&mut self, name: &str) {
        let kubeconfig = Kubeconfig::from_yaml(&self.api.kubeconfig()).expect("a kubeconfig");
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.expect("a configuration");
        config.default_retry = false;
        let client = Client::try_from(config).expect("a client");
        let lease = LeaseSettings {
            renew_every: Duration::from_millis(200),
            ..LeaseSettings::new("trackbed", name)
        };
        let metrics = Arc::new(Metrics::default());
        self.metrics.push(metrics.clone());
        let forever = std::future::pending();
        let run = reconcile::run(client, self.config.clone(), lease, metrics, forever);
        self.controllers.push(tokio::spawn(run));
    }

    /// Ends the controller that was started first, without a word.
    pub(crate) fn kill_first(&mut self) {
        self.controllers.remove(0).abort();
    }

    /// Submits a job of this many pods of this many accelerators each; `more` goes into its spec.
    pub(crate) fn submit(&self, name: &str, pods: u32, gpus: u32, more: Value) {
        let mut spec = json!({ "roles": [{ "name": "worker", "replicas": pods, "template": template(gpus) }],
            "rendezvous": { "type": "ExistingRedis", "host": "redis" } });
        let fields = more.as_object().expect("an object").clone();
        spec.as_object_mut().expect("an object").extend(fields);
        self.api.create(
            &json!({ "apiVersion": "trackbed.io/v1", "kind": "Caffe2Job",
            "metadata": { "name": name, "namespace": "a" }, "spec": spec }),
        );
    }

    pub(crate) fn status(&self, name: &str) -> Value {
        let job = self.api.get("Caffe2Job.trackbed.io", "a", name);
        job.map_or(Value::Null, |job| job["status"].clone())
    }

    /// Waits until a job's status is as wanted; gives it.
    pub(crate) async fn until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = || Some(self.status(name)).filter(&wanted);
        self.eventually(found, || format!("{:#}", self.status(name)))
            .await
    }

    pub(crate) async fn phase(&self, name: &str, phase: &str) -> Value {
        self.until(name, |status| status["phase"] == phase).await
    }

    pub(crate) async fn eventually<T>(
        &self,
        mut there: impl FnMut() -> Option<T>,
        found: impl Fn() -> String,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(there) = there() {
                return there;
            }
            assert!(
                Instant::now() < deadline,
                "it did not become so: {}",
                found()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A job's pods, as the API server has them.
    pub(crate) fn pods(&self, job: &str) -> Vec<Value> {
        let mut pods = self.api.all("Pod");
        pods.retain(|pod| pod["metadata"]["labels"]["trackbed.io/job-name"] == job);
        pods
    }

    /// What users were told of a job, by its words.
    pub(crate) fn told(&self, job: &str) -> Vec<String> {
        let events = self.api.all("Event");
        let events = events
            .iter()
            .filter(|event| event["involvedObject"]["name"] == job);
        events
            .filter_map(|event| event["reason"].as_str().map(str::to_owned))
            .collect()
    }

    /// Ends a job's chief well.
    pub(crate) fn succeed(&self, job: &str) {
        let attempt = self.status(job)["attempt"].clone();
        self.machines
            .end("a", &format!("{job}-{attempt}-worker-0"), "Succeeded");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.controllers.iter().for_each(JoinHandle::abort);
    }
}

pub(crate) fn template(gpus: u32) -> Value {
    let resources = json!({ "limits": { "nvidia.com/gpu": gpus.to_string() } });
    let resources = if gpus == 0 { json!({}) } else { resources };
    json!({ "spec": { "containers": [{ "name": "caffe2", "image": "caffe2", "resources": resources }] } })
}

/// The node that a pod is on.
pub(crate) fn node(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str()
}
