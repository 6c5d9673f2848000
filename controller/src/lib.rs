//! Trackbed's side of Kubernetes: the custom resources that describe datasets, cache nodes and jobs, and
//! what becomes of jobs.
#![forbid(unsafe_code)]

pub mod api;
pub mod job;
pub mod plan;
pub mod reconcile;
pub mod simulate;
