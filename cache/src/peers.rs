//! Links to the peers we ask, made when first needed, and who is not worth asking for a while.
//!
//! Peers meet through the control plane ([`PeerControl`]), which proves who they are; the fabric
//! then carries the chunks. After a failure a peer counts as down for a time that doubles with
//! each further one (a circuit breaker), so that a dead owner costs one wait and not one a read. So
//! does one that is slow, or sends wrong bytes, several times in a row.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{self, BoxFuture, Either};
use futures_timer::Delay;
use parking_lot::Mutex;
use trackbed_rdma::fabric::{Fabric, FabricError, PeerLink};

use crate::digest::Digest;
use crate::registry::Member;

/// How long meeting a peer may take.
const MEET_DEADLINE: Duration = Duration::from_secs(5);
/// For how long a peer counts as down after its first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// And at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Slow or wrong answers in a row that count as a failure.
const STRIKES: u32 = 3;

/// The control plane between nodes. Implementations authenticate both sides; `member` says who is
/// meant and where it listens. Polled on any thread: a client that needs a runtime brings its own.
pub trait PeerControl: Send + Sync {
    /// Carries our offer to the member, whose agent hands it to [`crate::Agent::accept_peer`], and
    /// brings the answer back.
    fn connect<'a>(
        &'a self,
        member: &'a Member,
        offer: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ControlError>>;

    /// The encoded manifest of a version, if the member has it (from
    /// [`crate::Agent::manifest_bytes`]).
    fn manifest<'a>(
        &'a self,
        member: &'a Member,
        version: Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, ControlError>>;
}

/// Why a member's control interface did not answer.
#[derive(Debug, thiserror::Error)]
#[error("node {node} at {address}: {why}: check that its agent runs and can be reached")]
pub struct ControlError {
    /// The member's name.
    pub node: String,
    /// Where it should listen.
    pub address: String,
    /// What happened.
    pub why: String,
}

/// Why there is no link to a peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("this node has no fabric")]
    NoFabric,
    #[error("it failed a moment ago and is left alone for now")]
    Down,
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error("it could not be met within {MEET_DEADLINE:?}")]
    Late,
}

/// All peers this node has asked.
pub(crate) struct Peers {
    control: Arc<dyn PeerControl>,
    fabric: OnceLock<Fabric>,
    peers: Mutex<HashMap<String, Arc<Peer>>>,
}

#[derive(Default)]
struct Peer {
    /// One meeting at a time.
    meeting: futures::lock::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<PeerLink>,
    breaker: Breaker,
    strikes: u32,
}

impl Peers {
    pub(crate) fn new(control: Arc<dyn PeerControl>) -> Peers {
        Peers {
            control,
            fabric: OnceLock::new(),
            peers: Mutex::default(),
        }
    }

    /// False if there is a fabric already.
    pub(crate) fn set_fabric(&self, fabric: Fabric) -> bool {
        self.fabric.set(fabric).is_ok()
    }

    pub(crate) fn fabric(&self) -> Option<&Fabric> {
        self.fabric.get()
    }

    pub(crate) fn control(&self) -> &Arc<dyn PeerControl> {
        &self.control
    }

    /// Whether there is a live link to the member.
    pub(crate) fn is_linked(&self, member: &Member) -> bool {
        let peer = self.peers.lock().get(&member.name).cloned();
        peer.is_some_and(|peer| peer.live_link().is_some())
    }

    /// Whether the peer failed so recently that it is not worth asking.
    pub(crate) fn is_down(&self, name: &str) -> bool {
        let peer = self.peers.lock().get(name).cloned();
        peer.is_some_and(|peer| peer.state.lock().breaker.is_open(Instant::now()))
    }

    /// Notes that the peer failed; the next one to ask it after a pause meets it anew.
    pub(crate) fn failed(&self, name: &str) {
        let peer = self.peers.lock().get(name).cloned();
        if let Some(peer) = peer {
            let mut state = peer.state.lock();
            state.link = None;
            state.breaker.failed(Instant::now());
        }
    }

    /// Notes that the peer was slow, or sent wrong bytes: a link that goes on, and is better not
    /// relied on if that is usual.
    pub(crate) fn strike(&self, name: &str) {
        let peer = self.peers.lock().get(name).cloned();
        if let Some(peer) = peer {
            let mut state = peer.state.lock();
            state.strikes += 1;
            if state.strikes >= STRIKES {
                state.strikes = 0;
                state.breaker.failed(Instant::now());
            }
        }
    }

