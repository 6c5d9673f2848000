//! What both types of queue pair are inside: the adapter's queue pair, its payloads and its regions.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::create::{Wanted, create};
use super::{Granted, QueuePairConfig, QueuePairState};
use crate::sys;
use crate::verbs::completion::{Queue, SharedQueue};
use crate::verbs::context::{Context, Operations};
use crate::verbs::endpoint::{ConnectOptions, Endpoint};
use crate::verbs::error::VerbsError;
use crate::verbs::event::Notes;
use crate::verbs::memory::{LocalRange, MemoryRegion, ProtectionDomain, Segment, Sink, Source};
use crate::verbs::port::{LinkLayer, LocalPort};
use crate::verbs::post::{Rejected, Rejection, WorkRequests, check_segments};
use crate::verbs::ring::Ring;
use crate::verbs::settle::first_number;
use crate::verbs::shared_receive::SharedReceiver;

/// Reads served at a time, when the device can do as many: adapters do 16, soft-RoCE and some others 128.
const READS_IN_FLIGHT: u8 = 128;

/// Numbers the queue pairs of this process.
static EPOCH: AtomicU64 = AtomicU64::new(1);

/// What posting and settling touch stands first.
pub(in crate::verbs) struct Core<S, R> {
    pub(in crate::verbs) sends: Ring<S>,
    /// The attached region that the last payload lay in.
    pub(in crate::verbs) last_range: LocalRange,
    /// The number after the last signalled work request.
    pub(in crate::verbs) signaled_until: u64,
    /// So many in a row go unsignalled at most.
    pub(in crate::verbs) unsignaled_limit: u64,
    /// Shorter messages are copied.
    pub(in crate::verbs) inline_below: u32,
    pub(in crate::verbs) batch_open: bool,
    pub(in crate::verbs) work: WorkRequests,
    pub(in crate::verbs) receives: Ring<R>,
    operations: Operations,
    pub(in crate::verbs) raw: NonNull<sys::ibv_qp>,
    pub(in crate::verbs) qp_number: u32,
    pub(in crate::verbs) max_segments: u32,
    /// Room to write the segments of one work request down.
    pub(in crate::verbs) segment_list: Box<[sys::ibv_sge]>,
    pub(in crate::verbs) inline_list: Box<[sys::ibv_data_buf]>,
    /// Reads and atomics on their way at a time; the adapter holds more of them back.
    pub(in crate::verbs) reads_issued: u8,
    ranges: Vec<LocalRange>,
    regions: Vec<Arc<MemoryRegion>>,
    failed: bool,
    pub(in crate::verbs) granted: Granted,
    local: LocalPort,
    packet_sequence: u32,
    reads_in_flight: u8,
    reserved: u32,
    /// Tells it from all others this process ever made.
    pub(in crate::verbs) epoch: u64,
    shared_receives: Option<Arc<SharedReceiver>>,
    /// The adapter's queue pair points to it, for events.
    notes: Arc<Notes>,
    queue: Arc<SharedQueue>,
    pd: Arc<ProtectionDomain>,
}

// SAFETY: the adapter's queue pair may be used from any thread, from one at a time, which `&mut` sees
// to; the pointers inside are to boxes of the same value, to it, or to payloads that are `Send`.
unsafe impl<S: Send, R: Send> Send for Core<S, R> {}

