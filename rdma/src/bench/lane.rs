//! What one queue pair is given to do: lists of messages, some of them signalled.

use super::BenchError;
use super::end::{End, segment};
use super::plan::{AtomicKind, Plan, Verb};
use crate::verbs::{Fetch, QueuePair, RemoteAddress, ScratchPart, Segment, Work};

/// At least one message in as many bytes asks for a completion, so that the time of the last one tells
/// how much was done; beyond that, signals cost nothing.
const BYTES_PER_SIGNAL: u64 = 1 << 20;

/// How messages of one size are posted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pattern {
    pub(super) depth: u64,
    pub(super) list: u64,
    pub(super) signal_every: u64,
}

/// The next list to post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct List {
    count: u64,
    /// Whether its last message asks for a completion.
    signaled: bool,
}

/// Counts of one queue pair.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    pub(super) posted: u64,
    pub(super) completed: u64,
    /// Messages to post in all; any number while `None`.
    pub(super) wanted: Option<u64>,
    unsignaled: u64,
}

impl Pattern {
    pub(super) fn new(plan: &Plan, bytes: u64) -> Pattern {
        let by_bytes = (BYTES_PER_SIGNAL / bytes.max(1)).max(1);
        Pattern {
            depth: plan.depth.into(),
            list: plan.post_list.into(),
            signal_every: u64::from(plan.signal_every).min(by_bytes),
        }
    }

    /// A full list, or what is left: never more than there is room for, and signalled before there is no
    /// room for another one, so that what is on its way always ends with a completion to wait for.
    fn next(&self, count: &Count) -> Option<List> {
        let left = count
            .wanted
            .map_or(u64::MAX, |wanted| wanted.saturating_sub(count.posted));
        let room = self.depth - (count.posted - count.completed);
        let now = self.list.min(left);
        if now == 0 || now > room {
            return None;
        }
        let last = now == left;
        Some(List {
            count: now,
            signaled: last
                || self.signal_every <= self.list
                || count.unsignaled + now >= self.signal_every
                || room - now < self.list,
        })
    }
}

impl Count {
    fn take(&mut self, list: List) {
        self.posted += list.count;
        self.unsignaled = if list.signaled {
            0
        } else {
            self.unsignaled + list.count
        };
    }

    /// Ends it: what is on its way still counts, and where nothing asks for its completion one more does.
    pub(super) fn close(&mut self) {
        if self.wanted.is_none() {
            self.wanted = Some(self.posted + u64::from(self.unsignaled > 0));
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.completed >= wanted)
    }
}

/// One queue pair's part of moving messages of one size.
pub(super) struct Lane<'s> {
    pub(super) count: Count,
    /// Messages of this size, in all transfers so far.
    pub(super) total: u64,
    pub(super) free: Vec<ScratchPart>,
    messages: Messages<'s>,
}

