//! The queue pair for datagrams.

use std::fmt;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::headers::Headers;
use super::{
    Datagram, DatagramConfig, DatagramPeer, ReceivedDatagram, SentDatagram, SettledDatagram,
};
use crate::sys;
use crate::verbs::address::{AddressHandle, DatagramAddress, HEADER_BYTES, Sender, source};
use crate::verbs::attached::{Attached, write_down};
use crate::verbs::completion::{CompletionQueue, Queue, SharedQueue, WorkCompletion};
use crate::verbs::context::Operations;
use crate::verbs::error::VerbsError;
use crate::verbs::memory::{MemoryRegion, ProtectionDomain, Segment, Sink, Source};
use crate::verbs::port::LocalPort;
use crate::verbs::post::{Rejected, Rejection, check_segments};
use crate::verbs::table::Table;

/// A destination and how many datagrams are on their way there.
struct PeerSlot {
    uses: u32,
    handle: Option<AddressHandle>,
    outstanding: u32,
}

/// A queue pair for datagrams, ready from the start. `S` are the payloads it sends from, `R` those it
/// receives into.
///
/// Dropping it destroys it, after which the adapter touches none of its payloads, and then drops them;
/// should the device refuse, they are leaked. To have them back use [`DatagramQueuePair::fail`] and settle
/// until [`DatagramQueuePair::is_drained`].
pub struct DatagramQueuePair<S: Source, R: Sink> {
    raw: NonNull<sys::ibv_qp>,
    id: u64,
    qp_number: u32,
    queue_key: u32,
    local: LocalPort,
    operations: Operations,
    sends: Table<(S, u32)>,
    receives: Table<(R, u32)>,
    peers: Vec<PeerSlot>,
    attached: Attached,
    headers: Headers,
    send_segments: Box<[sys::ibv_sge]>,
    /// The header's first, then the payload's.
    receive_segments: Box<[sys::ibv_sge]>,
    reserved: u32,
    queue: Arc<SharedQueue>,
    pd: Arc<ProtectionDomain>,
}

// SAFETY: the adapter's queue pair may be used from any thread, from one at a time, which `&mut` sees to;
// the segments point into payloads and headers that are `Send`.
unsafe impl<S: Source, R: Sink> Send for DatagramQueuePair<S, R> {}

impl<S: Source, R: Sink> DatagramQueuePair<S, R> {
    /// Makes a queue pair on `port`, with all its completions on `queue`.
    pub fn new(
        pd: &Arc<ProtectionDomain>,
        queue: &CompletionQueue,
        port: LocalPort,
        config: &DatagramConfig,
    ) -> Result<DatagramQueuePair<S, R>, VerbsError> {
        let context = pd.context();
        context.check_process()?;
        if !Arc::ptr_eq(context, queue.context()) {
            return Err(VerbsError::Foreign {
                what: "the completion queue",
                owner: "context",
            });
        }
        let (send_depth, receive_depth) = (config.send_depth.max(1), config.receive_depth.max(1));
        let segments = config.segments.max(1);
        let (name, limits) = (context.name(), context.limits());
        limits.check(
            name,
            "work requests in a queue",
            send_depth.max(receive_depth).into(),
            limits.queue_depth.into(),
        )?;
        // A receive has one more, for the header.
        limits.check(
            name,
            "segments in a work request",
            u64::from(segments) + 1,
            limits.segments.into(),
        )?;
        let headers = Headers::new(pd, receive_depth)?;
        let queue = queue.shared();
        let reserved = send_depth.saturating_add(receive_depth);
        queue.reserve(reserved)?;
        let mut attributes = sys::ibv_qp_init_attr {
            send_cq: queue.as_ptr(),
            recv_cq: queue.as_ptr(),
            cap: sys::ibv_qp_cap {
                max_send_wr: send_depth,
                max_recv_wr: receive_depth,
                max_send_sge: segments,
                max_recv_sge: segments + 1,
                max_inline_data: 0,
            },
            qp_type: sys::IBV_QPT_UD,
            ..Default::default()
        };
        // SAFETY: protection domain and queue are alive and of one context.
        let raw = unsafe { (context.library().create_qp)(pd.as_ptr(), &mut attributes) };
        let Some(raw) = NonNull::new(raw) else {
            let object = format!(
                "{name} (datagrams, depth {send_depth} and {receive_depth}, {segments} segments)"
            );
            let error = VerbsError::last("ibv_create_qp", object);
            queue.release(reserved);
            return Err(error);
        };
        static IDS: AtomicU64 = AtomicU64::new(1);
        let made = DatagramQueuePair {
            raw,
            id: IDS.fetch_add(1, Ordering::Relaxed),
            // SAFETY: the queue pair was just made; its number never changes.
            qp_number: unsafe { (*raw.as_ptr()).qp_num },
            queue_key: config.queue_key,
            local: port,
            operations: context.operations(),
            sends: Table::new(send_depth),
            receives: Table::new(receive_depth),
            peers: Vec::new(),
            attached: Attached::new(pd),
            headers,
            send_segments: vec![sys::ibv_sge::default(); segments as usize].into_boxed_slice(),
            receive_segments: vec![sys::ibv_sge::default(); segments as usize + 1]
                .into_boxed_slice(),
            reserved,
            queue: Arc::clone(queue),
            pd: Arc::clone(pd),
        };
        made.bring_up()?;
        Ok(made)
    }

