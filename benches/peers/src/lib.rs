//! Trackbed's verbs and reads beside other crates that do the same: `ibverbs` and `tokio-uring`.
//!
//! [`loopback`] moves messages between two queue pairs of one device, [`reads`] reads blocks of one
//! file in the page cache; both sides do the same there, each through its own crate. The criterion
//! benchmarks in `benches/` show what either costs; the program `trackbed-peers` runs one side or the
//! other whenever `hack/bench rdma` asks it to.

#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod loopback;
pub mod reads;

/// Why something can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// Our verbs.
    #[error(transparent)]
    Verbs(#[from] trackbed_rdma::verbs::VerbsError),
    /// What one of the two sides did not do.
    #[error("{attempt}: {reason}")]
    Failed {
        /// What was attempted, by which side.
        attempt: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// There is nothing to measure with.
    #[error("{0}")]
    Unavailable(String),
}

impl PeersError {
    /// Names what was attempted.
    pub fn of<E: std::fmt::Display>(attempt: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed {
            attempt,
            reason: error.to_string(),
        }
    }
}
