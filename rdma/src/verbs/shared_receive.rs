//! Shared receive queues: receives that any of many queue pairs may take, so that memory is posted for
//! the messages that come and not for each connection that might bring one.
//!
//! Queue pairs take receives as their messages arrive, so completions come in no order that could be
//! known before; payloads are kept in a table, by slot. A queue pair made with
//! [`UnconnectedQueuePair::with_shared_receives`] has [`SharedReceives`] in place of a payload type: a type
//! without values, so nothing can be posted on the queue pair itself.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use trackbed_rdma::verbs::*;
//! # fn example(
//! #     pd: &Arc<ProtectionDomain>, cq: &mut CompletionQueue, port: LocalPort, region: &Arc<MemoryRegion>,
//! #     pieces: Vec<Piece>, qp: &mut QueuePair<Piece, SharedReceives>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let mut srq = SharedReceiveQueue::new(pd, 1024, 1)?;
//! srq.attach(region)?;
//! for piece in pieces { srq.post_receive(piece, &[Segment::new(0, 4096)])? }
//! let unconnected: UnconnectedQueuePair<Piece, _> =
//!     UnconnectedQueuePair::with_shared_receives(pd, cq, port, &QueuePairConfig::default(), &srq)?;
//! while let Some(done) = cq.poll()? {
//!     match srq.settle(done) {
//!         SettledShared::Received(got) => srq.post_receive(got.payload, &[Segment::new(0, 4096)])?,
//!         SettledShared::Other(done) => drop(qp.settle(done)),   // a send, of the queue pair it names
//!         SettledShared::Stale => {}
//!     }
//! }
//! # Ok(()) }
//! ```
//! ```compile_fail,E0308
//! # use trackbed_rdma::verbs::*;
//! fn past_the_shared_queue(qp: &mut QueuePair<Piece, SharedReceives>, buffer: Piece) {
//!     qp.post_receive(buffer, &[]).ok();
//! }
//! ```

