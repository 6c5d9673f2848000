//! What both types of queue pair are inside: the adapter's queue pair, its payloads and its regions.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::breaker::Breaker;
use super::create::{Wanted, create};
use super::{Granted, QueuePairConfig};
use crate::sys;
use crate::verbs::attached::Attached;
use crate::verbs::completion::{Queue, SharedQueue};
use crate::verbs::context::{Context, Operations};
use crate::verbs::endpoint::Endpoint;
use crate::verbs::error::VerbsError;
use crate::verbs::event::Notes;
use crate::verbs::memory::{MemoryRegion, ProtectionDomain, Segment, Sink, Source};
use crate::verbs::memory_window::BindWindow;
use crate::verbs::port::LocalPort;
use crate::verbs::post::{Connected, Kind, Rejected, Rejection, SendQueue, Size, errno_of};
use crate::verbs::ring::Ring;
use crate::verbs::settle::first_number;
use crate::verbs::shared_receive::SharedReceiver;

/// Reads served at a time, when the device can do as many: adapters do 16, soft-RoCE and some others 128.
const READS_IN_FLIGHT: u8 = 128;

/// A number for a queue pair, of either kind, that this process has given to no other.
pub(in crate::verbs) fn next_epoch() -> u64 {
    static EPOCH: AtomicU64 = AtomicU64::new(1);
    EPOCH.fetch_add(1, Ordering::Relaxed)
}

