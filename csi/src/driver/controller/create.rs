//! Creating and deleting volumes.

use trackbed_cache::Digest;
use trackbed_cache::registry::DatasetName;
use trackbed_proto::csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use trackbed_proto::csi::v1::{CreateVolumeRequest, Volume, VolumeContentSource};

use super::capacity::{Range, to_csi};
use super::find::Size;
use super::{ControllerService, missing};
use crate::driver::error::VolumeError;
use crate::driver::ledger::{
    Created, Entry, Source, VolumeEntry, check_name, snapshot_key, volume_key,
};
use crate::driver::spec::{Said, VolumeSpec};
use crate::driver::volume::Access;

/// A CreateVolume request, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    said: Said,
    source: Option<Source>,
    range: Range,
}

impl Wanted {
    fn parse(request: CreateVolumeRequest) -> Result<Wanted, VolumeError> {
        check_name("volume", &request.name)?;
        if request.volume_capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        for capability in &request.volume_capabilities {
            Access::parse(Some(capability))?;
        }
        let about = format!("volume {:?}", request.name);
        if let Some(key) = request.mutable_parameters.keys().min() {
            return Err(VolumeError::Invalid(format!(
                "{about}: unknown key {key:?} in its mutable_parameters (VolumeAttributesClass): \
                 nothing of a dataset's volume can be changed"
            )));
        }
        let said = Said::parse(&about, "parameters (StorageClass)", &request.parameters)?;
        if said.version.is_some()
            && said.dataset.is_none()
            && request.volume_content_source.is_none()
        {
            return Err(VolumeError::Invalid(format!(
                "{about}: its parameters name a version and no dataset: add \"dataset\""
            )));
        }
        let source = request
            .volume_content_source
            .map(parse_source)
            .transpose()?;
        let range = Range::parse(request.capacity_range)?;
        Ok(Wanted {
            name: request.name,
            said,
            source,
            range,
        })
    }

    /// Whether an existing volume of that name is what is wanted.
    fn is(&self, existing: &VolumeEntry) -> Result<(), VolumeError> {
        let refuse = |what: &str| {
            Err(VolumeError::Conflict(format!(
                "there is a volume {:?} already, {what}: delete it first, or take another name",
                self.name
            )))
        };
        if !self.range.holds(existing.capacity) {
            return refuse(&format!("of {} bytes", existing.capacity));
        }
        if self.source != existing.source {
            return refuse("made of another source");
        }
        let content = &existing.content;
        // Without a source, naming no dataset means none.
        let any_dataset = self.source.is_some() && self.said.dataset.is_none();
        let same_dataset = any_dataset || self.said.dataset == content.dataset;
        let same_version = self.said.version.is_none() || self.said.version == content.version;
        if !same_dataset || !same_version {
            return refuse(&format!("of {content}"));
        }
        Ok(())
    }
}

fn parse_source(source: VolumeContentSource) -> Result<Source, VolumeError> {
    match source.r#type {
        Some(Type::Snapshot(SnapshotSource { snapshot_id })) if !snapshot_id.is_empty() => {
            Ok(Source::Snapshot(snapshot_id))
        }
        Some(Type::Volume(VolumeSource { volume_id })) if !volume_id.is_empty() => {
            Ok(Source::Volume(volume_id))
        }
        Some(Type::Snapshot(_)) => Err(missing("volume_content_source's snapshot_id")),
        Some(Type::Volume(_)) => Err(missing("volume_content_source's volume_id")),
        None => Err(missing("volume_content_source's type")),
    }
}

/// What a new volume shows.
struct Content {
    spec: VolumeSpec,
    /// Bytes of file data, where they are known without opening the version.
    bytes: Option<u64>,
}

impl ControllerService {
    /// Makes the volume of a name, or finds it made already.
    pub(super) async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, VolumeError> {
        let wanted = Wanted::parse(request)?;
        let (name, asked) = (wanted.name.clone(), wanted.clone());
        let content = self.blocking(move |service| service.existing_or_content(&asked));
        let content = match content.await? {
            Ok(existing) => return Ok(to_volume(existing)),
            Err(content) => content,
        };
        let bytes = match content.bytes {
            Some(bytes) => bytes,
            None => self.bytes_of(&content.spec).await?,
        };
        let entry = VolumeEntry {
            name,
            content: content.spec,
            bytes,
            capacity: wanted.range.settle(bytes)?,
            source: wanted.source.clone(),
            created: Created::now(),
        };
        if entry.content.dataset.is_none() {
            tracing::warn!(
                volume = entry.name,
                "its class names no dataset: it is an empty directory"
            );
        }
        self.blocking(move |service| {
            if service.ledger.volumes.add(&entry)? {
                return Ok(to_volume(entry));
            }
            // Another call, here or on another node, was quicker.
            match service.ledger.volumes.get(entry.key())? {
                Some(existing) => wanted.is(&existing).map(|()| to_volume(existing)),
                None => Err(VolumeError::Unavailable(format!(
                    "volume {:?} was created and deleted meanwhile: try again",
                    entry.name
                ))),
            }
        })
        .await
    }

