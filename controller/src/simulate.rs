//! Runs a trace of jobs through the planner on a cluster that is only a description.
//!
//! The planner is the one that the controller uses; what is simulated is the cluster: gangs run for their
//! true time, and the planner is told what the trace's users would say of it. [`Trace`] reads a file or
//! makes jobs from a seed, [`Cluster`] describes nodes, [`simulate`] plays, [`Outcome`] holds what came of
//! it.

mod cluster;
mod generate;
mod outcome;
mod play;
mod policy;
mod trace;

pub use cluster::{Cluster, ClusterError, NodeGroup};
pub use generate::generate;
pub use outcome::{JobOutcome, Outcome};
pub use play::{SimulationError, simulate};
pub use policy::Policy;
pub use trace::{Job, Trace, TraceError};

#[cfg(test)]
mod tests;