/// How the messages of a list are made.
enum Messages<'s> {
    /// Not at all.
    None,
    /// Of one payload: ready lists with the last message signalled and without.
    Chain {
        signaled: Box<[Work<'s>]>,
        quiet: Box<[Work<'s>]>,
    },
    Read {
        from: RemoteAddress,
        segments: &'s [Segment],
        signal_every: u64,
    },
    Atomic {
        at: RemoteAddress,
        kind: AtomicKind,
    },
}

impl<'s> Lane<'s> {
    pub(super) fn new(
        end: &End,
        index: usize,
        plan: &Plan,
        pattern: Pattern,
        bytes: u64,
        segments: &'s [Segment],
    ) -> Result<Lane<'s>, BenchError> {
        if !end.side.sends(plan) {
            return Ok(Lane {
                count: Count::default(),
                total: 0,
                free: Vec::new(),
                messages: Messages::None,
            });
        }
        let chain = |work: Work<'s>| {
            let list = plan.post_list as usize;
            let works = |last: bool| {
                (0..list)
                    .map(
                        |position| match signals(position, list, last, pattern.signal_every) {
                            true => work.signaled(),
                            false => work,
                        },
                    )
                    .collect()
            };
            Messages::Chain {
                signaled: works(true),
                quiet: works(false),
            }
        };
        let messages = match plan.verb {
            Verb::Write => chain(Work::write(end.target(index, bytes)?, segments)),
            Verb::Send => chain(Work::send(segments)),
            Verb::Read => Messages::Read {
                from: end.target(index, bytes)?,
                segments,
                signal_every: pattern.signal_every,
            },
            Verb::Atomic => Messages::Atomic {
                at: end.target(index, bytes)?,
                kind: plan.atomic,
            },
        };
        let free = if plan.verb.is_fetch() {
            (0..plan.depth)
                .map(|_| end.sink_part(index, bytes))
                .collect::<Result<_, _>>()?
        } else {
            let lists = plan.depth / plan.post_list + 2;
            (0..lists)
                .map(|_| end.source_part(bytes))
                .collect::<Result<_, _>>()?
        };
        Ok(Lane {
            count: Count::default(),
            total: 0,
            free,
            messages,
        })
    }

    /// Begins another transfer of so many messages; without a number, until it is closed.
    pub(super) fn begin(&mut self, wanted: Option<u64>) {
        self.count = Count {
            wanted,
            ..Count::default()
        };
    }

    /// Posts lists as long as there is room and `allowed` messages are not used up; how many messages.
    #[inline]
    pub(super) fn post(
        &mut self,
        pair: &mut QueuePair<ScratchPart, ScratchPart>,
        pattern: &Pattern,
        allowed: u64,
    ) -> Result<u64, String> {
        let mut posted = 0;
        while posted < allowed
            && let Some(list) = pattern.next(&self.count)
        {
            if !self.post_list(pair, list)? {
                break;
            }
            self.count.take(list);
            self.total += list.count;
            posted += list.count;
        }
        Ok(posted)
    }

    /// Posts one list with one doorbell; false when all payloads are out.
    #[inline]
    fn post_list(
        &mut self,
        pair: &mut QueuePair<ScratchPart, ScratchPart>,
        list: List,
    ) -> Result<bool, String> {
        let count = list.count as usize;
        let needed = match self.messages {
            Messages::None => return Ok(false),
            Messages::Chain { .. } => 1,
            Messages::Read { .. } | Messages::Atomic { .. } => count,
        };
        let Some(from) = self.free.len().checked_sub(needed) else {
            return Ok(false);
        };
        let mut parts = self.free.drain(from..);
        let mut batch = pair.batch();
        match &self.messages {
            Messages::None => {}
            Messages::Chain { signaled, quiet } => {
                let full = if list.signaled { signaled } else { quiet };
                let work = &full[full.len() - count..];
                if let Some(part) = parts.next() {
                    batch.push(part, work).map_err(|error| error.to_string())?;
                }
            }
            Messages::Read {
                from,
                segments,
                signal_every,
            } => {
                let read = Fetch::read(*from, segments);
                for (position, part) in parts.enumerate() {
                    let read = match signals(position, count, list.signaled, *signal_every) {
                        true => read.signaled(),
                        false => read,
                    };
                    batch
                        .push_fetch(part, &[read])
                        .map_err(|error| error.to_string())?;
                }
            }
            Messages::Atomic { at, kind } => {
                for (part, value) in parts.zip(self.total..) {
                    match kind {
                        AtomicKind::FetchAdd => batch.push_fetch_add(part, 0, *at, 1),
                        AtomicKind::CompareSwap => {
                            batch.push_compare_swap(part, 0, *at, value, value.wrapping_add(1))
                        }
                    }
                    .map_err(|error| error.to_string())?;
                }
            }
        }
        batch.commit().map_err(|error| error.to_string())?;
        Ok(true)
    }
}

/// Whether a message of a list asks for a completion: the last as `last` says, of the others one in so
/// many, counted from the end, since a short list is the end of a full one.
#[inline]
fn signals(position: usize, list: usize, last: bool, signal_every: u64) -> bool {
    let from_end = (list - 1 - position) as u64;
    if from_end == 0 {
        last
    } else {
        from_end.is_multiple_of(signal_every)
    }
}

/// The segments of a message, to be kept while lanes refer to them.
pub(super) fn segments(bytes: u64) -> [Segment; 1] {
    [segment(bytes)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// An adapter that completes everything up to the last signalled message whenever it is asked.
        #[test]
        fn all_messages_are_posted_whatever_the_pattern(
            depth in 1u64..40, list in 1u64..40, signal_every in 1u64..40, wanted in 1u64..500,
        ) {
            let (list, signal_every) = (list.min(depth), signal_every.min(depth));
            let pattern = Pattern { depth, list, signal_every };
            let mut count = Count { wanted: Some(wanted), ..Count::default() };
            let mut last_signal = 0;
            while !count.is_done() {
                let before = count;
                while let Some(list) = pattern.next(&count) {
                    count.take(list);
                    if list.signaled {
                        last_signal = count.posted;
                    }
                    prop_assert!(count.posted - count.completed <= depth);
                    prop_assert!(count.posted <= wanted);
                }
                count.completed = last_signal;
                prop_assert!(
                    count.completed > before.completed || count.posted > before.posted, "{count:?}"
                );
            }
            prop_assert_eq!(count.posted, wanted);
        }
    }

    #[test]
    fn closing_asks_for_one_more_only_where_nothing_tells_the_end() {
        let pattern = Pattern {
            depth: 128,
            list: 16,
            signal_every: 64,
        };
        let mut count = Count::default();
        let first = pattern.next(&count).expect("room");
        assert_eq!((first.count, first.signaled), (16, false));
        count.take(first);
        count.close();
        assert_eq!(count.wanted, Some(17));
        let end = pattern.next(&count).expect("one more");
        assert_eq!((end.count, end.signaled), (1, true));
        count.take(end);
        count.completed = 17;
        assert!(count.is_done());
    }

    #[test]
    fn large_messages_are_signalled_more_often() {
        let plan = Plan::new(Verb::Write, super::super::plan::Measure::Bandwidth);
        assert_eq!(Pattern::new(&plan, 64).signal_every, 64);
        assert_eq!(Pattern::new(&plan, 64 << 10).signal_every, 16);
        assert_eq!(Pattern::new(&plan, 8 << 20).signal_every, 1);
    }
}
