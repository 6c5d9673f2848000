//! The nodes and mounts of a demo while it runs: reading them, asking what they moved, and taking
//! them down.

use super::conductor::blocking;
use super::mounts::Mount;
use super::nodes::Node;
use super::progress::{Bar, Progress};
use super::report::{NodeReport, seconds};
use super::tree::{self, Tree, TreeError, differences};
use crate::exit::Failure;
use futures::future::try_join_all;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use trackbed_proto::node::v1::{Counters, GetCountersRequest};

/// Threads that read a mount, as a data loader has workers.
const READER_THREADS: usize = 4;

/// Differences that are named.
const DIFFERENCES_SHOWN: usize = 5;

/// What is up and must come down.
#[derive(Default)]
pub(crate) struct Scene {
    pub(crate) nodes: Vec<Node>,
    /// Of the first nodes, in their order.
    pub(crate) mounts: Vec<Mount>,
    /// All has been said, and it stays up for somebody to look around.
    pub(crate) kept: bool,
}

impl Scene {
    /// Reads all mounts at once; what each node read, and where it differs from the origin.
    pub(crate) async fn read(
        &mut self,
        expected: &Arc<Tree>,
        progress: &Progress,
    ) -> Result<(Vec<NodeReport>, Vec<String>), Failure> {
        let readings = self.nodes.iter().zip(&self.mounts).map(|(node, mount)| {
            let (name, path) = (node.name.clone(), mount.path().to_owned());
            let bar = progress.start(&format!("reading on {name}"));
            let expected = expected.clone();
            blocking(move || read_mount(name, path, &expected, &bar))
        });
        let outcome = try_join_all(readings).await.map_err(|failure| {
            let mut said = vec![failure.to_string()];
            said.extend(self.warnings());
            Failure::failed(said.join("\ntrackbed: "))
        });
        for node in &mut self.nodes {
            // A node that died is the better explanation for an error of its readers.
            node.check_alive()?;
        }
        let (reports, differences): (Vec<_>, Vec<_>) = outcome?.into_iter().unzip();
        Ok((reports, differences.concat()))
    }

    /// What each node has moved so far.
    pub(crate) async fn counters(&self) -> Result<Vec<Counters>, Failure> {
        let mut counters = Vec::new();
        for node in &self.nodes {
            let answer = node
                .admin()
                .await?
                .get_counters(GetCountersRequest {})
                .await;
            let answer = answer.map_err(|status| node.failed(status.message()))?;
            counters.push(answer.into_inner());
        }
        Ok(counters)
    }

    /// The last warnings of all nodes.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        self.nodes.iter().flat_map(Node::warnings)
    }

    /// Takes mounts and nodes down. After a run that was broken off the nodes unmount by
    /// themselves, which is quicker than asking them.
    pub(crate) async fn take_down(&mut self, orderly: bool) -> Result<(), Failure> {
        let mut faults = Vec::new();
        for mount in self.mounts.drain(..) {
            if orderly && let Err(failure) = mount.remove().await {
                faults.push(failure.to_string());
            }
        }
        for node in &self.nodes {
            node.ask_to_end();
        }
        for node in &mut self.nodes {
            faults.extend(node.ended().await);
        }
        if orderly && !faults.is_empty() {
            return Err(Failure::failed(faults.join("; ")));
        }
        Ok(())
    }
}

fn read_mount(
    name: String,
    path: PathBuf,
    expected: &Tree,
    bar: &Bar,
) -> Result<(NodeReport, Vec<String>), Failure> {
    let start = Instant::now();
    let read = tree::read(&path, READER_THREADS, bar).map_err(|error| match error {
        TreeError::Cancelled => Failure::interrupted(),
        TreeError::Io { .. } => Failure::failed(format!("{name}: {error}")),
    })?;
    let seconds = seconds(start.elapsed());
    let differences = differences(expected, &read, DIFFERENCES_SHOWN);
    let differences = differences
        .into_iter()
        .map(|line| format!("{name}: {line}"))
        .collect();
    let report = NodeReport {
        name,
        seconds,
        bytes: read.bytes,
        files: read.files,
    };
    Ok((report, differences))
}
