//! Looking at volumes: one, a page of them, and whether one can be used in a way.

use trackbed_proto::csi::v1::{
    ControllerGetVolumeResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume, VolumeCondition,
    controller_get_volume_response, list_volumes_response,
    validate_volume_capabilities_response::Confirmed,
};

use super::capacity::to_csi;
use super::create::{to_source, to_volume};
use super::find::{Found, Size};
use super::page::Page;
use super::{ControllerService, missing};
use crate::driver::error::VolumeError;
use crate::driver::ledger::Entry;
use crate::driver::spec::{Said, VolumeSpec};
use crate::driver::volume::Access;

impl ControllerService {
    /// A page of the volumes that were created, in the order of their creation.
    pub(super) async fn list(
        &self,
        request: ListVolumesRequest,
    ) -> Result<ListVolumesResponse, VolumeError> {
        let page = Page::parse(request.max_entries, &request.starting_token)?;
        self.blocking(move |service| {
            let (volumes, next_token) = page.of(service.ledger.volumes.all()?);
            let entries = volumes.into_iter().map(|entry| {
                let condition = service.condition(entry.content());
                list_volumes_response::Entry {
                    volume: Some(to_volume(entry)),
                    status: Some(list_volumes_response::VolumeStatus {
                        published_node_ids: Vec::new(),
                        volume_condition: Some(condition),
                    }),
                }
            });
            Ok(ListVolumesResponse {
                entries: entries.collect(),
                next_token,
            })
        })
        .await
    }

    /// One volume and how it is.
    pub(super) async fn volume(
        &self,
        id: String,
    ) -> Result<ControllerGetVolumeResponse, VolumeError> {
        let found = self.existing(id).await?;
        let content = found.content.clone();
        let capacity = match found.size {
            Size::Settled { capacity, .. } => capacity,
            Size::OfVersion => self.bytes_of(&content).await?,
        };
        let condition = self.blocking(move |service| Ok(service.condition(&content)));
        Ok(ControllerGetVolumeResponse {
            status: Some(controller_get_volume_response::VolumeStatus {
                published_node_ids: Vec::new(),
                volume_condition: Some(condition.await?),
            }),
            volume: Some(Volume {
                capacity_bytes: to_csi(capacity),
                volume_id: found.id,
                volume_context: found.content.context(),
                content_source: found.source.map(to_source),
                accessible_topology: Vec::new(),
            }),
        })
    }

    /// Whether a volume can be used in all these ways.
    pub(super) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, VolumeError> {
        if request.volume_id.is_empty() {
            return Err(missing("volume_id"));
        }
        if request.volume_capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        let volume = self.existing(request.volume_id.clone()).await?;
        Ok(match objection(&volume, &request) {
            Ok(()) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            Err(error) => ValidateVolumeCapabilitiesResponse {
                confirmed: None,
                message: error.to_string(),
            },
        })
    }

    async fn existing(&self, id: String) -> Result<Found, VolumeError> {
        if id.is_empty() {
            return Err(missing("volume_id"));
        }
        self.blocking(move |service| {
            service.find(&id)?.ok_or_else(|| {
                let id: String = id.chars().take(200).collect();
                VolumeError::NotFound(format!("there is no volume {id:?}"))
            })
        })
        .await
    }

    /// How a volume is as far as the registry knows; what its nodes know is in their own answers.
    fn condition(&self, content: &VolumeSpec) -> VolumeCondition {
        let abnormal = |message| VolumeCondition {
            abnormal: true,
            message,
        };
        let (Some(dataset), Some(version)) = (&content.dataset, content.version) else {
            return abnormal(NO_DATASET.to_owned());
        };
        let pinned = version.short();
        match self.record(dataset) {
            Err(error) => abnormal(error.to_string()),
            Ok(None) => abnormal(format!(
                "dataset {dataset} is registered no more, so no node can mount it anew: register it again"
            )),
            Ok(Some(record)) if record.version == version => VolumeCondition {
                abnormal: false,
                message: format!("dataset {dataset}, version {pinned}, the current one"),
            },
            Ok(Some(record)) => VolumeCondition {
                abnormal: false,
                message: format!(
                    "dataset {dataset}, version {pinned}; the current one is {}",
                    record.version.short()
                ),
            },
        }
    }
}

/// The condition of a volume that names no dataset.
pub(in crate::driver) const NO_DATASET: &str = "the volume is an empty directory, as its class names no dataset: set \"dataset\" in the StorageClass's parameters and make the volume anew";

/// Why the volume cannot be used as asked, if it cannot.
fn objection(
    volume: &Found,
    request: &ValidateVolumeCapabilitiesRequest,
) -> Result<(), VolumeError> {
    for capability in &request.volume_capabilities {
        Access::parse(Some(capability))?;
    }
    let about = format!("volume {:?}", volume.id);
    let refuse = |why: &str| Err(VolumeError::Invalid(format!("{about}: {why}")));
    for (field, map) in [
        ("volume_context", &request.volume_context),
        ("parameters", &request.parameters),
    ] {
        let Some(spec) = Said::parse(&about, field, map)?.spec() else {
            continue;
        };
        let same_version = spec.version.is_none() || spec.version == volume.content.version;
        if spec.dataset != volume.content.dataset || !same_version {
            return refuse(&format!(
                "it shows {}, another dataset or version than its {field} names",
                volume.content
            ));
        }
    }
    match request.mutable_parameters.keys().min() {
        Some(key) => refuse(&format!("unknown key {key:?} in mutable_parameters")),
        None => Ok(()),
    }
}