impl<S, R> Core<S, R> {
    pub(super) fn new(
        pd: &Arc<ProtectionDomain>,
        queue: &Arc<SharedQueue>,
        local: LocalPort,
        config: &QueuePairConfig,
        shared_receives: Option<&Arc<SharedReceiver>>,
    ) -> Result<Core<S, R>, VerbsError> {
        let context = pd.context();
        context.check_process()?;
        if !Arc::ptr_eq(context, queue.context()) {
            return Err(VerbsError::Foreign {
                what: "the completion queue",
                owner: "context",
            });
        }
        if let Some(shared) = shared_receives
            && !Arc::ptr_eq(shared.protection_domain(), pd)
        {
            return Err(VerbsError::Foreign {
                what: "the shared receive queue",
                owner: "protection domain",
            });
        }
        // One more than asked for: the marker that tells when a failed queue is drained.
        let send_depth = config.send_depth.max(1);
        let receive_depth = match shared_receives {
            Some(_) => 0,
            None => config.receive_depth.max(1),
        };
        let max_segments = config.segments.max(1);
        let limits = context.limits();
        let most = u64::from(limits.queue_depth);
        for (what, wanted) in [
            ("sends at a time on a queue pair", u64::from(send_depth) + 1),
            ("receives at a time on a queue pair", receive_depth.into()),
        ] {
            limits.check(context.name(), what, wanted, most)?;
        }
        let (wanted, most) = (max_segments.into(), limits.segments.into());
        limits.check(context.name(), "segments in a work request", wanted, most)?;
        if config.remote_atomics {
            limits.check_atomics(context.name())?;
        }
        let reserved = send_depth.saturating_add(1).saturating_add(receive_depth);
        queue.reserve(reserved)?;
        if let Some(shared) = shared_receives {
            shared
                .reserve_on(queue)
                .inspect_err(|_| queue.release(reserved))?;
        }
        let notes = Arc::new(Notes::default());
        let wanted = Wanted {
            capacities: sys::ibv_qp_cap {
                max_send_wr: send_depth.saturating_add(1),
                max_recv_wr: receive_depth,
                max_send_sge: max_segments,
                max_recv_sge: max_segments,
                max_inline_data: config.inline_bytes,
            },
            interface: config.interface,
            shared_receives: shared_receives.map_or(null_mut(), |shared| shared.as_ptr()),
            tag: Arc::as_ptr(&notes).cast_mut().cast(),
        };
        let made = create(pd, queue, &wanted).inspect_err(|_| {
            queue.release(reserved);
            if let Some(shared) = shared_receives {
                shared.release_on(queue);
            }
        })?;
        // SAFETY: the queue pair was just made; its number never changes.
        let qp_number = unsafe { (*made.raw.as_ptr()).qp_num };
        let inline_bytes = config.inline_bytes.min(made.inline_bytes);
        let reads_in_flight = limits.reads_in_flight.min(READS_IN_FLIGHT);
        let epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
        let first = first_number(epoch, Queue::Send);
        let width = max_segments as usize;
        Ok(Core {
            sends: Ring::new(send_depth, first),
            last_range: LocalRange::NONE,
            signaled_until: first,
            unsignaled_limit: u64::from((send_depth / 2).saturating_sub(1)),
            inline_below: match inline_bytes {
                0 => 0,
                bytes => bytes.saturating_add(1),
            },
            batch_open: false,
            granted: Granted {
                send_depth,
                receive_depth,
                segments: max_segments,
                inline_bytes,
                interface: made.work.interface(),
            },
            work: made.work,
            receives: Ring::new(receive_depth, first_number(epoch, Queue::Receive)),
            operations: context.operations(),
            raw: made.raw,
            qp_number,
            max_segments,
            segment_list: vec![sys::ibv_sge::default(); width].into_boxed_slice(),
            inline_list: vec![sys::ibv_data_buf::default(); width].into_boxed_slice(),
            reads_issued: limits.reads_issued.min(READS_IN_FLIGHT),
            ranges: Vec::new(),
            regions: Vec::new(),
            failed: false,
            local,
            packet_sequence: (RandomState::new().build_hasher().finish() & 0xff_ffff) as u32,
            reads_in_flight,
            reserved,
            epoch,
            shared_receives: shared_receives.map(Arc::clone),
            notes,
            queue: Arc::clone(queue),
            pd: Arc::clone(pd),
        })
    }

    /// Whether an event said that it takes no more receives from its shared receive queue.
    pub(super) fn last_receive_taken(&self) -> bool {
        self.notes.last_receive_taken()
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        self.pd.context()
    }

    fn object(&self) -> String {
        format!("{} queue pair {}", self.pd.context().name(), self.qp_number)
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint {
            qp_number: self.qp_number,
            packet_sequence: self.packet_sequence,
            lid: self.local.lid,
            mtu: self.local.mtu,
            gid: self.local.gid,
            reads_in_flight: self.reads_in_flight,
        }
    }

    pub(super) fn local_port(&self) -> LocalPort {
        self.local
    }

