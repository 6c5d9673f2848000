//! Bandwidth: many messages on their way, posted in lists, few of them signalled.

use std::time::Duration;

use super::channel::{Channel, unexpected};
use super::end::End;
use super::lane::{Lane, Pattern, segments};
use super::limit::limit;
use super::message::{Message, Until};
use super::plan::{Length, Plan, Verb};
use super::size::{answer_begin, answer_check, begin, check};
use super::statistics::{BATCHES, batches, interval, mean, transient, variation};
use super::transfer::{Moved, Mover};
use super::{BenchError, Cpu, Interval, Row, Stage, Steady};

/// With fewer intervals, nothing is said of how steady a rate was.
const FEWEST_INTERVALS: usize = 10;

/// Whether the server takes part in moving messages, and reports its part.
fn server_moves(plan: &Plan) -> bool {
    plan.verb == Verb::Send || plan.bidirectional
}

/// Measures one size: warms up, measures each run, and has what arrived compared.
pub(super) fn client(
    end: &mut End,
    channel: &mut Channel,
    plan: &Plan,
    (bytes, seed): (u64, u64),
    line_rate: Option<f64>,
    tell: &mut dyn FnMut(Stage),
) -> Result<Row, BenchError> {
    let seeds = begin(end, channel, plan, (bytes, seed))?;
    let (pattern, segments) = (Pattern::new(plan, bytes), segments(bytes));
    let mut lanes = (0..end.lanes.len())
        .map(|index| Lane::new(end, index, plan, pattern, bytes, &segments))
        .collect::<Result<Vec<_>, _>>()?;
    let hears = server_moves(plan);
    let mut transfer = |run: u32, until: Until| {
        if hears {
            // What the server can't know, it takes from our word that we are done.
            let until = match until {
                Until::Length(_) => until,
                Until::Settled { .. } | Until::Peer => Until::Peer,
            };
            channel.send(&Message::Transfer { until })?;
        }
        let mut mover = Mover {
            end,
            channel,
            plan,
            bytes,
            pattern,
            lanes: &mut lanes,
            tell: &mut |elapsed: Duration, messages| {
                let bits = messages as f64 * bytes as f64 * 8.0;
                tell(Stage {
                    bytes,
                    run,
                    elapsed,
                    figure: bits / elapsed.as_secs_f64() / 1e9,
                });
            },
        };
        mover.run(until, hears)
    };
    let warm = match (plan.settle_milliseconds, plan.warmup) {
        (0, 0) => None,
        (0, messages) => Some(Until::Length(Length::Iterations(messages))),
        (milliseconds, messages) => Some(Until::Settled {
            messages,
            milliseconds,
        }),
    };
    let warm = warm.map(|until| transfer(0, until)).transpose()?;
    let runs = (1..=plan.runs)
        .map(|run| transfer(run, Until::Length(plan.length)))
        .collect::<Result<Vec<_>, _>>()?;
    let ours: Vec<u64> = lanes.iter().map(|lane| lane.total).collect();
    check(end, channel, plan, bytes, seeds, &ours)?;
    Ok(row(plan, bytes, warm.as_ref(), &runs, line_rate))
}

/// Does the server's part of one size.
pub(super) fn server(
    end: &mut End,
    channel: &mut Channel,
    plan: &Plan,
    (bytes, seed): (u64, u64),
) -> Result<(), BenchError> {
    let seeds = answer_begin(end, channel, plan, (bytes, seed))?;
    let (pattern, segments) = (Pattern::new(plan, bytes), segments(bytes));
    let mut lanes = (0..end.lanes.len())
        .map(|index| Lane::new(end, index, plan, pattern, bytes, &segments))
        .collect::<Result<Vec<_>, _>>()?;
    loop {
        match channel.receive("waiting for the measurement to end")? {
            Message::Transfer { until } if server_moves(plan) && is_of(until, plan) => {
                let mut mover = Mover {
                    end,
                    channel,
                    plan,
                    bytes,
                    pattern,
                    lanes: &mut lanes,
                    tell: &mut |_, _| {},
                };
                mover.run(until, true)?;
            }
            Message::Check { messages } => {
                let ours = lanes.iter().map(|lane| lane.total).collect();
                return answer_check(end, channel, plan, bytes, seeds, ours, &messages);
            }
            other => return Err(unexpected(&other, "what to do next")),
        }
    }
}

