//! Bandwidth and message rate, beside line rate and baseline.

use super::curves::{
    self, behind, by_size, heights, interval, left_out, of_kind, own_lines, percent, sizes,
};
use super::{bounded, cell, line_rate, text};
use crate::plot::Cell;
use crate::plot::{Axis, number, size};
use crate::plot::{Drawn, Line, Style};
use crate::rdma::report::Content;
use trackbed_rdma::bench::{Figure, Row};

/// Bandwidth and message rate by size.
pub(in crate::rdma::report) fn bandwidth(content: &Content) -> Drawn {
    let reports = of_kind(&content.benches, Figure::Bandwidth);
    if reports.is_empty() {
        return Ok(String::new());
    }
    let before = of_kind(&content.baseline, Figure::Bandwidth);
    let mut html = "<h2>Bandwidth</h2>\n".to_owned();
    let gbps = |row: &Row| row.gbit_per_second;
    let mut drawn = behind(&before, gbps);
    drawn.extend(own_lines(&reports, gbps));
    let mut rates: Vec<f64> = reports
        .iter()
        .filter_map(|(_, report)| line_rate(content, report))
        .collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    rates.truncate(4);
    let (low, high) = sizes(&drawn).ends();
    let most = heights(&drawn).fold(0.0, f64::max);
    let mut levels = Vec::new();
    for rate in &rates {
        // A software device's nominal rate would flatten everything else.
        if *rate <= most * 20.0 {
            levels.push(Line {
                name: format!("line rate {}", number(*rate)),
                points: vec![(low, *rate), (high, *rate)],
                style: Style::Level,
            });
        }
    }
    drawn.extend(levels);
    html.push_str(&by_size(
        &drawn,
        Axis::from_zero(heights(&drawn)),
        "bandwidth (Gb/s)",
        "Bandwidth by message size; with several runs, their mean.",
    )?);
    let rate = |row: &Row| {
        row.messages_per_second
            .map(|rate| rate / 1e6)
            .filter(|rate| *rate > 0.0)
    };
    let mut drawn = behind(&before, rate);
    drawn.extend(own_lines(&reports, rate));
    if reports.iter().any(|(_, report)| report.rows.len() > 1) {
        html.push_str(&by_size(
            &drawn,
            Axis::decades(heights(&drawn)),
            "messages (million/s)",
            "Messages a second by message size.",
        )?);
    }
    html.push_str(&left_out(reports.len()));
    let mut rows = Vec::new();
    for (name, report) in &reports {
        for row in &report.rows {
            let share = row.gbit_per_second.zip(line_rate(content, report));
            let baseline = curves::before(&before, report, row, gbps);
            rows.push(vec![
                text(name),
                Cell::Number(size(row.bytes)),
                cell(row.gbit_per_second),
                interval(row),
                cell(row.messages_per_second),
                Cell::Number(percent(share.map(|(gbps, rate)| gbps / rate))),
                Cell::Number(percent(
                    row.gbit_per_second
                        .zip(baseline)
                        .map(|(now, before)| now / before),
                )),
                text(row.limit.map_or(String::new(), |limit| limit.to_string())),
            ]);
        }
    }
    let heads = [
        "Result",
        "#Size",
        "#Gb/s",
        "#95% interval",
        "#Messages/s",
        "#Of line rate",
        "#Of baseline",
        "Limited by",
    ];
    html.push_str(&bounded(&heads, rows));
    Ok(html)
}
