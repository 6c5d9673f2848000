//! Gathers the work requests of one batch.

use std::hint::cold_path;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use super::{PostError, PostingInterface, Rejected, Rejection, Verb, Work, check_segments};
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
    start: u64,
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
            core,
            _stays_on_its_thread: PhantomData,
        }
    }

    /// Adds the work requests of one payload, which moves in and comes back when the last is done.
    #[inline(always)]
    pub fn push(&mut self, payload: S, work: &[Work<'_>]) -> Result<(), Rejected<S>> {
        match work {
            // The usual case, taken apart so that nothing of it has to be in memory.
            [request] if request.segments.len() == 1 => {
                let segment = request.segments[0];
                let Work {
                    verb,
                    remote,
                    immediate,
                    ..
                } = *request;
                self.core
                    .push_one(payload, verb, remote, immediate, request.flags(), segment)
            }
            work => self.core.push_any(payload, work),
        }
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
        self.core.push_any(
            payload,
            &[Work::new(Verb::Read, segments).at(remote).signaled()],
        )
    }

    /// As [`SendBatch::push_read`], without asking for a completion: the payload comes back with a later
    /// one, by when what was read is there.
    pub fn push_quiet_read(
        &mut self,
        payload: S,
        remote: RemoteAddress,
        segments: &[Segment],
    ) -> Result<(), Rejected<S>>
    where
        S: Sink,
    {
        let work = Work::new(Verb::Read, segments).at(remote);
        self.core.push_any(payload, &[work])
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
        self.push_atomic(payload, result_at, remote, Verb::FetchAdd, (add, 0))
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
        let operands = (expected, new);
        self.push_atomic(payload, result_at, remote, Verb::CompareSwap, operands)
    }

    fn push_atomic(
        &mut self,
        payload: S,
        result_at: u32,
        remote: RemoteAddress,
        verb: Verb,
        operands: (u64, u64),
    ) -> Result<(), Rejected<S>> {
        let address = remote.address;
        let reason = if !self.core.work.has_atomics() {
            Rejection::NoAtomics
        } else if !address.is_multiple_of(8) {
            Rejection::Unaligned { address }
        } else {
            let result = [Segment::new(result_at, 8)];
            let work = Work::new(verb, &result).at(remote).with(operands);
            return self.core.push_any(payload, &[work.signaled()]);
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
    #[inline(always)]
    pub fn commit(self) -> Result<usize, PostError<S>> {
        let count = self.len();
        if count == 0 {
            return Ok(0);
        }
        let mut batch = ManuallyDrop::new(self);
        batch.core.batch_open = false;
        // SAFETY: the batch is open; its segments lie in attached regions, which the queue pair keeps
        // registered, and in payloads that the ring owns until they complete.
        let code = unsafe { batch.core.work.complete() };
        if code == 0 {
            return Ok(count);
        }
        let start = batch.start;
        Err(batch.core.refused(code, start))
    }
}

impl<S: Source, R: Sink> Drop for SendBatch<'_, S, R> {
    #[inline(always)]
    fn drop(&mut self) {
        self.core.abandon(self.start);
    }
}

impl<S: Source, R: Sink> Core<S, R> {
    /// Adds one work request of one segment to the open batch.
    #[inline(always)]
    fn push_one(
        &mut self,
        payload: S,
        verb: Verb,
        remote: RemoteAddress,
        immediate: u32,
        flags: u32,
        segment: Segment,
    ) -> Result<(), Rejected<S>> {
        let from = (payload.as_ptr() as usize).wrapping_add(segment.offset as usize);
        let until = from.wrapping_add(segment.len as usize);
        if !self.sends.has_room() {
            return Err(full(payload));
        }
        // In the region of the last one, and in the payload? In this order and with an exit each, the
        // compiler tests and branches; otherwise it computes both sides first.
        if from < self.last_range.start {
            return self.push_one_elsewhere(payload, verb, remote, immediate, flags, segment);
        }
        if !segment.lies_within(payload.len()) {
            return Err(outside(payload, segment));
        }
        if until > self.last_range.end {
            return self.push_one_elsewhere(payload, verb, remote, immediate, flags, segment);
        }
        debug_assert!(!verb.writes_payload(), "those go through `push_any`");
        let flags = self.signal(flags);
        // SAFETY: there is room.
        let number = unsafe { self.sends.push_unchecked(Some(payload)) };
        // SAFETY: the batch is open and there was room. The segment lies in a region of that key, which
        // stays registered, and in a payload that the ring owns until it completes, or, copied, that is
        // valid now.
        unsafe {
            if segment.len < self.inline_below {
                cold_path();
                let request = (number, flags | sys::IBV_SEND_INLINE);
                self.work.add(request, verb, remote, immediate, (0, 0));
                self.work.set_inline(from as u64, segment.len);
            } else {
                self.work
                    .add((number, flags), verb, remote, immediate, (0, 0));
                self.work.set_segment(sys::ibv_sge {
                    addr: from as u64,
                    length: segment.len,
                    lkey: self.last_range.lkey,
                });
            }
        }
        Ok(())
    }

    /// As [`Core::push_one`], wherever the payload lies.
    #[cold]
    #[inline(never)]
    fn push_one_elsewhere(
        &mut self,
        payload: S,
        verb: Verb,
        remote: RemoteAddress,
        immediate: u32,
        flags: u32,
        segment: Segment,
    ) -> Result<(), Rejected<S>> {
        let work = Work {
            verb,
            signaled: flags & sys::IBV_SEND_SIGNALED != 0,
            fenced: flags & sys::IBV_SEND_FENCE != 0,
            immediate,
            remote,
            operands: (0, 0),
            segments: &[segment],
        };
        self.push_any(payload, &[work])
    }

    /// The flags of the next work request, which is signalled when asked, and now and then unasked.
    #[inline(always)]
    fn signal(&mut self, flags: u32) -> u32 {
        let number = self.sends.next();
        if flags & sys::IBV_SEND_SIGNALED != 0
            || number.wrapping_sub(self.signaled_until) >= self.unsignaled_limit
        {
            self.signaled_until = number.wrapping_add(1);
            return flags | sys::IBV_SEND_SIGNALED;
        }
        flags
    }

    /// Adds any work requests to the open batch.
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
        let room = self.sends.free();
        let wanted = u32::try_from(work.len()).unwrap_or(u32::MAX);
        if wanted > room {
            return Err(Rejection::QueueFull { room, wanted });
        }
        if work.is_empty() {
            return Err(Rejection::NoWork);
        }
        let (mut any, mut writes) = (false, false);
        for request in work {
            check_segments(request.segments, payload.len(), self.max_segments)?;
            any |= !request.segments.is_empty();
            writes |= request.verb.writes_payload();
        }
        if writes && self.reads_issued == 0 {
            return Err(Rejection::NoReads);
        }
        if !any {
            return Ok(None);
        }
        let range = self.range_of(payload.as_ptr(), payload.len())?;
        if writes && !range.writable {
            return Err(Rejection::ReadOnly);
        }
        self.last_range = range;
        Ok(Some(range))
    }

    fn add(&mut self, payload: S, work: &[Work<'_>], range: Option<LocalRange>) {
        let base = payload.as_ptr() as u64;
        let lkey = range.map_or(0, |range| range.lkey);
        let mut payload = Some(payload);
        for (position, request) in work.iter().enumerate() {
            let kept = if position + 1 == work.len() {
                payload.take()
            } else {
                None
            };
            let mut flags = self.signal(request.flags());
            let number = self.sends.push(kept);
            let bytes: u64 = request
                .segments
                .iter()
                .map(|segment| u64::from(segment.len))
                .sum();
            let copied = !request.segments.is_empty()
                && bytes < u64::from(self.inline_below)
                && !request.verb.writes_payload();
            if copied {
                flags |= sys::IBV_SEND_INLINE;
            }
            // SAFETY: the batch is open, there is room and not too many segments, as `check` found.
            // They lie in a region of that key, which stays registered, and in a payload that the ring
            // owns until its last work request completes, or, copied, that is valid now.
            unsafe {
                self.work.add(
                    (number, flags),
                    request.verb,
                    request.remote,
                    request.immediate,
                    request.operands,
                );
                if copied {
                    let list = &mut self.inline_list[..request.segments.len()];
                    for (target, segment) in list.iter_mut().zip(request.segments) {
                        target.addr = (base + u64::from(segment.offset)) as *mut std::ffi::c_void;
                        target.length = segment.len as usize;
                    }
                    self.work.set_inline_list(list);
                } else {
                    let list = &mut self.segment_list[..request.segments.len()];
                    for (target, segment) in list.iter_mut().zip(request.segments) {
                        *target = segment.within(base, lkey);
                    }
                    self.work.set_segments(list);
                }
            }
        }
    }

    /// What to tell of a batch that the provider refused.
    #[cold]
    #[inline(never)]
    fn refused(&mut self, code: i32, start: u64) -> PostError<S> {
        let source = match code {
            -1 => io::Error::last_os_error(),
            code => io::Error::from_raw_os_error(code.saturating_abs()),
        };
        let wanted = self.sends.next().wrapping_sub(start) as usize;
        let posted = self.work.posted();
        PostError {
            verb: match self.work.interface() {
                PostingInterface::Extended => "ibv_wr_complete",
                PostingInterface::Classic => "ibv_post_send",
            },
            qp_number: self.qp_number,
            posted,
            wanted,
            source,
            payloads: self.take_back(start, posted),
        }
    }

    /// Ends an open batch without posting it.
    #[cold]
    #[inline(never)]
    fn abandon(&mut self, start: u64) {
        self.batch_open = false;
        // SAFETY: the batch is open.
        unsafe { self.work.abort() };
        drop(self.take_back(start, 0));
    }

    /// Takes back everything after the first `posted` work requests of a batch.
    fn take_back(&mut self, start: u64, posted: usize) -> Vec<S> {
        let mut payloads = Vec::new();
        let end = start.wrapping_add(posted as u64);
        while let Some(payload) = self.sends.pop_back(end) {
            payloads.extend(payload);
        }
        // The adapter still reads a payload whose work requests were cut: those posted keep it.
        let last = end.wrapping_sub(1);
        if posted > 0
            && !self.sends.has_payload(last)
            && let Some(payload) = payloads.pop()
        {
            self.sends.keep_with(last, payload);
        }
        // What asked for a completion may be among those taken back.
        self.signal_next();
        payloads.reverse();
        payloads
    }
}

#[cold]
#[inline(never)]
fn full<S>(payload: S) -> Rejected<S> {
    let reason = Rejection::QueueFull { room: 0, wanted: 1 };
    Rejected { payload, reason }
}

#[cold]
#[inline(never)]
fn outside<S: Source>(payload: S, segment: Segment) -> Rejected<S> {
    let len = payload.len();
    let reason = Rejection::OutsidePayload { segment, len };
    Rejected { payload, reason }
}
