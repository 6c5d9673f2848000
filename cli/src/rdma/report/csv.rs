//! All figures, a line each, for spreadsheets (RFC 4180).

use super::Content;
use std::fmt::Write as _;
use trackbed_rdma::bench::Report;

const HEAD: &str = "source,what,from,to,rail,bytes,quantity,unit,value";

/// Writes everything that was measured.
pub(super) fn figures(content: &Content) -> String {
    let mut text = format!("{HEAD}\r\n");
    for (source, reports) in [("bench", &content.benches), ("baseline", &content.baseline)] {
        for report in reports {
            bench(&mut text, source, report);
        }
    }
    for judged in &content.meshes {
        let mesh = &judged.mesh;
        for pair in &mesh.pairs {
            let (a, b) = (
                mesh.nodes[pair.a].port_name(pair.rail),
                mesh.nodes[pair.b].port_name(pair.rail),
            );
            let rail = pair.rail.to_string();
            for (from, to, quantity, unit, value) in [
                (&a, &b, "bandwidth", "Gb/s", pair.there_gbps),
                (&b, &a, "bandwidth", "Gb/s", pair.back_gbps),
                (&a, &b, "latency p50", "us", pair.latency_us),
            ] {
                if let Some(value) = value {
                    line(
                        &mut text,
                        &["mesh", "pair", from, to, &rail, "", quantity, unit],
                        value,
                    );
                }
            }
        }
    }
    text
}

fn bench(text: &mut String, source: &str, report: &Report) {
    let from = format!("{} {}/{}", report.host, report.device, report.port);
    let to = format!("{} {}", report.peer_host, report.peer_device);
    for row in &report.rows {
        let bytes = row.bytes.to_string();
        let mut add = |quantity: &str, unit: &str, value: f64| {
            line(
                text,
                &[
                    source,
                    &report.bench,
                    &from,
                    &to,
                    "",
                    &bytes,
                    quantity,
                    unit,
                ],
                value,
            );
        };
        if let Some(value) = row.gbit_per_second {
            add("bandwidth", "Gb/s", value);
        }
        if let Some(value) = row.messages_per_second {
            add("messages", "1/s", value);
        }
        if let Some(interval) = &row.interval {
            let unit = row.figure().1.unit();
            add("interval low", unit, interval.low);
            add("interval high", unit, interval.high);
        }
        for (run, value) in row.runs.iter().enumerate() {
            add(&format!("run {}", run + 1), row.figure().1.unit(), *value);
        }
        for point in &row.percentiles {
            add(&format!("latency p{}", point.percent), "us", point.us);
        }
    }
}

fn line(text: &mut String, fields: &[&str; 8], value: f64) {
    for field in fields {
        // Writing to a string does not fail.
        let _ = write!(text, "{},", quoted(field));
    }
    let _ = write!(text, "{value}\r\n");
}

/// A field in quotes where it needs them. A spreadsheet would run what begins like a formula, so that
/// gets an apostrophe before.
fn quoted(field: &str) -> String {
    let mut field = field.to_owned();
    if field.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        field.insert(0, '\'');
    }
    if field.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}
