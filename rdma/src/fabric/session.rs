//! A link in operation: requests under way, answers to them, and what is kept until the end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;

use super::counters::Counters;
use super::frame::{Entry, MAX_ENTRIES, Outcome, Reply, TRAILER_BYTES, encode_requests};
use super::link::{Ask, Driver, LinkEnd};
use super::silence::Silence;
use super::{FetchError, Payload, chunk_capacity};
use crate::shard::Ring;
use crate::slab::{Lease, Slab};

/// A running link: its requests under way. Shared by the futures that drive it.
pub(super) struct Session {
    driver: Driver,
    ring: Rc<Ring>,
    under_way: RefCell<Vec<Option<UnderWay>>>,
    /// Whose answer broke the protocol or off: kept for the end of the link, like those above.
    broken: RefCell<Vec<UnderWay>>,
    next_tag: Cell<u32>,
    silence: Silence,
    /// How much silence ends the link.
    patience: Duration,
}

/// One request that the peer has or is about to get.
pub(super) struct UnderWay {
    pub(super) tag: u32,
    pub(super) lease: Lease,
    answer: oneshot::Sender<Result<Payload, FetchError>>,
}

impl Session {
    /// Begins a session on the shard's thread. So much silence of a peer that owes answers ends it.
    pub(super) fn begin(driver: Driver, ring: Rc<Ring>, patience: Duration) -> Session {
        driver.counters.links_opened.increment();
        ring.register(driver.arena());
        let slots = driver.arena().slots();
        Session {
            driver,
            ring,
            under_way: RefCell::new((0..slots).map(|_| None).collect()),
            broken: RefCell::default(),
            next_tag: Cell::new(0),
            silence: Silence::new(),
            patience,
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.driver.counters
    }

    pub(super) fn arena(&self) -> &Arc<Slab> {
        self.driver.arena()
    }

    pub(super) fn peer(&self) -> &str {
        self.driver.peer()
    }

    /// Waits for requests; the frame for as many as there are, or none when nobody can ask any
    /// more. `place` says what the peer needs to know of a lease: its address and key.
    ///
    /// One allocation a frame.
    pub(super) async fn next_frame(&self, place: impl Fn(&Lease) -> (u64, u32)) -> Option<Vec<u8>> {
        loop {
            let mut next = Some(self.driver.asks.recv().await.ok()?);
            let mut entries = Vec::with_capacity(MAX_ENTRIES);
            while let Some(ask) = next {
                entries.extend(self.admit(ask, &place));
                if entries.len() == MAX_ENTRIES {
                    break;
                }
                next = self.driver.asks.try_recv().ok();
            }
            if !entries.is_empty() {
                self.counters().requests_sent.add(entries.len() as u64);
                self.counters().request_frames_sent.increment();
                return Some(encode_requests(&entries));
            }
        }
    }

    /// Notes a request as under way, unless whoever asked has left.
    fn admit(&self, ask: Ask, place: impl Fn(&Lease) -> (u64, u32)) -> Option<Entry> {
        let Ask {
            request,
            lease,
            answer,
        } = ask;
        if answer.is_canceled() {
            return None;
        }
        if !self.owed() {
            // The peer owed nothing until now.
            self.sign_of_life();
        }
        let tag = self.next_tag.get();
        self.next_tag.set(tag.wrapping_add(1));
        let (address, rkey) = place(&lease);
        let slot = lease.slot();
        self.under_way.borrow_mut()[slot as usize] = Some(UnderWay { tag, lease, answer });
        Some(Entry {
            request,
            slot: slot as u16,
            tag,
            address,
            rkey,
        })
    }

    /// The peer was heard.
    pub(super) fn sign_of_life(&self) {
        self.silence.end();
    }

    /// Takes the request that a reply answers.
    pub(super) fn answered(&self, slot: u16, tag: u32) -> Result<UnderWay, LinkEnd> {
        let mut under_way = self.under_way.borrow_mut();
        let place = under_way.get_mut(usize::from(slot)).ok_or_else(|| {
            LinkEnd::Malformed(format!("it answered for slot {slot}, which does not exist"))
        })?;
        match place.take_if(|request| request.tag == tag) {
            Some(request) => Ok(request),
            None => Err(LinkEnd::Malformed(format!(
                "it answered for slot {slot}, tag {tag}, which was not asked"
            ))),
        }
    }

    /// Keeps a request whose answer went wrong until the link has ended: its slot may still be written
    /// to, and whoever asked is to learn why the link ended.
    pub(super) fn keep(&self, request: UnderWay, end: LinkEnd) -> LinkEnd {
        self.broken.borrow_mut().push(request);
        end
    }

    /// Tags are 32 bits in frames, but an immediate has room for the lowest 8 only: the tag under
    /// way in that slot, if those match.
    pub(super) fn full_tag(&self, slot: u16, low: u8) -> Option<u32> {
        let under_way = self.under_way.borrow();
        let request = under_way.get(usize::from(slot))?.as_ref()?;
        (request.tag as u8 == low).then_some(request.tag)
    }

    /// Checks a reply's payload length against the slot.
    pub(super) fn check_len(&self, reply: &Reply) -> Result<(), LinkEnd> {
        match reply.outcome {
            Outcome::Payload(len) if len as usize > chunk_capacity(self.arena()) => {
                Err(LinkEnd::Malformed(format!(
                    "a payload of {len} bytes is larger than a slot holds"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Answers a request with what arrived in its lease, or with a refusal.
    pub(super) fn finish(&self, request: UnderWay, outcome: Outcome) {
        let UnderWay { lease, answer, .. } = request;
        let result = match outcome {
            Outcome::Payload(len) => {
                self.counters().payloads_received.increment();
                self.counters()
                    .payload_bytes_received
                    .add(u64::from(len) + TRAILER_BYTES as u64);
                Ok(Payload { lease, len })
            }
            Outcome::Refused(refusal) => {
                self.counters().refusals_received.increment();
                Err(FetchError::Refused(refusal))
            }
            Outcome::Working => return,
        };
        // Whoever asked may have left: the lease then returns to the arena here.
        let _ = answer.send(result);
    }

    /// Ends when the peer owed an answer and gave no sign of life for too long.
    pub(super) async fn watch(&self) -> LinkEnd {
        let pause = self.driver.deadline / 8;
        loop {
            self.ring.sleep(pause).await;
            if self.silence.look(pause) >= self.patience && self.owed() {
                return LinkEnd::Silent(self.patience);
            }
        }
    }

    /// Whether the peer owes an answer and has not been heard for that long.
    pub(super) fn waits_since(&self, time: Duration) -> bool {
        self.owed() && self.silence.lasted() >= time
    }

    fn owed(&self) -> bool {
        self.under_way.borrow().iter().any(Option::is_some)
    }

    /// How long the peer may give no sign of life while it owes an answer.
    pub(super) fn deadline(&self) -> Duration {
        self.driver.deadline
    }

    /// Makes the end known: nobody new can ask, and those who wait will learn why as soon as their
    /// requests are dropped, which is when the peer can no longer write.
    pub(super) fn announce(&self, end: LinkEnd) {
        match &end {
            LinkEnd::Unused => tracing::debug!(peer = self.peer(), "link closed: {end}"),
            _ => tracing::warn!(peer = self.peer(), "link ended: {end}"),
        }
        self.driver.end(end);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The shard may be ending with the session still running.
        let end = LinkEnd::Gone("this node's data path is shutting down".to_owned());
        self.driver.end(end);
        while self.driver.asks.try_recv().is_ok() {}
        self.ring.unregister(self.driver.arena());
        self.driver.counters.links_ended.increment();
    }
}
