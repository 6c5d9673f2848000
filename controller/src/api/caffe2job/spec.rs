//! What a user asks for.

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::status::Caffe2JobStatus;

/// A Caffe2 job: roles whose pods start together, on nodes that are chosen for all of them at once.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "trackbed.io",
    version = "v1",
    kind = "Caffe2Job",
    plural = "caffe2jobs",
    namespaced,
    status = "Caffe2JobStatus",
    derive = "PartialEq",
    shortname = "tc2",
    category = "trackbed",
    doc = "A Caffe2 training job whose pods start together, where hardware and data are, and restart together.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("a job's name has at most 63 characters"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.placement) || oldSelf.status.placement.size() == 0 || self.spec.roles.map(r, [r.name, string(r.replicas)]) == oldSelf.spec.roles.map(r, [r.name, string(r.replicas)])").message("roles and their replicas can't change while the job has nodes: set runPolicy.suspend first"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.placement) || oldSelf.status.placement.size() == 0 || (has(self.spec.dataset) == has(oldSelf.spec.dataset) && (!has(self.spec.dataset) || self.spec.dataset == oldSelf.spec.dataset))").message("the dataset can't change while the job has nodes: set runPolicy.suspend first"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.placement) || oldSelf.status.placement.size() == 0 || self.spec.network == oldSelf.spec.network").message("the network can't change while the job has nodes: set runPolicy.suspend first"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.placement) || oldSelf.status.placement.size() == 0 || (has(self.spec.rendezvous) == has(oldSelf.spec.rendezvous) && (!has(self.spec.rendezvous) || self.spec.rendezvous == oldSelf.spec.rendezvous))").message("the rendezvous can't change while the job has nodes: set runPolicy.suspend first"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.replicaStatuses.active"),
    printcolumn(name = "Team", type_ = "string", json_path = ".spec.team"),
    printcolumn(name = "Why", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.chief) || self.roles.exists(r, r.name == self.chief.role && self.chief.index < r.replicas)").message("chief names a pod that the roles do not have"),
    validation = Rule::new("self.roles.map(r, r.replicas).sum() <= 4096").message("a job has at most 4096 pods"),
    validation = Rule::new("!has(self.rendezvous) || self.rendezvous.type != 'None' || self.roles.map(r, r.replicas).sum() == 1").message("pods of a job with more than one have to meet: choose another rendezvous.type than None"),
)]
pub struct Caffe2JobSpec {
    /// The roles, in the order in which their pods are counted: SHARD_ID is a pod's place among all.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub roles: Vec<Role>,

    /// The pod whose end is the job's. Without it, the first of the first role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chief: Option<Chief>,

    /// How it is run, retried and cleaned up.
    #[serde(default)]
    pub run_policy: RunPolicy,

    /// How the pods find each other. Without it: not at all if there is one, else by a redis that is
    /// started for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendezvous: Option<Rendezvous>,

    /// What they talk over.
    #[serde(default)]
    pub network: Network,

    /// The dataset that every pod has mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetUse>,

    /// Higher goes first.
    #[serde(default)]
    #[schemars(range(min = -1000000, max = 1000000))]
    pub priority: i32,

    /// The team whose quota it counts against. Without it, the namespace's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub team: Option<String>,

    /// How long it runs, as far as is known. Jobs behind one that waits are let by if they end before it
    /// could begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31536000))]
    pub expected_run_time_seconds: Option<i64>,
}

/// Pods of one kind.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Role {
    /// Its name, a part of its pods' names.
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z][a-z0-9]*$')").message("a role's name is small letters and digits, a letter first"))]
    pub name: String,

    /// How many pods it has.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 4096))]
    pub replicas: i32,

    /// The pods: a PodTemplateSpec. Their restartPolicy is Never whatever it says, as one that fails has all
    /// restart. A changed template is that of the next attempt.
    #[schemars(schema_with = "template")]
    pub template: Value,
}

fn one() -> i32 {
    1
}

/// An object that the API server keeps as it is: the schema of pods is Kubernetes' own.
pub(super) fn template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// A pod of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Chief {
    /// Its role.
    #[schemars(length(min = 1, max = 15))]
    pub role: String,
    /// Its number in the role, from 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4095))]
    pub index: i32,
}

