//! The CustomResourceDefinitions as files.

use kube::CustomResourceExt;

use super::{CacheNode, Caffe2Job, Dataset, KubeflowCaffe2Job};

/// A type whose definition cannot be written down: a mistake in the type.
#[derive(Debug, thiserror::Error)]
#[error("the definition of {kind} cannot be written as YAML: {why}")]
pub struct ManifestError {
    /// The kind.
    pub kind: &'static str,
    /// Why.
    pub why: String,
}

/// The definitions as the files of `deploy/crds`: name and text.
pub fn manifests() -> Result<Vec<(&'static str, String)>, ManifestError> {
    let all = [
        (
            "kubeflow.org_caffe2jobs.yaml",
            "kubeflow's Caffe2Job",
            KubeflowCaffe2Job::crd(),
        ),
        ("trackbed.io_cachenodes.yaml", "CacheNode", CacheNode::crd()),
        ("trackbed.io_caffe2jobs.yaml", "Caffe2Job", Caffe2Job::crd()),
        ("trackbed.io_datasets.yaml", "Dataset", Dataset::crd()),
    ];
    let written = all.into_iter().map(|(file, kind, definition)| {
        let text = serde_saphyr::to_string(&definition).map_err(|error| ManifestError {
            kind,
            why: error.to_string(),
        })?;
        Ok((
            file,
            format!("# Made by `trackbed crds` from the types in controller/src/api.\n{text}"),
        ))
    });
    written.collect()
}
