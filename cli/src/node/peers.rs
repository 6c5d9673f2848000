//! Calling peers: one kept channel each, deadlines on every call, and patience with those that
//! are down.

use super::identity::Identity;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use trackbed_cache::Digest;
use trackbed_cache::registry::Registry;
use trackbed_proto::peer::v1::peer_control_client::PeerControlClient;
use trackbed_proto::peer::v1::{ConnectFabricRequest, GetManifestRequest};

/// How long a peer may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a whole call may take, a manifest of a large dataset included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection on which nothing comes back for this long is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// After a failure a peer is left alone for this long, doubled with every further one up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Largest manifest taken from a peer, in bytes; one of 64 million entries is below it.
const MAX_MANIFEST_BYTES: usize = 16 << 30;

/// Why a peer gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// Not in the registry.
    #[error("{0} is not a member: add it to the registry")]
    NotAMember(String),
    /// The registry does not answer.
    #[error(transparent)]
    Registry(#[from] trackbed_cache::registry::RegistryError),
    /// The address in the registry, or our certificates, make no endpoint.
    #[error("{peer} at {address}: {why}: correct the member's control address in the registry")]
    Endpoint {
        /// The member.
        peer: String,
        /// What the registry says.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// It failed a moment ago.
    #[error("{peer} was unreachable just now ({why}): it is asked again in {again:?}")]
    Paused {
        /// The member.
        peer: String,
        /// The last failure.
        why: String,
        /// When it is asked again.
        again: Duration,
    },
    /// It refused, or the call failed.
    #[error("{peer} at {address}: {why}")]
    Call {
        /// The member.
        peer: String,
        /// Where it was asked.
        address: String,
        /// Its answer, or what became of the connection.
        why: String,
        /// The status code.
        code: Code,
    },
    /// The runtime ends.
    #[error("this node is shutting down")]
    ShuttingDown,
}

/// All peers, as seen from this node.
#[derive(Clone)]
pub(crate) struct Peers {
    identity: Identity,
    registry: Arc<dyn Registry>,
    /// Where calls run: whoever asks may be on a thread without a runtime.
    runtime: tokio::runtime::Handle,
    known: Arc<Mutex<HashMap<String, Peer>>>,
}

struct Peer {
    address: String,
    channel: Channel,
    pause: Option<Pause>,
}

struct Pause {
    length: Duration,
    until: Instant,
    why: String,
}

impl Peers {
    /// The peers in `registry`, called as `identity`.
    pub(crate) fn new(
        identity: Identity,
        registry: Arc<dyn Registry>,
        runtime: tokio::runtime::Handle,
    ) -> Peers {
        Peers {
            identity,
            registry,
            runtime,
            known: Arc::default(),
        }
    }

    /// Brings our fabric's offer to `peer` and its answer back.
    pub(crate) async fn connect_fabric(
        &self,
        peer: &str,
        offer: Vec<u8>,
    ) -> Result<Vec<u8>, PeerError> {
        self.call(peer, |mut client| async move {
            let answer = client
                .connect_fabric(ConnectFabricRequest { offer })
                .await?;
            Ok(answer.into_inner().answer)
        })
        .await
    }

    /// The encoded manifest of a version, as `peer` has it: to be checked against the digest.
    pub(crate) async fn manifest(&self, peer: &str, digest: Digest) -> Result<Vec<u8>, PeerError> {
        self.call(peer, move |mut client| async move {
            let request = GetManifestRequest {
                digest: digest.as_bytes().to_vec(),
            };
            let mut parts = client.get_manifest(request).await?.into_inner();
            let mut manifest = Vec::new();
            while let Some(part) = parts.next().await {
                let part = part?.bytes;
                if manifest.len() + part.len() > MAX_MANIFEST_BYTES {
                    return Err(Status::resource_exhausted("the manifest never ends"));
                }
                manifest.extend_from_slice(&part);
            }
            Ok(manifest)
        })
        .await
    }

    /// Runs one call on the runtime, within its deadline, and remembers how it went.
    async fn call<T, F, Fut>(&self, peer: &str, act: F) -> Result<T, PeerError>
    where
        T: Send + 'static,
        F: FnOnce(PeerControlClient<Channel>) -> Fut,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let (address, channel) = self.channel(peer)?;
        let work = act(PeerControlClient::new(channel));
        let timed = tokio::time::timeout(CALL_TIMEOUT, work);
        let outcome = self
            .runtime
            .spawn(timed)
            .await
            .map_err(|_| PeerError::ShuttingDown)?;
        let outcome = outcome.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "no answer within {CALL_TIMEOUT:?}"
            )))
        });
        let status = match outcome {
            Ok(value) => {
                self.remember(peer, None);
                return Ok(value);
            }
            Err(status) => status,
        };
        let why = reason(&status);
        let unreachable = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        self.remember(peer, unreachable.then_some(&*why));
        Err(PeerError::Call {
            peer: peer.to_owned(),
            address,
            why,
            code: status.code(),
        })
    }

    /// The peer's channel, unless it is to be left alone for now. A channel connects when it is
    /// first used, and again when its connection broke.
    fn channel(&self, name: &str) -> Result<(String, Channel), PeerError> {
        let members = self.registry.members()?;
        let Some(member) = members.into_iter().find(|member| member.name == name) else {
            self.known.lock().remove(name);
            return Err(PeerError::NotAMember(name.to_owned()));
        };
        let mut known = self.known.lock();
        if let Some(peer) = known.get(name)
            && peer.address == member.control
        {
            if let Some(pause) = &peer.pause
                && let Some(again) = pause.until.checked_duration_since(Instant::now())
            {
                let why = pause.why.clone();
                return Err(PeerError::Paused {
                    peer: name.to_owned(),
                    why,
                    again,
                });
            }
            return Ok((peer.address.clone(), peer.channel.clone()));
        }
        let endpoint = |error: &dyn std::fmt::Display| PeerError::Endpoint {
            peer: name.to_owned(),
            address: member.control.clone(),
            why: error.to_string(),
        };
        let channel = Endpoint::from_shared(format!("https://{}", member.control))
            .and_then(|to| to.tls_config(self.identity.client(name)))
            .map_err(|error| endpoint(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = {
            // The channel's worker task is spawned on the runtime that is current.
            let _current = self.runtime.enter();
            channel.connect_lazy()
        };
        let peer = Peer {
            address: member.control.clone(),
            channel: channel.clone(),
            pause: None,
        };
        known.insert(name.to_owned(), peer);
        Ok((member.control, channel))
    }

    /// Takes note of a call's outcome: why the peer could not be reached, or that it could.
    fn remember(&self, name: &str, failure: Option<&str>) {
        let mut known = self.known.lock();
        let Some(peer) = known.get_mut(name) else {
            return;
        };
        peer.pause = failure.map(|why| {
            let length = match &peer.pause {
                Some(earlier) => LONGEST_PAUSE.min(earlier.length * 2),
                None => FIRST_PAUSE,
            };
            Pause {
                length,
                until: Instant::now() + length,
                why: why.to_owned(),
            }
        });
    }
}

/// A status and the errors under it, in one line: tonic keeps the telling one deepest.
pub(crate) fn reason(status: &Status) -> String {
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
