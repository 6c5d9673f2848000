//! From results to lines.

use super::Cell;
use crate::plot::figure;
use crate::plot::{Axis, number};
use crate::plot::{Drawn, Frame, Line, MOST_LINES, Style, lines};
use trackbed_rdma::bench::{Figure, Report, Row};

/// Results of one kind, with names that tell them apart.
pub(super) fn of_kind(reports: &[Report], figure: Figure) -> Vec<(String, &Report)> {
    let found: Vec<&Report> = reports
        .iter()
        .filter(|report| {
            report
                .rows
                .first()
                .is_some_and(|row| row.figure().1 == figure)
        })
        .collect();
    let verb = |report: &Report| {
        report
            .bench
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let alike = |key: &dyn Fn(&Report) -> String| {
        let mut keys: Vec<String> = found.iter().map(|report| key(report)).collect();
        keys.sort();
        keys.windows(2).any(|two| two[0] == two[1])
    };
    let with_host = |report: &Report| format!("{}, {}", verb(report), report.host);
    found
        .iter()
        .enumerate()
        .map(|(number, report)| {
            let name = if !alike(&verb) {
                verb(report)
            } else if !alike(&with_host) {
                with_host(report)
            } else {
                format!("{} {}", verb(report), number + 1)
            };
            (name, *report)
        })
        .collect()
}

pub(super) fn points(report: &Report, value: impl Fn(&Row) -> Option<f64>) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = report
        .rows
        .iter()
        .filter_map(|row| Some((row.bytes as f64, value(row)?)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// The lines of the results themselves.
pub(super) fn own_lines(
    reports: &[(String, &Report)],
    value: impl Fn(&Row) -> Option<f64>,
) -> Vec<Line> {
    a_line_each(reports, value, |number, name| {
        (name.to_owned(), Style::Own(number))
    })
}

/// The lines of the baseline.
pub(super) fn behind(
    reports: &[(String, &Report)],
    value: impl Fn(&Row) -> Option<f64>,
) -> Vec<Line> {
    a_line_each(reports, value, |_, name| {
        (format!("{name}, baseline"), Style::Behind)
    })
}

fn a_line_each(
    reports: &[(String, &Report)],
    value: impl Fn(&Row) -> Option<f64>,
    looks: impl Fn(usize, &str) -> (String, Style),
) -> Vec<Line> {
    let shown = reports.iter().take(MOST_LINES).enumerate();
    shown
        .map(|(number, (name, report))| {
            let (name, style) = looks(number, name);
            Line {
                name,
                points: points(report, &value),
                style,
            }
        })
        .collect()
}

/// A figure of lines by message size.
pub(super) fn by_size(drawn: &[Line], y: Axis, y_title: &str, caption: &str) -> Drawn {
    let frame = Frame {
        x: sizes(drawn),
        y,
        x_title: "message size".to_owned(),
        y_title: y_title.to_owned(),
    };
    Ok(figure(&lines(&frame, drawn)?, caption))
}

/// What the baseline has for the same measurement and size.
pub(super) fn before(
    baseline: &[(String, &Report)],
    report: &Report,
    row: &Row,
    value: impl Fn(&Row) -> Option<f64>,
) -> Option<f64> {
    let known = baseline
        .iter()
        .filter(|(_, known)| known.bench == report.bench);
    let mut rows = known.flat_map(|(_, known)| &known.rows);
    rows.find(|known| known.bytes == row.bytes)
        .and_then(value)
        .filter(|value| *value > 0.0)
}

pub(super) fn left_out(count: usize) -> String {
    if count > MOST_LINES {
        format!(
            "<p>{} of {count} results are drawn; the table has all.</p>\n",
            MOST_LINES
        )
    } else {
        String::new()
    }
}

pub(super) fn sizes(lines: &[Line]) -> Axis {
    Axis::sizes(
        lines
            .iter()
            .flat_map(|line| line.points.iter().map(|point| point.0 as u64)),
    )
}

pub(super) fn heights(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines
        .iter()
        .flat_map(|line| line.points.iter().map(|point| point.1))
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or("–".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

pub(super) fn interval(row: &Row) -> Cell {
    Cell::Number(row.interval.as_ref().map_or("–".to_owned(), |interval| {
        format!("{} – {}", number(interval.low), number(interval.high))
    }))
}
