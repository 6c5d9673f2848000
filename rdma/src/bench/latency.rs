//! Write latency: one message on its way, answered by the other end as soon as it sees it.
//!
//! Each end looks at the last byte of its window, which the peer's write changes last; half of a round
//! trip is the latency.

use std::time::{Duration, Instant};

use super::channel::{Channel, unexpected};
use super::meet::Connection;
use super::message::Message;
use super::plan::{Length, Plan};
use super::{BenchError, Latency, Row};
use crate::verbs::{Piece, Segment, Settled, Work};

/// Messages that may wait for their completion while the next ones go to and fro.
pub(super) const PIECES: usize = 32;
/// One message in this many asks for a completion.
const SIGNAL_EVERY: u64 = 8;
/// How long an answer may take.
const STALLED: Duration = Duration::from_secs(10);
const SPINS: u32 = 2000;

pub(super) type Player = Connection<Piece>;

/// Measures one size.
pub(super) fn client(
    player: &mut Player,
    channel: &mut Channel,
    plan: &Plan,
    bytes: u64,
) -> Result<Row, BenchError> {
    channel.send(&Message::Begin { bytes })?;
    clear(player, bytes)?;
    match channel.receive("waiting for it to be ready")? {
        Message::Ready => {}
        other => return Err(unexpected(&other, "that it is ready")),
    }
    let rounds = rounds(plan);
    let mut times = Vec::with_capacity(usize::try_from(rounds - plan.warmup).unwrap_or(0));
    let mut start = Instant::now();
    for round in 0..rounds {
        let before = Instant::now();
        if round == plan.warmup {
            start = before;
        }
        say(player, bytes, mark(round), is_signaled(round))?;
        hear(player, bytes, mark(round))?;
        if round >= plan.warmup {
            times.push(before.elapsed());
        }
    }
    let elapsed = start.elapsed();
    match channel.receive("waiting for it to finish a size")? {
        Message::Ready => {}
        other => return Err(unexpected(&other, "that it is done")),
    }
    settle(player, bytes, true)?;
    let messages = times.len() as u64;
    Ok(Row {
        latency: summary(times),
        ..Row::new(bytes, messages, elapsed.as_secs_f64())
    })
}

/// Answers all rounds of one size.
pub(super) fn server(
    player: &mut Player,
    channel: &mut Channel,
    plan: &Plan,
    bytes: u64,
) -> Result<(), BenchError> {
    clear(player, bytes)?;
    channel.send(&Message::Ready)?;
    for round in 0..rounds(plan) {
        hear(player, bytes, mark(round))?;
        say(player, bytes, mark(round), is_signaled(round))?;
    }
    settle(player, bytes, true)?;
    channel.send(&Message::Ready)
}

fn rounds(plan: &Plan) -> u64 {
    let measured = match plan.length {
        Length::Iterations(count) => count,
        // Refused by `Plan::check`.
        Length::Milliseconds(_) => 0,
    };
    measured + plan.warmup
}

/// Never zero, and different from the last few rounds'.
fn mark(round: u64) -> u8 {
    (round % 251) as u8 + 1
}

fn is_signaled(round: u64) -> bool {
    round % SIGNAL_EVERY == SIGNAL_EVERY - 1
}

/// Both ends clear the byte that the other looks at: what an earlier size left there must not pass for
/// a mark of this one.
fn clear(player: &mut Player, bytes: u64) -> Result<(), BenchError> {
    say(player, bytes, 0, true)?;
    hear(player, bytes, 0)
}

