//! What this node answers its peers: their fabrics meet ours, and they get manifests.
//!
//! A caller is who its certificate says it is, and must be a member in the registry at the moment
//! of the call.

use super::identity::dns_names;
use futures::future::BoxFuture;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use trackbed_cache::Digest;
use trackbed_cache::registry::Registry;
use trackbed_proto::peer::v1::peer_control_server::{PeerControl, PeerControlServer};
use trackbed_proto::peer::v1::{
    ConnectFabricRequest, ConnectFabricResponse, GetManifestRequest, ManifestPart,
};

/// Largest request: an offer of 64 KiB and what protobuf adds.
const MAX_REQUEST_BYTES: usize = (64 << 10) + 1024;

/// A manifest travels in parts of this size: well below gRPC's limit for a message.
const PART_BYTES: usize = 1 << 20;

/// What is asked of the node behind the service.
pub(crate) trait PeerHost: Send + Sync + 'static {
    /// Answers the offer of `peer`'s fabric.
    fn accept<'a>(
        &'a self,
        peer: &'a str,
        offer: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, Status>>;

    /// The encoded manifest of a version, if it is held here.
    fn manifest(&self, digest: Digest) -> BoxFuture<'_, Result<Option<bytes::Bytes>, Status>>;
}

/// The service over a host and the registry.
pub(crate) struct PeerService {
    host: Arc<dyn PeerHost>,
    registry: Arc<dyn Registry>,
}

impl PeerService {
    /// The service, ready for a server.
    pub(crate) fn server(
        host: Arc<dyn PeerHost>,
        registry: Arc<dyn Registry>,
    ) -> PeerControlServer<PeerService> {
        PeerControlServer::new(PeerService { host, registry })
            .max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// The member that calls, by the name in its certificate.
    fn caller<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let certificates = request.peer_certs().unwrap_or_default();
        let names = certificates.first().map(dns_names).unwrap_or_default();
        let members = self
            .registry
            .members()
            .map_err(|error| Status::unavailable(error.to_string()))?;
        names
            .iter()
            .find(|name| members.iter().any(|member| member.name == **name))
            .cloned()
            .ok_or_else(|| {
                Status::permission_denied(format!(
                    "the certificate is for [{}], none of them a member: add the node to the \
                     registry, or give it a certificate with its name",
                    names.join(", ")
                ))
            })
    }
}

#[tonic::async_trait]
impl PeerControl for PeerService {
    async fn connect_fabric(
        &self,
        request: Request<ConnectFabricRequest>,
    ) -> Result<Response<ConnectFabricResponse>, Status> {
        let peer = self.caller(&request)?;
        let offer = request.into_inner().offer;
        let answer = self.host.accept(&peer, &offer).await?;
        tracing::debug!(peer, "a peer's fabric met ours");
        Ok(Response::new(ConnectFabricResponse { answer }))
    }

    type GetManifestStream = Pin<Box<dyn Stream<Item = Result<ManifestPart, Status>> + Send>>;

    async fn get_manifest(
        &self,
        request: Request<GetManifestRequest>,
    ) -> Result<Response<Self::GetManifestStream>, Status> {
        self.caller(&request)?;
        let digest: [u8; 32] =
            request
                .into_inner()
                .digest
                .try_into()
                .map_err(|digest: Vec<u8>| {
                    let got = digest.len();
                    Status::invalid_argument(format!("a digest has 32 bytes, this one {got}"))
                })?;
        let digest = Digest::from(digest);
        let Some(manifest) = self.host.manifest(digest).await? else {
            return Err(Status::not_found(format!(
                "version {digest} is not on this node"
            )));
        };
        let parts = (0..manifest.len()).step_by(PART_BYTES).map(move |start| {
            let end = manifest.len().min(start + PART_BYTES);
            Ok(ManifestPart {
                bytes: manifest[start..end].to_vec(),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }
}
