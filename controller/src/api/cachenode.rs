//! A node of the cache, as its agent tells of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A node of the cache. Its agent makes it, tells of itself in it, and leaves it there when it ends.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "trackbed.io",
    version = "v1",
    kind = "CacheNode",
    status = "CacheNodeStatus",
    derive = "PartialEq",
    shortname = "tcn",
    category = "trackbed",
    doc = "A node of the dataset cache, kept by its agent. An administrator sets its weight.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.zone"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".spec.weight"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.freeBytes"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "Heartbeat", type_ = "date", json_path = ".status.heartbeat")
)]
#[serde(rename_all = "camelCase")]
pub struct CacheNodeSpec {
    /// Where peers reach its control interface, as host:port.
    #[schemars(length(min = 3, max = 261))]
    #[x_kube(validation = Rule::new("self.matches('^.+:[0-9]{1,5}$')").message("an address is host:port"))]
    pub address: String,

    /// Its share of the chunks relative to the other nodes', 0 to own none; 100 if it is not set. Unless
    /// the agent is told a weight, it leaves this to whoever sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub weight: Option<i32>,

    /// The zone it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub zone: Option<String>,

    /// The rack it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub rack: Option<String>,

    /// The disks that hold the cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub disks: Vec<Disk>,
}

/// A disk, or a part of one, that holds the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// The cache's folder on it.
    #[schemars(length(min = 1, max = 4095))]
    pub path: String,
    /// The most bytes that the cache may take there.
    #[schemars(range(min = 0))]
    pub capacity_bytes: i64,
}

/// How a node of the cache is. Written by its agent a few times a minute.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheNodeStatus {
    /// When the agent last wrote this. A node of which no new one comes is left out of the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Time>,

    /// How often it writes, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub report_every_seconds: Option<i32>,

    /// The build of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,

    /// Bytes that are free for the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<i64>,

    /// How its disks are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub disks: Vec<DiskState>,

    /// The datasets of which it holds something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["namespace".into(), "name".into()]))]
    pub datasets: Vec<CachedDataset>,
}

/// How a disk of the cache is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskState {
    /// The cache's folder on it.
    #[schemars(length(min = 1, max = 4095))]
    pub path: String,
    /// Bytes of datasets on it.
    #[schemars(range(min = 0))]
    pub used_bytes: i64,
    /// Bytes that it may hold beside those.
    #[schemars(range(min = 0))]
    pub free_bytes: i64,
    /// Whether it is in use: one that keeps failing is not.
    pub in_service: bool,
}

/// What a node has of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CachedDataset {
    /// The dataset's namespace.
    pub namespace: String,
    /// The dataset's name.
    pub name: String,
    /// The version that is shown.
    pub version: String,
    /// Its bytes.
    pub bytes: i64,
    /// How many of them are on this node's disk.
    pub bytes_present: i64,
    /// Whether pods get it as plain files from the kernel alone, without a process in between.
    #[serde(default)]
    pub native: bool,
    /// The generation of the dataset whose warm-up this node has carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmed_generation: Option<i64>,
    /// Why it could not be warmed, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
