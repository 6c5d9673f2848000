//! From the command line to what the library takes.

use super::arguments::{AtomicArg, BenchArgs, MeasureArg, MemoryArg, VerbArg};
use crate::exit::Failure;
use std::time::Duration;
use trackbed_rdma::bench::{
    AtomicKind, DeviceChoice, Expectation, Figure, Length, Measure, Memory, Plan, Report, Serve,
    Target, Verb,
};
use trackbed_rdma::verbs::GidChoice;

pub(super) fn plan(args: &BenchArgs) -> Result<Plan, Failure> {
    let (verb, measure) = (verb(args), measure(args));
    let usual = Plan::new(verb, measure);
    let (load, time, path) = (&args.load, &args.time, &args.path);
    let length = match (time.iterations, time.duration) {
        (Some(count), _) => Length::Iterations(count),
        (None, Some(seconds)) => Length::Milliseconds(milliseconds("duration", seconds)?),
        (None, None) => usual.length,
    };
    let settle = match time.settle {
        Some(seconds) => milliseconds("settle", seconds)?,
        None => Plan::usual_settle(measure, length),
    };
    let depth = load.depth.unwrap_or(usual.depth);
    let sizes = load.size.as_ref().map(|sizes| sizes.0.clone());
    let plan = Plan {
        atomic: match load.atomic {
            Some(AtomicArg::CompareSwap) => AtomicKind::CompareSwap,
            Some(AtomicArg::FetchAdd) | None => AtomicKind::FetchAdd,
        },
        sizes: sizes.unwrap_or(usual.sizes),
        queue_pairs: load.queue_pairs.unwrap_or(usual.queue_pairs),
        depth,
        receive_depth: load.receive_depth.unwrap_or(usual.receive_depth),
        // What was not asked for follows the depth; what was is checked against it.
        post_list: load.post_list.unwrap_or(usual.post_list.min(depth)),
        signal_every: load.signal_every.unwrap_or(usual.signal_every.min(depth)),
        inline: load.inline.unwrap_or(usual.inline),
        bidirectional: load.bidirectional,
        events: load.events,
        rate: load.rate.map(|rate| rate.0),
        mtu: path.mtu,
        service_level: path.service_level.unwrap_or(usual.service_level),
        traffic_class: path.traffic_class.unwrap_or(usual.traffic_class),
        timeout: path.timeout.unwrap_or(usual.timeout),
        retries: path.retries.unwrap_or(usual.retries),
        length,
        runs: time.runs.unwrap_or(usual.runs),
        warmup: time.warmup.unwrap_or(usual.warmup),
        settle_milliseconds: settle,
        verb,
        measure,
    };
    plan.check().map_err(Failure::unable)?;
    check_expectations(args, measure)?;
    Ok(plan)
}

/// What a server insists on: what is measured, and the options that it was given.
pub(super) fn serve(args: &BenchArgs, plan: &Plan) -> Serve {
    let (load, time, path) = (&args.load, &args.time, &args.path);
    Serve::insist(plan, |name| match name {
        "size" => load.size.is_some(),
        "atomic" => load.atomic.is_some(),
        "queue-pairs" => load.queue_pairs.is_some(),
        "depth" => load.depth.is_some(),
        "receive-depth" => load.receive_depth.is_some(),
        "post-list" => load.post_list.is_some(),
        "signal-every" => load.signal_every.is_some(),
        "inline" => load.inline.is_some(),
        "bidirectional" => load.bidirectional,
        "events" => load.events,
        "rate" => load.rate.is_some(),
        "mtu" => path.mtu.is_some(),
        "service-level" => path.service_level.is_some(),
        "traffic-class" => path.traffic_class.is_some(),
        "timeout" => path.timeout.is_some(),
        "retries" => path.retries.is_some(),
        "iterations" => time.iterations.is_some(),
        "duration" => time.duration.is_some(),
        "runs" => time.runs.is_some(),
        "warmup" => time.warmup.is_some(),
        "settle" => time.settle.is_some(),
        _ => false,
    })
}

