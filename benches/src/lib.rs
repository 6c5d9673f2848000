//! Benchmarks of Trackbed beside its peers, in one run on one machine.
//!
//! Each part measures pairs, ours and the peer's in turn, so that a machine whose speed drifts
//! slows both alike; what is kept is the ratio within each pair. [`paired`] turns the ratios into
//! an estimate with an interval and a verdict, [`row`] prints them, [`session`] and [`progress`] lead
//! through the cases, and the other modules know how to run one part. `hack/bench` builds what is needed and calls the `trackbed-bench` binary.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod cache;
pub mod command;
pub mod controller;
pub mod dataset;
pub mod deviceplugin;
mod elsewhere;
pub mod paired;
pub mod progress;
pub mod rdma;
pub mod row;
pub mod selection;
pub mod session;
pub mod soft_roce;

/// Why a part could not be measured at all: exit status 3.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A program that the part needs did not start.
    #[error("starting {program}: {source}; {remedy}")]
    Start {
        /// What was started.
        program: String,
        /// Why it did not start.
        source: std::io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A program ran and failed.
    #[error("{command} ended with {status}: {stderr}")]
    Failed {
        /// The whole command line.
        command: String,
        /// Its exit status, or the signal that ended it.
        status: String,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// A program's output was not what its documentation says.
    #[error("{program} printed something else than a figure: {output:?}")]
    Output {
        /// Whose output it is.
        program: String,
        /// What it printed.
        output: String,
    },
    /// The machine can't run this part.
    #[error("{0}")]
    Unavailable(String),
    /// A file or folder of the benchmark itself.
    #[error("{attempt}: {source}")]
    Io {
        /// What was attempted, on which path.
        attempt: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl BenchError {
    /// Names what was attempted when an I/O operation of the benchmark itself fails.
    pub fn io(attempt: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let attempt = attempt.into();
        move |source| Self::Io { attempt, source }
    }
}