use std::any::Any;
use std::fmt;
use std::ptr::{NonNull, null_mut, without_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::attached::Attached;
use super::completion::{Completion, Queue, SharedQueue, WorkCompletion};
use super::error::VerbsError;
use super::memory::{MemoryRegion, ProtectionDomain, Segment, Sink, Source};
use super::post::{Rejected, Rejection};
use super::status::CompletionError;
use super::table::Table;
use crate::sys;

pub(super) type PostSharedReceive = unsafe extern "C" fn(
    *mut sys::ibv_srq,
    *mut sys::ibv_recv_wr,
    *mut *mut sys::ibv_recv_wr,
) -> i32;

/// In place of the payloads that a queue pair receives into, for one that takes them from a shared
/// receive queue. It has no values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedReceives {}

// SAFETY: there is no value of this type, so there are no bytes either.
unsafe impl Source for SharedReceives {
    fn as_ptr(&self) -> *const u8 {
        match *self {}
    }
    fn len(&self) -> usize {
        match *self {}
    }
}
// SAFETY: as above.
unsafe impl Sink for SharedReceives {}

/// Receives that several queue pairs take from. One thread posts and settles at a time; queue pairs may
/// be on any.
///
/// Dropping it while queue pairs still use it leaves its receives with them: they, and the payloads,
/// end with the last of these queue pairs.
pub struct SharedReceiveQueue<R: Sink> {
    held: Option<Box<Held<R>>>,
    post: PostSharedReceive,
    segments: Box<[sys::ibv_sge]>,
    shared: Arc<SharedReceiver>,
}

// SAFETY: the adapter's queue may be used from any thread, from one at a time, which `&mut` sees to; the
// segments point into payloads that are `Send`.
unsafe impl<R: Sink> Send for SharedReceiveQueue<R> {}

/// What the adapter may write into.
struct Held<R> {
    payloads: Table<R>,
    attached: Attached,
}

/// What queue pairs hold of their shared receive queue.
pub(super) struct SharedReceiver {
    raw: NonNull<sys::ibv_srq>,
    id: u64,
    depth: u32,
    pd: Arc<ProtectionDomain>,
    /// How many queue pairs have their completions on a queue, for each such queue.
    completions_on: Mutex<Vec<(usize, u32)>>,
    /// What the adapter may still write into when its owner is gone: dropped after the queue.
    left_behind: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: libibverbs' control functions are thread safe; posting is left to the one owner.
unsafe impl Send for SharedReceiver {}
// SAFETY: as above.
unsafe impl Sync for SharedReceiver {}

/// How many receives a shared receive queue holds at most, and at how few it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedReceiveState {
    /// Receives outstanding at most.
    pub depth: u32,
    /// The limit that is armed; 0 when none is.
    pub limit: u32,
}

/// A receive that a queue pair took from the shared queue.
#[derive(Debug)]
pub struct SharedReceived<R> {
    /// The queue pair that took it.
    pub qp_number: u32,
    /// The payload it was posted with.
    pub payload: R,
    /// How it went. After an error the payload's bytes are of no use.
    pub outcome: Result<Completion, CompletionError>,
}

/// What a completion was about, seen from a shared receive queue.
#[must_use = "it hands a buffer back, or the completion for someone else to settle"]
pub enum SettledShared<R> {
    /// A receive of this queue.
    Received(SharedReceived<R>),
    /// Nothing of this queue: to be settled by the queue pair it names.
    Other(WorkCompletion),
    /// A receive of this queue that was settled before.
    Stale,
}

impl<R: Sink> SharedReceiveQueue<R> {
    /// Makes a queue of `depth` receives with at most `segments` segments each. Queue pairs that share it
    /// must be of the same protection domain.
    pub fn new(
        pd: &Arc<ProtectionDomain>,
        depth: u32,
        segments: u32,
    ) -> Result<SharedReceiveQueue<R>, VerbsError> {
        let (depth, segments) = (depth.max(1), segments.max(1));
        let context = pd.context();
        context.check_process()?;
        let (name, limits) = (context.name(), context.limits());
        let lacking = || VerbsError::Lacking {
            device: name.to_owned(),
            what: "shared receive queues",
        };
        if limits.shared_receive_queues == 0 {
            return Err(lacking());
        }
        let post = context.post_shared_receive().ok_or_else(lacking)?;
        limits.check(
            name,
            "receives in a shared receive queue",
            depth.into(),
            limits.shared_receive_depth.into(),
        )?;
        limits.check(
            name,
            "segments in a shared receive",
            segments.into(),
            limits.shared_receive_segments.into(),
        )?;
        static IDS: AtomicU64 = AtomicU64::new(1);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        let mut attributes = sys::ibv_srq_init_attr {
            // By this tag events name the queue; nobody takes it for an address.
            srq_context: without_provenance_mut(id as usize),
            attr: sys::ibv_srq_attr {
                max_wr: depth,
                max_sge: segments,
                srq_limit: 0,
            },
        };
        // SAFETY: the protection domain is alive and the attributes are ours.
        let raw = unsafe { (context.library().create_srq)(pd.as_ptr(), &mut attributes) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            let object = format!("{name} ({depth} receives of {segments} segments)");
            VerbsError::last("ibv_create_srq", object)
        })?;
        Ok(SharedReceiveQueue {
            held: Some(Box::new(Held {
                payloads: Table::new(depth),
                attached: Attached::new(pd),
            })),
            post,
            segments: vec![sys::ibv_sge::default(); segments as usize].into_boxed_slice(),
            shared: Arc::new(SharedReceiver {
                raw,
                id,
                depth,
                pd: Arc::clone(pd),
                completions_on: Mutex::new(Vec::new()),
                left_behind: Mutex::new(None),
            }),
        })
    }

    fn held(&mut self) -> &mut Held<R> {
        self.held.as_mut().expect(HELD)
    }

    /// Its number, unique in this process, by which asynchronous events name it.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Makes the payloads in a region postable, and keeps the region registered.
    pub fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<(), VerbsError> {
        self.held().attached.attach(region)
    }

    /// Receives that can be posted now.
    pub fn room(&self) -> u32 {
        self.held.as_ref().expect(HELD).payloads.room()
    }

    /// Receives whose completion is not settled.
    pub fn outstanding(&self) -> u32 {
        self.held.as_ref().expect(HELD).payloads.len()
    }

    /// Posts a receive into the given parts of a payload; none, for writes with immediate only.
    pub fn post_receive(&mut self, payload: R, segments: &[Segment]) -> Result<(), Rejected<R>> {
        let held = self.held.as_mut().expect(HELD);
        let checked = if held.payloads.room() == 0 {
            Err(Rejection::QueueFull { room: 0, wanted: 1 })
        } else {
            held.attached
                .receive_into(&payload, segments, &mut self.segments)
        };
        if let Err(reason) = checked {
            return Err(Rejected { payload, reason });
        }
        let id = held.payloads.insert(payload);
        let mut request = sys::ibv_recv_wr {
            wr_id: id,
            next: null_mut(),
            sg_list: self.segments.as_mut_ptr(),
            num_sge: segments.len() as i32,
        };
        let mut refused = null_mut();
        // SAFETY: the queue is ours; the segments lie in attached writable regions and in the payload,
        // which is the only way to its bytes and which the table owns until it completes.
        let code = unsafe { (self.post)(self.shared.raw.as_ptr(), &mut request, &mut refused) };
        if code == 0 {
            return Ok(());
        }
        let errno = match code {
            -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
            code => code.saturating_abs(),
        };
        let payload = held.payloads.take(id);
        Err(Rejected {
            payload: payload.expect("the payload put there a moment ago"),
            reason: Rejection::Refused { errno },
        })
    }

    /// Hands back the payload that a completion is about, whichever queue pair took it.
    #[inline]
    pub fn settle(&mut self, done: WorkCompletion) -> SettledShared<R> {
        let payloads = &mut self.held().payloads;
        if !payloads.made(done.id()) {
            return SettledShared::Other(done);
        }
        match payloads.take(done.id()) {
            Some(payload) => SettledShared::Received(SharedReceived {
                qp_number: done.qp_number(),
                payload,
                outcome: done.outcome(Queue::Receive),
            }),
            None => SettledShared::Stale,
        }
    }

    /// Asks for one [`super::EventKind::SharedReceiveLimit`], when fewer than `limit` receives are left;
    /// 0 takes that back.
    pub fn arm_limit(&self, limit: u32) -> Result<(), VerbsError> {
        self.shared.pd.context().check_process()?;
        let mut attributes = sys::ibv_srq_attr {
            srq_limit: limit,
            ..Default::default()
        };
        // SAFETY: the queue and the attributes are ours.
        let code = unsafe {
            (self.shared.pd.context().library().modify_srq)(
                self.shared.raw.as_ptr(),
                &mut attributes,
                sys::IBV_SRQ_LIMIT.cast_signed(),
            )
        };
        match code {
            0 => Ok(()),
            code => {
                let object = format!("{} (limit {limit} of {})", self.object(), self.shared.depth);
                Err(VerbsError::code("ibv_modify_srq", object, code))
            }
        }
    }

    /// Asks the device for its depth and limit.
    pub fn query(&self) -> Result<SharedReceiveState, VerbsError> {
        let mut attributes = sys::ibv_srq_attr::default();
        // SAFETY: the queue and the attributes are ours.
        let code = unsafe {
            (self.shared.pd.context().library().query_srq)(
                self.shared.raw.as_ptr(),
                &mut attributes,
            )
        };
        match code {
            0 => Ok(SharedReceiveState {
                depth: attributes.max_wr,
                limit: attributes.srq_limit,
            }),
            code => Err(VerbsError::code("ibv_query_srq", self.object(), code)),
        }
    }

    fn object(&self) -> String {
        let device = self.shared.pd.context().name();
        format!("{device} shared receive queue {}", self.shared.id)
    }

    pub(super) fn shared(&self) -> &Arc<SharedReceiver> {
        &self.shared
    }
}

