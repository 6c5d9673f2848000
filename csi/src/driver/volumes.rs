//! The volumes of this node: which dataset version each one shows, and where.
//!
//! What should be is in the records, what is comes from the mount table, and each operation makes
//! the one the other; so any call may be repeated, after a crash or a reboot too. Nothing here
//! looks into a mounted directory: a dead mount cannot block it. Every operation runs to its end
//! even when the caller hangs up, and anything that touches the file system runs off the reactor.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{RwLock, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use trackbed_cache::Digest;

use super::busy::Busy;
use super::error::VolumeError;
use super::path::HostPath;
use super::record::{Record, Records};
use super::spec::VolumeSpec;
use super::volume::VolumeId;
use super::{Datasets, OpenFailure, empty};
use crate::expose::mountinfo::{Mount, MountTable};
use crate::expose::{Expose, Exposed, VersionView, native};

mod admit;
mod inline;
mod publish;
mod reconcile;
mod stage;
mod stats;

pub(super) use publish::PublishRequest;
pub(super) use stage::StageRequest;

/// How long opening a version may take, below kubelet's own limit of two minutes for a call: a
/// version whose manifest no peer and no disk gives in this time is not going to come.
const OPEN_TIMEOUT: Duration = Duration::from_secs(100);

/// How long operations under way may take to end when the driver does. None of them waits for
/// anything but the kernel by then.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// All volumes of this node.
pub(super) struct Volumes {
    datasets: Arc<dyn Datasets>,
    expose: Arc<dyn Expose>,
    records: Records,
    /// Below which only this driver mounts datasets, if there is such a folder.
    kubelet: Option<PathBuf>,
    busy: Busy,
    /// Read by each operation, written once for ever at the end: nothing begins after that.
    open: Arc<RwLock<()>>,
    ending: watch::Sender<bool>,
    /// Locked for moments only, never while something is mounted, read or written.
    table: Mutex<HashMap<VolumeId, Volume>>,
    /// What stays mounted when the driver has ended.
    left: Arc<Mutex<HashSet<Digest>>>,
}

/// A volume that is staged, or was when the driver was last seen.
struct Volume {
    record: Record,
    shown: Option<Shown>,
    /// Why it could not be shown again, if that failed.
    trouble: Option<String>,
}

/// A version that is served.
struct Shown {
    mount: Box<dyn Exposed>,
    view: Arc<dyn VersionView>,
}

impl Shown {
    /// Whether this is what one sees at the staging path, and requests are answered.
    fn is_seen(&self, table: &MountTable) -> bool {
        let top = table.top(self.mount.mount_point());
        self.mount.is_alive() && top.is_some_and(|top| self.shows(top))
    }

    /// Whether a mount shows this version: by what serves the staging path, or as plain files. A
    /// volume's places may differ, as a version is complete at some time.
    fn shows(&self, mount: &Mount) -> bool {
        self.mount.shows(mount) || native::shows(mount, self.view.manifest().digest())
    }
}

impl Volumes {
    /// The volumes that `records` tells of, none of them shown yet.
    pub(super) fn new(
        datasets: Arc<dyn Datasets>,
        expose: Arc<dyn Expose>,
        records: Records,
        kubelet: Option<PathBuf>,
    ) -> std::io::Result<Arc<Volumes>> {
        let table = records
            .load()?
            .into_iter()
            .map(|record| {
                let volume = Volume {
                    record,
                    shown: None,
                    trouble: None,
                };
                (volume.record.volume.clone(), volume)
            })
            .collect();
        Ok(Arc::new(Volumes {
            datasets,
            expose,
            records,
            kubelet,
            busy: Busy::default(),
            open: Arc::default(),
            ending: watch::Sender::new(false),
            table: Mutex::new(table),
            left: Arc::default(),
        }))
    }

    /// Tells the versions that are mounted, or that an earlier driver had staged and may have left so.
    /// Keeps nothing alive: the datasets' own cache may hold it.
    pub(super) fn mounted(self: &Arc<Self>) -> impl Fn() -> HashSet<Digest> + Send + Sync + use<> {
        let (volumes, left) = (Arc::downgrade(self), Arc::clone(&self.left));
        move || {
            let mut versions = HashSet::new();
            if let Some(volumes) = volumes.upgrade() {
                let table = volumes.table.lock();
                versions.extend(table.values().map(|volume| volume.record.pinned));
            }
            // Looked at last: what leaves the table is in here before.
            versions.extend(left.lock().iter());
            match MountTable::read() {
                // Also those whose records are lost.
                Ok(mounts) => {
                    versions.extend(mounts.mounts().iter().filter_map(native::version_of));
                }
                Err(error) => tracing::warn!(%error, "looking at what is mounted"),
            }
            versions
        }
    }

    /// Gives up the operations that wait for a dataset.
    pub(super) fn give_up_waiting(&self) {
        self.ending.send_replace(true);
    }

