//! Which dataset a volume shows, as its id, its context or its class's parameters say it, and what
//! Kubernetes tells along with it.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use trackbed_cache::Digest;
use trackbed_cache::registry::DatasetName;

use super::error::VolumeError;
use super::volume::VolumeId;

/// The dataset to mount, where the volume id does not name it.
const KEY_DATASET: &str = "dataset";
/// The version to mount, as a digest in hex.
const KEY_VERSION: &str = "version";
/// `true` in the context of a volume that was made without naming a dataset.
const KEY_EMPTY: &str = "empty";
/// What Kubernetes itself adds (pod info, provisioner identity).
const KUBERNETES_PREFIXES: [&str; 2] = ["csi.storage.k8s.io/", "storage.kubernetes.io/"];
/// `true` for a volume that is written into a pod's own specification.
const KEY_EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// The namespace of the pod that a volume is published for, with `podInfoOnMount`.
const KEY_POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
/// The namespace of the claim that a volume is created for, with `--extra-create-metadata`.
const KEY_CLAIM_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";

/// Which dataset a volume shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VolumeSpec {
    /// The dataset's name; a volume without one is an empty directory.
    pub(super) dataset: Option<DatasetName>,
    /// The version that was asked for; the current one if none was.
    pub(super) version: Option<Digest>,
}

impl VolumeSpec {
    /// No dataset at all.
    pub(super) const EMPTY: VolumeSpec = VolumeSpec {
        dataset: None,
        version: None,
    };

    /// What a volume's context has to say, for [`Said::parse`] to read it back.
    pub(super) fn context(&self) -> HashMap<String, String> {
        let named = [
            (KEY_DATASET, self.dataset.as_ref().map(ToString::to_string)),
            (KEY_VERSION, self.version.map(|version| version.to_string())),
            (KEY_EMPTY, self.dataset.is_none().then(|| "true".to_owned())),
        ];
        named
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect()
    }
}

impl fmt::Display for VolumeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.dataset {
            Some(dataset) => write!(f, "dataset {dataset}"),
            None => f.write_str("no dataset"),
        }
    }
}

/// What a volume's context or a class's parameters say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) dataset: Option<DatasetName>,
    pub(super) version: Option<Digest>,
    empty: bool,
    /// Whether the volume is part of a pod's own specification.
    pub(super) ephemeral: bool,
    /// The namespace of the pod that reads.
    pub(super) pod_namespace: Option<String>,
    /// The namespace of the claim that asks for the volume.
    pub(super) claim_namespace: Option<String>,
}

impl Said {
    /// Reads `map`, the request's field `field`. Any key that is neither known nor Kubernetes' own
    /// is refused, so that a typing error never quietly mounts something else. `about` begins the
    /// errors' sentences.
    pub(super) fn parse(
        about: &str,
        field: &str,
        map: &HashMap<String, String>,
    ) -> Result<Said, VolumeError> {
        let known = |key: &str| {
            [KEY_DATASET, KEY_VERSION, KEY_EMPTY].contains(&key)
                || KUBERNETES_PREFIXES.iter().any(|own| key.starts_with(own))
        };
        if let Some(unknown) = map.keys().filter(|key| !known(key)).min() {
            return Err(VolumeError::Invalid(format!(
                "{about}: unknown key {unknown:?} in its {field}: the driver knows \
                 {KEY_DATASET:?} and {KEY_VERSION:?}"
            )));
        }
        let invalid = |key: &str, why: &dyn fmt::Display| {
            VolumeError::Invalid(format!("{about}: {key:?} in its {field}: {why}"))
        };
        let dataset = map.get(KEY_DATASET).map(|name| name.parse()).transpose();
        let version = map
            .get(KEY_VERSION)
            .map(|digest| digest.parse())
            .transpose();
        let said = Said {
            dataset: dataset.map_err(|error| invalid(KEY_DATASET, &error))?,
            version: version.map_err(|error| invalid(KEY_VERSION, &error))?,
            empty: match map.get(KEY_EMPTY).map(String::as_str) {
                None => false,
                Some("true") => true,
                Some(_) => return Err(invalid(KEY_EMPTY, &"it is true, or not there")),
            },
            ephemeral: map.get(KEY_EPHEMERAL).is_some_and(|value| value == "true"),
            pod_namespace: map.get(KEY_POD_NAMESPACE).cloned(),
            claim_namespace: map.get(KEY_CLAIM_NAMESPACE).cloned(),
        };
        if said.empty && (said.dataset.is_some() || said.version.is_some()) {
            return Err(invalid(KEY_EMPTY, &"a dataset is named too: keep one"));
        }
        Ok(said)
    }

    /// The volume that the context alone describes, if it does.
    pub(super) fn spec(&self) -> Option<VolumeSpec> {
        match (&self.dataset, self.empty) {
            (Some(dataset), _) => Some(VolumeSpec {
                dataset: Some(dataset.clone()),
                version: self.version,
            }),
            (None, true) => Some(VolumeSpec::EMPTY),
            (None, false) => None,
        }
    }

