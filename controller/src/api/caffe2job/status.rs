//! What became of a job.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of a job. Kept by the controller.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Caffe2JobStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// What is going on, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// Why, and what to do about it if something is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,

    /// The attempt that is under way, from 1. Each has pods and a RUN_ID of its own.
    #[serde(default)]
    pub attempt: i64,

    /// Whether that attempt's pods are to be: false while it is taken down.
    #[serde(default)]
    pub attempt_live: bool,

    /// The generation of the spec that the attempt's pods were made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_generation: Option<i64>,

    /// Whether the attempt's pods use RDMA.
    #[serde(default)]
    pub rdma: bool,

    /// The attempt's RUN_ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,

    /// Failures that were answered by another attempt: what runPolicy.backoffLimit bounds.
    #[serde(default)]
    pub restarts: i32,

    /// Attempts in a row whose pods did not get to their nodes in time.
    #[serde(default)]
    pub bind_failures: i32,

    /// Where each pod of the attempt is to run. Written before any pod is let go there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub placement: Vec<Placed>,

    /// When the placement was made: where the bind timer began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed_at: Option<Time>,

    /// Whether every pod of the attempt got to its node.
    #[serde(default)]
    pub bound: bool,

    /// Nodes that did not take a pod of this job, and until when they are avoided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub mistrusted: Vec<Mistrusted>,

    /// Since when it is in the queue. Kept when an attempt loses its nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Time>,

    /// Before when no new attempt is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,

    /// When it first had all its nodes since it was last suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,

    /// When it succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,

    /// When something was last written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reconcile_time: Option<Time>,

    /// The term of the controller that wrote this: one that has lost its lease can't write over its
    /// successor.
    #[serde(default)]
    pub term: i64,

    /// Pods by how they are.
    #[serde(default)]
    pub replica_statuses: ReplicaStatus,

    /// The same for each role.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub roles: Vec<RoleStatus>,

    /// `Created`, `Queued`, `Admitted`, `Running`, `Restarting`, `Suspended`, `Succeeded`, `Failed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Pods by how they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// They are on their nodes and have not ended.
    #[serde(default)]
    pub active: i32,
    /// They have ended well.
    #[serde(default)]
    pub succeeded: i32,
    /// They have failed.
    #[serde(default)]
    pub failed: i32,
}

/// The pods of a role by how they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoleStatus {
    /// The role.
    pub name: String,
    /// How many pods it is to have.
    pub replicas: i32,
    /// They are on their nodes and have not ended.
    pub active: i32,
    /// They have ended well.
    pub succeeded: i32,
    /// They have failed.
    pub failed: i32,
}

/// A pod and its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placed {
    /// The pod.
    pub pod: String,
    /// The node.
    pub node: String,
}

/// A node that is avoided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Mistrusted {
    /// The node.
    pub node: String,
    /// Until when.
    pub until: Time,
}

/// What is going on with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It waits for nodes.
    Queued,
    /// Its nodes are chosen, its pods are on the way there.
    Admitted,
    /// All its pods run.
    Running,
    /// An attempt is taken down, for another one to come.
    Restarting,
    /// It is to have no pods for now.
    Suspended,
    /// It has ended well.
    Succeeded,
    /// It has ended otherwise.
    Failed,
}

impl Phase {
    /// Whether nothing more comes.
    pub fn is_final(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}
