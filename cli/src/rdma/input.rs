//! Results that earlier commands wrote: read, recognised, bounded and checked before anything uses them.

use crate::exit::Failure;
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use trackbed_rdma::bench::{Report, SCHEMA};
use trackbed_rdma::check::CheckReport;
use trackbed_rdma::mesh::{Journal, Mesh};

/// Larger files are refused: a mesh of 1,000 nodes with 8 rails has half of this.
const LARGEST: u64 = 1 << 30;
/// More results in one file are refused.
const MOST_RESULTS: usize = 10_000;
/// Longer texts in results are no names of anything.
const LONGEST_TEXT: usize = 1000;

/// One result.
#[derive(Debug)]
pub(super) enum ResultFile {
    /// Of `trackbed rdma bench`.
    Bench(Box<Report>),
    /// Of `trackbed rdma mesh`.
    Mesh(Box<Mesh>),
    /// Of `trackbed rdma check`.
    Check(CheckReport),
}

/// All results of a file: one JSON value, several one after another, a list, or a mesh's state file.
pub(super) fn read(path: &Path) -> Result<Vec<ResultFile>, Failure> {
    let failed = |reason: String| Failure::unable(format!("{}: {reason}", path.display()));
    let mut text = String::new();
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(LARGEST + 1)
        .read_to_string(&mut text)
        .map_err(|error| failed(format!("{error}: results are JSON")))?;
    if text.len() as u64 > LARGEST {
        return Err(failed(format!("it is larger than {LARGEST} bytes")));
    }
    let is_journal = text
        .lines()
        .next()
        .is_some_and(|line| line.starts_with("{\"record\":\"mesh\""));
    if is_journal {
        let mesh = Journal::load(path).map_err(Failure::unable)?;
        return Ok(vec![ResultFile::Mesh(Box::new(mesh))]);
    }
    let results = parse(&text).map_err(failed)?;
    if results.is_empty() {
        return Err(failed(
            "it holds no result: give what --output json of bench, mesh or check wrote".to_owned(),
        ));
    }
    Ok(results)
}

fn parse(text: &str) -> Result<Vec<ResultFile>, String> {
    let mut results = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>() {
        let value = value.map_err(|error| format!("it is not JSON: {error}"))?;
        let values = match value {
            serde_json::Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            results.push(recognise(value)?);
            if results.len() > MOST_RESULTS {
                return Err(format!("it holds more than {MOST_RESULTS} results"));
            }
        }
    }
    Ok(results)
}

fn recognise(mut value: serde_json::Value) -> Result<ResultFile, String> {
    #[derive(Deserialize)]
    struct Shown {
        mesh: Mesh,
    }
    let has = |name: &str| value.get(name).is_some();
    if has("rows") {
        if let Some(schema) = value.get("schema").and_then(serde_json::Value::as_u64)
            && schema != u64::from(SCHEMA)
        {
            return Err(format!(
                "a result of form {schema}, we read {SCHEMA}: use the release that wrote it"
            ));
        }
        let report: Report = from(value, "bench")?;
        check_report(&report)?;
        Ok(ResultFile::Bench(Box::new(report)))
    } else if has("findings") {
        Ok(ResultFile::Check(from(value, "check")?))
    } else if has("mesh") {
        let shown: Shown = from(value, "mesh")?;
        shown.mesh.check()?;
        Ok(ResultFile::Mesh(Box::new(shown.mesh)))
    } else {
        value.take();
        Err("a JSON value in it is no result of bench, mesh or check".to_owned())
    }
}

fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value, of: &str) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("it is no result of {of}: {error}"))
}

