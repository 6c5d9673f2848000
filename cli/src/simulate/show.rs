//! What is shown of a simulation: a table, and a page of plots.

use super::{Played, Summary};
use crate::plot::{
    Axis, Cell, Drawn, Frame, Line, MOST_LINES, Style, document, figure, lines, table as html_table,
};
use comfy_table::{CellAlignment, Table, presets};
use trackbed_controller::simulate::JobOutcome;

/// How many points a curve has.
const POINTS: usize = 60;

const HEADS: [&str; 8] = [
    "policy",
    "cluster",
    "mean JCT",
    "mean wait",
    "p50 wait",
    "p99 wait",
    "utilisation",
    "makespan",
];

fn cells(summary: &Summary) -> [String; 8] {
    let hours = |hours: f64| format!("{hours:.2} h");
    [
        summary.policy.to_owned(),
        summary.cluster.clone(),
        hours(summary.mean_jct_hours),
        hours(summary.mean_wait_hours),
        hours(summary.p50_wait_hours),
        hours(summary.p99_wait_hours),
        format!("{:.2} %", 100.0 * summary.utilisation),
        hours(summary.makespan_hours),
    ]
}

/// A line a policy and cluster.
pub(super) fn table(summaries: &[Summary]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_header(HEADS);
    for summary in summaries {
        table.add_row(cells(summary));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// The table, and what share of the jobs waited how long and took how long.
pub(super) fn page(played: &[Played]) -> Drawn {
    let heads = HEADS.map(|head| match head {
        "policy" | "cluster" => head.to_owned(),
        other => format!("#{other}"),
    });
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let row = |played: &Played| -> Vec<Cell> {
        let [policy, cluster, figures @ ..] = cells(&Summary::of(played));
        let words = [policy, cluster].map(Cell::Text);
        words.into_iter().chain(figures.map(Cell::Number)).collect()
    };
    let rows: Vec<Vec<Cell>> = played.iter().map(row).collect();
    let mut body = html_table(&heads, &rows);
    for (what, of) in [
        ("wait", JobOutcome::wait as fn(&JobOutcome) -> i64),
        ("time from submission to end", JobOutcome::jct),
    ] {
        let svg = curves(played, what, of)?;
        let caption =
            format!("Share of the jobs whose {what} is at most so long; to the left is better.");
        body.push_str(&figure(&svg, &caption));
    }
    Ok(document("Simulation of a trace", &body))
}

fn curves(played: &[Played], what: &str, of: fn(&JobOutcome) -> i64) -> Drawn {
    // A second is as good as none, and has a place on an axis of decades.
    let hours = |job: &JobOutcome| (of(job) as f64 / 3_600_000.0).max(1.0 / 3600.0);
    let several = played.iter().any(|one| one.cluster != played[0].cluster);
    let made: Vec<Line> = played
        .iter()
        .take(MOST_LINES)
        .enumerate()
        .map(|(number, one)| {
            let mut values: Vec<f64> = one.outcome.jobs.iter().map(hours).collect();
            values.sort_by(f64::total_cmp);
            let point = |step: usize| {
                let rank = (step * values.len()).div_ceil(POINTS).max(1);
                (values[rank - 1], 100.0 * rank as f64 / values.len() as f64)
            };
            let name = match several {
                true => format!("{} {}", one.policy.name(), one.cluster),
                false => one.policy.name().to_owned(),
            };
            Line {
                name,
                points: (1..=POINTS).map(point).collect(),
                style: Style::Own(number),
            }
        })
        .collect();
    let all = made
        .iter()
        .flat_map(|line| line.points.iter().map(|(hours, _)| *hours));
    let frame = Frame {
        x: Axis::decades(all),
        y: Axis::between(0.0, 100.0),
        x_title: format!("{what}, hours"),
        y_title: "% of the jobs".to_owned(),
    };
    lines(&frame, &made)
}
