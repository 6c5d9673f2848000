//! The cache's agent as the peer service and the CSI driver see it.

use super::peer_service::PeerHost;
use futures::future::BoxFuture;
use std::sync::Arc;
use tonic::Status;
use trackbed_cache::{Agent, AgentError, DatasetName, Digest, EntryIndex, Manifest, OpenVersion};
use trackbed_csi::driver::{Datasets, OpenFailure};
use trackbed_csi::expose::{Cached, ReadFailure, VerifiedPiece, VersionView};

impl PeerHost for Agent {
    fn accept<'a>(
        &'a self,
        peer: &'a str,
        offer: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            self.accept_peer(peer, offer).await.map_err(|error| {
                tracing::warn!(peer, %error, "a peer's fabric could not meet ours");
                Status::failed_precondition(error.to_string())
            })
        })
    }

    fn manifest(&self, digest: Digest) -> BoxFuture<'_, Result<Option<bytes::Bytes>, Status>> {
        Box::pin(async move {
            self.manifest_bytes(digest).await.map_err(|error| {
                tracing::warn!(version = %digest.short(), %error, "a manifest could not be read");
                Status::internal(error.to_string())
            })
        })
    }
}

/// What can be mounted: the datasets of the agent.
pub(crate) struct Mountable(pub(crate) Agent);

impl Datasets for Mountable {
    fn open<'a>(
        &'a self,
        dataset: &'a DatasetName,
        version: Option<Digest>,
    ) -> BoxFuture<'a, Result<Arc<dyn VersionView>, OpenFailure>> {
        Box::pin(async move {
            match self.0.open(dataset, version).await {
                Ok(open) => Ok(Arc::new(View(open)) as Arc<dyn VersionView>),
                Err(
                    error @ (AgentError::UnknownDataset(_) | AgentError::UnknownVersion { .. }),
                ) => Err(OpenFailure::Unknown(error.to_string())),
                Err(error) => Err(OpenFailure::Unavailable(error.to_string())),
            }
        })
    }
}

/// An open version, shown as files.
struct View(Arc<OpenVersion>);

impl VersionView for View {
    fn manifest(&self) -> &Arc<Manifest> {
        self.0.manifest()
    }

    fn read(
        self: Arc<Self>,
        entry: EntryIndex,
        offset: u64,
        len: usize,
    ) -> BoxFuture<'static, Result<VerifiedPiece, ReadFailure>> {
        Box::pin(async move {
            match self.0.read(entry, offset, len).await {
                Ok(bytes) => Ok(Box::new(bytes) as VerifiedPiece),
                Err(error) => Err(ReadFailure(error.to_string())),
            }
        })
    }

    fn cached(&self) -> Cached {
        let progress = self.0.progress();
        Cached {
            bytes_present: progress.bytes_present,
            bytes: progress.bytes,
        }
    }
}
