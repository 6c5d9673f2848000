//! Which versions a node keeps: evicting and pinning.

use super::status;
use std::time::SystemTime;
use tonic::Status;
use trackbed_cache::agent::VersionOnDisk;
use trackbed_cache::{Agent, AgentError, DatasetName, Digest};
use trackbed_proto::node::v1::{
    EvictDatasetResponse, EvictedVersion, PinDatasetResponse, VersionOnNode,
};

/// The fewest digits that a version may be named by.
const MIN_DIGITS: usize = 8;

pub(super) async fn evict(
    agent: &Agent,
    name: &DatasetName,
    version: &str,
) -> Result<EvictDatasetResponse, Status> {
    let version = find(agent, name, version)?;
    let evicted = agent.evict(name, version).await.map_err(status)?;
    let versions = evicted.into_iter().map(|(version, bytes)| EvictedVersion {
        version: version.to_string(),
        bytes,
    });
    Ok(EvictDatasetResponse {
        versions: versions.collect(),
    })
}

pub(super) async fn pin(
    agent: &Agent,
    name: &DatasetName,
    version: &str,
    pinned: bool,
) -> Result<PinDatasetResponse, Status> {
    let version = find(agent, name, version)?;
    let version = agent.pin(name, version, pinned).await.map_err(status)?;
    Ok(PinDatasetResponse {
        version: version.to_string(),
    })
}

/// What the node has of a dataset's versions.
pub(super) fn on_node(agent: &Agent, name: &DatasetName) -> Result<Vec<VersionOnNode>, Status> {
    let versions = agent.versions_on_disk(name).map_err(status)?;
    let on_node = |version: VersionOnDisk| VersionOnNode {
        version: version.version.to_string(),
        directory: version.directory.display().to_string(),
        bytes: version.bytes,
        pinned: version.pinned,
        last_used: version
            .used
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    };
    Ok(versions.into_iter().map(on_node).collect())
}

/// The version that is named; none if the text is empty.
fn find(agent: &Agent, name: &DatasetName, text: &str) -> Result<Option<Digest>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let record = agent.dataset(name).map_err(status)?;
    let record = record.ok_or_else(|| status(AgentError::UnknownDataset(name.clone())))?;
    let versions = [record.version].into_iter().chain(record.earlier);
    let mut named = versions.filter(|version| version.to_string().starts_with(text));
    match (named.next(), named.next()) {
        (Some(version), None) if text.len() >= MIN_DIGITS => Ok(Some(version)),
        (None, _) => Err(Status::not_found(format!(
            "{text:?} begins no version of {name}: `trackbed dataset status {name}` shows those on this node"
        ))),
        _ => Err(Status::invalid_argument(format!(
            "{text:?} does not say which version of {name} is meant: give more digits, {MIN_DIGITS} at least"
        ))),
    }
}