    fn bring_up(&self) -> Result<(), VerbsError> {
        let initial = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_INIT,
            port_num: self.local.port,
            qkey: self.queue_key,
            ..Default::default()
        };
        let mask = sys::IBV_QP_PKEY_INDEX | sys::IBV_QP_PORT | sys::IBV_QP_QKEY;
        self.modify(initial, mask, "INIT")?;
        let receiving = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTR,
            ..Default::default()
        };
        self.modify(receiving, 0, "RTR")?;
        let sending = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTS,
            ..Default::default()
        };
        self.modify(sending, sys::IBV_QP_SQ_PSN, "RTS")
    }

    fn modify(
        &self,
        mut attributes: sys::ibv_qp_attr,
        mask: u32,
        to: &str,
    ) -> Result<(), VerbsError> {
        let context = self.pd.context();
        context.check_process()?;
        // SAFETY: the queue pair is ours and the attributes named in the mask are set.
        let code = unsafe {
            (context.library().modify_qp)(
                self.raw.as_ptr(),
                &mut attributes,
                (mask | sys::IBV_QP_STATE).cast_signed(),
            )
        };
        if code != 0 {
            let number = self.qp_number;
            let object = format!("{} datagram queue pair {number} (to {to})", context.name());
            return Err(VerbsError::code("ibv_modify_qp", object, code));
        }
        Ok(())
    }

    /// Its number, by which completions name it.
    pub fn qp_number(&self) -> u32 {
        self.qp_number
    }

    /// What others must know to send to it.
    pub fn address(&self) -> DatagramAddress {
        DatagramAddress {
            qp_number: self.qp_number,
            queue_key: self.queue_key,
            lid: self.local.lid,
            gid: self.local.gid,
        }
    }

    /// Bytes a datagram has at most: the port's MTU when the queue pair was made.
    pub fn max_bytes(&self) -> u32 {
        self.local.mtu.bytes()
    }

    /// Makes the payloads in a region postable, and keeps the region registered.
    pub fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<(), VerbsError> {
        self.attached.attach(region)
    }

    /// Adds a destination, by a handle of the same protection domain.
    pub fn add_peer(&mut self, handle: AddressHandle) -> Result<DatagramPeer, VerbsError> {
        if !Arc::ptr_eq(handle.protection_domain(), &self.pd) {
            return Err(VerbsError::Foreign {
                what: "the address handle",
                owner: "protection domain",
            });
        }
        let free = self.peers.iter().position(|slot| slot.handle.is_none());
        let index = free.unwrap_or_else(|| {
            self.peers.push(PeerSlot {
                uses: 0,
                handle: None,
                outstanding: 0,
            });
            self.peers.len() - 1
        });
        let slot = &mut self.peers[index];
        slot.handle = Some(handle);
        Ok(DatagramPeer {
            pair: self.id,
            index: index as u32,
            uses: slot.uses,
        })
    }

    /// Forgets a destination and frees its handle. False, and it stays, while a datagram to it is under
    /// way; also false when it isn't there.
    #[must_use = "false says that the destination is still there"]
    pub fn remove_peer(&mut self, peer: DatagramPeer) -> bool {
        match self.slot(peer) {
            Some(index) if self.peers[index].outstanding == 0 => {
                let slot = &mut self.peers[index];
                slot.handle = None;
                slot.uses = slot.uses.wrapping_add(1);
                true
            }
            _ => false,
        }
    }

    fn slot(&self, peer: DatagramPeer) -> Option<usize> {
        let index = peer.index as usize;
        let slot = self.peers.get(index)?;
        let known = peer.pair == self.id && slot.uses == peer.uses && slot.handle.is_some();
        known.then_some(index)
    }

    /// Sends the given parts of a payload as one datagram, with 32 bits that the receiver's completion
    /// carries or without. Each datagram completes.
    pub fn send(
        &mut self,
        payload: S,
        to: DatagramPeer,
        segments: &[Segment],
        immediate: Option<u32>,
    ) -> Result<(), Rejected<S>> {
        let peer = match self.check_send(&payload, to, segments) {
            Ok(peer) => peer,
            Err(reason) => return Err(Rejected { payload, reason }),
        };
        let slot = &mut self.peers[peer];
        let Some(handle) = &slot.handle else {
            let reason = Rejection::UnknownPeer;
            return Err(Rejected { payload, reason });
        };
        let mut request = sys::ibv_send_wr {
            sg_list: self.send_segments.as_mut_ptr(),
            num_sge: segments.len() as i32,
            opcode: match immediate {
                Some(_) => sys::IBV_WR_SEND_WITH_IMM,
                None => sys::IBV_WR_SEND,
            },
            send_flags: sys::IBV_SEND_SIGNALED,
            ..Default::default()
        };
        request.__bindgen_anon_1.imm_data = immediate.unwrap_or(0).to_be();
        request.wr.ud = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_3 {
            ah: handle.as_ptr(),
            remote_qpn: handle.to().qp_number,
            remote_qkey: handle.to().queue_key,
        };
        let id = self.sends.insert((payload, peer as u32));
        request.wr_id = id;
        let mut refused = null_mut();
        // SAFETY: the queue pair is ours; the segments lie in attached regions and in the payload, which
        // the table owns until it completes; the handle stays while a datagram to it is under way.
        let code =
            unsafe { (self.operations.post_send)(self.raw.as_ptr(), &mut request, &mut refused) };
        if code == 0 {
            slot.outstanding += 1;
            return Ok(());
        }
        let errno = errno(code);
        let back = self.sends.take(id);
        let (payload, _) = back.expect("the payload put there a moment ago");
        let reason = Rejection::SendRefused { errno };
        Err(Rejected { payload, reason })
    }

    fn check_send(
        &mut self,
        payload: &S,
        to: DatagramPeer,
        segments: &[Segment],
    ) -> Result<usize, Rejection> {
        if self.sends.room() == 0 {
            return Err(Rejection::QueueFull { room: 0, wanted: 1 });
        }
        let peer = self.slot(to).ok_or(Rejection::UnknownPeer)?;
        check_segments(segments, payload.len(), self.send_segments.len() as u32)?;
        let bytes = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let limit = self.max_bytes();
        if bytes > u64::from(limit) {
            return Err(Rejection::TooLong { limit, bytes });
        }
        if !segments.is_empty() {
            let range = self.attached.range_of(payload.as_ptr(), payload.len())?;
            write_down(
                segments,
                payload.as_ptr(),
                range.lkey,
                &mut self.send_segments,
            );
        }
        Ok(peer)
    }

    /// Posts a receive into the given parts of a payload. A datagram that is longer fails the receive, and
    /// on some devices the queue pair.
    pub fn post_receive(&mut self, payload: R, segments: &[Segment]) -> Result<(), Rejected<R>> {
        let (header_segment, rest) = self
            .receive_segments
            .split_first_mut()
            .expect("a segment for the header");
        let checked = match (self.receives.room(), self.headers.free.last()) {
            (1.., Some(header)) => self
                .attached
                .receive_into(&payload, segments, rest)
                .map(|()| *header),
            _ => Err(Rejection::QueueFull { room: 0, wanted: 1 }),
        };
        let header = match checked {
            Ok(header) => header,
            Err(reason) => return Err(Rejected { payload, reason }),
        };
        *header_segment = self.headers.segment(header);
        let id = self.receives.insert((payload, header));
        let mut request = sys::ibv_recv_wr {
            wr_id: id,
            next: null_mut(),
            sg_list: self.receive_segments.as_mut_ptr(),
            num_sge: segments.len() as i32 + 1,
        };
        let mut refused = null_mut();
        // SAFETY: the queue pair is ours; the segments lie in a header that is free, in attached writable
        // regions, and in the payload, which is the only way to its bytes and which the table owns until
        // it completes.
        let code = unsafe {
            (self.operations.post_receive)(self.raw.as_ptr(), &mut request, &mut refused)
        };
        if code == 0 {
            self.headers.free.pop();
            return Ok(());
        }
        let errno = errno(code);
        let back = self.receives.take(id);
        let (payload, _) = back.expect("the payload put there a moment ago");
        let reason = Rejection::Refused { errno };
        Err(Rejected { payload, reason })
    }

    /// Hands back the payload that a completion is about.
    pub fn settle(&mut self, done: WorkCompletion) -> SettledDatagram<S, R> {
        if self.sends.made(done.id()) {
            let Some((payload, peer)) = self.sends.take(done.id()) else {
                return SettledDatagram::Stale;
            };
            self.peers[peer as usize].outstanding -= 1;
            let outcome = done.outcome(Queue::Send).map(drop);
            return SettledDatagram::Sent(SentDatagram { payload, outcome });
        }
        if !self.receives.made(done.id()) {
            return SettledDatagram::Other(done);
        }
        let Some((payload, header)) = self.receives.take(done.id()) else {
            return SettledDatagram::Stale;
        };
        let outcome = done.outcome(Queue::Receive).map(|completion| {
            let header = done.has_header().then(|| self.headers.read(header));
            Datagram {
                // The length counts the header, whether or not there is one.
                bytes: completion.bytes.saturating_sub(HEADER_BYTES as u32),
                immediate: completion.immediate,
                sender: Sender {
                    qp_number: done.source_qp_number(),
                    lid: done.source_lid(),
                    gid: header.and_then(|header| source(&header, &self.local.gid)),
                },
            }
        });
        self.headers.free.push(header);
        SettledDatagram::Received(ReceivedDatagram { payload, outcome })
    }

    /// Datagrams that can be sent now.
    pub fn send_room(&self) -> u32 {
        self.sends.room()
    }

    /// Receives that can be posted now.
    pub fn receive_room(&self) -> u32 {
        self.receives.room()
    }

    /// Whether every payload has come back.
    pub fn is_drained(&self) -> bool {
        self.sends.len() == 0 && self.receives.len() == 0
    }

    /// Takes it to the error state: all that is outstanding comes back flushed. Ask for completions until
    /// [`DatagramQueuePair::is_drained`].
    pub fn fail(&mut self) -> Result<(), VerbsError> {
        let failed = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_ERR,
            ..Default::default()
        };
        self.modify(failed, 0, "ERR")
    }
}

/// The errno of a refused post.
fn errno(code: i32) -> i32 {
    match code {
        -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
        code => code.saturating_abs(),
    }
}

impl<S: Source, R: Sink> Drop for DatagramQueuePair<S, R> {
    fn drop(&mut self) {
        if self.pd.context().is_inherited() {
            return;
        }
        // SAFETY: the queue pair is ours and not used again. Once destroyed, the adapter no longer
        // touches what was posted on it, and the payloads can be dropped.
        let code = unsafe { (self.pd.context().library().destroy_qp)(self.raw.as_ptr()) };
        if code == 0 {
            self.queue.release(self.reserved);
            return;
        }
        // It may still be writing: keep what it may touch for ever.
        self.sends.leak();
        self.receives.leak();
        self.attached.leak();
        std::mem::forget(Arc::clone(&self.headers.region));
        std::mem::forget(std::mem::take(&mut self.peers));
        std::mem::forget(Arc::clone(&self.queue));
    }
}

impl<S: Source, R: Sink> fmt::Debug for DatagramQueuePair<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramQueuePair")
            .field("qp_number", &self.qp_number)
            .finish_non_exhaustive()
    }
}