/// How a job is run, retried and cleaned up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunPolicy {
    /// How many failures are answered by another attempt. Nodes that are lost, pods that are evicted and
    /// attempts that did not get their nodes do not count.
    #[serde(default = "backoff_limit")]
    #[schemars(range(min = 0, max = 10000))]
    pub backoff_limit: i32,

    /// How long it may be on its nodes, all attempts since it was last suspended together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub active_deadline_seconds: Option<i64>,

    /// How long after its end it is deleted. Without it, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: Option<i64>,

    /// Which pods are deleted when it has ended: those that still run, all or none.
    #[serde(default)]
    pub clean_pod_policy: CleanPodPolicy,

    /// Have no pods for now. It queues anew when this is taken back.
    #[serde(default)]
    pub suspend: bool,
}

fn backoff_limit() -> i32 {
    6
}

impl Default for RunPolicy {
    fn default() -> Self {
        RunPolicy {
            backoff_limit: backoff_limit(),
            active_deadline_seconds: None,
            ttl_seconds_after_finished: None,
            clean_pod_policy: CleanPodPolicy::default(),
            suspend: false,
        }
    }
}

/// Which pods are deleted when a job has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CleanPodPolicy {
    /// Those that have not ended, so that the logs of the others can be read.
    #[default]
    Running,
    /// All.
    All,
    /// None.
    None,
}

/// How pods find each other.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'ExistingRedis') == has(self.host)").message("host is for type ExistingRedis, which needs it"),
    validation = Rule::new("(self.type == 'FileStore') == has(self.path)").message("path is for type FileStore, which needs it"),
    validation = Rule::new("self.type == 'Redis' || !has(self.image)").message("image is for type Redis"),
)]
pub struct Rendezvous {
    /// Redis: one is started for each attempt and ends with it. ExistingRedis: the one at host and port.
    /// FileStore: files below path, on a volume that the template mounts in all pods. None: for one pod.
    #[serde(rename = "type")]
    pub kind: RendezvousType,

    /// The host of an existing redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,

    /// The redis' port.
    #[serde(default = "redis_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,

    /// Where the pods have the shared folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4095))]
    pub path: Option<String>,

    /// The image of a redis that is started. Without it, the controller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
}

fn redis_port() -> i32 {
    6379
}

impl Rendezvous {
    /// One of this kind with nothing said but that.
    pub fn of(kind: RendezvousType) -> Rendezvous {
        Rendezvous {
            kind,
            host: None,
            port: redis_port(),
            path: None,
            image: None,
        }
    }
}

/// By what pods find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RendezvousType {
    /// There is one pod.
    None,
    /// A redis that is started for the job.
    Redis,
    /// A redis that is there.
    ExistingRedis,
    /// Files in a folder that all pods share.
    FileStore,
}

/// What pods talk over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// `rdma`: each pod gets RDMA devices and may lock memory. `tcp`: neither. `auto`: rdma if nodes of the
    /// cluster have the resource, else tcp.
    #[serde(default)]
    pub mode: NetworkMode,

    /// The device plugin's resource.
    #[serde(default = "rdma_resource")]
    #[schemars(
        length(min = 3, max = 316),
        regex(pattern = r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    )]
    pub resource: String,

    /// How many devices each pod gets.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub devices_per_pod: i32,
}

fn rdma_resource() -> String {
    "trackbed.io/rdma".to_owned()
}

impl Default for Network {
    fn default() -> Self {
        Network {
            mode: NetworkMode::default(),
            resource: rdma_resource(),
            devices_per_pod: one(),
        }
    }
}

/// Whether pods use RDMA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// If there is any.
    #[default]
    Auto,
    /// They do.
    Rdma,
    /// They do not.
    Tcp,
}

/// The dataset that a job reads.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatasetUse {
    /// The Dataset's name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Its namespace, if it is not the job's: one that shares it with the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,

    /// Where the containers have it.
    #[schemars(length(min = 2, max = 4095))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.contains(':')").message("a mount path begins with / and has no colon"))]
    pub mount_path: String,

    /// How much of it, in percent, must be cached before the job starts. It is warmed while the job queues.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub warm_share: i32,
}