    /// The volume, if it exists and is what is wanted, or else what it has to show.
    fn existing_or_content(
        &self,
        wanted: &Wanted,
    ) -> Result<Result<VolumeEntry, Content>, VolumeError> {
        let key = trackbed_cache::registry::Key::of(&wanted.name);
        if let Some(existing) = self.ledger.volumes.get(key)? {
            wanted.is(&existing)?;
            return Ok(Ok(existing));
        }
        let content = match &wanted.source {
            Some(source) => self.content_of_source(wanted, source)?,
            None => self.content_of_dataset(wanted)?,
        };
        if let Some(dataset) = &content.spec.dataset {
            self.admit_claim(dataset, wanted.said.claim_namespace.as_deref())?;
        }
        Ok(Err(content))
    }

    fn content_of_dataset(&self, wanted: &Wanted) -> Result<Content, VolumeError> {
        let Some(dataset) = &wanted.said.dataset else {
            return Ok(Content {
                spec: VolumeSpec::EMPTY,
                bytes: Some(0),
            });
        };
        let not_found =
            |what: String| VolumeError::NotFound(format!("volume {:?}: {what}", wanted.name));
        let record = self.record(dataset)?.ok_or_else(|| {
            not_found(format!(
                "there is no dataset {dataset}: register it first, or check the name"
            ))
        })?;
        let version: Digest = wanted.said.version.unwrap_or(record.version);
        if !record.has_version(version) {
            return Err(not_found(format!(
                "dataset {dataset} never had version {version}: name one that it had, or none for the current one"
            )));
        }
        Ok(Content {
            spec: VolumeSpec {
                dataset: Some(dataset.clone()),
                version: Some(version),
            },
            bytes: None,
        })
    }

    fn content_of_source(&self, wanted: &Wanted, source: &Source) -> Result<Content, VolumeError> {
        let found = match source {
            Source::Snapshot(id) => {
                let key = snapshot_key(id);
                let snapshot = key.map(|key| self.ledger.snapshots.get(key)).transpose()?;
                let snapshot = snapshot.flatten().map(|snapshot| Content {
                    spec: snapshot.content,
                    bytes: Some(snapshot.bytes),
                });
                snapshot.ok_or_else(|| format!("snapshot {id:?}"))
            }
            Source::Volume(id) => {
                let volume = self.find(id)?.map(|volume| Content {
                    spec: volume.content,
                    bytes: match volume.size {
                        Size::Settled { bytes, .. } => Some(bytes),
                        Size::OfVersion => None,
                    },
                });
                volume.ok_or_else(|| format!("volume {id:?}"))
            }
        };
        let content = found.map_err(|what| {
            VolumeError::NotFound(format!(
                "volume {:?} cannot be made of {what}: there is none of that id",
                wanted.name
            ))
        })?;
        let Said {
            dataset, version, ..
        } = &wanted.said;
        let other_dataset = dataset.is_some() && *dataset != content.spec.dataset;
        if other_dataset || (version.is_some() && *version != content.spec.version) {
            return Err(VolumeError::Invalid(format!(
                "volume {:?}: its parameters name another dataset or version than what it is to be made of, {}",
                wanted.name, content.spec
            )));
        }
        Ok(content)
    }

    /// Refuses a claim from a namespace that may not read the dataset, where it is told; publishing
    /// refuses in any case.
    fn admit_claim(&self, dataset: &DatasetName, claim: Option<&str>) -> Result<(), VolumeError> {
        let (Some(claim), Some(record)) = (claim, self.record(dataset)?) else {
            return Ok(());
        };
        if record.admits(Some(claim)) {
            Ok(())
        } else {
            Err(VolumeError::Denied(format!(
                "namespace {claim:?} may not read dataset {dataset}: register the dataset with it"
            )))
        }
    }

    /// Forgets a volume. Those that are not known, or were never created, are fine.
    pub(super) async fn delete(&self, id: String) -> Result<(), VolumeError> {
        if id.is_empty() {
            return Err(missing("volume_id"));
        }
        let Some(key) = volume_key(&id) else {
            return Ok(());
        };
        self.blocking(move |service| service.ledger.volumes.remove(key))
            .await
    }
}

/// The volume as CSI has it.
pub(super) fn to_volume(entry: VolumeEntry) -> Volume {
    Volume {
        capacity_bytes: to_csi(entry.capacity),
        volume_id: entry.id(),
        volume_context: entry.content.context(),
        content_source: entry.source.map(to_source),
        accessible_topology: Vec::new(),
    }
}

pub(super) fn to_source(source: Source) -> VolumeContentSource {
    VolumeContentSource {
        r#type: Some(match source {
            Source::Snapshot(snapshot_id) => Type::Snapshot(SnapshotSource { snapshot_id }),
            Source::Volume(volume_id) => Type::Volume(VolumeSource { volume_id }),
        }),
    }
}
