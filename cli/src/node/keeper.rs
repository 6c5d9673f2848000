//! The node's keeper: one that runs, or one that is started here and outlives us.

use crate::exit::Failure;
use crate::keeper::{BUILD, PassthroughChoice};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use trackbed_csi::keeper::{KeptMounts, KeptMountsConfig, StartKeeper};

/// A keeper that a node has started ends after so many seconds without a mount and without a node.
const END_WHEN_IDLE: &str = "30";

/// The node's own image, also after its file was replaced by a newer build.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The socket of a node's own keeper, in the cache's folder.
const SOCKET: &str = "keeper.sock";

/// What a node's own keeper logs, beside its socket.
const LOG: &str = "keeper.log";

/// Connects to the keeper that serves `configured`, or to one of our own in the cache's folder, whose
/// mounts of an earlier node go on; starts that if it does not run. Blocks for that.
pub(crate) fn connect(
    cache_dir: &Path,
    configured: Option<&Path>,
    passthrough: PassthroughChoice,
) -> Result<KeptMounts, Failure> {
    let passthrough = passthrough == PassthroughChoice::Auto;
    let (socket, start): (PathBuf, Option<StartKeeper>) = match configured {
        Some(socket) => (socket.to_owned(), None),
        None => {
            let folder = std::path::absolute(cache_dir)
                .map_err(|error| Failure::usage(format!("--cache-dir: {error}")))?;
            let socket = folder.join(SOCKET);
            let at = socket.clone();
            (socket, Some(Box::new(move || start(&at))))
        }
    };
    KeptMounts::new(KeptMountsConfig {
        socket,
        build: BUILD.to_owned(),
        passthrough,
        start,
    })
    .map_err(Failure::failed)
}

fn start(socket: &Path) -> io::Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(socket.with_file_name(LOG))?;
    let mut keeper = Command::new(THIS_PROGRAM)
        .args(["keeper", "--detach", "--end-when-idle", END_WHEN_IDLE])
        .arg("--socket")
        .arg(socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    std::thread::Builder::new()
        .name("keeper-end".to_owned())
        .spawn(move || match keeper.wait() {
            Ok(status) if status.success() => tracing::info!("the keeper has ended"),
            Ok(status) => tracing::error!(%status, "the keeper has ended: its log says why"),
            Err(error) => tracing::warn!(%error, "waiting for the keeper"),
        })?;
    Ok(())
}
