//! Who may read what: a pod reads the datasets that its namespace may, and no other.

use trackbed_cache::registry::DatasetRecord;

use super::Volumes;
use crate::driver::OpenFailure;
use crate::driver::error::VolumeError;
use crate::driver::spec::VolumeSpec;

impl Volumes {
    /// Refuses a pod of a namespace that may not read the volume's dataset. `namespace` is what
    /// kubelet said; without it, only what all may read is given. Asks the registry each time, so
    /// that a namespace that was taken off the list gets nothing any more.
    pub(super) fn admit(
        &self,
        spec: &VolumeSpec,
        namespace: Option<&str>,
    ) -> Result<(), VolumeError> {
        let Some(record) = self.registered(spec)? else {
            return Ok(());
        };
        if record.admits(namespace) {
            return Ok(());
        }
        let dataset = &record.name;
        Err(VolumeError::Denied(match namespace {
            Some(namespace) => format!(
                "pods of namespace {namespace:?} may not read dataset {dataset}: register the dataset with that namespace, or use another dataset"
            ),
            None => format!(
                "dataset {dataset} is for some namespaces only, and which one the pod is of was not told: set podInfoOnMount in the CSIDriver object"
            ),
        }))
    }

    /// Refuses a version that the dataset never had. A pod's own volume may name any digest, and
    /// must not come to another dataset's data by it.
    pub(super) fn admit_version(&self, spec: &VolumeSpec) -> Result<(), VolumeError> {
        let (Some(record), Some(version)) = (self.registered(spec)?, spec.version) else {
            return Ok(());
        };
        if record.has_version(version) {
            return Ok(());
        }
        Err(VolumeError::NotFound(format!(
            "dataset {} never had version {version}: name one that it had, or none for the current one",
            record.name
        )))
    }

    /// What the registry says of a volume's dataset; `None` if the volume has none.
    fn registered(&self, spec: &VolumeSpec) -> Result<Option<DatasetRecord>, VolumeError> {
        let Some(dataset) = &spec.dataset else {
            return Ok(None);
        };
        match self.datasets.record(dataset) {
            Ok(Some(record)) => Ok(Some(record)),
            Ok(None) => Err(VolumeError::NotFound(format!(
                "there is no dataset {dataset}: register it first, or check the name"
            ))),
            Err(OpenFailure::Unknown(why)) => Err(VolumeError::NotFound(why)),
            Err(OpenFailure::Unavailable(why)) => Err(VolumeError::Unavailable(why)),
        }
    }
}