pub(super) fn target(args: &BenchArgs) -> Result<Target, Failure> {
    let ends = &args.ends;
    let gid = match (ends.gid_index, ends.gid_type, ends.gid_address) {
        (Some(index), _, _) => GidChoice::Index(index),
        (_, Some(kind), _) => GidChoice::Kind(kind),
        (_, _, Some(address)) => GidChoice::Address(address),
        _ => GidChoice::Automatic,
    };
    let device = ends
        .device
        .clone()
        .map_or(DeviceChoice::Any, DeviceChoice::Named);
    Ok(Target {
        device,
        port: ends.port,
        gid,
        memory: match ends.memory {
            MemoryArg::Anonymous => Memory::Anonymous,
            MemoryArg::Hugepages => Memory::HugePages,
        },
        numa: ends.numa,
        line_rate_gbit_per_second: args.verdict.line_rate.map(|rate| rate.0),
        identity: args.meeting.tls.identity()?,
    })
}

/// What was expected, against what was measured.
pub(super) fn expectation(
    args: &BenchArgs,
    report: &Report,
) -> Result<Option<Expectation>, Failure> {
    let verdict = &args.verdict;
    let bandwidth = |value| Expectation {
        figure: Figure::Bandwidth,
        value,
    };
    if let Some(rate) = verdict.expect {
        return Ok(Some(bandwidth(rate.0)));
    }
    if let Some(time) = verdict.expect_latency {
        let figure = Figure::Latency;
        return Ok(Some(Expectation {
            figure,
            value: time.0,
        }));
    }
    let Some(percent) = verdict.expect_percent else {
        return Ok(None);
    };
    let rate = report.line_rate_gbit_per_second.ok_or_else(|| {
        Failure::unable(format!(
            "--expect-percent: {} does not tell the rate of port {}: give --line-rate",
            report.device, report.port
        ))
    })?;
    let directions = if report.plan.bidirectional { 2.0 } else { 1.0 };
    Ok(Some(bandwidth(rate * directions * percent / 100.0)))
}

/// Refuses what could never be judged, before anything is measured.
fn check_expectations(args: &BenchArgs, measure: Measure) -> Result<(), Failure> {
    let verdict = &args.verdict;
    let of_bandwidth = verdict.expect.is_some() || verdict.expect_percent.is_some();
    match measure {
        Measure::Latency if of_bandwidth => Err(Failure::unable(
            "--expect and --expect-percent are about bandwidth: give --expect-latency",
        )),
        Measure::Bandwidth if verdict.expect_latency.is_some() => Err(Failure::unable(
            "--expect-latency is about latency: give --expect or --expect-percent",
        )),
        _ => match verdict.expect_percent {
            Some(percent) if !(percent > 0.0 && percent <= 100.0) => Err(Failure::unable(format!(
                "--expect-percent {percent}: give a number above 0 and up to 100"
            ))),
            _ => Ok(()),
        },
    }
}

/// How often lines are told.
pub(super) fn interval(args: &BenchArgs) -> Result<Option<Duration>, Failure> {
    args.report_interval
        .map(|seconds| milliseconds("report-interval", seconds).map(Duration::from_millis))
        .transpose()
}

fn verb(args: &BenchArgs) -> Verb {
    match args.verb {
        VerbArg::Write => Verb::Write,
        VerbArg::Send => Verb::Send,
        VerbArg::Read => Verb::Read,
        VerbArg::Atomic => Verb::Atomic,
    }
}

fn measure(args: &BenchArgs) -> Measure {
    match args.measure {
        MeasureArg::Bandwidth => Measure::Bandwidth,
        MeasureArg::Latency => Measure::Latency,
    }
}

fn milliseconds(option: &str, seconds: f64) -> Result<u64, Failure> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|time| u64::try_from(time.as_millis()).ok())
        .ok_or_else(|| Failure::unable(format!("--{option} {seconds} is no number of seconds")))
}

#[cfg(test)]
mod tests;
