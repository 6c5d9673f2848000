//! The registry that the demo's nodes share: a folder, as where there is no Kubernetes.

use super::nodes::Node;
use super::workdir::private_dir;
use crate::exit::Failure;
use std::path::Path;
use trackbed_cache::registry::Member;

/// Makes the registry's folder with the nodes as its members, all of the same weight.
pub(crate) fn write_members(folder: &Path, nodes: &[Node]) -> Result<(), Failure> {
    let members: Vec<_> = nodes
        .iter()
        .map(|node| Member {
            name: node.name.clone(),
            control: node.control.to_string(),
            weight: 100,
        })
        .collect();
    let refuse = |error: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "cannot write the registry {}: {error}",
            folder.display()
        ))
    };
    private_dir(folder).map_err(|error| refuse(&error))?;
    let text = serde_json::to_vec_pretty(&serde_json::json!({ "members": members }))
        .map_err(|error| refuse(&error))?;
    std::fs::write(folder.join("members.json"), text).map_err(|error| refuse(&error))
}
