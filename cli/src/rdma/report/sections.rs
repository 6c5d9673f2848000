//! What the report consists of.

mod bandwidth;
mod curves;
mod latency;
mod mesh;

use super::Content;
use crate::plot::{Cell, date, table};
use crate::plot::{number, size};
use trackbed_rdma::bench::{Figure, Report, Row};
use trackbed_rdma::check::{CheckReport, Severity, Verdict};

pub(super) use bandwidth::bandwidth;
pub(super) use latency::latency;
pub(super) use mesh::mesh;

/// Longer tables don't help; CSV and JSON have everything.
const MOST_ROWS: usize = 400;

fn text(text: impl Into<String>) -> Cell {
    Cell::Text(text.into())
}

fn cell(value: Option<f64>) -> Cell {
    Cell::Number(value.map_or("–".to_owned(), number))
}

/// What each result comes to, in a line.
pub(super) fn summary(content: &Content) -> String {
    let mut rows = Vec::new();
    for report in &content.benches {
        let best = best(report);
        let figure = best.map_or("–".to_owned(), |row| {
            let (value, figure) = row.figure();
            let unit = figure.unit().replace("us", "µs");
            format!("{} {unit} at {}", number(value), size(row.bytes))
        });
        let share = best.and_then(|row| Some(row.gbit_per_second? / line_rate(content, report)?));
        let share = share.map_or(String::new(), |share| format!("{:.0}%", share * 100.0));
        let verdict = match &report.verdict {
            Some(verdict) => Cell::Marked(verdict.to_string(), class(&verdict.outcome.to_string())),
            None => text(""),
        };
        rows.push(vec![
            text(&report.bench),
            text(ends(report)),
            text(figure),
            text(share),
            verdict,
        ]);
    }
    for judged in &content.meshes {
        let (verdict, class) = match (judged.judgement.outliers.len(), judged.judgement.is_whole())
        {
            (0, true) => ("nothing stands out".to_owned(), "good"),
            (0, false) => ("not all could be judged".to_owned(), "warn"),
            (count, _) => (counted(count, "outlier"), "bad"),
        };
        let pairs = format!(
            "{} of {} pairs",
            judged.judgement.measured, judged.judgement.expected
        );
        let nodes = [
            counted(judged.mesh.nodes.len(), "node"),
            counted(judged.mesh.rails(), "rail"),
        ]
        .join(", ");
        rows.push(vec![
            text("mesh"),
            text(nodes),
            text(pairs),
            text(""),
            Cell::Marked(verdict, class),
        ]);
    }
    for check in &content.checks {
        let class = class(&check.verdict.to_string());
        let count = |severity| {
            check
                .findings
                .iter()
                .filter(|finding| finding.severity == severity)
                .count()
        };
        let found = [
            counted(count(Severity::Failure), "failure"),
            counted(count(Severity::Warning), "warning"),
        ]
        .join(", ");
        let verdict = match check.verdict {
            Verdict::Pass => "fit",
            Verdict::Fail => "not fit",
            Verdict::Inconclusive => "inconclusive",
        };
        rows.push(vec![
            text("check"),
            text(&check.node),
            text(found),
            text(""),
            Cell::Marked(verdict.to_owned(), class),
        ]);
    }
    let heads = ["Measured", "Between", "Result", "Of line rate", "Verdict"];
    format!("<h2>Summary</h2>\n{}", table(&heads, &rows))
}

/// A number with its noun.
fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

fn class(outcome: &str) -> &'static str {
    match outcome {
        "pass" => "good",
        "fail" => "bad",
        _ => "warn",
    }
}

fn best(report: &Report) -> Option<&Row> {
    report.rows.iter().reduce(|best, row| {
        let ((value, figure), (before, _)) = (row.figure(), best.figure());
        let better = match figure {
            Figure::Bandwidth => value > before,
            Figure::Latency => value < before,
        };
        if better { row } else { best }
    })
}

fn line_rate(content: &Content, report: &Report) -> Option<f64> {
    content
        .line_rate_gbit_per_second
        .or(report.line_rate_gbit_per_second)
        .filter(|rate| *rate > 0.0)
}

fn ends(report: &Report) -> String {
    format!(
        "{} {}/{} → {} {}",
        report.host, report.device, report.port, report.peer_host, report.peer_device
    )
}

fn bounded(heads: &[&str], mut rows: Vec<Vec<Cell>>) -> String {
    let count = rows.len();
    rows.truncate(MOST_ROWS);
    let mut html = table(heads, &rows);
    if count > MOST_ROWS {
        html.push_str(&format!(
            "<p>The first {MOST_ROWS} of {count} rows; --csv writes all.</p>\n"
        ));
    }
    html
}

/// What nodes were found to be.
pub(super) fn checks(checks: &[CheckReport]) -> String {
    if checks.is_empty() {
        return String::new();
    }
    let mut html = "<h2>Checks</h2>\n".to_owned();
    let mut rows = Vec::new();
    for check in checks {
        for finding in &check.findings {
            let class = match finding.severity {
                Severity::Ok => continue,
                Severity::Note => "",
                Severity::Warning | Severity::Unknown => "warn",
                Severity::Failure => "bad",
            };
            rows.push(vec![
                text(&check.node),
                Cell::Marked(finding.severity.to_string(), class),
                text(&finding.id),
                text(&finding.subject),
                text(&finding.found),
                text(finding.expected.clone().unwrap_or_default()),
                text(finding.remedy.clone().unwrap_or_default()),
            ]);
        }
    }
    let heads = [
        "Node",
        "Severity",
        "Check",
        "Subject",
        "Found",
        "Expected",
        "What to do",
    ];
    html.push_str(&bounded(&heads, rows));
    html
}

/// What was measured with what.
pub(super) fn setup(content: &Content) -> String {
    if content.benches.is_empty() {
        return String::new();
    }
    let mut html = "<h2>How it was measured</h2>\n".to_owned();
    let rows = content
        .benches
        .iter()
        .map(|report| {
            let options: Vec<String> = report
                .plan
                .options()
                .into_iter()
                .map(|(option, value)| format!("{option} {value}"))
                .collect();
            vec![
                text(&report.bench),
                text(ends(report)),
                text(format!("{} (index {})", report.gid, report.gid_index)),
                Cell::Number(report.mtu.to_string()),
                text(date(report.began_unix_seconds)),
                text(options.join(", ")),
            ]
        })
        .collect();
    let heads = [
        "Measured",
        "Between",
        "GID",
        "#MTU",
        "Begun (UTC)",
        "Options",
    ];
    html.push_str(&bounded(&heads, rows));
    html
}