/// Whether all figures are what can be measured. JSON has neither NaN nor infinity, but negative and
/// enormous numbers.
fn check_report(report: &Report) -> Result<(), String> {
    const LARGEST_FIGURE: f64 = 1e18;
    let names = [
        &report.bench,
        &report.host,
        &report.device,
        &report.peer_host,
        &report.peer_device,
        &report.gid,
        &report.software,
    ];
    if names.iter().any(|name| name.len() > LONGEST_TEXT) {
        return Err(format!("a name in it is longer than {LONGEST_TEXT} bytes"));
    }
    report
        .plan
        .check()
        .map_err(|error| format!("its plan: {error}"))?;
    let mut figures: Vec<f64> = report.line_rate_gbit_per_second.into_iter().collect();
    for row in &report.rows {
        if row.bytes == 0 || row.bytes > 1 << 40 {
            return Err(format!("a message of {} bytes in it", row.bytes));
        }
        figures.push(row.seconds);
        figures.extend(
            [
                row.mib_per_second,
                row.gbit_per_second,
                row.messages_per_second,
            ]
            .iter()
            .flatten(),
        );
        figures.extend(&row.runs);
        for percentile in &row.percentiles {
            if !(0.0..=100.0).contains(&percentile.percent) {
                return Err(format!("a percentile {} in it", percentile.percent));
            }
            figures.push(percentile.us);
        }
        figures.extend(
            row.interval
                .iter()
                .flat_map(|interval| [interval.low.max(0.0), interval.high]),
        );
        if let Some(latency) = &row.latency {
            figures.extend([
                latency.min_us,
                latency.p50_us,
                latency.mean_us,
                latency.p90_us,
                latency.p99_us,
                latency.p999_us,
                latency.p9999_us,
                latency.max_us,
            ]);
        }
    }
    match figures
        .iter()
        .find(|figure| !(0.0..=LARGEST_FIGURE).contains(*figure))
    {
        Some(figure) => Err(format!("{figure} in it can't have been measured")),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use trackbed_rdma::bench::{Latency, Measure, Percentile, Plan, Row, Verb};

    /// A result with these rows.
    pub(in crate::rdma) fn report(measure: Measure, rows: Vec<Row>) -> Report {
        let plan = Plan {
            sizes: rows.iter().map(|row| row.bytes).collect(),
            ..Plan::new(Verb::Write, measure)
        };
        Report {
            schema: SCHEMA,
            software: "trackbed".to_owned(),
            bench: plan.name(),
            role: "client".to_owned(),
            host: "node-1".to_owned(),
            device: "mlx5_0".to_owned(),
            port: 1,
            gid: "::ffff:10.0.0.1".to_owned(),
            gid_index: 3,
            peer_host: "node-2".to_owned(),
            peer_device: "mlx5_0".to_owned(),
            peer_gid: "::ffff:10.0.0.2".to_owned(),
            mtu: 4096,
            inline_bytes: 60,
            line_rate_gbit_per_second: Some(200.0),
            began_unix_seconds: 1_790_000_000,
            plan,
            rows,
            verdict: None,
        }
    }

    /// A bandwidth with these runs.
    pub(in crate::rdma) fn bandwidth(bytes: u64, runs: &[f64]) -> Row {
        let mean = runs.iter().sum::<f64>() / runs.len().max(1) as f64;
        Row {
            gbit_per_second: Some(mean),
            messages_per_second: Some(mean * 1e9 / 8.0 / bytes as f64),
            mib_per_second: Some(mean * 1e9 / 8.0 / f64::from(1 << 20)),
            runs: runs.to_vec(),
            ..Row::new(bytes, 1000, 1.0)
        }
    }

    /// A latency with these runs.
    pub(in crate::rdma) fn latency(bytes: u64, runs: &[f64]) -> Row {
        let us = runs.iter().sum::<f64>() / runs.len().max(1) as f64;
        Row {
            latency: Some(Latency {
                min_us: us * 0.9,
                p50_us: us,
                mean_us: us * 1.02,
                p90_us: us * 1.1,
                p99_us: us * 1.4,
                p999_us: us * 2.5,
                p9999_us: us * 6.0,
                max_us: us * 20.0,
            }),
            percentiles: [
                (0.0, 0.9),
                (50.0, 1.0),
                (90.0, 1.1),
                (99.0, 1.4),
                (99.9, 2.5),
                (100.0, 20.0),
            ]
            .map(|(percent, times)| Percentile {
                percent,
                us: us * times,
            })
            .to_vec(),
            runs: runs.to_vec(),
            ..Row::new(bytes, 1000, 1.0)
        }
    }

    #[test]
    fn results_one_after_another_and_in_a_list_are_all_read() {
        let one = report(Measure::Bandwidth, vec![bandwidth(65536, &[190.0])]);
        let text = serde_json::to_string(&one).expect("JSON");
        assert_eq!(parse(&format!("{text}\n{text}")).expect("two").len(), 2);
        assert_eq!(
            parse(&format!("[{text},{text},{text}]"))
                .expect("three")
                .len(),
            3
        );
    }

    #[test]
    fn what_is_no_result_or_can_not_have_been_measured_is_refused() {
        let one = report(Measure::Bandwidth, vec![bandwidth(65536, &[190.0])]);
        let text = serde_json::to_string(&one).expect("JSON");
        let long = "x".repeat(2000);
        for (from, to) in [
            ("\"schema\":2", "\"schema\":99"),
            ("190.0", "-1.0"),
            ("190.0", "1e300"),
            ("\"bytes\":65536", "\"bytes\":0"),
            ("node-1", long.as_str()),
            ("\"depth\":128", "\"depth\":0"),
            ("\"rows\"", "\"ruins\""),
        ] {
            let wrong = text.replace(from, to);
            assert_ne!(wrong, text, "{from}");
            assert!(parse(&wrong).is_err(), "{to}");
        }
        for text in [
            "{}",
            "7",
            "nonsense",
            "[[]]",
            "{\"mesh\":1}",
            "{\"findings\":[1]}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