    pub(super) fn modify(
        &self,
        mut attributes: sys::ibv_qp_attr,
        mask: u32,
        to: &str,
    ) -> Result<(), VerbsError> {
        self.pd.context().check_process()?;
        // SAFETY: the queue pair is ours and the attributes named in the mask are set.
        let code = unsafe {
            (self.pd.context().library().modify_qp)(
                self.raw.as_ptr(),
                &mut attributes,
                (mask | sys::IBV_QP_STATE).cast_signed(),
            )
        };
        if code != 0 {
            let object = format!("{} (to {to})", self.object());
            return Err(VerbsError::code("ibv_modify_qp", object, code));
        }
        Ok(())
    }

    pub(super) fn initialise(&self, config: &QueuePairConfig) -> Result<(), VerbsError> {
        let right = |given, right| if given { right } else { 0 };
        let access = right(config.remote_writes, sys::IBV_ACCESS_REMOTE_WRITE)
            | right(config.remote_reads, sys::IBV_ACCESS_REMOTE_READ)
            | right(config.remote_atomics, sys::IBV_ACCESS_REMOTE_ATOMIC);
        let attributes = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_INIT,
            pkey_index: 0,
            port_num: self.local.port,
            qp_access_flags: access,
            ..Default::default()
        };
        let mask = sys::IBV_QP_PKEY_INDEX | sys::IBV_QP_PORT | sys::IBV_QP_ACCESS_FLAGS;
        self.modify(attributes, mask, "INIT")
    }

    pub(super) fn connect(
        &mut self,
        peer: &Endpoint,
        options: &ConnectOptions,
    ) -> Result<(), VerbsError> {
        self.check_peer(peer)?;
        let global = self.local.link_layer == LinkLayer::Ethernet || peer.lid == 0;
        let mut grh = sys::ibv_global_route::default();
        if global {
            grh.dgid.raw = peer.gid.0;
            grh.sgid_index = self.local.gid_index;
            grh.hop_limit = options.hop_limit;
            grh.traffic_class = options.traffic_class;
        }
        let ready_to_receive = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTR,
            path_mtu: self.local.mtu.min(peer.mtu).min(options.mtu).raw(),
            dest_qp_num: peer.qp_number,
            rq_psn: peer.packet_sequence,
            max_dest_rd_atomic: self.reads_in_flight,
            min_rnr_timer: options.not_ready_timer & 31,
            ah_attr: sys::ibv_ah_attr {
                grh,
                dlid: peer.lid,
                sl: options.service_level & 15,
                is_global: u8::from(global),
                port_num: self.local.port,
                ..Default::default()
            },
            ..Default::default()
        };
        let mask = sys::IBV_QP_AV
            | sys::IBV_QP_PATH_MTU
            | sys::IBV_QP_DEST_QPN
            | sys::IBV_QP_RQ_PSN
            | sys::IBV_QP_MAX_DEST_RD_ATOMIC
            | sys::IBV_QP_MIN_RNR_TIMER;
        self.modify(ready_to_receive, mask, &format!("RTR with {peer}"))?;
        let ready_to_send = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_RTS,
            timeout: options.timeout & 31,
            retry_cnt: options.retries & 7,
            rnr_retry: options.not_ready_retries & 7,
            sq_psn: self.packet_sequence,
            max_rd_atomic: self.reads_issued.min(peer.reads_in_flight),
            ..Default::default()
        };
        let mask = sys::IBV_QP_TIMEOUT
            | sys::IBV_QP_RETRY_CNT
            | sys::IBV_QP_RNR_RETRY
            | sys::IBV_QP_SQ_PSN
            | sys::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(ready_to_send, mask, "RTS")?;
        self.reads_issued = self.reads_issued.min(peer.reads_in_flight);
        Ok(())
    }

    /// What the device would refuse with a bare EINVAL, or accept and never deliver.
    fn check_peer(&self, peer: &Endpoint) -> Result<(), VerbsError> {
        let incompatible = |reason| {
            let (local, remote) = (self.endpoint().to_string(), peer.to_string());
            Err(VerbsError::Incompatible {
                local,
                remote,
                reason,
            })
        };
        match self.local.link_layer {
            LinkLayer::Ethernet if peer.lid != 0 => {
                incompatible("one end is on Ethernet, the other on InfiniBand")
            }
            LinkLayer::InfiniBand if peer.lid == 0 && peer.gid.is_zero() => {
                incompatible("the peer has neither a LID nor a GID")
            }
            LinkLayer::Ethernet if peer.gid.is_zero() => incompatible("the peer has no GID"),
            LinkLayer::Ethernet if peer.gid.ip().is_ipv4() != self.local.gid.ip().is_ipv4() => {
                incompatible(
                    "one end chose an IPv4 GID, the other an IPv6 one: choose one kind on both",
                )
            }
            _ => Ok(()),
        }
    }

    pub(super) fn state(&self) -> Result<QueuePairState, VerbsError> {
        self.pd.context().check_process()?;
        let mut attributes = sys::ibv_qp_attr::default();
        let mut initial = sys::ibv_qp_init_attr::default();
        // SAFETY: the queue pair and both structures are ours.
        let code = unsafe {
            (self.pd.context().library().query_qp)(
                self.raw.as_ptr(),
                &mut attributes,
                sys::IBV_QP_STATE.cast_signed(),
                &mut initial,
            )
        };
        if code != 0 {
            return Err(VerbsError::code("ibv_query_qp", self.object(), code));
        }
        Ok(match attributes.qp_state {
            sys::IBV_QPS_RESET => QueuePairState::Reset,
            sys::IBV_QPS_INIT => QueuePairState::Init,
            sys::IBV_QPS_RTR => QueuePairState::ReadyToReceive,
            sys::IBV_QPS_RTS => QueuePairState::ReadyToSend,
            sys::IBV_QPS_ERR => QueuePairState::Error,
            other => QueuePairState::Other(other),
        })
    }

    fn to_error(&self) -> Result<(), VerbsError> {
        let attributes = sys::ibv_qp_attr {
            qp_state: sys::IBV_QPS_ERR,
            ..Default::default()
        };
        self.modify(attributes, 0, "ERR")
    }

    pub(super) fn fail(&mut self) -> Result<(), VerbsError> {
        // Each time: soft-RoCE looks at receives that were posted meanwhile only when told.
        self.to_error()?;
        if self.failed {
            return Ok(());
        }
        self.failed = true;
        if self.sends.len() == 0 {
            self.sends.shut();
            return Ok(());
        }
        self.close_forgotten_batch();
        // What succeeded unsignalled has no completion of its own: this one, flushed, stands for it.
        let marker = self.sends.push(None);
        self.sends.shut();
        // SAFETY: no batch is open, and one entry of the send queue is kept for this.
        let code = unsafe { self.work.post_empty_send(marker) };
        if code != 0 {
            self.sends.pop_back(marker);
            return Err(VerbsError::code("ibv_post_send", self.object(), code));
        }
        Ok(())
    }

    /// Has the next work request signalled, whatever went before it.
    pub(in crate::verbs) fn signal_next(&mut self) {
        self.signaled_until = self.sends.next().wrapping_sub(self.unsignaled_limit);
    }

    /// Takes back what a batch told the provider that was never dropped ([`std::mem::forget`]). Its
    /// payloads were not posted; they stay in the ring and come back with a later completion.
    #[cold]
    pub(in crate::verbs) fn close_forgotten_batch(&mut self) {
        if std::mem::take(&mut self.batch_open) {
            // SAFETY: the batch is open and nobody uses it any more.
            unsafe { self.work.abort() };
            self.signal_next();
        }
    }

    pub(super) fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<(), VerbsError> {
        if !Arc::ptr_eq(region.protection_domain(), &self.pd) {
            return Err(VerbsError::Foreign {
                what: "the region",
                owner: "protection domain",
            });
        }
        self.ranges.push(region.local());
        self.regions.push(Arc::clone(region));
        Ok(())
    }

    /// As [`Core::range_of`], with the region itself.
    pub(in crate::verbs) fn region_of(
        &self,
        start: *const u8,
        len: usize,
    ) -> Result<Arc<MemoryRegion>, Rejection> {
        let range = self.range_of(start, len)?;
        self.regions
            .iter()
            .find(|region| region.local().lkey == range.lkey)
            .map(Arc::clone)
            .ok_or(Rejection::NotAttached)
    }

    /// Posts a work request that moves no data, signalled, and gives it a place among the sends without a
    /// payload: its number.
    ///
    /// # Safety
    /// It must have no segments, and what it names must live until it has completed.
    pub(in crate::verbs) unsafe fn post_control(
        &mut self,
        request: &mut sys::ibv_send_wr,
    ) -> Result<u64, Rejection> {
        if !self.sends.has_room() {
            return Err(Rejection::QueueFull { room: 0, wanted: 1 });
        }
        self.close_forgotten_batch();
        let number = self.sends.push(None);
        request.wr_id = number;
        request.send_flags = sys::IBV_SEND_SIGNALED;
        let mut refused = null_mut();
        // SAFETY: the queue pair is ours and no batch is open; the caller vouches for the request, which
        // ends its list.
        let code = unsafe { (self.operations.post_send)(self.raw.as_ptr(), request, &mut refused) };
        if code == 0 {
            self.signaled_until = number.wrapping_add(1);
            return Ok(number);
        }
        let errno = match code {
            -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
            code => code.saturating_abs(),
        };
        self.sends.pop_back(number);
        Err(Rejection::SendRefused { errno })
    }

    /// The attached region that a payload lies in.
    #[inline]
    pub(in crate::verbs) fn range_of(
        &self,
        start: *const u8,
        len: usize,
    ) -> Result<LocalRange, Rejection> {
        let start = start as usize;
        self.ranges
            .iter()
            .find(|range| range.start <= start && len <= range.end.saturating_sub(start))
            .copied()
            .ok_or(Rejection::NotAttached)
    }
}

