//! Latency by size, and how it is distributed.

use super::curves::{self, behind, by_size, heights, of_kind, percent, points};
use super::{bounded, cell, text};
use crate::plot::{Axis, size};
use crate::plot::{Cell, figure};
use crate::plot::{Drawn, Frame, Line, MOST_LINES, Style, lines};
use crate::rdma::report::Content;
use trackbed_rdma::bench::{Figure, Report, Row};

/// Latency by size, and its distribution.
pub(in crate::rdma::report) fn latency(content: &Content) -> Drawn {
    let reports = of_kind(&content.benches, Figure::Latency);
    if reports.is_empty() {
        return Ok(String::new());
    }
    let before = of_kind(&content.baseline, Figure::Latency);
    let mut html = "<h2>Latency</h2>\n".to_owned();
    let median = |row: &Row| {
        row.latency
            .map(|latency| latency.p50_us)
            .filter(|us| *us > 0.0)
    };
    let several = reports.iter().any(|(_, report)| report.rows.len() > 1);
    if several {
        let tail = |row: &Row| {
            row.latency
                .map(|latency| latency.p99_us)
                .filter(|us| *us > 0.0)
        };
        let mut drawn = behind(&before, median);
        // Two lines of each: fewer results have room.
        for (number, (name, report)) in reports.iter().take(MOST_LINES / 2).enumerate() {
            for (what, value, own) in [
                ("p50", &median as &dyn Fn(&Row) -> Option<f64>, 2 * number),
                ("p99", &tail, 2 * number + 1),
            ] {
                drawn.push(Line {
                    name: format!("{name} {what}"),
                    points: points(report, value),
                    style: Style::Own(own),
                });
            }
        }
        html.push_str(&by_size(
            &drawn,
            Axis::decades(heights(&drawn)),
            "latency (µs)",
            "Median and 99th percentile of latency by message size.",
        )?);
    }
    html.push_str(&distribution(&reports, &before)?);
    let mut rows = Vec::new();
    for (name, report) in &reports {
        for row in &report.rows {
            let Some(latency) = row.latency else { continue };
            let baseline = curves::before(&before, report, row, median);
            let mut cells = vec![text(name), Cell::Number(size(row.bytes))];
            let figures = [
                latency.min_us,
                latency.p50_us,
                latency.p90_us,
                latency.p99_us,
                latency.p999_us,
                latency.p9999_us,
                latency.max_us,
            ];
            cells.extend(figures.map(|us| cell(Some(us))));
            cells.push(Cell::Number(percent(
                baseline.map(|before| latency.p50_us / before),
            )));
            rows.push(cells);
        }
    }
    let heads = [
        "Result",
        "#Size",
        "#Min µs",
        "#p50",
        "#p90",
        "#p99",
        "#p99.9",
        "#p99.99",
        "#Max",
        "#p50 of baseline",
    ];
    html.push_str(&bounded(&heads, rows));
    Ok(html)
}

/// Percentile curves: of each result its smallest and its largest message.
fn distribution(reports: &[(String, &Report)], before: &[(String, &Report)]) -> Drawn {
    let curve = |row: &Row| -> Vec<(f64, f64)> {
        let percentiles = row.percentiles.iter().filter(|point| point.us > 0.0);
        let mut points: Vec<(f64, f64)> =
            percentiles.map(|point| (point.percent, point.us)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        // A point for each pixel is more than enough.
        let step = points.len().div_ceil(400).max(1);
        let last = points.last().copied();
        points.into_iter().step_by(step).chain(last).collect()
    };
    let ends = |report: &Report| -> Vec<Row> {
        let mut rows: Vec<&Row> = report
            .rows
            .iter()
            .filter(|row| row.percentiles.len() > 1)
            .collect();
        rows.sort_by_key(|row| row.bytes);
        match rows.as_slice() {
            [] => Vec::new(),
            [one] => vec![(*one).clone()],
            [first, .., last] => vec![(*first).clone(), (*last).clone()],
        }
    };
    let mut drawn: Vec<Line> = Vec::new();
    for (name, report) in before {
        if let Some(row) = ends(report).first() {
            drawn.push(Line {
                name: format!("{name} {}, baseline", size(row.bytes)),
                points: curve(row),
                style: Style::Behind,
            });
        }
    }
    drawn.truncate(MOST_LINES / 2);
    let mut number = 0;
    for (name, report) in reports {
        for row in ends(report) {
            if number < MOST_LINES {
                drawn.push(Line {
                    name: format!("{name} {}", size(row.bytes)),
                    points: curve(&row),
                    style: Style::Own(number),
                });
                number += 1;
            }
        }
    }
    if number == 0 {
        return Ok(String::new());
    }
    let frame = Frame {
        x: Axis::percentiles(),
        y: Axis::decades(heights(&drawn)),
        x_title: "percentile (each further nine has the same room)".to_owned(),
        y_title: "latency (µs)".to_owned(),
    };
    Ok(figure(
        &lines(&frame, &drawn)?,
        "How latency is distributed: that many in a hundred messages take no longer.",
    ))
}
