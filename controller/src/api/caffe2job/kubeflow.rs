//! The kind that kubeflow's Caffe2 operator had: `kubeflow.org/v1alpha1`. What its manifests say beyond
//! these fields is kept and has no effect, as it was.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::spec::template;
use super::status::Caffe2JobStatus;

/// A job as kubeflow's operator took it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kubeflow.org",
    version = "v1alpha1",
    kind = "Caffe2Job",
    plural = "caffe2jobs",
    namespaced,
    status = "Caffe2JobStatus",
    derive = "PartialEq",
    doc = "A Caffe2 training job in the form that kubeflow's operator had, carried out by Trackbed.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("a job's name has at most 63 characters"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.replicaStatuses.active"),
    printcolumn(name = "Why", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
#[x_kube(
    validation = Rule::new("!has(self.terminationPolicy) || !has(self.terminationPolicy.chief) || self.terminationPolicy.chief.replicaIndex < (has(self.replicaSpecs.replicas) ? self.replicaSpecs.replicas : 1)").message("the chief is a pod that replicaSpecs does not have"),
)]
pub struct Caffe2JobSpec {
    /// What RUN_IDs begin with. This very key, as the operator's code had it.
    #[serde(default, rename = "RuntimeID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub runtime_id_as_was: Option<String>,

    /// The same.
    #[serde(default, rename = "runtimeID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub runtime_id: Option<String>,

    /// How the pods find each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_specs: Option<BackendSpecs>,

    /// The workers.
    pub replica_specs: ReplicaSpecs,

    /// Whose end is the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_policy: Option<TerminationPolicy>,
}

/// How pods find each other.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
#[x_kube(
    validation = Rule::new("!has(self.backendType) || self.backendType != 'nfs' || has(self.nfsPath)").message("backendType nfs needs an nfsPath"),
)]
pub struct BackendSpecs {
    /// Which way. Without it: none for one pod, else redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_type: Option<BackendType>,
    /// Where the pods have a shared folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4095))]
    pub nfs_path: Option<String>,
    /// Where a redis is. Without it one is started for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub redis_host: Option<String>,
    /// Its port; 6379 if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub redis_port: Option<i32>,
}

/// By what pods find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendType {
    /// There is one pod.
    None,
    /// A redis.
    Redis,
    /// Files in a shared folder.
    Nfs,
}

/// The workers.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ReplicaSpecs {
    /// How many; 1 if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub replicas: Option<i32>,
    /// Their pods: a PodTemplateSpec.
    #[schemars(schema_with = "template")]
    pub template: Value,
}

/// When the job has ended.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct TerminationPolicy {
    /// When this pod has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chief: Option<KubeflowChief>,
}

/// A pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeflowChief {
    /// Its role: there is but `WORKER`.
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = Rule::new("self.matches('^(?i:worker)$')").message("the only replica is WORKER"))]
    pub replica_name: String,
    /// Its number, from 0.
    #[schemars(range(min = 0, max = 4095))]
    pub replica_index: i32,
}