impl<S: Source, R: Sink> Core<S, R> {
    #[inline]
    pub(super) fn post_receive(
        &mut self,
        payload: R,
        segments: &[Segment],
    ) -> Result<(), Rejected<R>> {
        let lkey = match self.check_receive(&payload, segments) {
            Ok(lkey) => lkey,
            Err(reason) => return Err(Rejected { payload, reason }),
        };
        let base = payload.as_ptr() as u64;
        for (target, segment) in self.segment_list.iter_mut().zip(segments) {
            *target = segment.within(base, lkey);
        }
        // SAFETY: there is room, as checked.
        let number = unsafe { self.receives.push_unchecked(Some(payload)) };
        let mut request = sys::ibv_recv_wr {
            wr_id: number,
            next: null_mut(),
            sg_list: self.segment_list.as_mut_ptr(),
            num_sge: segments.len() as i32,
        };
        let mut refused = null_mut();
        // SAFETY: the queue pair is ours; the segments lie in attached writable regions and in the
        // payload, which is the only way to its bytes and which the ring owns until it completes.
        let code = unsafe {
            (self.operations.post_receive)(self.raw.as_ptr(), &mut request, &mut refused)
        };
        if code == 0 {
            return Ok(());
        }
        let errno = match code {
            -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
            code => code.saturating_abs(),
        };
        let payload = self.receives.pop_back(number).flatten();
        let payload = payload.expect("the payload pushed a moment ago");
        Err(Rejected {
            payload,
            reason: Rejection::Refused { errno },
        })
    }

