//! The queue pair for datagrams.

use std::fmt;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use super::headers::Headers;
use super::peers::Peers;
use super::{
    Datagram, DatagramBatch, DatagramConfig, DatagramPeer, DatagramWork, ReceivedDatagram,
    SettledDatagram,
};
use crate::sys;
use crate::verbs::address::{AddressHandle, DatagramAddress, HEADER_BYTES, Sender, source};
use crate::verbs::attached::Attached;
use crate::verbs::completion::{CompletionQueue, Queue, SharedQueue, WorkCompletion};
use crate::verbs::context::Operations;
use crate::verbs::error::VerbsError;
use crate::verbs::memory::{MemoryRegion, ProtectionDomain, Segment, Sink, Source};
use crate::verbs::port::LocalPort;
use crate::verbs::post::{Kind, Rejected, Rejection, SendBatch, SendQueue, Size, errno_of};
use crate::verbs::queue_pair::{Granted, Wanted, create, next_epoch};
use crate::verbs::settle::{first_number, settle_sends};
use crate::verbs::table::{Table, is_of_table};

/// A queue pair for datagrams, ready from the start. `S` are the payloads it sends from, `R` those it
/// receives into.
///
/// Dropping it destroys it, after which the adapter touches none of its payloads, and then drops them;
/// should the device refuse, they are leaked. To have them back use [`DatagramQueuePair::fail`] and settle
/// until [`DatagramQueuePair::is_drained`].
pub struct DatagramQueuePair<S: Source, R: Sink> {
    send: SendQueue<S>,
    raw: NonNull<sys::ibv_qp>,
    qp_number: u32,
    queue_key: u32,
    local: LocalPort,
    granted: Granted,
    operations: Operations,
    receives: Table<(R, u32)>,
    peers: Peers,
    headers: Headers,
    /// The header's first, then the payload's.
    receive_segments: Box<[sys::ibv_sge]>,
    reserved: u32,
    queue: Arc<SharedQueue>,
    pd: Arc<ProtectionDomain>,
}