    /// Ends serving: takes all mounts away, or leaves them to whoever mounts them again. No
    /// operation begins any more.
    pub(super) async fn shut_down(self: Arc<Self>, unmount: bool) -> Result<(), VolumeError> {
        self.give_up_waiting();
        let closed = timeout(END_TIMEOUT, self.open.clone().write_owned()).await;
        if closed.is_err() {
            tracing::error!("an operation on a volume does not end: its mount may stay");
        }
        self.blocking(move |volumes| {
            let all: Vec<Volume> = {
                let mut table = volumes.table.lock();
                let pinned = table.values().map(|volume| volume.record.pinned);
                volumes.left.lock().extend(pinned);
                table.drain().map(|(_, volume)| volume).collect()
            };
            let mut first_failure = None;
            for volume in all {
                let ended = match volume.shown {
                    Some(shown) if !unmount => {
                        shown.mount.leave();
                        Ok(())
                    }
                    Some(shown) => stage::take_away(shown, &volume.record),
                    None if unmount => stage::take_remains(&volume.record),
                    None => Ok(()),
                };
                if let Err(error) = ended {
                    tracing::error!(volume = volume.record.volume.as_str(), %error, "stays mounted");
                    first_failure.get_or_insert(error);
                }
            }
            first_failure.map_or(Ok(()), Err)
        })
        .await
    }

    /// Runs `work` as the only operation on this volume and path, to its end whatever becomes of
    /// the caller.
    async fn exclusively<T, F, Fut>(
        self: &Arc<Self>,
        volume: &VolumeId,
        path: &Path,
        work: F,
    ) -> Result<T, VolumeError>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Volumes>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, VolumeError>> + Send + 'static,
    {
        let open = self.open.clone().try_read_owned().map_err(|_| ending())?;
        let working = self.busy.take(volume, path)?;
        let volumes = self.clone();
        let task = tokio::spawn(async move {
            let _until_done = (working, open);
            work(volumes).await
        });
        task.await.unwrap_or(Err(VolumeError::Panicked))
    }

    /// Runs what touches the file system on a thread that may wait.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Volumes) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let volumes = self.clone();
        spawn_blocking(move || work(&volumes))
            .await
            .unwrap_or(Err(VolumeError::Panicked))
    }

    /// Opens what a volume shows.
    pub(super) async fn open(
        self: &Arc<Self>,
        spec: &VolumeSpec,
        version: Option<Digest>,
    ) -> Result<Arc<dyn VersionView>, VolumeError> {
        let Some(dataset) = &spec.dataset else {
            return self
                .blocking(|volumes| empty::version(volumes.records.folder()))
                .await;
        };
        let mut end = self.ending.subscribe();
        let opening = timeout(OPEN_TIMEOUT, self.datasets.open(dataset, version));
        let opened = tokio::select! {
            opened = opening => opened,
            _ = end.wait_for(|ending| *ending) => return Err(ending()),
        };
        match opened {
            Ok(Ok(view)) => Ok(view),
            Ok(Err(OpenFailure::Unknown(why))) => Err(VolumeError::NotFound(why)),
            Ok(Err(OpenFailure::Unavailable(why))) => Err(VolumeError::Unavailable(why)),
            Err(_) => Err(VolumeError::Unavailable(format!(
                "opening dataset {dataset} took longer than {} s: look at the node's log and at its peers",
                OPEN_TIMEOUT.as_secs()
            ))),
        }
    }

    fn record(&self, volume: &VolumeId) -> Option<Record> {
        let table = self.table.lock();
        table.get(volume).map(|volume| volume.record.clone())
    }

    /// Refuses a path on which another volume is staged or published.
    fn refuse_others_path(&self, volume: &VolumeId, path: &Path) -> Result<(), VolumeError> {
        let table = self.table.lock();
        let other = table.values().map(|other| &other.record).find(|record| {
            let paths = record.targets.iter().map(|target| &target.path);
            &record.volume != volume && paths.chain([&record.staging]).any(|taken| taken == path)
        });
        match other {
            Some(other) => Err(VolumeError::Premature(format!(
                "{} belongs to volume {:?}: unpublish or unstage that first",
                path.display(),
                other.volume.as_str()
            ))),
            None => Ok(()),
        }
    }
}

fn ending() -> VolumeError {
    VolumeError::Unavailable("the driver is ending: try again when it is back".to_owned())
}

fn read_table() -> Result<MountTable, VolumeError> {
    MountTable::read().map_err(VolumeError::io("looking at what is mounted"))
}

/// A recorded path as the mount table shows it.
fn resolve(path: &Path) -> Result<Option<PathBuf>, VolumeError> {
    HostPath::recorded(path)?
        .resolve()
        .map_err(VolumeError::io(format!("looking for {}", path.display())))
}
