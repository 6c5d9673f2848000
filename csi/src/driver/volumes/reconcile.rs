//! At the start: what the records say should be mounted is compared with what is.
//!
//! A volume of which something is still mounted is shown again, the dead mounts replaced. One of
//! which nothing is mounted any more, as after a reboot, is forgotten: kubelet stages anew what it
//! still wants. Dead mounts of Trackbed's that no record tells of are taken away, but only where
//! nobody but this driver mounts: in its own folder, and below the folder of the kubelet that it
//! is registered with.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::statfs;
use tokio::task::JoinSet;

use super::{Volumes, read_table, resolve, stage};
use crate::driver::error::VolumeError;
use crate::driver::record::Record;
use crate::driver::volume::VolumeId;
use crate::expose::bind;
use crate::expose::mountinfo::Mount;

/// How long a mount may take to say that it is dead. The kernel answers for a dead one at once; one
/// that does not answer is alive and slow.
const PROBE: Duration = Duration::from_secs(1);

/// How long a volume that could not be shown again is left alone, at first; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// The longest that it is left alone.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What is to be done about a volume that an earlier driver left.
enum Left {
    /// It is shown already: kubelet was quicker.
    Shown,
    /// Something is mounted.
    Remains,
    /// Nothing is mounted, or nothing that anybody could still take away.
    Nothing,
}

impl Volumes {
    /// Makes the mounts what the records say, all volumes side by side. A volume that cannot be
    /// shown says so in its condition, and is tried again, after ever longer pauses and when kubelet
    /// stages or publishes it: pods wait for what it has not cached.
    pub(in crate::driver) async fn recover(self: Arc<Self>) {
        let mut left: Vec<VolumeId> = self.table.lock().keys().cloned().collect();
        let mut pause = FIRST_RETRY;
        left = self.recover_all(left).await;
        if let Err(error) = self.blocking(|volumes| volumes.take_orphans()).await {
            tracing::warn!(%error, "dead mounts may stay");
        }
        while !left.is_empty() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
            left = self.recover_all(left).await;
        }
    }

    /// Those of the volumes that could not be shown again.
    async fn recover_all(self: &Arc<Self>, volumes: Vec<VolumeId>) -> Vec<VolumeId> {
        let mut recoveries = JoinSet::new();
        for volume in volumes {
            // As it is recorded by now; it may be unstaged meanwhile.
            if let Some(record) = self.record(&volume) {
                let recovering = self.clone().recover_one(record);
                recoveries.spawn(async move { recovering.await.is_err().then_some(volume) });
            }
        }
        let outcomes = recoveries.join_all().await;
        outcomes.into_iter().flatten().collect()
    }

    async fn recover_one(self: Arc<Self>, record: Record) -> Result<(), VolumeError> {
        let volume = record.volume.clone();
        let recovered = self
            .exclusively(
                &volume,
                &record.staging.clone(),
                move |volumes| async move {
                    let left = {
                        let record = record.clone();
                        volumes.blocking(move |volumes| volumes.what_is_left(&record))
                    };
                    match left.await? {
                        Left::Shown => Ok(()),
                        Left::Remains => {
                            tracing::info!(volume = record.volume.as_str(), "mounting again");
                            volumes.show_again(record).await
                        }
                        Left::Nothing => {
                            tracing::info!(
                                volume = record.volume.as_str(),
                                "forgotten, as nothing of it is mounted any more"
                            );
                            volumes
                                .blocking(move |volumes| volumes.forget(&record))
                                .await
                        }
                    }
                },
            )
            .await;
        match &recovered {
            // kubelet's own call may do what there is to do.
            Ok(()) | Err(VolumeError::Busy { .. }) => {}
            Err(error) => {
                tracing::error!(volume = volume.as_str(), %error, "a volume is not shown again yet");
                if let Some(volume) = self.table.lock().get_mut(&volume) {
                    volume.trouble = Some(error.to_string());
                }
            }
        }
        recovered
    }

    fn what_is_left(&self, record: &Record) -> Result<Left, VolumeError> {
        let table = self.table.lock();
        match table.get(&record.volume) {
            Some(volume) if volume.shown.is_none() => {}
            _ => return Ok(Left::Shown),
        }
        drop(table);
        let mounts = read_table()?;
        let targets = record.targets.iter().map(|target| &target.path);
        // Nobody unstages an inline volume that is published nowhere.
        let staging = (!record.inline).then_some(&record.staging);
        for path in targets.chain(staging) {
            if let Some(path) = resolve(path)?
                && mounts.top(&path).is_some_and(|top| top.is_ours())
            {
                return Ok(Left::Remains);
            }
        }
        Ok(Left::Nothing)
    }

    fn forget(&self, record: &Record) -> Result<(), VolumeError> {
        stage::take_remains(record)?;
        self.records
            .remove(&record.volume)
            .map_err(VolumeError::io("removing the record of a volume"))?;
        self.table.lock().remove(&record.volume);
        Ok(())
    }

    /// Takes away what is dead and in no record.
    fn take_orphans(&self) -> Result<(), VolumeError> {
        let recorded: HashSet<PathBuf> = {
            let table = self.table.lock();
            let records = table.values().map(|volume| &volume.record);
            let paths = records.flat_map(|record| {
                let targets = record.targets.iter().map(|target| target.path.clone());
                targets.chain([record.staging.clone()]).collect::<Vec<_>>()
            });
            paths.collect()
        };
        let recorded: HashSet<PathBuf> = recorded
            .iter()
            .filter_map(|path| resolve(path).ok().flatten())
            .collect();
        for mount in read_table()?.mounts().iter().rev() {
            let path = &mount.mount_point;
            let own = path.starts_with(self.records.folder());
            let kubelet_s = self
                .kubelet
                .as_ref()
                .is_some_and(|root| path.starts_with(root));
            let orphan = mount.is_ours() && !recorded.contains(path) && (own || kubelet_s);
            if orphan && is_dead(mount) {
                // Only what was looked at: something else may have been mounted over it since.
                let same = |top: &Mount| (top.id, top.device) == (mount.id, mount.device);
                if read_table()?.top(path).is_some_and(same) {
                    tracing::info!(path = %path.display(), "taking a dead mount away");
                    bind::detach_top(path).map_err(VolumeError::expose("cleaning up"))?;
                }
            }
        }
        Ok(())
    }
}

/// Whether what serves a mount is gone. Asks on a thread of its own, which is left behind if the
/// mount does not answer.
fn is_dead(mount: &Mount) -> bool {
    let (answer, answered) = mpsc::channel();
    let path: PathBuf = mount.mount_point.clone();
    let asking = std::thread::Builder::new()
        .name("probe-mount".into())
        .spawn(move || answer.send(asks_dead(&path)).is_ok());
    match asking {
        Ok(_) => answered.recv_timeout(PROBE).unwrap_or(false),
        Err(error) => {
            tracing::warn!(%error, "cannot ask whether a mount is dead");
            false
        }
    }
}

fn asks_dead(path: &Path) -> bool {
    matches!(statfs(path), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}
