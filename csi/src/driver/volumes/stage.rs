//! Staging: a version mounted once on this node, and taken away again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trackbed_cache::Digest;

use super::{Shown, Volume, Volumes, read_table, resolve};
use crate::driver::error::VolumeError;
use crate::driver::path::HostPath;
use crate::driver::record::{Record, Target};
use crate::driver::spec::VolumeSpec;
use crate::driver::volume::{Access, VolumeId};
use crate::expose::VersionView;
use crate::expose::bind;

/// What a NodeStageVolume call asks for.
#[derive(Clone, Debug)]
pub(in crate::driver) struct StageRequest {
    pub(in crate::driver) volume: VolumeId,
    pub(in crate::driver) spec: VolumeSpec,
    pub(in crate::driver) access: Access,
    pub(in crate::driver) staging: HostPath,
    /// Whether this is for a volume of a pod's own.
    pub(in crate::driver) inline: bool,
}

/// What is left to do for a stage request.
enum Step {
    Nothing,
    /// Show this version; targets of an earlier life of the volume are bound to it again.
    Show {
        version: Option<Digest>,
        targets: Vec<Target>,
    },
}

impl Volumes {
    /// Mounts a version at the staging path. The version is settled the first time and stays until
    /// the volume is unstaged.
    pub(in crate::driver) async fn stage(
        self: &Arc<Self>,
        request: StageRequest,
    ) -> Result<(), VolumeError> {
        let (volume, path) = (request.volume.clone(), request.staging.as_path().to_owned());
        self.exclusively(&volume, &path, move |volumes| async move {
            volumes.mount_staging(request).await
        })
        .await
    }

    /// What is left to do for staging, inside an operation on the volume.
    pub(super) async fn mount_staging(
        self: &Arc<Self>,
        request: StageRequest,
    ) -> Result<(), VolumeError> {
        let step = {
            let request = request.clone();
            self.blocking(move |volumes| volumes.next_step(&request))
        };
        let Step::Show { version, targets } = step.await? else {
            return Ok(());
        };
        let view = self.open(&request.spec, version).await?;
        let record = Record {
            pinned: view.manifest().digest(),
            volume: request.volume,
            spec: request.spec,
            access: request.access,
            staging: request.staging.as_path().to_owned(),
            inline: request.inline,
            targets,
        };
        self.blocking(move |volumes| volumes.show(record, view))
            .await
    }

    /// Shows a recorded volume again, as it was.
    pub(super) async fn show_again(self: &Arc<Self>, record: Record) -> Result<(), VolumeError> {
        let view = self.open(&record.spec, Some(record.pinned)).await?;
        self.blocking(move |volumes| volumes.show(record, view))
            .await
    }

    /// Takes the version away from the staging path. Open files stay readable; nothing waits.
    pub(in crate::driver) async fn unstage(
        self: &Arc<Self>,
        volume: VolumeId,
        staging: HostPath,
    ) -> Result<(), VolumeError> {
        let path = staging.as_path().to_owned();
        self.exclusively(&volume.clone(), &path, move |volumes| async move {
            volumes
                .blocking(move |volumes| volumes.hide(&volume, staging.as_path()))
                .await
        })
        .await
    }

    fn next_step(&self, request: &StageRequest) -> Result<Step, VolumeError> {
        self.refuse_others_path(&request.volume, request.staging.as_path())?;
        self.expose.check();
        let mounts = read_table()?;
        let table = self.table.lock();
        let Some(Volume { record, shown, .. }) = table.get(&request.volume) else {
            return Ok(Step::Show {
                version: request.spec.version,
                targets: Vec::new(),
            });
        };
        let same_data = record.spec == request.spec;
        let same = same_data
            && record.access == request.access
            && record.staging == request.staging.as_path();
        let seen = shown.as_ref().is_some_and(|shown| shown.is_seen(&mounts));
        match (same, seen) {
            (true, true) => Ok(Step::Nothing),
            (false, true) => Err(VolumeError::Conflict(format!(
                "volume {:?} is staged at {} already, with other arguments: unstage it first",
                record.volume.as_str(),
                record.staging.display()
            ))),
            (_, false) => Ok(Step::Show {
                version: same_data.then_some(record.pinned).or(request.spec.version),
                targets: if same_data {
                    record.targets.clone()
                } else {
                    Vec::new()
                },
            }),
        }
    }

