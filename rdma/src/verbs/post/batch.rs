//! Gathers the work requests of one batch.

use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use super::{Kind, PostError, PostingInterface, Rejected, Rejection, Work, check_segments};
use crate::sys;
use crate::verbs::memory::{LocalRange, RemoteAddress, Segment, Sink, Source};
use crate::verbs::queue_pair::Core;

/// Work requests being gathered. Dropping it posts nothing and drops its payloads.
///
/// A batch that is forgotten ([`std::mem::forget`]) posts nothing either; its payloads come back with a
/// later completion. The provider may hold the queue pair's lock meanwhile (pthread spin locks, some do), so a batch stays
/// on its thread:
/// ```compile_fail,E0277
/// # use trackbed_rdma::verbs::*;
/// fn elsewhere(qp: &mut QueuePair<Piece, Piece>) {
///     let batch = qp.batch();
///     std::thread::scope(|scope| { scope.spawn(move || batch.commit().ok()); });
/// }
/// ```
pub struct SendBatch<'q, S: Source, R: Sink> {
    core: &'q mut Core<S, R>,
    start: u32,
    until_signal_before: u32,
    _stays_on_its_thread: PhantomData<*mut ()>,
}

impl<'q, S: Source, R: Sink> SendBatch<'q, S, R> {
    #[inline]
    pub(in crate::verbs) fn new(core: &'q mut Core<S, R>) -> SendBatch<'q, S, R> {
        if core.batch_open {
            core.close_forgotten_batch();
        }
        core.batch_open = true;
        // SAFETY: none is open.
        unsafe { core.work.start() };
        SendBatch {
            start: core.sends.next(),
            until_signal_before: core.until_signal,
            core,
            _stays_on_its_thread: PhantomData,
        }
    }

    /// Adds the work requests of one payload, which moves in and comes back when the last is done.
    #[inline(always)]
    pub fn push(&mut self, payload: S, work: &[Work<'_>]) -> Result<(), Rejected<S>> {
        if let [request] = work
            && let [segment] = request.segments
            && self.takes_at_once(&payload, segment)
        {
            self.add_one(payload, request, segment);
            return Ok(());
        }
        self.push_any(payload, work)
    }

    /// Adds a read from the peer's memory into a payload of ours. It is signalled.
    pub fn push_read(
        &mut self,
        payload: S,
        remote: RemoteAddress,
        segments: &[Segment],
    ) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        self.push_any(
            payload,
            &[Work::new(Kind::Read(remote), segments).signaled()],
        )
    }

    /// Adds `add` to the 8 bytes at `remote`, which must be a multiple of 8, in one step. What was there
    /// before comes into the payload at `result_at`, as a number in this machine's byte order. It is
    /// signalled.
    pub fn push_fetch_add(
        &mut self,
        payload: S,
        result_at: u32,
        remote: RemoteAddress,
        add: u64,
    ) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        self.push_atomic(payload, result_at, remote, Kind::FetchAdd(remote, add))
    }

