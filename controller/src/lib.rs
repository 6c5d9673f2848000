//! Trackbed's side of Kubernetes: the custom resources that describe datasets and cache nodes.
#![forbid(unsafe_code)]

pub mod api;
pub mod plan;
pub mod simulate;
