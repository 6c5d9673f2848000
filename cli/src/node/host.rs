//! The cache's agent as the peer service sees it.

use super::peer_service::PeerHost;
use futures::future::BoxFuture;
use tonic::Status;
use trackbed_cache::{Agent, Digest};

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
