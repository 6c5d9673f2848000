//! A volume's id and how it is used, parsed once.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use trackbed_proto::csi::v1::VolumeCapability;
use trackbed_proto::csi::v1::volume_capability::AccessType;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;

use super::error::VolumeError;

/// The longest volume id that is taken, in bytes: a dataset's name, `@` and a digest fit.
const MAX_VOLUME_ID_BYTES: usize = 256;

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

    /// Whether the volume may be published at several targets of a node: for several pods.
    pub(super) fn allows_several_targets(&self) -> bool {
        matches!(
            Mode::try_from(self.mode),
            Ok(Mode::MultiNodeReaderOnly
                | Mode::MultiNodeSingleWriter
                | Mode::MultiNodeMultiWriter
                | Mode::SingleNodeMultiWriter)
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

    #[test]
    fn an_id_is_there_and_no_longer_than_256_bytes() {
        for text in ["", &"a".repeat(257)] {
            let refused = VolumeId::parse(text).expect_err("refused").to_string();
            assert!(refused.contains("volume_id"), "{refused}");
        }
        VolumeId::parse(&"a".repeat(256)).expect("valid");
    }
}
