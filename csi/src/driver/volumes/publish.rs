//! Publishing: what is staged, shown in a pod's directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trackbed_cache::Digest;

use super::stage::make_mount_point;
use super::{Volumes, read_table, resolve};
use crate::driver::error::VolumeError;
use crate::driver::path::HostPath;
use crate::driver::record::{Record, Target};
use crate::driver::spec::VolumeSpec;
use crate::driver::volume::{Access, VolumeId};
use crate::expose::{ExposeError, bind, native};

/// What a NodePublishVolume call asks for.
#[derive(Clone, Debug)]
pub(in crate::driver) struct PublishRequest {
    pub(in crate::driver) volume: VolumeId,
    pub(in crate::driver) staging: HostPath,
    pub(in crate::driver) target: HostPath,
    pub(in crate::driver) access: Access,
    pub(in crate::driver) read_only: bool,
    /// What the volume's context and id say it shows, if they say it.
    pub(in crate::driver) said: Option<VolumeSpec>,
    /// The pod's namespace, if it was told.
    pub(in crate::driver) namespace: Option<String>,
}

impl Volumes {
    /// Binds the staged version to the target path; a dead staging mount is replaced first.
    pub(in crate::driver) async fn publish(
        self: &Arc<Self>,
        request: PublishRequest,
    ) -> Result<(), VolumeError> {
        let (volume, path) = (request.volume.clone(), request.target.as_path().to_owned());
        self.exclusively(&volume, &path, move |volumes| async move {
            volumes.mount_target(request).await
        })
        .await
    }

    /// What is left to do for publishing, inside an operation on the volume.
    pub(super) async fn mount_target(
        self: &Arc<Self>,
        request: PublishRequest,
    ) -> Result<(), VolumeError> {
        let dead = {
            let request = request.clone();
            self.blocking(move |volumes| volumes.dead_staging(&request))
        };
        if let Some(record) = dead.await? {
            self.show_again(record).await?;
        }
        self.blocking(move |volumes| volumes.bind_target(&request))
            .await
    }

    /// Takes the target's mount and directory away.
    pub(in crate::driver) async fn unpublish(
        self: &Arc<Self>,
        volume: VolumeId,
        target: HostPath,
    ) -> Result<(), VolumeError> {
        let path = target.as_path().to_owned();
        self.exclusively(&volume.clone(), &path, move |volumes| async move {
            volumes
                .blocking(move |volumes| {
                    volumes.remove_target(&volume, target.as_path())?;
                    volumes.hide_inline(&volume)
                })
                .await
        })
        .await
    }

    /// A target of the volume on which something of ours is still mounted.
    pub(super) fn still_published(&self, record: &Record) -> Result<Option<PathBuf>, VolumeError> {
        let table = read_table()?;
        for target in &record.targets {
            if let Some(path) = resolve(&target.path)?
                && table.top(&path).is_some_and(|top| top.is_ours())
            {
                return Ok(Some(target.path.clone()));
            }
        }
        Ok(None)
    }

    /// The record of the staged volume if what is staged is dead; refuses if it is not staged, or
    /// if it shows what the pod did not ask for or may not read.
    fn dead_staging(&self, request: &PublishRequest) -> Result<Option<Record>, VolumeError> {
        self.refuse_others_path(&request.volume, request.target.as_path())?;
        self.expose.check();
        let mounts = read_table()?;
        let (record, seen) = {
            let table = self.table.lock();
            let staged = table
                .get(&request.volume)
                .filter(|volume| volume.record.staging == request.staging.as_path())
                .ok_or_else(|| {
                    VolumeError::Premature(format!(
                        "volume {:?} is not staged at {}: stage it first",
                        request.volume.as_str(),
                        request.staging
                    ))
                })?;
            let shown = staged.shown.as_ref();
            (
                staged.record.clone(),
                shown.is_some_and(|shown| shown.is_seen(&mounts)),
            )
        };
        if let Some(said) = &request.said
            && *said != record.spec
        {
            return Err(VolumeError::Premature(format!(
                "volume {:?} is staged with {}, and is to be published with {said}, or with another version: unstage it first",
                request.volume.as_str(),
                record.spec
            )));
        }
        self.admit(&record.spec, request.namespace.as_deref())?;
        Ok((!seen).then_some(record))
    }