    /// Notes that the peer delivered what was asked.
    pub(crate) fn delivered(&self, name: &str) {
        let peer = self.peers.lock().get(name).cloned();
        if let Some(peer) = peer {
            let mut state = peer.state.lock();
            state.strikes = 0;
            // Not while it is open: what was under way before it failed proves nothing.
            if !state.breaker.is_open(Instant::now()) {
                state.breaker = Breaker::default();
            }
        }
    }

    /// A live link to the member, made now if there is none.
    pub(crate) async fn link(&self, member: &Member) -> Result<PeerLink, PeerError> {
        let fabric = self.fabric.get().ok_or(PeerError::NoFabric)?;
        let peer = Arc::clone(self.peers.lock().entry(member.name.clone()).or_default());
        if let Some(link) = peer.live_link() {
            return Ok(link);
        }
        let _one_meeting = peer.meeting.lock().await;
        // Whoever met it before us may have succeeded or failed.
        if let Some(link) = peer.live_link() {
            return Ok(link);
        }
        if peer.state.lock().breaker.is_open(Instant::now()) {
            return Err(PeerError::Down);
        }
        let meeting = std::pin::pin!(self.meet(fabric, member));
        let met = match future::select(meeting, Delay::new(MEET_DEADLINE)).await {
            Either::Left((met, _)) => met,
            Either::Right(((), _)) => Err(PeerError::Late),
        };
        let mut state = peer.state.lock();
        match met {
            Ok(link) => {
                state.breaker = Breaker::default();
                state.link = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                state.breaker.failed(Instant::now());
                tracing::warn!(peer = %member.name, %error, "a peer could not be met");
                Err(error)
            }
        }
    }

    async fn meet(&self, fabric: &Fabric, member: &Member) -> Result<PeerLink, PeerError> {
        let pending = fabric.offer(&member.name).await?;
        let answer = self.control.connect(member, pending.offer_bytes()).await?;
        Ok(fabric.complete(pending, &answer).await?)
    }
}

impl Peer {
    fn live_link(&self) -> Option<PeerLink> {
        self.state
            .lock()
            .link
            .as_ref()
            .filter(|link| link.is_alive())
            .cloned()
    }
}

/// When a peer that failed may be asked again.
#[derive(Default)]
struct Breaker {
    pause: Duration,
    until: Option<Instant>,
}

impl Breaker {
    fn is_open(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn failed(&mut self, now: Instant) {
        // Failures of requests that were under way together count as one.
        if !self.is_open(now) {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.until = Some(now + self.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl PeerControl for Nobody {
        fn connect<'a>(
            &'a self,
            member: &'a Member,
            _offer: &'a [u8],
        ) -> BoxFuture<'a, Result<Vec<u8>, ControlError>> {
            Box::pin(async { Err(refused(member)) })
        }

        fn manifest<'a>(
            &'a self,
            member: &'a Member,
            _version: Digest,
        ) -> BoxFuture<'a, Result<Option<Bytes>, ControlError>> {
            Box::pin(async { Err(refused(member)) })
        }
    }

    fn refused(member: &Member) -> ControlError {
        ControlError {
            node: member.name.clone(),
            address: member.control.clone(),
            why: "refused".into(),
        }
    }

    #[test]
    fn a_peer_that_is_slow_or_wrong_again_and_again_is_left_alone_for_a_while() {
        let peers = Peers::new(Arc::new(Nobody));
        peers.strike("stranger");
        assert!(!peers.is_down("stranger"), "nobody was asked");
        peers.peers.lock().insert("peer".into(), Arc::default());
        for _ in 0..STRIKES - 1 {
            peers.strike("peer");
        }
        peers.delivered("peer");
        for _ in 0..STRIKES - 1 {
            peers.strike("peer");
        }
        assert!(!peers.is_down("peer"), "never so often in a row");
        peers.strike("peer");
        assert!(peers.is_down("peer"));
        peers.delivered("peer");
        assert!(peers.is_down("peer"), "that was under way before");
    }

    #[test]
    fn a_peer_that_keeps_failing_is_asked_less_and_less_often() {
        let mut breaker = Breaker::default();
        let mut now = Instant::now();
        assert!(!breaker.is_open(now));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            breaker.failed(now);
            // Others that were waiting for the same peer fail too and change nothing.
            breaker.failed(now);
            assert!(breaker.is_open(now));
            pauses.push(breaker.pause);
            now += breaker.pause;
            assert!(!breaker.is_open(now), "it is tried again after the pause");
        }
        assert!(pauses.is_sorted() && pauses[1] == 2 * pauses[0]);
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
    }
}
