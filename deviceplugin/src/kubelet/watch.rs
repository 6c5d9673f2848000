//! Sees kubelet come and go, by what happens in its folder.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// How often a folder is looked for that is not there.
const RETRY: Duration = Duration::from_millis(500);

/// Counts what happens in a folder.
#[derive(Debug)]
pub struct FolderWatch {
    folder: PathBuf,
    changes: watch::Sender<u64>,
}

impl FolderWatch {
    /// Of kubelet's folder; nothing is counted before [`FolderWatch::run`].
    pub fn new(folder: &Path) -> FolderWatch {
        FolderWatch {
            folder: folder.to_owned(),
            changes: watch::Sender::new(0),
        }
    }

    /// Changes with everything that happens there.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Watches, also when the folder goes and comes again.
    pub async fn run(&self) -> std::convert::Infallible {
        let mut said = false;
        loop {
            match self.watch_once().await {
                // It was removed.
                Ok(()) => said = false,
                Err(error) if !said => {
                    tracing::warn!(folder = %self.folder.display(), %error,
                        "kubelet's folder can't be watched: waiting for it");
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn watch_once(&self) -> io::Result<()> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, &self.folder, flags)?;
        let watched = identity(&self.folder);
        // What it says is not parsed: the folder is looked at. It is read like a pipe.
        let mut inotify = pipe::Receiver::from_file_unchecked(File::from(inotify))?;
        let mut events = [0; 4096];
        loop {
            // The first time for what happened before it was watched.
            self.changes.send_modify(|changes| *changes += 1);
            let _how_much = inotify.read(&mut events).await?;
            if identity(&self.folder) != watched {
                return Ok(());
            }
        }
    }
}

/// Which folder is at a path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = path.symlink_metadata().ok()?;
    Some((found.dev(), found.ino()))
}