    /// The volume that the context describes, or else its id: `dataset` or `dataset@digest`.
    pub(super) fn spec_or_id(&self, id: &VolumeId) -> Result<VolumeSpec, VolumeError> {
        if let Some(spec) = self.spec() {
            return Ok(spec);
        }
        let invalid = |what: &str, why: &dyn fmt::Display| {
            VolumeError::Invalid(format!("volume {:?}: {what}: {why}", id.as_str()))
        };
        let (name, version) = match id.as_str().rsplit_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (id.as_str(), None),
        };
        let dataset = name.parse().map_err(|error| {
            let what = "it names no dataset, in its volume_context's \"dataset\" or its id";
            invalid(what, &error)
        })?;
        let version: Option<Digest> = version
            .map(|digest| digest.parse())
            .transpose()
            .map_err(|error| invalid("its version", &error))?;
        match (version, self.version) {
            (Some(in_id), Some(said)) if in_id != said => Err(invalid(
                "its id and its volume_context name different versions",
                &"keep one",
            )),
            (in_id, said) => Ok(VolumeSpec {
                dataset: Some(dataset),
                version: said.or(in_id),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn said(context: &[(&str, &str)]) -> Result<Said, VolumeError> {
        let context = context
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        Said::parse("volume \"v\"", "volume_context", &context)
    }

    fn spec(id: &str, context: &[(&str, &str)]) -> Result<VolumeSpec, VolumeError> {
        said(context)?.spec_or_id(&VolumeId::parse(id)?)
    }

    fn name(spec: &VolumeSpec) -> &str {
        spec.dataset.as_ref().expect("a dataset").as_str()
    }

    #[test]
    fn a_dataset_is_named_by_the_id_or_by_the_context() {
        let plain = spec("cats", &[]).expect("valid");
        assert_eq!((name(&plain), plain.version), ("cats", None));
        let pinned = spec(&format!("cats@{DIGEST}"), &[]).expect("valid");
        assert_eq!(name(&pinned), "cats");
        assert_eq!(
            pinned.version.map(|v| v.to_string()).as_deref(),
            Some(DIGEST)
        );
        let context = [
            ("dataset", "dogs"),
            ("version", DIGEST),
            ("csi.storage.k8s.io/pod.name", "p"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "i"),
        ];
        let named = spec("pvc-Any Thing@x", &context).expect("valid");
        assert_eq!(name(&named), "dogs");
        assert!(named.version.is_some());
    }

    #[test]
    fn what_a_volume_s_context_is_made_of_is_read_back() {
        let version = Some(DIGEST.parse().expect("valid"));
        let dataset = Some("cats".parse().expect("valid"));
        for spec in [VolumeSpec { dataset, version }, VolumeSpec::EMPTY] {
            let said = Said::parse("", "", &spec.context()).expect("valid");
            assert_eq!(said.spec(), Some(spec));
        }
    }

    #[test]
    fn what_kubernetes_tells_is_heard() {
        let heard = said(&[
            ("dataset", "cats"),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", "team-a"),
            ("csi.storage.k8s.io/pvc/namespace", "team-b"),
        ]);
        let heard = heard.expect("valid");
        assert!(heard.ephemeral);
        assert_eq!(heard.pod_namespace.as_deref(), Some("team-a"));
        assert_eq!(heard.claim_namespace.as_deref(), Some("team-b"));
        assert!(
            !said(&[("csi.storage.k8s.io/ephemeral", "false")])
                .expect("valid")
                .ephemeral
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let refused = |id: &str, context: &[(&str, &str)]| {
            spec(id, context).expect_err("refused").to_string()
        };
        assert!(refused("cats", &[("datset", "dogs")]).contains("datset"));
        assert!(refused("cats", &[("trackbed.io/verison", "1")]).contains("verison"));
        assert!(refused("../cats", &[]).contains("../cats"));
        assert!(refused("cats@12", &[]).contains("version"));
        assert!(refused("cats", &[("version", "latest")]).contains("version"));
        assert!(refused("cats", &[("dataset", "No Name")]).contains("No Name"));
        assert!(refused("cats", &[("empty", "yes")]).contains("empty"));
        assert!(refused("cats", &[("empty", "true"), ("dataset", "a")]).contains("keep one"));
        let other = DIGEST.replace('0', "1");
        assert!(refused(&format!("cats@{DIGEST}"), &[("version", &other)]).contains("different"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(id in "\\PC{1,90}", key in "\\PC{0,30}", value in "\\PC{0,90}") {
            if let Ok(spec) = spec(&id, &[(&key, &value)]) {
                prop_assert!(!spec.dataset.is_some_and(|name| name.as_str().contains('/')));
            }
        }
    }
}
