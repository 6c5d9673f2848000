//! Volumes that are part of a pod's own specification: kubelet publishes and unpublishes them, and
//! never stages them. They are staged here, in a folder of the driver's own, and so are mounted,
//! repaired and counted like any other.

use std::sync::Arc;

use super::{PublishRequest, StageRequest, Volumes};
use crate::driver::error::VolumeError;
use crate::driver::path::HostPath;
use crate::driver::spec::VolumeSpec;
use crate::driver::volume::VolumeId;

impl Volumes {
    /// Stages an inline volume where nobody else looks, and publishes it from there.
    pub(in crate::driver) async fn publish_inline(
        self: &Arc<Self>,
        mut request: PublishRequest,
        spec: VolumeSpec,
    ) -> Result<(), VolumeError> {
        request.staging = self.inline_staging(&request.volume)?;
        let (volume, path) = (request.volume.clone(), request.target.as_path().to_owned());
        self.exclusively(&volume, &path, move |volumes| async move {
            let (namespace, wanted) = (request.namespace.clone(), spec.clone());
            let admitted = volumes.blocking(move |volumes| {
                volumes.admit(&wanted, namespace.as_deref())?;
                volumes.admit_version(&wanted)
            });
            admitted.await?;
            let stage = StageRequest {
                volume: request.volume.clone(),
                spec,
                access: request.access.clone(),
                staging: request.staging.clone(),
                inline: true,
            };
            volumes.mount_staging(stage).await?;
            let volume = request.volume.clone();
            let published = volumes.mount_target(request).await;
            if published.is_err() {
                // Nobody would ever unstage it.
                let left = volumes.blocking(move |volumes| volumes.hide_inline(&volume));
                if let Err(error) = left.await {
                    tracing::warn!(%error, "an inline volume that was not published stays staged");
                }
            }
            published
        })
        .await
    }

    /// Unstages an inline volume that is published nowhere any more; leaves all others.
    pub(super) fn hide_inline(&self, volume: &VolumeId) -> Result<(), VolumeError> {
        match self.record(volume) {
            Some(record) if record.inline && self.still_published(&record)?.is_none() => {
                self.hide(volume, &record.staging)?;
                match std::fs::remove_dir(&record.staging) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::debug!(%error, "an empty folder stays");
                    }
                    _ => {}
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn inline_staging(&self, volume: &VolumeId) -> Result<HostPath, VolumeError> {
        let name = blake3::hash(volume.as_str().as_bytes()).to_hex();
        let path = self.records.folder().join("inline").join(name.as_str());
        HostPath::parse("the state directory", &path.to_string_lossy())
    }
}
