//! What an operator says of versions on this node: which to keep, which to give up, and which there
//! are.

use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::time::SystemTime;

use super::evict::{Mounted, NotEvicted};
use super::{Agent, AgentError};
use crate::digest::Digest;
use crate::registry::{DatasetName, DatasetRecord};

/// A version that this node holds something of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionOnDisk {
    /// The version.
    pub version: Digest,
    /// The cache directory that it is in.
    pub directory: PathBuf,
    /// Bytes of it there, small files that are there twice counted twice.
    pub bytes: u64,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// When it was last used, as far as is known.
    pub used: SystemTime,
}

impl Agent {
    /// Lets the cache evict versions when it has no room. `mounted` tells which ones are mounted on
    /// this node, by whichever process; until it is given nothing is evicted but what
    /// [`Agent::evict`] is told to. A second one is ignored.
    pub fn begin_evicting(&self, mounted: Mounted) {
        if self.0.mounted.set(mounted).is_err() {
            tracing::warn!("the agent evicts already, by the mounts it was told first");
        }
        for disk in self.0.disks.stores() {
            disk.room().begin_evicting();
        }
    }

    /// Gives up what this node holds of a dataset: of the given version, else of all its versions.
    /// Gives those that it held something of, and their bytes. Whatever can be is evicted also where
    /// one is kept, which is an error.
    pub async fn evict(
        &self,
        dataset: &DatasetName,
        version: Option<Digest>,
    ) -> Result<Vec<(Digest, u64)>, AgentError> {
        let mut evicted = Vec::new();
        let mut kept = None;
        for version in versions(self.record(dataset)?, version)? {
            let held = self.0.disks.holding(&version);
            if held.is_none_or(|held| held.bytes() == 0) {
                continue;
            }
            match self.0.evict_settled(version).await {
                Ok(bytes) => {
                    tracing::info!(%dataset, version = %version.short(), bytes, "evicted, as asked");
                    evicted.push((version, bytes));
                }
                Err(NotEvicted::Failed(error)) => return Err(error),
                Err(NotEvicted::Kept(keeps)) => {
                    kept.get_or_insert((version, keeps));
                }
            }
        }
        match kept {
            None => Ok(evicted),
            Some((version, keeps)) => Err(AgentError::Kept {
                dataset: dataset.clone(),
                version,
                keeps,
            }),
        }
    }

    /// Has a version of a dataset, the current one if none is given, never be evicted from this node,
    /// or again at need. Survives restarts. Gives the version.
    pub async fn pin(
        &self,
        dataset: &DatasetName,
        version: Option<Digest>,
        pinned: bool,
    ) -> Result<Digest, AgentError> {
        let record = self.record(dataset)?;
        let digest = version.unwrap_or(record.version);
        let origin = record.origin.clone();
        versions(record, version)?;
        // Open, it is not evicted meanwhile.
        let open = self.0.version(digest, Some(&origin)).await?;
        self.0.disks.pin(&digest, pinned)?;
        drop(open);
        Ok(digest)
    }

    /// Takes back the pins of versions that are no dataset's any more, which no command reaches. Gives
    /// them. For whoever knows that the registry tells all there is: one that is just not there yet
    /// would cost the pins that were set by hand.
    pub fn unpin_unnamed(&self) -> Result<Vec<Digest>, AgentError> {
        let holdings = self.0.disks.holdings().into_iter();
        let pinned = holdings.filter(|(_, holding)| holding.pinned.load(SeqCst));
        let mut unnamed: Vec<_> = pinned.map(|(version, _)| version).collect();
        if unnamed.is_empty() {
            return Ok(unnamed);
        }
        let datasets = self.0.registry.datasets()?;
        unnamed.retain(|version| !datasets.iter().any(|record| record.has_version(*version)));
        for version in &unnamed {
            self.0.disks.pin(version, false)?;
            tracing::info!(version = %version.short(), "no dataset's any more: no longer pinned");
        }
        Ok(unnamed)
    }

    /// The versions of a dataset that this node has on its disks, the current one first.
    pub fn versions_on_disk(
        &self,
        dataset: &DatasetName,
    ) -> Result<Vec<VersionOnDisk>, AgentError> {
        let versions = versions(self.record(dataset)?, None)?.into_iter();
        let on_disk = versions.filter_map(|version| {
            let disk = self.0.disks.home(&version)?;
            Some((version, disk, disk.room().holding(&version)?))
        });
        let on_disk = on_disk.map(|(version, disk, holding)| VersionOnDisk {
            version,
            directory: disk.directory().to_owned(),
            bytes: holding.bytes(),
            pinned: holding.pinned.load(SeqCst),
            used: holding.used_at(),
        });
        Ok(on_disk.collect())
    }

    fn record(&self, dataset: &DatasetName) -> Result<DatasetRecord, AgentError> {
        self.dataset(dataset)?
            .ok_or_else(|| AgentError::UnknownDataset(dataset.clone()))
    }
}

/// The version that is meant, or all of the dataset's, the current one first.
fn versions(record: DatasetRecord, meant: Option<Digest>) -> Result<Vec<Digest>, AgentError> {
    match meant {
        Some(version) if !record.has_version(version) => Err(AgentError::NotAVersion {
            dataset: record.name,
            version,
        }),
        Some(version) => Ok(vec![version]),
        None => Ok([record.version].into_iter().chain(record.earlier).collect()),
    }
}