fn say(player: &mut Player, bytes: u64, mark: u8, signaled: bool) -> Result<(), BenchError> {
    if player.pieces.len() <= PIECES / 2 {
        settle(player, bytes, false)?;
    }
    let refused = |reason: String| BenchError::Post { bytes, reason };
    let mut piece = loop {
        match player.pieces.pop() {
            Some(piece) => break piece,
            None => settle(player, bytes, true)?,
        }
    };
    let target = player
        .remote
        .at(0, bytes)
        .ok_or_else(|| BenchError::Stranger {
            reason: format!("its window has only {} bytes", player.remote.len),
        })?;
    let last = usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .min(piece.len())
        - 1;
    piece[last] = mark;
    let segments = [Segment::new(0, u32::try_from(bytes).unwrap_or(u32::MAX))];
    let work = Work::write(target, &segments);
    let work = if signaled { work.signaled() } else { work };
    let mut batch = player.queue_pair.batch();
    batch
        .push(piece, &[work])
        .map_err(|rejected| refused(rejected.to_string()))?;
    batch.commit().map_err(|error| refused(error.to_string()))?;
    Ok(())
}

fn hear(player: &mut Player, bytes: u64, due: u8) -> Result<(), BenchError> {
    let last = usize::try_from(bytes - 1).unwrap_or(usize::MAX);
    let mut spins = 0u32;
    let mut since = None;
    while player.window.byte(last) != Some(due) {
        spins += 1;
        if spins < SPINS {
            std::hint::spin_loop();
            continue;
        }
        spins = 0;
        std::thread::yield_now();
        // A failed write of ours is why no answer comes.
        settle(player, bytes, false)?;
        if since.get_or_insert_with(Instant::now).elapsed() > STALLED {
            let outstanding = player.queue_pair.outstanding().0;
            return Err(BenchError::Stalled {
                bytes,
                outstanding,
                waited: STALLED,
            });
        }
    }
    Ok(())
}

/// Takes pieces back; with `wait`, until at least the signalled ones before are back.
fn settle(player: &mut Player, bytes: u64, wait: bool) -> Result<(), BenchError> {
    let start = Instant::now();
    loop {
        let mut any = false;
        while let Some(done) = player.queue.poll()? {
            any = true;
            if let Settled::Sent(sent) = player.queue_pair.settle(done) {
                (*sent.outcome()).map_err(|source| BenchError::Transfer { bytes, source })?;
                player.pieces.extend(sent);
            }
        }
        let quiet = u64::from(player.queue_pair.outstanding().0) < SIGNAL_EVERY;
        if !wait || any || quiet {
            return Ok(());
        }
        if start.elapsed() > STALLED {
            let outstanding = player.queue_pair.outstanding().0;
            return Err(BenchError::Stalled {
                bytes,
                outstanding,
                waited: STALLED,
            });
        }
        std::thread::yield_now();
    }
}

fn summary(mut round_trips: Vec<Duration>) -> Option<Latency> {
    round_trips.sort_unstable();
    let half_us = |time: &Duration| time.as_secs_f64() * 5e5;
    let at = |share: f64| {
        let position = (share * round_trips.len() as f64).ceil() as usize;
        round_trips.get(position.saturating_sub(1)).map(half_us)
    };
    let sum: Duration = round_trips.iter().sum();
    Some(Latency {
        min_us: round_trips.first().map(half_us)?,
        p50_us: at(0.5)?,
        mean_us: half_us(&sum) / round_trips.len() as f64,
        p90_us: at(0.9)?,
        p99_us: at(0.99)?,
        p999_us: at(0.999)?,
        p9999_us: at(0.9999)?,
        max_us: round_trips.last().map(half_us)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_half_round_trips() {
        let times = (1..=1000)
            .map(|count| Duration::from_micros(2 * count))
            .collect();
        let summary = summary(times).expect("a thousand");
        assert_eq!((summary.min_us, summary.max_us), (1.0, 1000.0));
        let found = [summary.p50_us, summary.p99_us, summary.p999_us].map(f64::round);
        assert_eq!(found, [500.0, 990.0, 999.0]);
        assert!((summary.mean_us - 500.5).abs() < 1e-6);
    }

    #[test]
    fn nothing_measured_has_no_summary() {
        assert_eq!(summary(Vec::new()), None);
    }
}
