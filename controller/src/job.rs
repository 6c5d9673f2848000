//! A job's life as a pure function: [`step`] takes a job, what is seen of its pods, what the planner has
//! decided and the time, and says what the job's status is by now and what is to be done.
//!
//! The status is written first, and only if that succeeds are the actions carried out. Each of them follows
//! from the status alone, so a controller that dies in between leaves nothing that the next one does not
//! take up; and a controller that is no longer the leader writes no status, so it does nothing.
//!
//! An attempt is a set of pods with names of their own (`<job>-<attempt>-<role>-<index>`) and a RUN_ID of
//! its own. Its pods are made with a scheduling gate, and let go together, each to the node that the status
//! names. The pods of an attempt are all gone before the next one's are made.

mod attempt;
mod conditions;
mod members;
mod observe;
mod pods;
mod rendezvous;
mod step;

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::api::{Caffe2JobSpec, Caffe2JobStatus};

pub use members::{Member, members, pod_name, service_name};
pub use observe::{PodPhase, PodView, pod_view};
pub use pods::{PodError, gated_pod, release_patch, service};
pub use step::{step, wants_nodes};

/// The gate that keeps a pod from being scheduled until its gang has nodes.
pub const GATE: &str = "trackbed.io/gang";

/// The finalizer that keeps a job until its pods are gone.
pub const FINALIZER: &str = "trackbed.io/gang";

/// The label that says of which job a pod or a Service is: the job's uid.
pub const JOB_UID_LABEL: &str = "trackbed.io/job-uid";

/// The label with the job's name, for people.
pub const JOB_NAME_LABEL: &str = "trackbed.io/job-name";

/// The label with the attempt.
pub const ATTEMPT_LABEL: &str = "trackbed.io/attempt";

/// The label with the role.
pub const ROLE_LABEL: &str = "trackbed.io/role";

/// The label with the pod's number in its role.
pub const INDEX_LABEL: &str = "trackbed.io/index";

/// Which of the two kinds a job is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobKind {
    /// `trackbed.io/v1`.
    Trackbed,
    /// `kubeflow.org/v1alpha1`.
    Kubeflow,
}

impl JobKind {
    /// As `apiVersion` has it.
    pub fn api_version(self) -> &'static str {
        match self {
            JobKind::Trackbed => "trackbed.io/v1",
            JobKind::Kubeflow => "kubeflow.org/v1alpha1",
        }
    }
}

/// Which job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey {
    /// Its kind.
    pub kind: JobKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for JobKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            JobKind::Trackbed => "",
            JobKind::Kubeflow => " (kubeflow.org)",
        };
        write!(f, "{}/{}{kind}", self.namespace, self.name)
    }
}

/// A job, of either kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Which.
    pub key: JobKey,
    /// Its uid.
    pub uid: String,
    /// The spec's generation.
    pub generation: i64,
    /// When it was made.
    pub created: Timestamp,
    /// Whether somebody has deleted it.
    pub deleting: bool,
    /// Whether it has [`FINALIZER`].
    pub has_finalizer: bool,
    /// What is wanted, kubeflow's converted.
    pub spec: Caffe2JobSpec,
    /// What RUN_IDs begin with, if the manifest says so.
    pub run_id_prefix: Option<String>,
    /// What was written last.
    pub status: Caffe2JobStatus,
}

/// What is seen of a job's surroundings.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Every pod with its uid, of whichever attempt.
    pub pods: Vec<PodView>,
    /// Names of its attempt's pods that another's pods have: each with whose it is.
    pub taken: Vec<String>,
    /// Whether its Service is there.
    pub service: bool,
    /// The dataset that it wants, if there is one of that name.
    pub dataset: Option<DatasetView>,
    /// Whether a node of the cluster has the RDMA resource that it names.
    pub rdma: bool,
}

/// What is seen of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetView {
    /// It has a version that can be read.
    pub ready: bool,
    /// How much of what is to be warmed is cached, in percent.
    pub cached_percent: i32,
    /// Whether its spec says what to warm.
    pub warms: bool,
}

/// What the planner says of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It waits: what is in its way.
    Wait(Vec<String>),
    /// A node for each of its pods, in the order of [`members`].
    Place(Vec<String>),
    /// It is to give its nodes back, and why.
    Preempt(String),
}

/// What does not change while a controller runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long pods may take to get to their nodes; doubled by each failure in a row up to
    /// [`Settings::bind_most_seconds`].
    pub bind_seconds: i64,
    /// The most that it becomes.
    pub bind_most_seconds: i64,
    /// How long a node that did not take a pod is avoided by the job, times the failures in a row.
    pub mistrust_seconds: i64,
    /// How long after the first failure the next attempt begins; doubled by each up to
    /// [`Settings::retry_most_seconds`].
    pub retry_seconds: i64,
    /// The most that it becomes.
    pub retry_most_seconds: i64,
    /// The image of the redis that is started for jobs.
    pub redis_image: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            bind_seconds: 30,
            bind_most_seconds: 300,
            mistrust_seconds: 300,
            retry_seconds: 10,
            retry_most_seconds: 300,
            redis_image: "docker.io/library/redis:7-alpine".to_owned(),
        }
    }
}

/// What follows from a look at a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The status as it should be.
    pub status: Caffe2JobStatus,
    /// What is to be done once that is written.
    pub actions: Vec<Action>,
    /// What users are told once.
    pub events: Vec<Event>,
    /// When to look again though nothing has changed.
    pub again: Option<Timestamp>,
}

/// Something to be done. To do it twice is to do it once.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put [`FINALIZER`] on the job.
    Hold,
    /// Take it off.
    LetGo,
    /// Delete the job: its time is over.
    DeleteJob,
    /// Make the job's headless Service.
    CreateService,
    /// Delete it.
    DeleteService,
    /// Make this pod.
    CreatePod(Box<Value>),
    /// Pin a gated pod to a node, and take its gate away, in one patch.
    Release {
        /// The pod.
        pod: String,
        /// The node.
        node: String,
    },
    /// Delete this pod, if it has this uid.
    DeletePod {
        /// The pod.
        pod: String,
        /// Its uid.
        uid: String,
    },
    /// Have the dataset warmed, which nobody has asked for yet.
    WarmUp {
        /// Its namespace.
        namespace: String,
        /// Its name.
        dataset: String,
        /// How much of it.
        percent: i32,
    },
}

/// Something that users of the job are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whether something is wrong.
    pub warning: bool,
    /// A word for it.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Labels of a template, a Service, a pod.
type Labels = BTreeMap<String, String>;

#[cfg(test)]
mod tests;
