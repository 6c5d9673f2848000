//! How both ends begin and end the measurement of one size, whatever is measured.

use super::BenchError;
use super::channel::{Channel, unexpected};
use super::contents::{Counts, Seeds, are_intact, prepare};
use super::end::End;
use super::message::Message;
use super::plan::{Measure, Plan};

/// Has both ends make ready for a size.
pub(super) fn begin(
    end: &mut End,
    channel: &mut Channel,
    plan: &Plan,
    (bytes, seed): (u64, u64),
) -> Result<Seeds, BenchError> {
    let seeds = Seeds::client(seed);
    // The first message of a latency may come as soon as the other end is told, and must find our memory
    // ready; otherwise both ends make ready at the same time.
    let is_first = plan.measure == Measure::Latency;
    if is_first {
        prepare(end, plan, bytes, seeds)?;
    }
    channel.send(&Message::Begin { bytes, seed })?;
    if !is_first {
        prepare(end, plan, bytes, seeds)?;
    }
    match channel.receive("waiting for it to be ready")? {
        Message::Ready => Ok(seeds),
        other => Err(unexpected(&other, "that it is ready")),
    }
}

/// The server's part of [`begin`].
pub(super) fn answer_begin(
    end: &mut End,
    channel: &mut Channel,
    plan: &Plan,
    (bytes, seed): (u64, u64),
) -> Result<Seeds, BenchError> {
    let seeds = Seeds::server(seed);
    prepare(end, plan, bytes, seeds)?;
    channel.send(&Message::Ready)?;
    Ok(seeds)
}

/// Has both ends compare what they got.
pub(super) fn check(
    end: &End,
    channel: &mut Channel,
    plan: &Plan,
    bytes: u64,
    seeds: Seeds,
    ours: &[u64],
) -> Result<(), BenchError> {
    channel.send(&Message::Check {
        messages: ours.to_vec(),
    })?;
    let theirs = match channel.receive("waiting for it to compare")? {
        Message::Checked {
            intact: true,
            messages,
        } if messages.len() == ours.len() => messages,
        Message::Checked { intact: false, .. } => return Err(BenchError::Corrupted { bytes }),
        other => return Err(unexpected(&other, "the result of comparing")),
    };
    let counts = Counts {
        ours,
        theirs: &theirs,
    };
    if are_intact(end, plan, bytes, seeds, &counts) {
        Ok(())
    } else {
        Err(BenchError::Corrupted { bytes })
    }
}

/// The server's part of [`check`].
pub(super) fn answer_check(
    end: &End,
    channel: &mut Channel,
    plan: &Plan,
    bytes: u64,
    seeds: Seeds,
    ours: Vec<u64>,
    theirs: &[u64],
) -> Result<(), BenchError> {
    if theirs.len() != ours.len() {
        let reason = format!(
            "it counts on {} queue pairs, there are {}",
            theirs.len(),
            ours.len()
        );
        return Err(BenchError::Stranger { reason });
    }
    let counts = Counts {
        ours: &ours,
        theirs,
    };
    let intact = are_intact(end, plan, bytes, seeds, &counts);
    channel.send(&Message::Checked {
        intact,
        messages: ours,
    })
}
