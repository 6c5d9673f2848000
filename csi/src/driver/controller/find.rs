//! What a volume id means to the controller: a volume that was created, or one that an
//! administrator wrote down (`cats`, `cats@digest`).

use trackbed_cache::Digest;

use super::ControllerService;
use crate::driver::error::VolumeError;
use crate::driver::ledger::{Entry, Source, VolumeEntry, volume_key};
use crate::driver::spec::{Said, VolumeSpec};
use crate::driver::volume::VolumeId;

/// A volume that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: String,
    /// With the version it shows now.
    pub(super) content: VolumeSpec,
    pub(super) size: Size,
    pub(super) source: Option<Source>,
}

/// How large a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// As it was settled when the volume was created.
    Settled { bytes: u64, capacity: u64 },
    /// Whatever the version has.
    OfVersion,
}

impl From<VolumeEntry> for Found {
    fn from(entry: VolumeEntry) -> Found {
        Found {
            id: entry.id(),
            content: entry.content,
            size: Size::Settled {
                bytes: entry.bytes,
                capacity: entry.capacity,
            },
            source: entry.source,
        }
    }
}

impl ControllerService {
    /// The volume of this id, if there is one.
    pub(super) fn find(&self, id: &str) -> Result<Option<Found>, VolumeError> {
        if let Some(key) = volume_key(id) {
            return Ok(self.ledger.volumes.get(key)?.map(Found::from));
        }
        // An id that could not be any volume's is one of no volume.
        let written = VolumeId::parse(id).and_then(|id| Said::default().spec_or_id(&id));
        let Ok(VolumeSpec {
            dataset: Some(dataset),
            version,
        }) = written
        else {
            return Ok(None);
        };
        let Some(record) = self.record(&dataset)? else {
            return Ok(None);
        };
        let version = version.unwrap_or(record.version);
        Ok(record.has_version(version).then(|| Found {
            id: id.to_owned(),
            content: VolumeSpec {
                dataset: Some(dataset),
                version: Some(version),
            },
            size: Size::OfVersion,
            source: None,
        }))
    }

    /// The bytes of file data that a volume shows.
    pub(super) async fn bytes_of(&self, content: &VolumeSpec) -> Result<u64, VolumeError> {
        let version: Option<Digest> = content.version;
        let view = self.volumes.open(content, version).await?;
        Ok(view.manifest().totals().bytes)
    }
}