const HELD: &str = "what is held is left behind only by drop";

impl<R: Sink> Drop for SharedReceiveQueue<R> {
    fn drop(&mut self) {
        // The adapter may still write there, for queue pairs that are alive.
        let held = self.held.take();
        *self.shared.left_behind.lock() = held.map(|held| held as Box<dyn Any + Send>);
    }
}

impl<R: Sink> fmt::Debug for SharedReceiveQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceiveQueue")
            .field("id", &self.shared.id)
            .field("depth", &self.shared.depth)
            .finish_non_exhaustive()
    }
}

impl SharedReceiver {
    pub(super) fn as_ptr(&self) -> *mut sys::ibv_srq {
        self.raw.as_ptr()
    }

    pub(super) fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    /// Sets entries of a completion queue aside for a queue pair that completes there: as many as there
    /// are receives, once for all queue pairs that do, since no receive completes twice.
    pub(super) fn reserve_on(&self, queue: &SharedQueue) -> Result<(), VerbsError> {
        let mut users = self.completions_on.lock();
        let key = queue.as_ptr() as usize;
        if let Some(user) = users.iter_mut().find(|user| user.0 == key) {
            user.1 += 1;
            return Ok(());
        }
        queue.reserve(self.depth)?;
        users.push((key, 1));
        Ok(())
    }

    /// Undoes [`SharedReceiver::reserve_on`] for one queue pair.
    pub(super) fn release_on(&self, queue: &SharedQueue) {
        let mut users = self.completions_on.lock();
        let key = queue.as_ptr() as usize;
        if let Some(position) = users.iter().position(|user| user.0 == key) {
            users[position].1 -= 1;
            if users[position].1 == 0 {
                users.swap_remove(position);
                queue.release(self.depth);
            }
        }
    }
}

impl Drop for SharedReceiver {
    fn drop(&mut self) {
        if self.pd.context().is_inherited() {
            return;
        }
        let library = self.pd.context().library();
        // SAFETY: the queue is ours, and queue pairs that used it held it alive. Once destroyed, the
        // adapter no longer writes into what was posted on it, and that can be dropped.
        let code = unsafe { (library.destroy_srq)(self.raw.as_ptr()) };
        if code != 0 {
            // It may still be writing: keep what it may write into for ever.
            std::mem::forget(self.left_behind.get_mut().take());
            std::mem::forget(Arc::clone(&self.pd));
        }
    }
}