/// Whether a client may ask for this: nothing longer than the plan that was checked.
fn is_of(until: Until, plan: &Plan) -> bool {
    until == Until::Peer
        || until == Until::Length(plan.length)
        || until == Until::Length(Length::Iterations(plan.warmup))
}

fn per_second(messages: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        messages as f64 / seconds
    } else {
        0.0
    }
}

fn row(
    plan: &Plan,
    bytes: u64,
    warm: Option<&Moved>,
    runs: &[Moved],
    line_rate: Option<f64>,
) -> Row {
    let to_gbit = |messages_per_second: f64| messages_per_second * bytes as f64 * 8.0 / 1e9;
    let ours = |run: &Moved| per_second(run.messages, run.elapsed.as_secs_f64());
    let theirs = |run: &Moved| match &run.peer {
        Some(peer) if plan.bidirectional => per_second(peer.messages, peer.seconds),
        _ => 0.0,
    };
    let rates: Vec<f64> = runs.iter().map(|run| ours(run) + theirs(run)).collect();
    let figures: Vec<f64> = rates.iter().map(|rate| to_gbit(*rate)).collect();
    let theirs: Vec<f64> = runs.iter().map(theirs).collect();
    let messages = runs.iter().map(|run| run.messages).sum();
    let seconds: f64 = runs.iter().map(|run| run.elapsed.as_secs_f64()).sum();
    let cpus: Vec<Cpu> = runs.iter().map(|run| run.cpu).collect();
    let peer_cpus: Vec<Cpu> = runs
        .iter()
        .filter_map(|run| run.peer.and_then(|peer| peer.cpu))
        .collect();
    let rate = mean(&rates);
    let mut row = Row {
        mib_per_second: Some(rate * bytes as f64 / f64::from(1 << 20)),
        gbit_per_second: Some(to_gbit(rate)),
        messages_per_second: Some(rate),
        peer_gbit_per_second: plan.bidirectional.then(|| to_gbit(mean(&theirs))),
        interval: spread(&figures, runs),
        runs: figures,
        steady: steady(plan, warm, runs),
        cpu: Cpu::of_runs(&cpus, seconds, messages, bytes),
        peer_cpu: Cpu::of_runs(&peer_cpus, seconds, messages, bytes),
        ..Row::new(bytes, messages, seconds)
    };
    let idle = mean(&runs.iter().map(|run| run.idle).collect::<Vec<_>>());
    row.limit = Some(limit(plan, &row, idle, line_rate));
    row
}

/// The interval over runs, or over batches of the only one.
fn spread(figures: &[f64], runs: &[Moved]) -> Option<Interval> {
    if let [only] = runs {
        let rates = only.series.rates();
        let means = batches(&rates, BATCHES);
        let found = interval(&means, "batches")?;
        // In relation to what was counted to the last message, which the series is not.
        let scale = figures.first()? / mean(&means);
        return scale.is_finite().then_some(Interval {
            low: found.low * scale,
            high: found.high * scale,
            ..found
        });
    }
    interval(figures, "runs")
}

/// Steady means that the warm-up settled, where it had the time to, and that MSER-5 finds no more than a
/// tenth of a run's start to be unlike the rest.
fn steady(plan: &Plan, warm: Option<&Moved>, runs: &[Moved]) -> Option<Steady> {
    let series: Vec<Vec<f64>> = runs.iter().map(|run| run.series.rates()).collect();
    if series.iter().any(|rates| rates.len() < FEWEST_INTERVALS) {
        return None;
    }
    let cuts = series.iter().map(|rates| (transient(rates), rates.len()));
    let constant = cuts.clone().all(|(cut, all)| cut * 10 <= all);
    let settled = plan.settle_milliseconds == 0 || warm.is_none_or(|warm| warm.settled);
    let variations: Vec<f64> = series.iter().map(|rates| variation(rates)).collect();
    Some(Steady {
        reached: settled && constant,
        warmup_seconds: warm.map_or(0.0, |warm| warm.elapsed.as_secs_f64()),
        variation: mean(&variations),
        intervals: count(series.iter().map(Vec::len).sum()),
        transient: count(cuts.map(|(cut, _)| cut).max().unwrap_or(0)),
    })
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
