//! Calling peers: a channel kept for each, mutual TLS under every call and a deadline on it. Whom
//! to leave alone after a failure is for the cache to decide.

use super::identity::Identity;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use trackbed_cache::registry::Member;
use trackbed_cache::{ControlError, Digest, PeerControl};
use trackbed_proto::peer::v1::peer_control_client::PeerControlClient;
use trackbed_proto::peer::v1::{ConnectFabricRequest, GetManifestRequest};

/// How long a peer may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a whole call may take, the manifest of a large dataset included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection on which nothing comes back for this long is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Largest manifest taken from a peer, in bytes: what the cache accepts at most.
const MAX_MANIFEST_BYTES: usize = trackbed_cache::manifest::MAX_ENCODED_BYTES;

/// All peers, as called from this node.
pub(crate) struct Peers {
    identity: Identity,
    /// Where calls run: whoever asks may be on a thread without a runtime.
    runtime: tokio::runtime::Handle,
    /// By name: the address that a channel is for, and the channel.
    channels: Mutex<HashMap<String, (String, Channel)>>,
}

impl Peers {
    /// Peers to be called as `identity`.
    pub(crate) fn new(identity: Identity, runtime: tokio::runtime::Handle) -> Peers {
        Peers {
            identity,
            runtime,
            channels: Mutex::default(),
        }
    }

    /// Runs one call on the runtime, within its deadline.
    async fn call<T, F, Fut>(&self, member: &Member, act: F) -> Result<T, ControlError>
    where
        T: Send + 'static,
        F: FnOnce(PeerControlClient<Channel>) -> Fut,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let refuse = |why: String| ControlError {
            node: member.name.clone(),
            address: member.control.clone(),
            why,
        };
        let channel = self
            .channel(member)
            .map_err(|error| refuse(error.to_string()))?;
        let work = act(PeerControlClient::new(channel));
        // Made on the runtime too, as a timer needs one.
        let timed = async { tokio::time::timeout(CALL_TIMEOUT, work).await };
        match self.runtime.spawn(timed).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(status))) => Err(refuse(reason(&status))),
            Ok(Err(_)) => Err(refuse(format!("no answer within {CALL_TIMEOUT:?}"))),
            Err(_) => Err(refuse("this node is shutting down".into())),
        }
    }

    /// The member's channel. It connects when it is first used, and again whenever its connection
    /// broke; a member that moved gets another.
    fn channel(&self, member: &Member) -> Result<Channel, tonic::transport::Error> {
        let mut channels = self.channels.lock();
        if let Some((address, channel)) = channels.get(&member.name)
            && *address == member.control
        {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", member.control))?
            .tls_config(self.identity.client(&member.name))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        // The channel's worker is spawned on the runtime that is current.
        let _current = self.runtime.enter();
        let channel = endpoint.connect_lazy();
        channels.insert(
            member.name.clone(),
            (member.control.clone(), channel.clone()),
        );
        Ok(channel)
    }
}

impl PeerControl for Peers {
    fn connect<'a>(
        &'a self,
        member: &'a Member,
        offer: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ControlError>> {
        let offer = offer.to_vec();
        Box::pin(self.call(member, |mut client| async move {
            let answer = client
                .connect_fabric(ConnectFabricRequest { offer })
                .await?;
            Ok(answer.into_inner().answer)
        }))
    }

    fn manifest<'a>(
        &'a self,
        member: &'a Member,
        version: Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, ControlError>> {
        Box::pin(self.call(member, move |mut client| async move {
            let request = GetManifestRequest {
                digest: version.as_bytes().to_vec(),
            };
            let mut parts = match client.get_manifest(request).await {
                Ok(parts) => parts.into_inner(),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(status),
            };
            let mut manifest = Vec::new();
            while let Some(part) = parts.next().await {
                let part = part?.bytes;
                if manifest.len() + part.len() > MAX_MANIFEST_BYTES {
                    return Err(Status::resource_exhausted("its manifest does not end"));
                }
                manifest.extend_from_slice(&part);
            }
            Ok(Some(manifest.into()))
        }))
    }
}

/// A status and the errors under it, in one line: tonic keeps the telling one deepest.
fn reason(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
