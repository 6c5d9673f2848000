//! Puts work requests into the open batch of a send queue, and takes them back.

use std::hint::cold_path;
use std::io;

use super::send_queue::{Connected, Destination, SendQueue, errno_of};
use super::{PostError, PostingInterface, Rejected, Rejection, Verb, Work, check_segments};
use crate::sys;
use crate::verbs::memory::{LocalRange, RemoteAddress, Segment, Source};

impl<S: Source> SendQueue<S> {
    /// Adds a read or an atomic to the open batch, most likely a read into the region of the last payload,
    /// which may be written.
    #[inline]
    pub(super) fn push_fetch(&mut self, payload: S, work: Work<'_>) -> Result<(), Rejected<S>> {
        match *work.segments {
            [segment] if work.verb == Verb::Read => {
                let (flags, remote) = (work.flags(), work.remote);
                let to = Connected;
                self.push_one::<_, false>(payload, to, Verb::Read, remote, 0, flags, segment)
            }
            _ => self.push_any(payload, Connected, std::iter::once(work)),
        }
    }

    /// Adds one work request of one segment to the open batch. If it `COPIES`, a short message is copied;
    /// one that brings something doesn't, and needs a last region that may be written.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "each in a register of its own")]
    pub(super) fn push_one<D: Destination, const COPIES: bool>(
        &mut self,
        payload: S,
        to: D,
        verb: Verb,
        remote: RemoteAddress,
        immediate: u32,
        flags: u32,
        segment: Segment,
    ) -> Result<(), Rejected<S>> {
        let from = (payload.as_ptr() as usize).wrapping_add(segment.offset as usize);
        let until = from.wrapping_add(segment.len as usize);
        if !self.ring.has_room() {
            return Err(full(payload));
        }
        // In the region of the last one, and in the payload? In this order and with an exit each, the
        // compiler tests and branches; otherwise it computes both sides first.
        if from < self.last_range.start {
            return self.push_one_elsewhere(payload, to, verb, remote, immediate, flags, segment);
        }
        if !segment.lies_within(payload.len()) {
            return Err(outside(payload, segment));
        }
        if until > self.last_range.end {
            return self.push_one_elsewhere(payload, to, verb, remote, immediate, flags, segment);
        }
        debug_assert!(
            !verb.writes_payload() || (!COPIES && self.last_range.writable),
            "what comes is written here"
        );
        let flags = self.signal(flags);
        // SAFETY: there is room.
        let number = unsafe { self.ring.push_unchecked(Some(payload)) };
        // SAFETY: the batch is open and there was room. The segment lies in a region of that key, which
        // stays registered, and in a payload that the ring owns until it completes, or, copied, that is
        // valid now. The caller of `push_to` vouches for the destination.
        unsafe {
            if COPIES && segment.len < self.inline_below {
                cold_path();
                let request = (number, flags | sys::IBV_SEND_INLINE);
                self.work.add(request, verb, remote, immediate, (0, 0));
                to.set(&self.work);
                self.work.set_inline(from as u64, segment.len);
            } else {
                self.work
                    .add((number, flags), verb, remote, immediate, (0, 0));
                to.set(&self.work);
                self.work.set_segment(sys::ibv_sge {
                    addr: from as u64,
                    length: segment.len,
                    lkey: self.last_range.lkey,
                });
            }
        }
        Ok(())
    }

    /// As [`SendQueue::push_one`], wherever the payload lies.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "as its caller has them")]
    pub(super) fn push_one_elsewhere<D: Destination>(
        &mut self,
        payload: S,
        to: D,
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
        self.push_any(payload, to, std::iter::once(work))
    }

    /// The flags of the next work request, which is signalled when asked, and now and then unasked.
    #[inline(always)]
    fn signal(&mut self, flags: u32) -> u32 {
        let number = self.ring.next();
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
    pub(super) fn push_any<'w, D: Destination>(
        &mut self,
        payload: S,
        to: D,
        work: impl ExactSizeIterator<Item = Work<'w>> + Clone,
    ) -> Result<(), Rejected<S>> {
        match self.check(&payload, work.clone()) {
            Ok(range) => self.add(payload, to, work, range),
            Err(reason) => return Err(Rejected { payload, reason }),
        }
        Ok(())
    }

    /// What a payload's work requests need, or why they can't be.
    fn check<'w>(
        &mut self,
        payload: &S,
        work: impl ExactSizeIterator<Item = Work<'w>>,
    ) -> Result<Option<LocalRange>, Rejection> {
        let room = self.ring.free();
        let wanted = u32::try_from(work.len()).unwrap_or(u32::MAX);
        if wanted > room {
            return Err(Rejection::QueueFull { room, wanted });
        }
        if wanted == 0 {
            return Err(Rejection::NoWork);
        }
        let (mut any, mut writes) = (false, false);
        for request in work {
            check_segments(request.segments, payload.len(), self.max_segments)?;
            if request.verb.is_atomic() {
                self.check_atomic(request.remote)?;
            }
            any |= !request.segments.is_empty();
            writes |= request.verb.writes_payload();
        }
        if writes && self.reads_issued == 0 {
            return Err(Rejection::NoReads);
        }
        if !any {
            return Ok(None);
        }
        let range = self.attached.range_of(payload.as_ptr(), payload.len())?;
        if writes && !range.writable {
            return Err(Rejection::ReadOnly);
        }
        self.last_range = range;
        Ok(Some(range))
    }

    fn check_atomic(&self, remote: RemoteAddress) -> Result<(), Rejection> {
        let address = remote.address;
        if !self.work.has_atomics() {
            return Err(Rejection::NoAtomics);
        }
        if !address.is_multiple_of(8) {
            return Err(Rejection::Unaligned { address });
        }
        Ok(())
    }

    fn add<'w, D: Destination>(
        &mut self,
        payload: S,
        to: D,
        work: impl ExactSizeIterator<Item = Work<'w>>,
        range: Option<LocalRange>,
    ) {
        let base = payload.as_ptr() as u64;
        let lkey = range.map_or(0, |range| range.lkey);
        let mut payload = Some(payload);
        let last = work.len() - 1;
        for (position, request) in work.enumerate() {
            let kept = if position == last {
                payload.take()
            } else {
                None
            };
            let mut flags = self.signal(request.flags());
            let number = self.ring.push(kept);
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
            // owns until its last work request completes, or, copied, that is valid now. The caller of
            // `push_to` vouches for the destination.
            unsafe {
                self.work.add(
                    (number, flags),
                    request.verb,
                    request.remote,
                    request.immediate,
                    request.operands,
                );
                to.set(&self.work);
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
    pub(super) fn refused(&mut self, code: i32, start: u64) -> PostError<S> {
        let source = io::Error::from_raw_os_error(errno_of(code));
        let wanted = self.ring.next().wrapping_sub(start) as usize;
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
    pub(super) fn abandon(&mut self, start: u64) {
        self.batch_open = false;
        // SAFETY: the batch is open.
        unsafe { self.work.abort() };
        drop(self.take_back(start, 0));
    }

    /// Takes back everything after the first `posted` work requests of a batch.
    fn take_back(&mut self, start: u64, posted: usize) -> Vec<S> {
        let mut payloads = Vec::new();
        let end = start.wrapping_add(posted as u64);
        while let Some(payload) = self.ring.pop_back(end) {
            payloads.extend(payload);
        }
        // The adapter still reads a payload whose work requests were cut: those posted keep it.
        let last = end.wrapping_sub(1);
        if posted > 0
            && !self.ring.has_payload(last)
            && let Some(payload) = payloads.pop()
        {
            self.ring.keep_with(last, payload);
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
