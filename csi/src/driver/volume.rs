//! What a request asks for, parsed once: which dataset, in which version, used how.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use trackbed_cache::Digest;
use trackbed_cache::registry::DatasetName;
use trackbed_proto::csi::v1::VolumeCapability;
use trackbed_proto::csi::v1::volume_capability::AccessType;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;

use super::error::VolumeError;

/// The longest volume id that is taken, in bytes: a dataset's name, `@` and a digest fit.
const MAX_VOLUME_ID_BYTES: usize = 256;

/// The dataset to mount, where the volume id does not name it.
const KEY_DATASET: &str = "dataset";
/// The version to mount, as a digest in hex.
const KEY_VERSION: &str = "version";
/// What Kubernetes itself adds to a volume's context (pod info, provisioner identity).
const KUBERNETES_PREFIXES: [&str; 2] = ["csi.storage.k8s.io/", "storage.kubernetes.io/"];

/// A volume's id: opaque, chosen by whoever made the volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct VolumeId(String);

impl VolumeId {
    pub(super) fn parse(text: &str) -> Result<VolumeId, VolumeError> {
        if text.is_empty() {
            return Err(VolumeError::Invalid("volume_id is missing".into()));
        }
        if text.len() > MAX_VOLUME_ID_BYTES {
            return Err(VolumeError::Invalid(format!(
                "volume_id has {} bytes: at most {MAX_VOLUME_ID_BYTES} are taken",
                text.len()
            )));
        }
        Ok(VolumeId(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which dataset a volume shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VolumeSpec {
    /// The dataset's name.
    pub(super) dataset: DatasetName,
    /// The version that was asked for; the current one if none was.
    pub(super) version: Option<Digest>,
}

impl VolumeSpec {
    /// Reads the context's `dataset` and `version`, else the id as `dataset` or
    /// `dataset@digest`. Any key that is neither known nor Kubernetes' own is refused, so that a
    /// typing error never quietly mounts something else.
    pub(super) fn parse(
        id: &VolumeId,
        context: &HashMap<String, String>,
    ) -> Result<VolumeSpec, VolumeError> {
        let known = |key: &str| {
            [KEY_DATASET, KEY_VERSION].contains(&key)
                || KUBERNETES_PREFIXES.iter().any(|own| key.starts_with(own))
        };
        if let Some(unknown) = context.keys().filter(|key| !known(key)).min() {
            return Err(VolumeError::Invalid(format!(
                "volume {:?}: unknown key {unknown:?} in its volume_context (volumeAttributes): \
                 the driver knows {KEY_DATASET:?} and {KEY_VERSION:?}",
                id.0
            )));
        }
        let invalid = |what: &str, why: String| {
            VolumeError::Invalid(format!("volume {:?}: {what}: {why}", id.0))
        };
        let (from_id, version_in_id) = match id.0.rsplit_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (id.0.as_str(), None),
        };
        let (name, version_in_id) = match context.get(KEY_DATASET) {
            Some(name) => (name.as_str(), None),
            None => (from_id, version_in_id),
        };
        let dataset = name.parse().map_err(|error| {
            let what = "it names no dataset, in its volume_context's \"dataset\" or its id";
            invalid(what, format!("{error}"))
        })?;
        let parse_version = |text: &str| -> Result<Digest, VolumeError> {
            text.parse()
                .map_err(|error| invalid("its version", format!("{error}")))
        };
        let version = match (
            version_in_id.map(parse_version).transpose()?,
            context
                .get(KEY_VERSION)
                .map(String::as_str)
                .map(parse_version)
                .transpose()?,
        ) {
            (Some(a), Some(b)) if a != b => {
                return Err(invalid(
                    "its id and its volume_context name different versions",
                    "keep one".into(),
                ));
            }
            (a, b) => b.or(a),
        };
        Ok(VolumeSpec { dataset, version })
    }
}

/// How a volume is used, which decides whether two calls ask for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Access {
    /// CSI's access mode by its number. A dataset is read-only in any of them.
    mode: i32,
    /// The mount flags asked for, all of which hold.
    flags: BTreeSet<String>,
}

/// Mount flags that change nothing, as every mount has them, and the one that does.
const HELD_FLAGS: [&str; 4] = ["ro", "nosuid", "nodev", "noatime"];
const NO_EXEC: &str = "noexec";

impl Access {
    /// Checks a capability. Writers are taken, as the conformance suite and many claims say
    /// nothing else, and get a read-only mount; `fs_type` is of no meaning here.
    pub(super) fn parse(capability: Option<&VolumeCapability>) -> Result<Access, VolumeError> {
        let invalid = |why: &str| VolumeError::Invalid(format!("volume_capability {why}"));
        let capability = capability.ok_or_else(|| invalid("is missing"))?;
        let mount = match &capability.access_type {
            Some(AccessType::Mount(mount)) => mount,
            Some(AccessType::Block(_)) => {
                return Err(invalid(
                    "asks for a block device: a dataset is a tree of files, use volumeMode Filesystem",
                ));
            }
            None => return Err(invalid("has no access_type")),
        };
        let mode = capability
            .access_mode
            .ok_or_else(|| invalid("has no access_mode"))?
            .mode();
        if mode == Mode::Unknown {
            return Err(invalid("has an access_mode that CSI does not define"));
        }
        for flag in &mount.mount_flags {
            if !HELD_FLAGS.contains(&flag.as_str()) && flag != NO_EXEC {
                return Err(VolumeError::Invalid(format!(
                    "mount flag {flag:?} cannot be held: a dataset is mounted ro,nosuid,nodev,noatime and on request noexec"
                )));
            }
        }
        Ok(Access {
            mode: mode.into(),
            flags: mount.mount_flags.iter().cloned().collect(),
        })
    }

    /// Whether the volume may be published at several targets.
    pub(super) fn is_multi_node(&self) -> bool {
        matches!(
            Mode::try_from(self.mode),
            Ok(Mode::MultiNodeReaderOnly
                | Mode::MultiNodeSingleWriter
                | Mode::MultiNodeMultiWriter)
        )
    }

    /// Whether programs in the dataset may not be run.
    pub(super) fn no_exec(&self) -> bool {
        self.flags.contains(NO_EXEC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn spec(id: &str, context: &[(&str, &str)]) -> Result<VolumeSpec, VolumeError> {
        let context = context
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        VolumeSpec::parse(&VolumeId::parse(id)?, &context)
    }

    #[test]
    fn a_dataset_is_named_by_the_id_or_by_the_context() {
        let plain = spec("cats", &[]).expect("valid");
        assert_eq!((plain.dataset.as_str(), plain.version), ("cats", None));
        let pinned = spec(&format!("cats@{DIGEST}"), &[]).expect("valid");
        assert_eq!(pinned.dataset.as_str(), "cats");
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
        assert_eq!(named.dataset.as_str(), "dogs");
        assert!(named.version.is_some());
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let said = |id: &str, context: &[(&str, &str)]| {
            spec(id, context).expect_err("refused").to_string()
        };
        assert!(said("cats", &[("datset", "dogs")]).contains("datset"));
        assert!(said("cats", &[("trackbed.io/verison", "1")]).contains("verison"));
        assert!(said("../cats", &[]).contains("../cats"));
        assert!(said("cats@12", &[]).contains("version"));
        let other = DIGEST.replace('0', "1");
        assert!(said(&format!("cats@{DIGEST}"), &[("version", &other)]).contains("different"));
        assert!(said("", &[]).contains("volume_id"));
        assert!(said(&"a".repeat(257), &[]).contains("257"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(id in "\\PC{0,90}", key in "\\PC{0,30}", value in "\\PC{0,90}") {
            if let Ok(spec) = spec(&id, &[(&key, &value)]) {
                prop_assert!(!spec.dataset.as_str().contains('/'));
            }
        }
    }
}