    fn bind_target(&self, request: &PublishRequest) -> Result<(), VolumeError> {
        let doing = format!("publishing volume {:?}", request.volume.as_str());
        let gone = || VolumeError::Premature(format!("{doing}: it is not staged: stage it first"));
        let mounts = read_table()?;
        let mut record = self.record(&request.volume).ok_or_else(gone)?;
        let seen = |known: &Target| {
            let path = resolve(&known.path)?;
            Ok(path.and_then(|path| mounts.top(&path)))
        };
        let seen = record.targets.iter().map(seen);
        let seen = seen.collect::<Result<Vec<_>, VolumeError>>()?;
        let view = {
            let table = self.table.lock();
            let shown = table
                .get(&request.volume)
                .and_then(|volume| volume.shown.as_ref());
            Arc::clone(&shown.ok_or_else(gone)?.view)
        };
        // Not under the lock: each file is looked at.
        let natively = self.expose.native(&view);
        let (source, bound_now) = {
            let table = self.table.lock();
            let volume = table.get(&request.volume).ok_or_else(gone)?;
            let shown = volume.shown.as_ref().ok_or_else(gone)?;
            let bound = seen
                .iter()
                .map(|top| top.is_some_and(|top| shown.shows(top)));
            let bound: Vec<bool> = bound.collect();
            let source = Source {
                staging: shown.mount.mount_point().to_owned(),
                natively,
                version: shown.view.manifest().digest(),
            };
            (source, bound)
        };
        let wanted = Target {
            path: request.target.as_path().to_owned(),
            access: request.access.clone(),
            read_only: request.read_only,
        };

        let mut others = Vec::new();
        for (known, bound) in record.targets.drain(..).zip(bound_now) {
            match (known.path == wanted.path, bound) {
                (true, true) if known == wanted => return Ok(()),
                (true, true) => {
                    return Err(VolumeError::Conflict(format!(
                        "volume {:?} is published at {} already, with other arguments: unpublish it first",
                        request.volume.as_str(),
                        request.target
                    )));
                }
                (false, true) => others.push(known),
                // Nothing of this volume is seen there any more: somebody else unmounted it.
                (_, false) => {}
            }
        }
        if let Some(other) = others.first()
            && !request.access.allows_several_targets()
        {
            return Err(VolumeError::Premature(format!(
                "volume {:?} is published at {}, and its access mode allows one place: use ReadOnlyMany or ReadWriteOnce",
                request.volume.as_str(),
                other.path.display()
            )));
        }
        let target = make_mount_point(&wanted.path, &doing)?;
        others.push(wanted);
        record.targets = others;
        // Written first: a target that is recorded and not mounted does no harm, one that is
        // mounted and not recorded would be forgotten by the next driver.
        self.records
            .save(&record)
            .map_err(VolumeError::io(format!("{doing}: writing its record")))?;
        if let Some(volume) = self.table.lock().get_mut(&request.volume) {
            volume.record = record;
        }
        bind::detach_ours(&target).map_err(VolumeError::expose(&doing))?;
        source
            .bind(&target, request.access.no_exec())
            .map_err(VolumeError::expose(doing))
    }

    fn remove_target(&self, volume: &VolumeId, path: &Path) -> Result<(), VolumeError> {
        self.refuse_others_path(volume, path)?;
        let doing = format!("unpublishing volume {:?}", volume.as_str());
        if let Some(target) = resolve(path)? {
            bind::detach_ours(&target).map_err(VolumeError::expose(&doing))?;
            match fs::remove_dir(&target) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error)
                    if [
                        io::ErrorKind::NotADirectory,
                        io::ErrorKind::DirectoryNotEmpty,
                    ]
                    .contains(&error.kind()) =>
                {
                    return Err(VolumeError::Premature(format!(
                        "{doing}: {} is not an empty directory, so it is not Trackbed's: remove it by hand",
                        path.display()
                    )));
                }
                Err(error) => {
                    let action = format!("{doing}: removing the directory {}", path.display());
                    return Err(VolumeError::io(action)(error));
                }
            }
        }
        let Some(mut record) = self.record(volume) else {
            return Ok(());
        };
        let known = record.targets.len();
        record.targets.retain(|target| target.path != path);
        if record.targets.len() != known {
            self.records
                .save(&record)
                .map_err(VolumeError::io(format!("{doing}: writing its record")))?;
            if let Some(volume) = self.table.lock().get_mut(volume) {
                volume.record = record;
            }
        }
        Ok(())
    }
}

/// What to show in one more place.
struct Source {
    staging: PathBuf,
    /// What the kernel alone can show of the version, if it is shown as that from now on.
    natively: Option<native::Source>,
    version: Digest,
}

impl Source {
    /// Shows it at `target`, which has no symbolic link in it.
    fn bind(&self, target: &Path, no_exec: bool) -> Result<(), ExposeError> {
        if let Some(source) = &self.natively {
            match source.show(self.version, target, no_exec) {
                Ok(_) => return Ok(()),
                Err(error) => tracing::warn!(%error,
                    "the version can't be shown natively here: it is shown as it is staged"),
            }
        }
        bind::bind_read_only(&self.staging, target, no_exec)
    }
}
