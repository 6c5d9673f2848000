//! The operations of a stream: what is read where, what has ended, what the kernel shall hear of.

use std::fs::File;
use std::io;
use std::mem;
use std::task::Waker;

use crate::shard::buffers::Buffers;
use crate::shard::transfer::{Span, io_result};

/// A place for each operation under way.
pub(in crate::shard) struct Places {
    /// What the kernel is asked for. Beside the spans and small, as these are what each read touches:
    /// the bytes that the kernel copies meanwhile throw most of them out of the cache.
    pub(super) asks: Vec<Ask>,
    /// What is being read; owns the slots.
    pub(super) spans: Vec<Option<Span>>,
    /// That of the buffers for which the asks' indices hold.
    pub(super) edition: u64,
    /// Numbers of those with nothing to do.
    pub(super) free: Vec<u16>,
    /// Those that the kernel shall hear of when the ring is entered next.
    pub(super) pushed: Vec<u16>,
    /// The ring knows of them.
    pub(super) announced: bool,
    /// Those whose operation ended, and its result.
    pub(super) ended: Vec<(u16, i32)>,
    /// How many of these were taken.
    pub(super) taken: usize,
    pub(super) waker: Option<Waker>,
    /// Nobody takes results any more.
    pub(super) closed: bool,
}

/// A read that ended and is being looked at: dropped in a panic, it was not taken.
pub(super) struct Untaken<'p> {
    pub(super) ended: &'p mut Vec<(u16, i32)>,
    pub(super) place: u16,
    pub(super) result: i32,
}

impl Untaken<'_> {
    /// It was.
    #[inline]
    pub(super) fn taken(self) {
        mem::forget(self);
    }
}

impl Drop for Untaken<'_> {
    fn drop(&mut self) {
        self.ended.push((self.place, self.result));
    }
}

/// One operation of a read.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    /// Where the bytes go. Inside the slot of the place's span.
    pub(super) start: *mut u8,
    /// Where in the file they are.
    pub(super) offset: u64,
    pub(super) len: u32,
    /// The result that says that all of the read is there: `len` if this is its only operation, else
    /// what no operation answers.
    all: i32,
    pub(super) index: Index,
}

/// Which of the ring's fixed buffers the bytes go to.
#[derive(Clone, Copy)]
pub(super) enum Index {
    /// Not looked up yet.
    Unknown,
    /// None.
    Plain,
    Fixed(u16),
}

impl Ask {
    const NOTHING: Ask = Ask {
        start: std::ptr::null_mut(),
        offset: 0,
        len: 0,
        all: Ask::NEVER,
        index: Index::Unknown,
    };
    /// Errors are much smaller numbers.
    const NEVER: i32 = i32::MIN;

    /// Asks for what a read has not brought yet.
    pub(super) fn rest_of(span: &Span) -> Ask {
        let (at, len, offset) = span.rest();
        let is_all = span.done == 0 && span.len == len as usize;
        Ask {
            start: span.lease.start().wrapping_add(at),
            offset,
            len,
            all: if is_all { len as i32 } else { Ask::NEVER },
            index: Index::Unknown,
        }
    }

    /// Whether this result says that the whole read is done, with this operation alone.
    #[inline]
    pub(super) fn is_all(&self, result: i32) -> bool {
        result == self.all
    }

    /// Where in the file the read of this operation begins: a read that goes on in the same place
    /// leaves its span as it was.
    pub(super) fn offset_of(&self, span: &Span) -> u64 {
        self.offset - span.done as u64
    }
}

impl Places {
    pub(super) fn new(depth: u16) -> Places {
        Places {
            asks: vec![Ask::NOTHING; depth.into()],
            spans: (0..depth).map(|_| None).collect(),
            edition: 0,
            free: (0..depth).rev().collect(),
            pushed: Vec::with_capacity(depth.into()),
            announced: false,
            ended: Vec::with_capacity(depth.into()),
            taken: 0,
            waker: None,
            closed: false,
        }
    }

    /// The next read that has ended, and its last result. Those that were short or interrupted until
    /// then go on.
    #[inline]
    pub(super) fn look(&mut self, file: &File) -> Option<(u16, i32)> {
        while let Some(&(place, result)) = self.ended.get(self.taken) {
            if self.asks[place as usize].is_all(result) || !self.goes_on(place, result, file) {
                return Some((place, result));
            }
            self.taken += 1;
            self.pushed.push(place);
        }
        self.ended.clear();
        self.taken = 0;
        None
    }

    /// Whether a read that did not bring everything at once has to go on; prepares what is asked next.
    #[cold]
    fn goes_on(&mut self, place: u16, result: i32, file: &File) -> bool {
        let ask = &mut self.asks[place as usize];
        let Some(span) = &mut self.spans[place as usize] else {
            return false;
        };
        span.offset = ask.offset_of(span);
        match io_result(result) {
            Ok(count) if span.is_short(count, file) => {
                span.done += count;
                *ask = Ask::rest_of(span);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
            Ok(_) => false,
        }
    }

    /// Has the fixed buffers looked up anew, where what is known of them is older than `edition`.
    pub(super) fn forget_indices_before(&mut self, edition: u64) {
        if self.edition != edition {
            self.edition = edition;
            for ask in &mut self.asks {
                ask.index = Index::Unknown;
            }
        }
    }

    /// Looks up the fixed buffer of a place anew.
    #[cold]
    pub(super) fn find_index(&mut self, place: u16, buffers: &Buffers) -> Index {
        let Some(span) = &self.spans[place as usize] else {
            return Index::Plain;
        };
        let found = buffers.index_of(&span.lease, span.at + span.done);
        let index = found.map_or(Index::Plain, Index::Fixed);
        self.asks[place as usize].index = index;
        index
    }
}
