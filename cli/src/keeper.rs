//! The role `trackbed keeper`: the small process that serves the mounts, so that `trackbed node` can
//! be killed or upgraded without a read that fails.

use crate::exit::Failure;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;
use trackbed_csi::keeper::{self, KeeperConfig};
use trackbed_proto::endpoint::Endpoint;

/// What a build calls itself towards the other side of the keeper's socket.
pub(crate) const BUILD: &str = env!("CARGO_PKG_VERSION");

/// Serve the mounts of a node, so that the node itself can be killed or upgraded
///
/// Whoever ends it ends the mounts: every read then fails, until the volumes are staged and
/// published again. So drain a node before its keeper is restarted.
#[derive(Args)]
pub(crate) struct KeeperArgs {
    /// Unix socket on which the node tells what to mount; only this user and root can open it
    #[arg(long, env = "TRACKBED_KEEPER", value_name = "SOCKET")]
    socket: PathBuf,

    /// Whether the kernel may read whole files by itself
    #[arg(
        long,
        env = "TRACKBED_PASSTHROUGH",
        value_name = "WHEN",
        default_value = "auto"
    )]
    passthrough: PassthroughChoice,

    /// End when there was neither a mount nor a node for this long
    #[arg(long, value_name = "SECONDS")]
    end_when_idle: Option<u32>,

    /// Leave the session of whoever starts it
    #[arg(long)]
    detach: bool,

    /// Ask the keeper that serves the socket to take all its mounts away and end
    #[arg(long, conflicts_with_all = ["end_when_idle", "detach"])]
    end: bool,
}

/// When the kernel may read whole files by itself (Linux 6.9, needs privilege).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PassthroughChoice {
    /// Where it can, and a version's files are large enough to gain by it
    #[default]
    Auto,
    /// Never: each read is checked on its way
    Never,
}

/// Runs the keeper until it is asked to end, or asks it to.
pub(crate) fn run(args: &KeeperArgs) -> Result<(), Failure> {
    let absolute = std::path::absolute(&args.socket);
    let socket = absolute.map_err(|error| Failure::usage(format!("--socket: {error}")))?;
    if args.end {
        return keeper::end(&socket).map_err(Failure::failed);
    }
    if args.detach {
        // Refused to a leader of a process group, which has no terminal to be ended by.
        if let Err(errno) = nix::unistd::setsid() {
            tracing::debug!(%errno, "the keeper stays in the session that started it");
        }
    }
    let socket: Endpoint = socket
        .to_string_lossy()
        .parse()
        .map_err(|error| Failure::usage(format!("--socket: {error}")))?;
    let config = KeeperConfig {
        socket,
        passthrough: args.passthrough == PassthroughChoice::Auto,
        end_when_idle: args
            .end_when_idle
            .map(|seconds| Duration::from_secs(seconds.into())),
        build: BUILD.to_owned(),
    };
    keeper::serve(config).map_err(Failure::failed)
}
