//! A dataset: where its bytes come from, what is to be cached, and what is.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most earlier versions that a status names; older ones are forgotten.
pub const MAX_EARLIER: usize = 100;

/// A dataset that the nodes of the cache bring from its origin and show to pods.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "trackbed.io",
    version = "v1",
    kind = "Dataset",
    namespaced,
    status = "DatasetStatus",
    derive = "PartialEq",
    shortname = "tds",
    category = "trackbed",
    doc = "A dataset that the nodes of the cache bring from its origin and show to pods of its namespace.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("a dataset's name has at most 63 characters"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Cached", type_ = "integer", json_path = ".status.cachedPercent"),
    printcolumn(name = "Warm", type_ = "integer", json_path = ".status.warmNodes"),
    printcolumn(name = "Of", type_ = "integer", json_path = ".status.selectedNodes"),
    printcolumn(name = "Origin", type_ = "string", json_path = ".spec.origin", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.credentials) || !self.origin.startsWith('file:')").message("an origin that is a folder takes no credentials"))]
pub struct DatasetSpec {
    /// Where the bytes come from: s3://bucket/prefix, gs://bucket/prefix, az://account/container/prefix,
    /// https://host/folder?index=files.txt (index: a file that names the others, a line each; without it
    /// the server is asked by WebDAV) or file:///path (only below folders that the nodes share).
    /// Credentials are never part of it.
    #[schemars(length(min = 1, max = 4096))]
    #[x_kube(
        validation = Rule::new("self.matches('^(s3|gs|az|https|http|file)://')").message("an origin begins with s3://, gs://, az://, https://, http:// or file://"),
        validation = Rule::new("!self.contains('credentials=')").message("credentials are named in spec.credentials, not in the origin's URL"),
    )]
    pub origin: String,

    /// Where the origin's credentials are. Without it the origin is asked as anybody, or with the
    /// nodes' own credentials where an administrator shares those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsReference>,

    /// What the nodes bring before anybody reads it. Without it they bring what is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,

    /// Keep what is cached of it, whatever else needs the space.
    #[serde(default)]
    pub pinned: bool,

    /// The version to show: a digest that the dataset has had. Without it, the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub version: Option<String>,

    /// Raise it to have the origin listed anew, which makes a version of what is there by then.
    #[serde(default)]
    #[schemars(range(min = 0))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("refresh can only be raised"))]
    pub refresh: i64,

    /// Further namespaces whose pods may read it. Those of its own always may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 1000),
        inner(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub shared_with: Vec<String>,
}

/// Where credentials are. Never the credentials themselves.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsReference {
    /// A Secret of the dataset's namespace, with the keys that the origin's kind needs:
    /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), GOOGLE_SERVICE_ACCOUNT_KEY,
    /// AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, HTTP_USERNAME and HTTP_PASSWORD or HTTP_TOKEN.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// What is brought before anybody reads it, and where.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.percent) && has(self.paths))").message("give a share or paths, not both"))]
pub struct WarmUp {
    /// The share to bring, in percent, from the beginning of the path order. Without it, and without
    /// paths, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i32>,

    /// The files and folders to bring, relative to the dataset's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000), inner(length(min = 1, max = 4095)))]
    pub paths: Option<Vec<String>>,

    /// The labels of the CacheNodes that shall bring it. Without any, all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
}

/// What became of a dataset. Kept by the agents.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatasetStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// What is going on, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// The newest version: the digest of its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub version: Option<String>,

    /// The versions before it, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(regex(pattern = r"^[0-9a-f]{64}$")))]
    pub earlier_versions: Vec<String>,

    /// The origin of the newest version, with the place of its credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,

    /// The name under which volumes are made of it: the parameter `dataset` of a StorageClass, the
    /// attribute `dataset` of an inline volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_dataset: Option<String>,

    /// The spec's `refresh` when the newest version was listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed_refresh: Option<i64>,

    /// The bytes of the version that is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,

    /// How much of what is to be warmed is on the nodes that are to warm it, in percent of all of it
    /// together; without a warm-up, how much of the version the node has that has the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub cached_percent: Option<i32>,

    /// How many of the nodes that are to warm it have all of what is to be warmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_nodes: Option<i32>,

    /// How many nodes are to warm it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected_nodes: Option<i32>,

    /// Where how much of it is, for the thousand nodes that have the most. All of it is in the CacheNodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    pub nodes: Vec<CachedOn>,

    /// `Ready`: there is a version that can be read. `Warmed`: what is to be warmed is where it is to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How much of a dataset one node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CachedOn {
    /// The CacheNode.
    pub node: String,
    /// Bytes of the version that are on its disk.
    pub bytes: i64,
    /// The same in percent of the version, rounded down.
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
}

/// What is going on with a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nobody has looked at it yet.
    Pending,
    /// Its origin is being listed, for the first time or anew. An earlier version can be read
    /// meanwhile.
    Listing,
    /// It can be read; nothing is to be warmed.
    Ready,
    /// It can be read, and is being warmed.
    Warming,
    /// It can be read, and is warm where it was to be.
    Warm,
    /// Something is wrong: the conditions say what, and what to do.
    Failed,
}

impl Dataset {
    /// The version to show: the one that the spec asks for, else the newest.
    pub fn shown_version(&self) -> Option<&str> {
        let newest = || self.status.as_ref()?.version.as_deref();
        self.spec.version.as_deref().or_else(newest)
    }
}
