//! Latency: one message on its way.
//!
//! Writes and sends go to and fro, and half of a round trip is their latency: each end looks at the last
//! byte of where messages arrive, for a mark that changes from round to round. Reads and atomics are
//! answered by the other end's adapter, and the whole round trip is theirs. The clock is read once a
//! round.

mod player;
mod watchdog;

use std::time::{Duration, Instant};

use super::channel::{Channel, unexpected};
use super::cpu::Used;
use super::end::End;
use super::histogram::Times;
use super::message::Message;
use super::plan::{Length, Plan};
use super::size::{answer_begin, answer_check, begin, check};
use super::statistics::{interval, mean, transient, variation};
use super::transfer::{HEARTBEAT, TELL};
use super::{BenchError, Cpu, Row, Stage, Steady};
use player::{LAST, Player, mark};

/// Rounds of the warm-up between looks at the clock.
const LOOK_EVERY: u64 = 256;
/// With fewer means, nothing is said of how steady latency was.
const FEWEST_MEANS: usize = 10;

/// What one run gave.
struct Run {
    times: Times,
    elapsed: Duration,
    cpu: Cpu,
}

/// Measures one size.
pub(super) fn client(
    end: &mut End,
    channel: &mut Channel,
    plan: &Plan,
    (bytes, seed): (u64, u64),
    tell: &mut dyn FnMut(Stage),
) -> Result<Row, BenchError> {
    let seeds = begin(end, channel, plan, (bytes, seed))?;
    let mut player = Player::new(end, channel, plan, bytes)?;
    let begin = Instant::now();
    let mut heard = begin;
    for round in 0..plan.warmup {
        player.round()?;
        if round % LOOK_EVERY == 0 && heard.elapsed() > HEARTBEAT {
            heard = Instant::now();
            player.say_alive()?;
        }
    }
    let warmup = begin.elapsed();
    let mut runs = Vec::new();
    for run in 1..=plan.runs {
        let mut told = |elapsed, figure| {
            tell(Stage {
                bytes,
                run,
                elapsed,
                figure,
            });
        };
        runs.push(measure(&mut player, plan, &mut told)?);
    }
    let total = player.finish()?;
    check(end, channel, plan, bytes, seeds, &[total])?;
    Ok(row(plan, bytes, warmup, runs))
}

/// One run: rounds as long as the plan says.
fn measure(
    player: &mut Player<'_>,
    plan: &Plan,
    tell: &mut dyn FnMut(Duration, f64),
) -> Result<Run, BenchError> {
    let (wanted, longest) = match plan.length {
        Length::Iterations(count) => (count, Duration::MAX),
        Length::Milliseconds(time) => (u64::MAX, Duration::from_millis(time)),
    };
    let mut times = Times::new();
    let used = Used::now();
    let start = Instant::now();
    let end = start.checked_add(longest);
    let (mut before, mut rounds) = (start, 0u64);
    let (mut told, mut heard) = (start, start);
    loop {
        player.round()?;
        let now = Instant::now();
        rounds += 1;
        let time = u64::try_from(now.duration_since(before).as_nanos()).unwrap_or(u64::MAX);
        let full = times.keep(time);
        before = now;
        if rounds == wanted || end.is_some_and(|end| now >= end) {
            break;
        }
        if full || now.duration_since(told) > TELL {
            times.sort_in();
            told = now;
            let so_far = times
                .latency(share(plan))
                .map_or(0.0, |latency| latency.p50_us);
            tell(now.duration_since(start), so_far);
            if now.duration_since(heard) > HEARTBEAT {
                heard = now;
                player.say_alive()?;
            }
            // What this took is no part of the next round.
            before = Instant::now();
        }
    }
    times.sort_in();
    let elapsed = before.duration_since(start);
    Ok(Run {
        times,
        elapsed,
        cpu: used.until_now(elapsed, rounds, player.bytes()),
    })
}

/// Answers all rounds of one size.
pub(super) fn server(
    end: &mut End,
    channel: &mut Channel,
    plan: &Plan,
    (bytes, seed): (u64, u64),
) -> Result<(), BenchError> {
    let seeds = answer_begin(end, channel, plan, (bytes, seed))?;
    let mut ours = 0;
    if !plan.verb.is_fetch() {
        let mut player = Player::new(end, channel, plan, bytes)?;
        for round in 0.. {
            let heard = player.hear(mark(round))?;
            player.say(heard)?;
            if heard == LAST {
                break;
            }
        }
        ours = player.settle_all()?;
    }
    match channel.receive("waiting for the measurement to end")? {
        Message::Check { messages } => {
            answer_check(end, channel, plan, bytes, seeds, vec![ours], &messages)
        }
        other => Err(unexpected(&other, "what to compare")),
    }
}

/// What part of a round trip is the latency.
fn share(plan: &Plan) -> f64 {
    if plan.verb.is_fetch() { 1.0 } else { 0.5 }
}

fn row(plan: &Plan, bytes: u64, warmup: Duration, runs: Vec<Run>) -> Row {
    let share = share(plan);
    let medians: Vec<f64> = runs
        .iter()
        .filter_map(|run| run.times.latency(share))
        .map(|latency| latency.p50_us)
        .collect();
    let seconds = runs.iter().map(|run| run.elapsed.as_secs_f64()).sum();
    let cpus: Vec<Cpu> = runs.iter().map(|run| run.cpu).collect();
    let steady = steady(&runs, warmup);
    let mut all = Times::new();
    for run in &runs {
        all.add(&run.times);
    }
    let interval = match runs.as_slice() {
        [only] => only.times.median_interval(share),
        _ => interval(&medians, "runs"),
    };
    Row {
        latency: all.latency(share),
        percentiles: all.percentiles(share),
        interval,
        runs: medians,
        steady,
        cpu: Cpu::of_runs(&cpus, seconds, all.count(), bytes),
        ..Row::new(bytes, all.count(), seconds)
    }
}

/// Steady means that MSER-5 finds no more than a tenth of a run's start to be unlike the rest.
fn steady(runs: &[Run], warmup: Duration) -> Option<Steady> {
    let series: Vec<&[f64]> = runs.iter().map(|run| run.times.means()).collect();
    if series.iter().any(|means| means.len() < FEWEST_MEANS) {
        return None;
    }
    let cuts: Vec<usize> = series.iter().map(|means| transient(means)).collect();
    let variations: Vec<f64> = series.iter().map(|means| variation(means)).collect();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Some(Steady {
        reached: cuts
            .iter()
            .zip(&series)
            .all(|(cut, all)| cut * 10 <= all.len()),
        warmup_seconds: warmup.as_secs_f64(),
        variation: mean(&variations),
        intervals: count(series.iter().map(|means| means.len()).sum()),
        transient: count(cuts.into_iter().max().unwrap_or(0)),
    })
}
