//! The cache's agent as what the driver mounts from.

use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use trackbed_cache::{
    Agent, AgentError, DatasetName, DatasetRecord, Digest, EntryIndex, Manifest, OpenVersion,
    Showable,
};

use crate::driver::{Datasets, OpenFailure};
use crate::expose::{Brought, Cached, KeptView, ReadFailure, VerifiedPiece, VersionView};

impl Datasets for Agent {
    fn record(&self, dataset: &DatasetName) -> Result<Option<DatasetRecord>, OpenFailure> {
        Agent::dataset(self, dataset).map_err(|error| OpenFailure::Unavailable(error.to_string()))
    }

    fn open<'a>(
        &'a self,
        dataset: &'a DatasetName,
        version: Option<Digest>,
    ) -> BoxFuture<'a, Result<Arc<dyn VersionView>, OpenFailure>> {
        async move {
            match Agent::open(self, dataset, version).await {
                Ok(open) => Ok(open as Arc<dyn VersionView>),
                Err(
                    error @ (AgentError::UnknownDataset(_) | AgentError::UnknownVersion { .. }),
                ) => Err(OpenFailure::Unknown(error.to_string())),
                Err(error) => Err(OpenFailure::Unavailable(error.to_string())),
            }
        }
        .boxed()
    }

    fn capacity(&self) -> u64 {
        let disks = Agent::disks(self).into_iter();
        disks
            .map(|disk| disk.capacity_bytes)
            .fold(0, u64::saturating_add)
    }
}

impl VersionView for OpenVersion {
    fn manifest(&self) -> &Arc<Manifest> {
        OpenVersion::manifest(self)
    }

    fn read(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        len: usize,
    ) -> BoxFuture<'static, Result<VerifiedPiece, ReadFailure>> {
        async move {
            match OpenVersion::read(&self, entry, offset, len).await {
                Ok(bytes) => Ok(Box::new(bytes) as VerifiedPiece),
                Err(error) => Err(ReadFailure(error.to_string())),
            }
        }
        .boxed()
    }

    fn cached(&self) -> Cached {
        let progress = self.progress();
        Cached {
            bytes_present: progress.bytes_present,
            bytes: progress.bytes,
        }
    }

    fn trouble(&self) -> Option<String> {
        OpenVersion::trouble(self)
    }

    fn showable(&self) -> Showable {
        OpenVersion::showable(self)
    }

    fn showable_now(&self) -> Showable {
        OpenVersion::showable_now(self)
    }

    fn kept(self: Arc<Self>) -> Option<Arc<dyn KeptView>> {
        Some(self)
    }
}

impl KeptView for OpenVersion {
    fn directory(&self) -> PathBuf {
        OpenVersion::directory(self)
    }

    fn held(&self) -> Vec<u64> {
        OpenVersion::held(self)
    }

    fn bring(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        len: usize,
        suspect: bool,
    ) -> BoxFuture<'static, Result<Brought, ReadFailure>> {
        async move {
            match OpenVersion::bring(&self, entry, offset, len, suspect).await {
                Ok(brought) => Ok(Brought {
                    on_disk: brought.on_disk,
                    bytes: brought.bytes.map(|bytes| Box::new(bytes) as VerifiedPiece),
                }),
                Err(error) => Err(ReadFailure(error.to_string())),
            }
        }
        .boxed()
    }
}
