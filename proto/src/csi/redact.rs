//! `Debug` for requests that carry credentials: the keys of `secrets` are shown, the values never.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use super::v1::{NodePublishVolumeRequest, NodeStageVolumeRequest};

/// Shows which secrets were sent, and nothing of what is in them.
fn keys(secrets: &HashMap<String, String>) -> BTreeSet<&str> {
    secrets.keys().map(String::as_str).collect()
}

impl fmt::Debug for NodeStageVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeStageVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("publish_context", &self.publish_context)
            .field("staging_target_path", &self.staging_target_path)
            .field("volume_capability", &self.volume_capability)
            .field("secrets", &keys(&self.secrets))
            .field("volume_context", &self.volume_context)
            .finish()
    }
}

impl fmt::Debug for NodePublishVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePublishVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("publish_context", &self.publish_context)
            .field("staging_target_path", &self.staging_target_path)
            .field("target_path", &self.target_path)
            .field("volume_capability", &self.volume_capability)
            .field("readonly", &self.readonly)
            .field("secrets", &keys(&self.secrets))
            .field("volume_context", &self.volume_context)
            .finish()
    }
}