// SAFETY: the adapter's queue pair may be used from any thread, from one at a time, which `&mut` sees to;
// the pointers inside are to boxes of the same value, to it, or to payloads and headers that are `Send`.
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
        // One more send than asked for: the marker that tells when a failed queue is drained.
        limits.check(
            name,
            "work requests in a queue",
            (u64::from(send_depth) + 1).max(receive_depth.into()),
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
        let reserved = send_depth.saturating_add(1).saturating_add(receive_depth);
        queue.reserve(reserved)?;
        let wanted = Wanted {
            kind: Kind::Datagrams,
            capacities: sys::ibv_qp_cap {
                max_send_wr: send_depth.saturating_add(1),
                max_recv_wr: receive_depth,
                max_send_sge: segments,
                max_recv_sge: segments + 1,
                max_inline_data: config.inline_bytes,
            },
            interface: config.interface,
            shared_receives: null_mut(),
            tag: null_mut(),
        };
        let created = create(pd, queue, &wanted).inspect_err(|_| queue.release(reserved))?;
        let raw = created.raw;
        // SAFETY: the queue pair was just made; its number never changes.
        let qp_number = unsafe { (*raw.as_ptr()).qp_num };
        let inline_bytes = config.inline_bytes.min(created.inline_bytes);
        let interface = created.work.interface();
        let size = Size {
            depth: send_depth,
            segments,
            inline_bytes,
        };
        let epoch = next_epoch();
        let first = first_number(epoch, Queue::Send);
        let attached = Attached::new(pd);
        let made = DatagramQueuePair {
            send: SendQueue::new(created.work, qp_number, first, &size, attached),
            raw,
            qp_number,
            queue_key: config.queue_key,
            local: port,
            granted: Granted {
                send_depth,
                receive_depth,
                segments,
                inline_bytes,
                interface,
            },
            operations: context.operations(),
            receives: Table::new(receive_depth),
            peers: Peers::new(epoch),
            headers,
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

    /// What the device granted.
    pub fn granted(&self) -> Granted {
        self.granted
    }

    /// Makes the payloads in a region postable, and keeps the region registered.
    pub fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<(), VerbsError> {
        self.send.attached.attach(region)
    }

    /// Adds a destination, by a handle of the same protection domain.
    pub fn add_peer(&mut self, handle: AddressHandle) -> Result<DatagramPeer, VerbsError> {
        if !Arc::ptr_eq(handle.protection_domain(), &self.pd) {
            return Err(VerbsError::Foreign {
                what: "the address handle",
                owner: "protection domain",
            });
        }
        Ok(self.peers.add(handle))
    }

    /// Forgets a destination and frees its handle. False, and it stays, while a datagram to it may be
    /// under way (one that was gathered counts until later ones have completed); also false when it isn't
    /// there.
    #[must_use = "false says that the destination is still there"]
    pub fn remove_peer(&mut self, peer: DatagramPeer) -> bool {
        self.peers.remove(peer, &self.send.ring)
    }

    /// Starts a batch of datagrams.
    pub fn batch(&mut self) -> DatagramBatch<'_, S> {
        let max_bytes = self.max_bytes();
        let batch = SendBatch::new(&mut self.send);
        DatagramBatch::new(batch, &mut self.peers, max_bytes)
    }

    /// Sends the given parts of a payload as one datagram, with 32 bits that the receiver's completion
    /// carries or without: a batch of one that asks for a completion.
    pub fn send(
        &mut self,
        payload: S,
        to: DatagramPeer,
        segments: &[Segment],
        immediate: Option<u32>,
    ) -> Result<(), Rejected<S>> {
        let datagram = match immediate {
            Some(immediate) => DatagramWork::with_immediate(immediate, segments),
            None => DatagramWork::new(segments),
        };
        let mut batch = self.batch();
        batch.push(payload, to, datagram.signaled())?;
        batch.commit().map(drop).map_err(|mut error| {
            let payload = error.payloads.pop();
            Rejected {
                payload: payload.expect("of one datagram, refused, nothing was posted"),
                reason: Rejection::SendRefused {
                    errno: error.source.raw_os_error().unwrap_or(0),
                },
            }
        })
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
                .send
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
        let errno = errno_of(code);
        let back = self.receives.take(id);
        let (payload, _) = back.expect("the payload put there a moment ago");
        let reason = Rejection::Refused { errno };
        Err(Rejected { payload, reason })
    }

    /// Hands back the payloads that a completion is about.
    pub fn settle(&mut self, done: WorkCompletion) -> SettledDatagram<'_, S, R> {
        if is_of_table(done.id()) {
            return self.settle_receive(done);
        }
        match settle_sends(&done, &mut self.send.ring) {
            Some(sent) => SettledDatagram::Sent(sent),
            None if done.qp_number() == self.qp_number => SettledDatagram::Stale,
            None => SettledDatagram::Other(done),
        }
    }

    fn settle_receive(&mut self, done: WorkCompletion) -> SettledDatagram<'_, S, R> {
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
        self.send.ring.free()
    }

    /// Receives that can be posted now.
    pub fn receive_room(&self) -> u32 {
        self.receives.room()
    }

    /// Whether every payload has come back.
    pub fn is_drained(&self) -> bool {
        self.send.ring.len() == 0 && self.receives.len() == 0
    }

    /// Takes it to the error state: all that is outstanding comes back flushed. Ask for completions until
    /// [`DatagramQueuePair::is_drained`].
    pub fn fail(&mut self) -> Result<(), VerbsError> {
        let failed = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_ERR,
            ..Default::default()
        };
        self.modify(failed, 0, "ERR")?;
        let newest = self.send.ring.next().wrapping_sub(1);
        let Some(target) = self.peers.hold_until(newest) else {
            // What is outstanding has a destination: nothing is.
            return Ok(());
        };
        // SAFETY: the destination is one of this queue pair, and stays until the marker is settled.
        unsafe { self.send.shut(target) }.map_err(|code| {
            let object = format!("{} queue pair {}", self.pd.context().name(), self.qp_number);
            VerbsError::code("ibv_post_send", object, code)
        })
    }
}

impl<S: Source, R: Sink> Drop for DatagramQueuePair<S, R> {
    fn drop(&mut self) {
        if self.pd.context().is_inherited() {
            return;
        }
        self.send.close_forgotten_batch();
        // SAFETY: the queue pair is ours and not used again. Once destroyed, the adapter no longer
        // touches what was posted on it, and the payloads can be dropped.
        let code = unsafe { (self.pd.context().library().destroy_qp)(self.raw.as_ptr()) };
        if code == 0 {
            self.queue.release(self.reserved);
            return;
        }
        // It may still be writing: keep what it may touch for ever.
        self.send.leak();
        self.receives.leak();
        self.peers.leak();
        std::mem::forget(Arc::clone(&self.headers.region));
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