    /// Sets the 8 bytes at `remote`, which must be a multiple of 8, to `new` if they are `expected`, in
    /// one step. What was there before comes into the payload at `result_at`, as a number in this
    /// machine's byte order: `expected` when the exchange took place. It is signalled.
    pub fn push_compare_swap(
        &mut self,
        payload: S,
        result_at: u32,
        remote: RemoteAddress,
        expected: u64,
        new: u64,
    ) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        let kind = Kind::CompareSwap(remote, expected, new);
        self.push_atomic(payload, result_at, remote, kind)
    }

    fn push_atomic(
        &mut self,
        payload: S,
        result_at: u32,
        remote: RemoteAddress,
        kind: Kind,
    ) -> Result<(), Rejected<S>> {
        let address = remote.address;
        let reason = if !self.core.work.has_atomics() {
            Rejection::NoAtomics
        } else if !address.is_multiple_of(8) {
            Rejection::Unaligned { address }
        } else {
            let result = [Segment::new(result_at, 8)];
            return self.push_any(payload, &[Work::new(kind, &result).signaled()]);
        };
        Err(Rejected { payload, reason })
    }

    /// Work requests in the batch.
    #[inline]
    pub fn len(&self) -> usize {
        self.core.sends.next().wrapping_sub(self.start) as usize
    }

    /// Whether it has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Posts the batch with one doorbell; how many work requests that were.
    #[inline]
    pub fn commit(self) -> Result<usize, PostError<S>> {
        if self.is_empty() {
            return Ok(0);
        }
        let mut batch = ManuallyDrop::new(self);
        batch.core.batch_open = false;
        // SAFETY: the batch is open; its segments lie in attached regions, which the queue pair keeps
        // registered, and in payloads that the ring owns until they complete.
        let code = unsafe { batch.core.work.complete() };
        if code == 0 {
            return Ok(batch.len());
        }
        Err(batch.refused(code))
    }

    #[cold]
    fn refused(&mut self, code: i32) -> PostError<S> {
        let source = match code {
            -1 => io::Error::last_os_error(),
            code => io::Error::from_raw_os_error(code.saturating_abs()),
        };
        let wanted = self.len();
        let posted = self.core.work.posted();
        PostError {
            verb: match self.core.work.interface() {
                PostingInterface::Extended => "ibv_wr_complete",
                PostingInterface::Classic => "ibv_post_send",
            },
            qp_number: self.core.qp_number,
            posted,
            wanted,
            source,
            payloads: self.take_back(posted),
        }
    }

    /// Whether one work request of one segment can be added without a further look: there is room, the
    /// segment lies in the payload, and in the region of the last one.
    #[inline(always)]
    fn takes_at_once(&self, payload: &S, segment: &Segment) -> bool {
        let core = &*self.core;
        let start = payload.as_ptr() as usize;
        let from = start.wrapping_add(segment.offset as usize);
        core.sends.has_room()
            && segment.lies_within(payload.len())
            && core.last_range.start <= from
            && from.wrapping_add(segment.len as usize) <= core.last_range.end
    }

    #[inline(always)]
    fn add_one(&mut self, payload: S, request: &Work<'_>, segment: &Segment) {
        let core = &mut *self.core;
        let addr = payload.as_ptr() as u64 + u64::from(segment.offset);
        // SAFETY: there is room, as the caller checked.
        let sequence = unsafe { core.sends.push_unchecked(Some(payload)) };
        let (id, flags) = (core.send_tag.id(sequence), core.flags(request));
        let lkey = core.last_range.lkey;
        let length = segment.len;
        debug_assert!(
            !request.kind.writes_payload(),
            "those go through `push_any`"
        );
        // SAFETY: the batch is open and there was room. The segment lies in a region of that key, which
        // stays registered, and in a payload that the ring owns until it completes, or, copied, that is
        // valid now.
        unsafe {
            core.work.add(id, flags, request.kind);
            if length < core.inline_below {
                core.work.set_inline(addr, length);
            } else {
                core.work.set_segment(sys::ibv_sge { addr, length, lkey });
            }
        }
    }

    #[inline(never)]
    fn push_any(&mut self, payload: S, work: &[Work<'_>]) -> Result<(), Rejected<S>> {
        match self.check(&payload, work) {
            Ok(range) => self.add(payload, work, range),
            Err(reason) => return Err(Rejected { payload, reason }),
        }
        Ok(())
    }

    /// What a payload's work requests need, or why they can't be.
    fn check(&mut self, payload: &S, work: &[Work<'_>]) -> Result<Option<LocalRange>, Rejection> {
        let core = &mut *self.core;
        let room = core.sends.free();
        let wanted = u32::try_from(work.len()).unwrap_or(u32::MAX);
        if wanted > room {
            return Err(Rejection::QueueFull { room, wanted });
        }
        if work.is_empty() {
            return Err(Rejection::NoWork);
        }
        let (mut any, mut writes) = (false, false);
        for request in work {
            check_segments(request.segments, payload.len(), core.max_segments)?;
            any |= !request.segments.is_empty();
            writes |= request.kind.writes_payload();
        }
        if writes && core.reads_issued == 0 {
            return Err(Rejection::NoReads);
        }
        if !any {
            return Ok(None);
        }
        let range = core.range_of(payload.as_ptr(), payload.len())?;
        if writes && !range.writable {
            return Err(Rejection::ReadOnly);
        }
        core.last_range = range;
        Ok(Some(range))
    }

    fn add(&mut self, payload: S, work: &[Work<'_>], range: Option<LocalRange>) {
        let core = &mut *self.core;
        let base = payload.as_ptr() as u64;
        let lkey = range.map_or(0, |range| range.lkey);
        let mut payload = Some(payload);
        for (position, request) in work.iter().enumerate() {
            let kept = if position + 1 == work.len() {
                payload.take()
            } else {
                None
            };
            let sequence = core.sends.push(kept);
            let (id, flags) = (core.send_tag.id(sequence), core.flags(request));
            let bytes: u64 = request
                .segments
                .iter()
                .map(|segment| u64::from(segment.len))
                .sum();
            let copied = !request.segments.is_empty()
                && bytes < u64::from(core.inline_below)
                && !request.kind.writes_payload();
            // SAFETY: the batch is open, there is room and not too many segments, as `check` found.
            // They lie in a region of that key, which stays registered, and in a payload that the ring
            // owns until its last work request completes, or, copied, that is valid now.
            unsafe {
                core.work.add(id, flags, request.kind);
                if copied {
                    let list = &mut core.inline_list[..request.segments.len()];
                    for (target, segment) in list.iter_mut().zip(request.segments) {
                        target.addr = (base + u64::from(segment.offset)) as *mut std::ffi::c_void;
                        target.length = segment.len as usize;
                    }
                    core.work.set_inline_list(list);
                } else {
                    let list = &mut core.segment_list[..request.segments.len()];
                    for (target, segment) in list.iter_mut().zip(request.segments) {
                        *target = segment.within(base, lkey);
                    }
                    core.work.set_segments(list);
                }
            }
        }
    }

    /// Takes back everything after the first `posted` work requests.
    fn take_back(&mut self, posted: usize) -> Vec<S> {
        let core = &mut *self.core;
        let mut payloads = Vec::new();
        let end = self.start.wrapping_add(posted as u32);
        while let Some(payload) = core.sends.pop_back(end) {
            payloads.extend(payload);
        }
        if posted == 0 {
            core.until_signal = self.until_signal_before;
        } else {
            // The adapter still reads the payload whose work requests were cut: those posted keep it.
            let last = end.wrapping_sub(1);
            if !core.sends.has_payload(last)
                && let Some(payload) = payloads.pop()
            {
                core.sends.keep_with(last, payload);
            }
            // What asked for a completion may not be among those posted: the next one asks for one.
            core.until_signal = 1;
        }
        payloads.reverse();
        payloads
    }
}

impl<S: Source, R: Sink> Drop for SendBatch<'_, S, R> {
    fn drop(&mut self) {
        self.core.batch_open = false;
        // SAFETY: the batch is open.
        unsafe { self.core.work.abort() };
        drop(self.take_back(0));
    }
}
