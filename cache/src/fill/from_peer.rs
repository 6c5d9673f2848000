//! Fetches a chunk from a peer and believes nothing of it that its seal does not prove.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{self, Either};
use futures_timer::Delay;
use trackbed_rdma::fabric::{ChunkRequest, FetchError, Refusal, TRAILER_BYTES};
use trackbed_rdma::slab::Lease;

use super::Filler;
use super::plan::{Asked, Outcome};
use crate::open::Version;
use crate::peers::PeerError;
use crate::registry::Member;
use crate::seal::{SEAL_BYTES, Seal, SealError, trailer};

/// How long a peer may take to bring a chunk, reading it from the origin included.
const FETCH_DEADLINE: Duration = Duration::from_secs(40);

const _: () = assert!(
    TRAILER_BYTES == SEAL_BYTES,
    "a chunk's trailer on the wire is its seal"
);

/// Why a peer brought no chunk.
#[derive(Debug)]
pub(super) enum PeerFailure {
    Connect(PeerError),
    Fetch(FetchError),
    Late,
    Corrupt(SealError),
}

impl PeerFailure {
    pub(super) fn outcome(&self, members: &[Member]) -> Outcome {
        match self {
            PeerFailure::Fetch(FetchError::Refused(Refusal::AskInstead(whom))) => {
                let is_it = |member: &Member| member.tag() == *whom;
                Outcome::Named(members.iter().position(is_it))
            }
            PeerFailure::Fetch(FetchError::Refused(Refusal::Busy)) => Outcome::Busy,
            PeerFailure::Fetch(FetchError::Refused(_)) | PeerFailure::Corrupt(_) => {
                Outcome::NotDelivered
            }
            PeerFailure::Connect(_) | PeerFailure::Fetch(_) | PeerFailure::Late => {
                Outcome::Unreachable
            }
        }
    }
}

impl fmt::Display for PeerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerFailure::Connect(error) => error.fmt(f),
            PeerFailure::Fetch(error) => error.fmt(f),
            PeerFailure::Late => write!(f, "it did not bring the chunk within {FETCH_DEADLINE:?}"),
            PeerFailure::Corrupt(error) => write!(f, "it sent wrong bytes: {error}"),
        }
    }
}

impl Filler {
    pub(super) async fn ask_peer(
        &self,
        version: &Arc<Version>,
        chunk: u32,
        member: &Member,
        asked: Asked,
    ) -> Result<(Lease, Arc<Seal>), PeerFailure> {
        let began = Instant::now();
        let result = self.fetch(version, chunk, member, asked).await;
        match &result {
            Ok((_, seal)) => {
                if asked != Asked::Give {
                    self.pace.note(began.elapsed());
                }
                self.hedges.succeeded();
                self.peers.delivered(&member.name);
                self.counters.peer_in_chunks.add(1);
                self.counters.peer_in_bytes.add(seal.len() as u64);
            }
            // That it has nothing on disk is what a peer was asked.
            Err(PeerFailure::Fetch(FetchError::Refused(_))) if !asked.is_to_bring() => {}
            Err(PeerFailure::Fetch(FetchError::Refused(Refusal::AskInstead(_)))) => {
                self.counters.peer_referrals.add(1);
            }
            Err(failure) => {
                self.counters.peer_failures.add(1);
                match failure {
                    PeerFailure::Corrupt(why) => {
                        self.counters.peer_corrupt_chunks.add(1);
                        self.peers.strike(&member.name);
                        tracing::warn!(peer = %member.name, chunk, %why,
                            "a peer sent wrong bytes: asking elsewhere");
                    }
                    PeerFailure::Fetch(FetchError::Refused(_)) => {}
                    // The link is of no use any more, or the peer hangs.
                    _ => self.peers.failed(&member.name),
                }
                tracing::debug!(peer = %member.name, chunk, %failure, "a peer brought no chunk");
            }
        }
        result
    }

    async fn fetch(
        &self,
        version: &Arc<Version>,
        chunk: u32,
        member: &Member,
        asked: Asked,
    ) -> Result<(Lease, Arc<Seal>), PeerFailure> {
        let link = self
            .peers
            .link(member)
            .await
            .map_err(PeerFailure::Connect)?;
        let request = ChunkRequest {
            version: *version.digest().as_bytes(),
            chunk,
            flags: match asked {
                Asked::Bring => ChunkRequest::MAY_BE_REFERRED,
                Asked::BringItself => 0,
                Asked::GiveNamed => ChunkRequest::FORWARDED | ChunkRequest::NAMED,
                Asked::Give => ChunkRequest::FORWARDED,
            },
        };
        let fetch = std::pin::pin!(link.fetch(request));
        let payload = match future::select(fetch, Delay::new(FETCH_DEADLINE)).await {
            Either::Left((fetched, _)) => fetched.map_err(PeerFailure::Fetch)?,
            Either::Right(((), _)) => return Err(PeerFailure::Late),
        };
        let expected = version.manifest().chunk_len(chunk);
        let (lease, checked) = self
            .workers
            .run(move || {
                let lease = payload.lease;
                let checked = check(&lease, payload.len, expected);
                (lease, checked)
            })
            .await;
        Ok((lease, Arc::new(checked.map_err(PeerFailure::Corrupt)?)))
    }
}

/// The seal of what lies in the slot, if it is right about it and of the length we expect.
pub(super) fn check(slot: &[u8], len: u32, expected: u32) -> Result<Seal, SealError> {
    let wrong_length = |sealed| SealError::Length {
        sealed,
        found: len as usize,
    };
    if len != expected {
        return Err(wrong_length(expected));
    }
    let seal = trailer(slot).ok_or(SealError::Damaged)?;
    let bytes = slot.get(..len as usize).ok_or(wrong_length(expected))?;
    // What the wire or a disk may do to bytes, the checksums show. The hash, which costs ten times as much,
    // came with them and from the same member: it would prove no more.
    if bytes.len() != seal.len() {
        return Err(wrong_length(seal.len() as u32));
    }
    seal.verify_blocks(0, bytes)?;
    Ok(seal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::CHUNK_BYTES;
    use crate::seal::put_trailer;

    #[test]
    fn a_chunk_of_another_length_or_with_a_seal_for_other_bytes_is_not_believed() {
        let mut slot = vec![7; CHUNK_BYTES + 4096];
        let seal = Seal::of(&slot[..100]).expect("sealed");
        put_trailer(&mut slot, &seal);
        assert_eq!(check(&slot, 100, 100), Ok(seal));
        assert!(check(&slot, 100, 99).is_err());
        assert!(check(&slot, 99, 99).is_err());
        assert!(check(&slot[..50], 100, 100).is_err());
        slot[5] ^= 0x10;
        assert!(check(&slot, 100, 100).is_err());
    }
}
