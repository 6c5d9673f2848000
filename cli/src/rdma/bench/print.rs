//! A report as a table.

use crate::rdma::table;
use trackbed_rdma::bench::{Interval, Report, Row, Stage};

pub(super) fn text(report: &Report) -> String {
    let arrow = if report.role == "server" {
        "from"
    } else {
        "to"
    };
    let rate = report
        .line_rate_gbit_per_second
        .map_or_else(String::new, |rate| format!(", port {rate} Gb/s"));
    let head = format!(
        "{}, {}: {} {} port {} at {} (index {}) {arrow} {} {} {}, MTU {}{rate}, {}",
        report.bench,
        report.role,
        report.host,
        report.device,
        report.port,
        report.gid,
        report.gid_index,
        report.peer_host,
        report.peer_device,
        report.peer_gid,
        report.mtu,
        load(report),
    );
    let mut text = format!("{head}\n\n{}", rows(&report.rows));
    for note in notes(report) {
        text.push_str("\n\n");
        text.push_str(&note);
    }
    if let Some(verdict) = &report.verdict {
        text.push_str(&format!("\n\n{verdict}"));
    }
    text
}

fn load(report: &Report) -> String {
    let plan = &report.plan;
    let mut parts = vec![format!("depth {}", plan.depth)];
    if plan.queue_pairs > 1 {
        parts.push(format!("{} queue pairs", plan.queue_pairs));
    }
    if plan.bidirectional {
        parts.push("both ways".to_owned());
    }
    if plan.events {
        parts.push("by events".to_owned());
    }
    parts.push(format!("inline up to {} B", report.inline_bytes));
    parts.join(", ")
}

/// What a reader must know to trust the figures, or not.
fn notes(report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    let unsteady: Vec<String> = report
        .rows
        .iter()
        .filter(|row| row.steady.is_some_and(|steady| !steady.reached))
        .map(|row| row.bytes.to_string())
        .collect();
    if !unsteady.is_empty() {
        notes.push(format!(
            "not steady at {} bytes: give a longer --settle or --duration, or a quieter machine",
            unsteady.join(", ")
        ));
    }
    if report.plan.bidirectional {
        notes.push("figures are of both directions together".to_owned());
    }
    notes
}

pub(super) fn rows(rows: &[Row]) -> String {
    if rows.iter().any(|row| row.latency.is_some()) {
        latencies(rows)
    } else {
        bandwidths(rows)
    }
}

fn latencies(rows: &[Row]) -> String {
    let mut table = table(&[
        "BYTES",
        "ROUNDS",
        "MIN us",
        "P50 us",
        "95%",
        "MEAN us",
        "P90 us",
        "P99 us",
        "P99.9 us",
        "P99.99 us",
        "MAX us",
        "CPU",
    ]);
    for row in rows {
        let Some(latency) = row.latency else { continue };
        let us = |time: f64| format!("{time:.2}");
        table.add_row([
            row.bytes.to_string(),
            row.messages.to_string(),
            us(latency.min_us),
            us(latency.p50_us),
            interval(row.interval.as_ref()),
            us(latency.mean_us),
            us(latency.p90_us),
            us(latency.p99_us),
            us(latency.p999_us),
            us(latency.p9999_us),
            us(latency.max_us),
            share(row),
        ]);
    }
    table.to_string()
}

fn bandwidths(rows: &[Row]) -> String {
    let mut table = table(&[
        "BYTES",
        "MESSAGES",
        "SECONDS",
        "MiB/s",
        "Gb/s",
        "95%",
        "MESSAGES/s",
        "VARIES",
        "CPU",
        "ns/MESSAGE",
        "ns/BYTE",
        "LIMITED BY",
    ]);
    for row in rows {
        let number =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let cpu = |pick: fn(&trackbed_rdma::bench::Cpu) -> f64, digits: usize| {
            row.cpu
                .as_ref()
                .map_or("-".to_owned(), |cpu| format!("{:.digits$}", pick(cpu)))
        };
        let varies = row.steady.map_or("-".to_owned(), |steady| {
            let mark = if steady.reached { "" } else { " !" };
            format!("{:.1}%{mark}", steady.variation * 100.0)
        });
        let limit = row.limit.map_or("-".to_owned(), |limit| limit.to_string());
        table.add_row([
            row.bytes.to_string(),
            row.messages.to_string(),
            format!("{:.3}", row.seconds),
            number(row.mib_per_second),
            number(row.gbit_per_second),
            interval(row.interval.as_ref()),
            number(row.messages_per_second),
            varies,
            share(row),
            cpu(|cpu| cpu.ns_per_message, 0),
            cpu(|cpu| cpu.ns_per_byte, 3),
            limit,
        ]);
    }
    table.to_string()
}

fn interval(interval: Option<&Interval>) -> String {
    interval.map_or("-".to_owned(), |interval| {
        format!("{:.2}..{:.2}", interval.low, interval.high)
    })
}

fn share(row: &Row) -> String {
    row.cpu
        .map_or("-".to_owned(), |cpu| format!("{:.0}%", cpu.share * 100.0))
}

/// What is told when a size is done and more are measured.
pub(super) fn sentence(row: &Row) -> String {
    match (row.latency, row.gbit_per_second) {
        (Some(latency), _) => format!("{} bytes: {:.2} us", row.bytes, latency.p50_us),
        (None, speed) => format!("{} bytes: {:.2} Gb/s", row.bytes, speed.unwrap_or(0.0)),
    }
}

/// What is told while a size is measured.
pub(super) fn stage(stage: &Stage, unit: &str) -> String {
    let run = match stage.run {
        0 => "warming up".to_owned(),
        run => format!("run {run}"),
    };
    format!(
        "{} bytes, {run}, {:.1} s: {:.2} {unit}",
        stage.bytes,
        stage.elapsed.as_secs_f64(),
        stage.figure
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use trackbed_rdma::bench::{Limit, Steady};

    fn row() -> Row {
        Row {
            mib_per_second: Some(31.25),
            gbit_per_second: Some(0.262),
            messages_per_second: Some(500.0),
            limit: Some(Limit::Path),
            steady: Some(Steady {
                reached: false,
                warmup_seconds: 1.0,
                variation: 0.123,
                intervals: 50,
                transient: 30,
            }),
            ..Row::new(65536, 1000, 2.0)
        }
    }

    #[test]
    fn results_are_printed_with_their_units_and_what_limits_them() {
        let text = rows(&[row()]);
        for part in [
            "MiB/s",
            "31.25",
            "MESSAGES/s",
            "500.00",
            "device or path",
            "12.3% !",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_stage_says_where_it_is() {
        let stage = Stage {
            bytes: 64,
            run: 2,
            elapsed: Duration::from_millis(1500),
            figure: 9.5,
        };
        assert_eq!(
            super::stage(&stage, "Gb/s"),
            "64 bytes, run 2, 1.5 s: 9.50 Gb/s"
        );
        let warm = Stage { run: 0, ..stage };
        assert!(super::stage(&warm, "Gb/s").contains("warming up"));
    }
}
