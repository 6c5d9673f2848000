//! Training jobs of Caffe2: pods that start together, find each other and restart together.
//!
//! [`Caffe2Job`] is the kind of `trackbed.io/v1`. [`KubeflowCaffe2Job`] is the one that kubeflow's operator
//! had, `kubeflow.org/v1alpha1`: its manifests are taken as they are, and [`converted`] says which
//! `trackbed.io/v1` spec they mean. Both have the same [`Caffe2JobStatus`].

mod convert;
mod kubeflow;
mod spec;
mod status;

pub use convert::converted;
pub use kubeflow::{
    BackendSpecs, BackendType, Caffe2Job as KubeflowCaffe2Job,
    Caffe2JobSpec as KubeflowCaffe2JobSpec, KubeflowChief, ReplicaSpecs, TerminationPolicy,
};
pub use spec::{
    Caffe2Job, Caffe2JobSpec, Chief, CleanPodPolicy, DatasetUse, Network, NetworkMode, Rendezvous,
    RendezvousType, Role, RunPolicy,
};
pub use status::{
    Caffe2JobStatus, Mistrusted, Phase as JobPhase, Placed, ReplicaStatus, RoleStatus,
};
