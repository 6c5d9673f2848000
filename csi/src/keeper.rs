//! The keeper: a small process that serves the mounts, so that the agent can be killed, upgraded or
//! run out of memory without a read that fails.
//!
//! The keeper answers look-ups and reads of what is on the disk by itself, from the version's
//! manifest and files, each block checked against its seal. For what is not there it asks the agent,
//! over the unix socket on which the agent tells it what to mount, and waits for the answer, across
//! restarts of the agent too. It changes rarely: both sides say which protocol they speak, and a
//! keeper that is too old is told to whoever looks at the volume.
//!
//! When the keeper itself dies the kernel ends every read with an error (`ENOTCONN`), never zeros.
//!
//! [`serve`] is the keeper; [`KeptMounts`] is what the agent shows versions with.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use trackbed_proto::endpoint::EndpointError;

mod bits;
mod client;
mod frame;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod invalidate;
mod kept;
mod link;
mod message;
mod mount;
mod server;
mod show;
mod tell;

pub use client::{KeptMounts, KeptMountsConfig, StartKeeper, end};
pub use server::{KeeperConfig, serve};

/// The protocol this build speaks, both as a keeper and as an agent. Raised with each change that
/// an older build would not understand.
pub const PROTOCOL: u32 = 1;

/// The oldest protocol of the other side that this build can work with.
pub const OLDEST: u32 = 1;

/// How long the other side may take to answer what needs no bytes from elsewhere.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why a keeper cannot be used, or cannot run.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Nobody serves the socket.
    #[error(
        "no keeper answers at {}: {source}: start `trackbed keeper --socket {}` (in Kubernetes: look at the keeper's DaemonSet)",
        socket.display(),
        socket.display()
    )]
    NotThere {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket cannot be served.
    #[error("the keeper's socket: {0}")]
    Socket(#[from] EndpointError),
    /// The other side is another user.
    #[error(
        "the other side of the keeper's socket runs as user {0}: run both as the same user, or as root"
    )]
    Stranger(u32),
    /// The keeper speaks a protocol that is too old.
    #[error(
        "the keeper (build {build}, protocol {theirs}) is older than this agent can work with (protocol {OLDEST}): drain the node and restart the keeper"
    )]
    TooOld {
        /// Its protocol.
        theirs: u32,
        /// Its build.
        build: String,
    },
    /// This agent speaks a protocol that is too old for the keeper.
    #[error(
        "the keeper (build {build}) works only with agents of protocol {needed} and newer, this one has {PROTOCOL}: upgrade the agent"
    )]
    TooNew {
        /// The oldest protocol it works with.
        needed: u32,
        /// Its build.
        build: String,
    },
    /// The other side closed the connection, or died.
    #[error("the connection to the keeper was lost: it ended, or was restarted")]
    Lost,
    /// It does not answer.
    #[error("the keeper did not answer within {ANSWER_WITHIN:?}: look at its log")]
    Late,
    /// It answered with a reason why not.
    #[error("the keeper: {0}")]
    Refused(String),
    /// It said something that makes no sense here.
    #[error("the keeper's answer is not one to the question: its build may be damaged")]
    Nonsense,
    /// The system would not give a thread.
    #[error("starting a thread: {0}: raise the limit on threads")]
    Threads(#[source] io::Error),
}
