//! `trackbed dataset evict`, `pin` and `unpin`: what a node keeps.

use super::{Client, refused};
use crate::exit::Failure;
use crate::output::Output;
use crate::size::Size;
use serde_json::json;
use trackbed_proto::node::v1::{EvictDatasetRequest, PinDatasetRequest, VersionOnNode};

/// A dataset's name, and the version behind its `@`, empty if there is none.
fn split(dataset: &str) -> (String, String) {
    let (name, version) = dataset.split_once('@').unwrap_or((dataset, ""));
    (name.to_owned(), version.to_owned())
}

pub(super) async fn evict(
    mut client: Client,
    dataset: String,
    output: Output,
) -> Result<String, Failure> {
    let (name, version) = split(&dataset);
    let request = EvictDatasetRequest {
        name: name.clone(),
        version,
    };
    let evicted = client.evict_dataset(request).await.map_err(refused)?;
    let versions = evicted.into_inner().versions;
    Ok(match output {
        Output::Json => {
            let versions = versions
                .iter()
                .map(|evicted| json!({ "version": evicted.version, "bytes": evicted.bytes }));
            json!({ "dataset": name, "evicted": versions.collect::<Vec<_>>() }).to_string()
        }
        Output::Table => {
            let bytes = versions.iter().map(|evicted| evicted.bytes).sum();
            match versions.len() {
                0 => format!("{dataset}: nothing of it is on this node"),
                1 => format!("{dataset}: {} freed", Size(bytes)),
                some => format!("{dataset}: {some} versions evicted, {} freed", Size(bytes)),
            }
        }
    })
}

pub(super) async fn pin(
    mut client: Client,
    dataset: String,
    pinned: bool,
    output: Output,
) -> Result<String, Failure> {
    let (name, version) = split(&dataset);
    let request = PinDatasetRequest {
        name: name.clone(),
        version,
        pinned,
    };
    let version = client.pin_dataset(request).await.map_err(refused)?;
    let version = version.into_inner().version;
    Ok(match (output, pinned) {
        (Output::Json, _) => {
            json!({ "dataset": name, "version": version, "pinned": pinned }).to_string()
        }
        (Output::Table, true) => {
            format!("version {version} of {name} is not evicted from this node any more")
        }
        (Output::Table, false) => {
            format!("version {version} of {name} is evicted from this node when space is needed")
        }
    })
}

/// The versions on a node, for the status.
pub(super) fn table(versions: &[VersionOnNode]) -> String {
    let lines = versions
        .iter()
        .filter(|on_node| on_node.bytes > 0 || on_node.pinned);
    let lines = lines.map(|on_node| {
        let short: String = on_node.version.chars().take(12).collect();
        let pinned = if on_node.pinned { ", pinned" } else { "" };
        let (bytes, directory) = (Size(on_node.bytes), &on_node.directory);
        format!("\nversion {short}: {bytes} of disk, in {directory}{pinned}")
    });
    lines.collect()
}

pub(super) fn object(on_node: &VersionOnNode) -> serde_json::Value {
    json!({
        "version": on_node.version, "bytes": on_node.bytes, "directory": on_node.directory, "pinned": on_node.pinned,
        "last_used": on_node.last_used,
    })
}
