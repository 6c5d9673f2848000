//! Write bandwidth: many writes on their way, posted in lists, few of them signalled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{Channel, unexpected};
use super::meet::Connection;
use super::message::Message;
use super::pattern;
use super::plan::{Length, Plan};
use super::{BenchError, Row};
use crate::verbs::{Piece, Segment, Settled, Work};

/// How long nothing may complete before that is an error.
const STALLED: Duration = Duration::from_secs(10);
/// How often the server hears that we are alive.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Empty polls before the processor is offered to others.
const SPINS: u32 = 256;
/// Empty polls before the clock is read again.
const CLOCK_EVERY: u32 = 4096;

pub(super) type Sender = Connection<Arc<Piece>>;

/// Measures one size, after warming up, and has the server compare what arrived.
pub(super) fn client(
    sender: &mut Sender,
    channel: &mut Channel,
    plan: &Plan,
    bytes: u64,
    seed: u64,
) -> Result<Row, BenchError> {
    let no_piece = || BenchError::Post {
        bytes,
        reason: "its payload is still out".to_owned(),
    };
    let mut piece = sender.pieces.pop().ok_or_else(no_piece)?;
    let len = usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .min(piece.len());
    pattern::fill(&mut piece[..len], seed);
    let payload = Arc::new(piece);
    channel.send(&Message::Begin { bytes })?;
    if plan.warmup > 0 {
        transfer(
            sender,
            channel,
            plan,
            &payload,
            bytes,
            Length::Iterations(plan.warmup),
        )?;
    }
    let (messages, elapsed) = transfer(sender, channel, plan, &payload, bytes, plan.length)?;
    sender
        .pieces
        .push(Arc::into_inner(payload).ok_or_else(no_piece)?);

    channel.send(&Message::Check { bytes, seed })?;
    match channel.receive("waiting for it to compare")? {
        Message::Checked { intact: true } => Ok(row(bytes, messages, elapsed)),
        Message::Checked { intact: false } => Err(BenchError::Corrupted { bytes }),
        other => Err(unexpected(&other, "the result of comparing")),
    }
}

/// Writes as long as `length` says; how many messages, and the time to the last completion.
fn row(bytes: u64, messages: u64, elapsed: Duration) -> Row {
    let seconds = elapsed.as_secs_f64();
    let per_second = if seconds > 0.0 {
        messages as f64 / seconds
    } else {
        0.0
    };
    let bytes_per_second = per_second * bytes as f64;
    Row {
        mib_per_second: Some(bytes_per_second / f64::from(1 << 20)),
        gbit_per_second: Some(bytes_per_second * 8.0 / 1e9),
        messages_per_second: Some(per_second),
        ..Row::new(bytes, messages, seconds)
    }
}

fn transfer(
    sender: &mut Sender,
    channel: &mut Channel,
    plan: &Plan,
    payload: &Arc<Piece>,
    bytes: u64,
    length: Length,
) -> Result<(u64, Duration), BenchError> {
    let target = sender
        .remote
        .at(0, bytes)
        .ok_or_else(|| BenchError::Stranger {
            reason: format!("its window has only {} bytes", sender.remote.len),
        })?;
    let segments = [Segment::new(0, u32::try_from(bytes).unwrap_or(u32::MAX))];
    let plain = Work::write(target, &segments);
    // A list is one payload's chain of work requests; signalled or not at its end.
    let list = plan.post_list as usize;
    let mut quiet = vec![plain; list];
    let mut signalled = quiet.clone();
    signalled[list - 1] = plain.signaled();
    let (mut posted, mut completed, mut unsignalled) = (0u64, 0u64, 0u32);
    let (wanted, lasts) = match length {
        Length::Iterations(count) => (count, Duration::MAX),
        Length::Milliseconds(time) => (u64::MAX, Duration::from_millis(time)),
    };
    let mut wanted = wanted;
    let start = Instant::now();
    let (mut heard, mut quiet_since, mut spins) = (start, None, 0u32);
    while completed < wanted {
        while posted < wanted && posted - completed < u64::from(plan.depth) {
            let room = u64::from(plan.depth) - (posted - completed);
            let now = (list as u64).min(room).min(wanted - posted);
            // A full list, or the last one; otherwise wait until there is room for a full one.
            if now < list as u64 && now < wanted - posted {
                break;
            }
            let count = now as usize;
            let last = posted + now == wanted;
            let signal = last
                || unsignalled + plan.post_list >= plan.signal_every
                || room - now < list as u64;
            let work = if signal { &mut signalled } else { &mut quiet };
            // A short last list ends with the signalled work request as well.
            let work = if signal {
                &work[list - count..]
            } else {
                &work[..count]
            };
            unsignalled = if signal {
                0
            } else {
                unsignalled + plan.post_list
            };
            let mut batch = sender.queue_pair.batch();
            batch
                .push(Arc::clone(payload), work)
                .map_err(|rejected| BenchError::Post {
                    bytes,
                    reason: rejected.to_string(),
                })?;
            batch.commit().map_err(|error| BenchError::Post {
                bytes,
                reason: error.to_string(),
            })?;
            posted += now;
        }
        let mut any = false;
        while let Some(done) = sender.queue.poll()? {
            any = true;
            if let Settled::Sent(sent) = sender.queue_pair.settle(done) {
                (*sent.outcome()).map_err(|source| BenchError::Transfer { bytes, source })?;
                completed += u64::from(sent.work_requests());
            }
        }
        if any {
            quiet_since = None;
            spins = 0;
        } else {
            spins = spins.wrapping_add(1);
            // Soft-RoCE needs the processor to make progress.
            if spins % SPINS == 0 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        // Reading the clock may be a system call, in virtual machines a slow one.
        if !any && spins % CLOCK_EVERY != 0 {
            continue;
        }
        let now = Instant::now();
        if wanted == u64::MAX && now.duration_since(start) >= lasts {
            // Time is up: what is on its way still counts, and one more asks for their completion.
            wanted = posted + 1;
        }
        if now.duration_since(heard) > HEARTBEAT {
            heard = now;
            channel.send(&Message::Alive)?;
        }
        if !any && now.duration_since(*quiet_since.get_or_insert(now)) > STALLED {
            let outstanding = u32::try_from(posted - completed).unwrap_or(u32::MAX);
            return Err(BenchError::Stalled {
                bytes,
                outstanding,
                waited: STALLED,
            });
        }
    }
    Ok((completed, start.elapsed()))
}

/// The server's part: nothing but comparing what arrived.
pub(super) fn server(
    sender: &mut Sender,
    channel: &mut Channel,
    plan: &Plan,
    bytes: u64,
) -> Result<(), BenchError> {
    match channel.receive("waiting for the measurement to end")? {
        Message::Check {
            bytes: checked,
            seed,
        } if checked == bytes && plan.sizes.contains(&bytes) => {
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            let intact = pattern::is_in(&sender.window, len, seed);
            channel.send(&Message::Checked { intact })
        }
        other => Err(unexpected(&other, "what to compare")),
    }
}
