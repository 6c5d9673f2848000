//! What a task that reads and the ring share.

use std::cell::RefCell;
use std::fs::File;
use std::mem;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::Waker;

use io_uring::{CompletionQueue, cqueue, opcode, squeue, types};

use super::places::{Ask, Index, Places};
use crate::shard::buffers::Buffers;
use crate::shard::transfer::Span;

/// How an entry names the file.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) enum FileTarget {
    /// By its place in the ring's table of files.
    Registered(u32),
    /// By its descriptor.
    Descriptor,
}

/// What the task and the ring share: the file, and a place for each operation under way.
pub(in crate::shard) struct Stream {
    pub(super) file: Arc<File>,
    pub(super) target: FileTarget,
    pub(super) places: RefCell<Places>,
}

/// What the user data of a stream's operations have in common; the rest is the place.
pub(in crate::shard) const STREAM_BITS: u64 = !0xffff;

/// Where the operations of a stream go.
pub(in crate::shard) trait Queue {
    /// Takes the operation of a place.
    fn push(&mut self, entry: squeue::Entry, place: u16);
}

impl Stream {
    /// Notes the results of `first` and of those after it in the completion queue that are this
    /// stream's too, as they usually are. Returns the first that is not, and who waits for results.
    /// Where nobody takes them any more, what was read into goes to `dropped`.
    pub(in crate::shard) fn take_in(
        &self,
        first: &cqueue::Entry,
        queue: &mut CompletionQueue<'_>,
        mut dropped: impl FnMut(Span),
    ) -> (Option<cqueue::Entry>, Option<Waker>) {
        let places = &mut *self.places.borrow_mut();
        let (mut bits, mut result) = (first.user_data(), first.result());
        let stream = bits & STREAM_BITS;
        let other = loop {
            let place = bits as u16;
            if places.closed {
                places.free.push(place);
                let span = places.spans.get_mut(place as usize);
                span.and_then(Option::take).map(&mut dropped);
            } else {
                places.ended.push((place, result));
            }
            let Some(next) = queue.next() else { break None };
            (bits, result) = (next.user_data(), next.result());
            if bits & STREAM_BITS != stream {
                break Some(next);
            }
        };
        (other, places.waker.take())
    }

    /// Hands the operations of what was pushed to `queue`.
    pub(in crate::shard) fn hand_over(&self, buffers: &Buffers, queue: &mut impl Queue) {
        let places = &mut *self.places.borrow_mut();
        places.announced = false;
        places.forget_indices_before(buffers.edition());
        let mut pushed = mem::take(&mut places.pushed);
        for place in pushed.drain(..) {
            let ask = places.asks[place as usize];
            let index = match ask.index {
                Index::Unknown => places.find_index(place, buffers),
                known => known,
            };
            queue.push(self.entry(&ask, index), place);
        }
        places.pushed = pushed;
    }

    /// Operations that the kernel has, or will be told of.
    pub(in crate::shard) fn under_way(&self) -> usize {
        let places = self.places.borrow();
        let ended = places.ended.len() - places.taken;
        places.spans.len() - places.free.len() - ended
    }

    /// Nobody takes results any more, and none is to come.
    pub(in crate::shard) fn is_over(&self) -> bool {
        let places = self.places.borrow();
        places.closed && places.free.len() == places.spans.len()
    }

    /// Where the file stands in the ring's table, if it does.
    pub(in crate::shard) fn registered(&self) -> Option<u32> {
        match self.target {
            FileTarget::Registered(place) => Some(place),
            FileTarget::Descriptor => None,
        }
    }

    /// The operation of a read whose buffer and file are registered; none for another one. By itself,
    /// for it to be made where it is to be.
    #[inline(always)]
    pub(super) fn fixed_entry(&self, ask: &Ask) -> Option<squeue::Entry> {
        let (Index::Fixed(index), FileTarget::Registered(file)) = (ask.index, self.target) else {
            return None;
        };
        let file = types::Fixed(file);
        let read = opcode::ReadFixed::new(file, ask.start, ask.len, index);
        Some(read.offset(ask.offset).build())
    }

    /// The operation of any read.
    fn entry(&self, ask: &Ask, index: Index) -> squeue::Entry {
        let &Ask {
            start, len, offset, ..
        } = ask;
        let descriptor = types::Fd(self.file.as_raw_fd());
        match (index, self.target) {
            (Index::Fixed(index), FileTarget::Registered(file)) => {
                opcode::ReadFixed::new(types::Fixed(file), start, len, index)
                    .offset(offset)
                    .build()
            }
            (Index::Fixed(index), FileTarget::Descriptor) => {
                opcode::ReadFixed::new(descriptor, start, len, index)
                    .offset(offset)
                    .build()
            }
            (_, FileTarget::Registered(file)) => opcode::Read::new(types::Fixed(file), start, len)
                .offset(offset)
                .build(),
            (_, FileTarget::Descriptor) => opcode::Read::new(descriptor, start, len)
                .offset(offset)
                .build(),
        }
    }
}