    /// Mounts `view` for `record`, in the place of whatever of ours is there, and binds again
    /// those targets that show a dead mount.
    fn show(&self, mut record: Record, view: Arc<dyn VersionView>) -> Result<(), VolumeError> {
        let doing = format!("staging volume {:?}", record.volume.as_str());
        let staging = make_mount_point(&record.staging, &doing)?;
        let (was_known, earlier) = match self.table.lock().get_mut(&record.volume) {
            Some(volume) => (true, volume.shown.take()),
            None => (false, None),
        };
        // What outlived an earlier driver goes on as it is: no reader notices.
        let adopted = match &earlier {
            None => self.expose.adopt(&view, &staging),
            Some(_) => None,
        };
        if adopted.is_none() {
            bind::detach_ours(&staging).map_err(VolumeError::expose(&doing))?;
        }
        // Its mount is not seen any more.
        drop(earlier);

        let label = match &record.spec.dataset {
            Some(dataset) => format!("{dataset}@{}", record.pinned.short()),
            None => "empty".to_owned(),
        };
        let save = |record: &Record| {
            self.records
                .save(record)
                .map_err(VolumeError::io(format!("{doing}: writing its record")))
        };
        // The pin is durable before anyone can read.
        let shown = save(&record).and_then(|()| {
            let mount = match adopted {
                Some(mount) => mount,
                None => self
                    .expose
                    .show(&view, &label, &staging)
                    .map_err(VolumeError::expose(&doing))?,
            };
            let shown = Shown { mount, view };
            let targets = rebind_dead(&staging, &shown, &record.targets)?;
            if targets != record.targets {
                record.targets = targets;
                save(&record)?;
            }
            Ok(shown)
        });
        let (shown, failure) = match shown {
            Ok(shown) => (Some(shown), None),
            Err(error) if was_known => (None, Some(error)),
            Err(error) => {
                if let Err(error) = self.records.remove(&record.volume) {
                    tracing::warn!(%error, "the record of a volume that was not staged stays");
                }
                return Err(error);
            }
        };
        let volume = Volume {
            trouble: failure.as_ref().map(VolumeError::to_string),
            record,
            shown,
        };
        self.table
            .lock()
            .insert(volume.record.volume.clone(), volume);
        failure.map_or(Ok(()), Err)
    }

    pub(super) fn hide(&self, volume: &VolumeId, staging: &Path) -> Result<(), VolumeError> {
        self.refuse_others_path(volume, staging)?;
        let doing = format!("unstaging volume {:?}", volume.as_str());
        let record = self
            .record(volume)
            .filter(|record| record.staging == staging);
        if let Some(record) = &record
            && let Some(target) = self.still_published(record)?
        {
            return Err(VolumeError::Premature(format!(
                "volume {:?} is still published at {}: unpublish it first",
                volume.as_str(),
                target.display()
            )));
        }
        if record.is_some() {
            let table = || self.table.lock();
            let shown = table()
                .get_mut(volume)
                .and_then(|volume| volume.shown.take());
            if let Some(shown) = shown {
                shown.mount.unmount().map_err(VolumeError::expose(&doing))?;
            }
        }
        // What an earlier driver, or a crash in between, has left.
        if let Some(path) = resolve(staging)? {
            bind::detach_ours(&path).map_err(VolumeError::expose(&doing))?;
        }
        if record.is_some() {
            self.records
                .remove(volume)
                .map_err(VolumeError::io(format!("{doing}: removing its record")))?;
            self.table.lock().remove(volume);
        }
        Ok(())
    }
}

/// Takes a volume's own mounts away, targets first.
pub(super) fn take_away(shown: Shown, record: &Record) -> Result<(), VolumeError> {
    let doing = format!("unmounting volume {:?}", record.volume.as_str());
    for target in &record.targets {
        if let Some(path) = resolve(&target.path)?
            && read_table()?.top(&path).is_some_and(|top| shown.shows(top))
        {
            bind::detach_ours(&path).map_err(VolumeError::expose(&doing))?;
        }
    }
    shown.mount.unmount().map_err(VolumeError::expose(doing))
}

/// Takes away what an earlier driver has left of a volume that nobody serves.
pub(super) fn take_remains(record: &Record) -> Result<(), VolumeError> {
    let targets = record.targets.iter().map(|target| &target.path);
    for path in targets.chain([&record.staging]) {
        if let Some(path) = resolve(path)?
            && read_table()?.top(&path).is_some_and(|top| top.is_ours())
        {
            let doing = format!("unmounting volume {:?}", record.volume.as_str());
            bind::detach_ours(&path).map_err(VolumeError::expose(doing))?;
        }
    }
    Ok(())
}

/// Binds the targets on which an earlier mount of ours is seen to the new one, and forgets those
/// on which nothing of ours is mounted any more (as after a reboot).
fn rebind_dead(
    staging: &Path,
    shown: &Shown,
    targets: &[Target],
) -> Result<Vec<Target>, VolumeError> {
    let mut kept = Vec::new();
    for target in targets {
        let Some(path) = resolve(&target.path)? else {
            continue;
        };
        let doing = || VolumeError::expose(format!("mounting {} again", target.path.display()));
        let table = read_table()?;
        match table.top(&path) {
            Some(top) if top.is_ours() && !shown.shows(top) => {
                bind::detach_ours(&path).map_err(doing())?;
                bind::bind_read_only(staging, &path, target.access.no_exec()).map_err(doing())?;
                kept.push(target.clone());
            }
            Some(top) if top.is_ours() => kept.push(target.clone()),
            _ => {}
        }
    }
    Ok(kept)
}

/// Makes the directory a version is mounted on, with those above it, and gives its path as the
/// mount table shows it. A dead mount of ours that is there is not looked at.
pub(super) fn make_mount_point(path: &Path, doing: &str) -> Result<PathBuf, VolumeError> {
    let failed = || VolumeError::io(format!("{doing}: making the directory {}", path.display()));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed())?;
    }
    let resolved = resolve(path)?.ok_or_else(|| {
        failed()(io::Error::other(
            "the directory above it was removed meanwhile",
        ))
    })?;
    if read_table()?.top(&resolved).is_some() {
        return Ok(resolved);
    }
    match fs::create_dir(&resolved) {
        Ok(()) => Ok(resolved),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(&resolved).map_err(failed())?;
            if found.is_dir() {
                Ok(resolved)
            } else {
                Err(VolumeError::Premature(format!(
                    "{doing}: {} is there and is not a directory: remove it",
                    path.display()
                )))
            }
        }
        Err(error) => Err(failed()(error)),
    }
}