    #[inline]
    fn check_receive(&self, payload: &R, segments: &[Segment]) -> Result<u32, Rejection> {
        if !self.receives.has_room() {
            return Err(Rejection::QueueFull { room: 0, wanted: 1 });
        }
        check_segments(segments, payload.len(), self.max_segments)?;
        if segments.is_empty() {
            return Ok(0);
        }
        let range = self.range_of(payload.as_ptr(), payload.len())?;
        if range.writable {
            Ok(range.lkey)
        } else {
            Err(Rejection::ReadOnly)
        }
    }
}

impl<S, R> Drop for Core<S, R> {
    fn drop(&mut self) {
        if self.pd.context().is_inherited() {
            return;
        }
        self.close_forgotten_batch();
        // The adapter stops sooner this way; destroying it is what makes sure.
        self.to_error().ok();
        // SAFETY: the queue pair is ours and not used again. Once destroyed, the adapter no longer
        // touches what was posted on it, and the payloads can be dropped.
        let code = unsafe { (self.pd.context().library().destroy_qp)(self.raw.as_ptr()) };
        if code == 0 {
            self.queue.release(self.reserved);
            if let Some(shared) = &self.shared_receives {
                shared.release_on(&self.queue);
            }
            return;
        }
        // It may still be writing: keep its buffers, regions and completion queue for ever.
        self.sends.leak();
        self.receives.leak();
        std::mem::forget(std::mem::take(&mut self.regions));
        std::mem::forget(Arc::clone(&self.queue));
        std::mem::forget(self.shared_receives.clone());
        std::mem::forget(Arc::clone(&self.notes));
        std::mem::forget(Arc::clone(&self.pd));
    }
}
