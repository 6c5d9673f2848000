//! What lies in an end's memory before a size is measured, and whether the right bytes are there after.

use super::BenchError;
use super::end::End;
use super::pattern;
use super::plan::{Measure, Plan, Verb};

/// What both ends fill their memory from; each has bytes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seeds {
    pub(super) ours: u64,
    pub(super) theirs: u64,
}

impl Seeds {
    pub(super) fn client(seed: u64) -> Seeds {
        Seeds {
            ours: seed.wrapping_mul(2),
            theirs: seed.wrapping_mul(2).wrapping_add(1),
        }
    }

    pub(super) fn server(seed: u64) -> Seeds {
        let Seeds { ours, theirs } = Seeds::client(seed);
        Seeds {
            ours: theirs,
            theirs: ours,
        }
    }
}

/// Fills what this end sends and what its peer reads, clears what its peer counts in, and posts receives.
pub(super) fn prepare(
    end: &mut End,
    plan: &Plan,
    bytes: u64,
    seeds: Seeds,
) -> Result<(), BenchError> {
    let no_room = || BenchError::Post {
        bytes,
        reason: "it is larger than the memory for it".to_owned(),
    };
    let (sends, receives) = (end.side.sends(plan), end.side.receives(plan));
    if sends && !plan.verb.is_fetch() {
        let source = &mut end.areas.source;
        let filled = pattern::write(bytes, seeds.ours, |at, part| source.copy_in(at, part));
        filled.then_some(()).ok_or_else(no_room)?;
    }
    for lane in 0..end.lanes.len() {
        let base = usize::try_from(end.areas.at(lane)).map_err(|_| no_room())?;
        if plan.measure == Measure::Latency && !plan.verb.is_fetch() {
            clear_mark(end, base, bytes);
        }
        let Some(window) = end.areas.window.as_mut().filter(|_| receives) else {
            continue;
        };
        let done = match plan.verb {
            Verb::Read => pattern::write(bytes, seeds.ours, |at, part| {
                window.copy_in(base + at, part)
            }),
            Verb::Atomic => window.set_word(base, 0),
            Verb::Write | Verb::Send => true,
        };
        done.then_some(()).ok_or_else(no_room)?;
    }
    if receives && plan.verb == Verb::Send {
        end.fill_receives(plan.largest())?;
    }
    Ok(())
}

/// What an earlier size left where the other end's mark comes must not pass for one.
fn clear_mark(end: &mut End, base: usize, bytes: u64) {
    let last = base + usize::try_from(bytes - 1).unwrap_or(usize::MAX);
    // Past the end there is no mark to clear, nor one to come.
    if let Some(window) = &mut end.areas.window {
        let _: bool = window.copy_in(last, &[0]);
    }
    let _: bool = end.areas.sink.copy_in(last, &[0]);
}

/// How many messages went over each queue pair: from this end, and from the other.
pub(super) struct Counts<'c> {
    pub(super) ours: &'c [u64],
    pub(super) theirs: &'c [u64],
}

/// Whether everything that came here is what the peer sent, or has: byte by byte, and each atomic
/// operation exactly once.
pub(super) fn are_intact(
    end: &End,
    plan: &Plan,
    bytes: u64,
    seeds: Seeds,
    counts: &Counts<'_>,
) -> bool {
    let (sends, receives) = (end.side.sends(plan), end.side.receives(plan));
    // The last byte of a latency's messages is its mark, which was looked at each time.
    let bytes = match plan.measure {
        Measure::Latency if !plan.verb.is_fetch() => bytes - 1,
        _ => bytes,
    };
    let sink_holds = |base: usize| {
        pattern::is_in(bytes, seeds.theirs, |at, part| {
            end.areas.sink.copy_out(base + at, part)
        })
    };
    let window = end.areas.window.as_ref();
    (0..end.lanes.len()).all(|lane| {
        let base = usize::try_from(end.areas.at(lane)).unwrap_or(usize::MAX);
        let (ours, theirs) = (counts.ours[lane], counts.theirs[lane]);
        let arrived = !receives
            || match plan.verb {
                Verb::Write => {
                    theirs == 0
                        || window.is_some_and(|window| {
                            pattern::is_in(bytes, seeds.theirs, |at, part| {
                                window.copy_out(base + at, part)
                            })
                        })
                }
                Verb::Send => theirs == 0 || sink_holds(base),
                Verb::Atomic => window.and_then(|window| window.word(base)) == Some(theirs),
                Verb::Read => true,
            };
        let fetched = !sends
            || ours == 0
            || match plan.verb {
                Verb::Read => sink_holds(base),
                // The last one found what all before it had left.
                Verb::Atomic => {
                    let mut word = [0; 8];
                    end.areas.sink.copy_out(base, &mut word) && u64::from_ne_bytes(word) == ours - 1
                }
                Verb::Write | Verb::Send => true,
            };
        arrived && fetched
    })
}