/// What posting and settling touch stands first.
pub(in crate::verbs) struct Core<S, R> {
    pub(in crate::verbs) send: SendQueue<S>,
    pub(in crate::verbs) receives: Ring<R>,
    operations: Operations,
    pub(in crate::verbs) raw: NonNull<sys::ibv_qp>,
    pub(in crate::verbs) qp_number: u32,
    /// Room to write the segments of one receive down.
    receive_segments: Box<[sys::ibv_sge]>,
    pub(in crate::verbs) granted: Granted,
    pub(super) local: LocalPort,
    pub(super) packet_sequence: u32,
    pub(super) reads_in_flight: u8,
    reserved: u32,
    /// Tells it from all others this process ever made.
    pub(in crate::verbs) epoch: u64,
    shared_receives: Option<Arc<SharedReceiver>>,
    /// The adapter's queue pair points to it, for events.
    notes: Arc<Notes>,
    /// What other threads may end it by, once somebody asked for that.
    breaker: Option<Breaker>,
    queue: Arc<SharedQueue>,
    pub(super) pd: Arc<ProtectionDomain>,
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
            kind: Kind::Connected { atomics: true },
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
        let epoch = next_epoch();
        let interface = made.work.interface();
        let size = Size {
            depth: send_depth,
            segments: max_segments,
            inline_bytes,
        };
        let first = first_number(epoch, Queue::Send);
        let attached = Attached::new(pd);
        let mut send = SendQueue::new(made.work, qp_number, first, &size, attached);
        send.reads_issued = limits.reads_issued.min(READS_IN_FLIGHT);
        Ok(Core {
            send,
            granted: Granted {
                send_depth,
                receive_depth,
                segments: max_segments,
                inline_bytes,
                interface,
            },
            receives: Ring::new(receive_depth, first_number(epoch, Queue::Receive)),
            operations: context.operations(),
            raw: made.raw,
            qp_number,
            receive_segments: vec![sys::ibv_sge::default(); max_segments as usize]
                .into_boxed_slice(),
            local,
            packet_sequence: (RandomState::new().build_hasher().finish() & 0xff_ffff) as u32,
            reads_in_flight,
            reserved,
            epoch,
            shared_receives: shared_receives.map(Arc::clone),
            notes,
            breaker: None,
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

    pub(super) fn object(&self) -> String {
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
        attributes: sys::ibv_qp_attr,
        mask: u32,
        to: &str,
    ) -> Result<(), VerbsError> {
        // SAFETY: the queue pair is ours; callers set the attributes that they name.
        unsafe {
            modify(
                self.raw,
                self.pd.context(),
                attributes,
                mask,
                (&self.object(), to),
            )
        }
    }

    pub(super) fn breaker(&mut self) -> Breaker {
        let object = self.object();
        let breaker = self
            .breaker
            .get_or_insert_with(|| Breaker::new(self.raw, self.pd.context(), object));
        breaker.clone()
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
        // SAFETY: a connection names nothing.
        unsafe { self.send.shut(Connected) }
            .map_err(|code| VerbsError::code("ibv_post_send", self.object(), code))
    }

    pub(super) fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<(), VerbsError> {
        self.send.attached.attach(region)
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
        let (post_send, raw) = (self.operations.post_send, self.raw.as_ptr());
        self.send.post_control(|number| {
            request.wr_id = number;
            request.send_flags = sys::IBV_SEND_SIGNALED;
            let mut refused = null_mut();
            // SAFETY: the queue pair is ours and no batch is open; the caller vouches for the request,
            // which ends its list.
            unsafe { post_send(raw, request, &mut refused) }
        })
    }
}

impl<S, R> Core<S, R> {
    /// As [`Core::post_control`], by the provider's call that opens windows of type 1.
    ///
    /// # Safety
    /// `bind` must be the operation of this context; the window and the region named must live until the
    /// work request has completed and, where it opens something, until that is closed.
    pub(in crate::verbs) unsafe fn post_bind(
        &mut self,
        bind: BindWindow,
        window: NonNull<sys::ibv_mw>,
        bind_info: sys::ibv_mw_bind_info,
    ) -> Result<u64, Rejection> {
        let raw = self.raw.as_ptr();
        self.send.post_control(|wr_id| {
            let mut request = sys::ibv_mw_bind {
                wr_id,
                send_flags: sys::IBV_SEND_SIGNALED,
                bind_info,
            };
            // SAFETY: the queue pair is ours and no batch is open; the rest is as the caller says.
            unsafe { bind(raw, window.as_ptr(), &mut request) }
        })
    }
}

impl<S: Source, R: Sink> Core<S, R> {
    #[inline]
    pub(super) fn post_receive(
        &mut self,
        payload: R,
        segments: &[Segment],
    ) -> Result<(), Rejected<R>> {
        let into = &mut self.receive_segments;
        let ready = if self.receives.has_room() {
            self.send.attached.receive_into(&payload, segments, into)
        } else {
            Err(Rejection::QueueFull { room: 0, wanted: 1 })
        };
        if let Err(reason) = ready {
            return Err(Rejected { payload, reason });
        }
        // SAFETY: there is room, as checked.
        let number = unsafe { self.receives.push_unchecked(Some(payload)) };
        let mut request = sys::ibv_recv_wr {
            wr_id: number,
            next: null_mut(),
            sg_list: self.receive_segments.as_mut_ptr(),
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
        let errno = errno_of(code);
        let payload = self.receives.pop_back(number).flatten();
        let payload = payload.expect("the payload pushed a moment ago");
        Err(Rejected {
            payload,
            reason: Rejection::Refused { errno },
        })
    }
}

/// Changes the state of a queue pair, from any thread; errors name the object and the state it was to have.
///
/// # Safety
/// The queue pair must exist until this returns, and the attributes named in the mask must be set.
pub(super) unsafe fn modify(
    queue_pair: NonNull<sys::ibv_qp>,
    context: &Context,
    mut attributes: sys::ibv_qp_attr,
    mask: u32,
    (object, to): (&str, &str),
) -> Result<(), VerbsError> {
    context.check_process()?;
    // SAFETY: as the caller says.
    let code = unsafe {
        (context.library().modify_qp)(
            queue_pair.as_ptr(),
            &mut attributes,
            (mask | sys::IBV_QP_STATE).cast_signed(),
        )
    };
    if code != 0 {
        let object = format!("{object} (to {to})");
        return Err(VerbsError::code("ibv_modify_qp", object, code));
    }
    Ok(())
}

impl<S, R> Drop for Core<S, R> {
    fn drop(&mut self) {
        if self.pd.context().is_inherited() {
            return;
        }
        if let Some(breaker) = &self.breaker {
            breaker.forget();
        }
        self.send.close_forgotten_batch();
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
        self.send.leak();
        self.receives.leak();
        std::mem::forget(Arc::clone(&self.queue));
        std::mem::forget(self.shared_receives.clone());
        std::mem::forget(Arc::clone(&self.notes));
        std::mem::forget(Arc::clone(&self.pd));
    }
}
