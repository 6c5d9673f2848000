//! What the report consists of.

use super::axis::{Axis, number, size};
use super::page::{Cell, date, figure, table};
use super::plot::{Drawn, Frame, Line, MOST_LINES, Style, histogram, lines};
use super::{Content, JudgedMesh, heat};
use trackbed_rdma::bench::{Figure, Report, Row};
use trackbed_rdma::check::{CheckReport, Severity, Verdict};

/// More rails are drawn on request of nobody: the tables name what is slow.
const MOST_MAPS: usize = 8;
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

/// Results of one kind, with names that tell them apart.
fn of_kind(reports: &[Report], figure: Figure) -> Vec<(String, &Report)> {
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

fn points(report: &Report, value: impl Fn(&Row) -> Option<f64>) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = report
        .rows
        .iter()
        .filter_map(|row| Some((row.bytes as f64, value(row)?)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

fn own_lines(reports: &[(String, &Report)], value: impl Fn(&Row) -> Option<f64>) -> Vec<Line> {
    reports
        .iter()
        .take(MOST_LINES)
        .enumerate()
        .map(|(number, (name, report))| Line {
            name: name.clone(),
            points: points(report, &value),
            style: Style::Own(number),
        })
        .collect()
}

fn behind(reports: &[(String, &Report)], value: impl Fn(&Row) -> Option<f64>) -> Vec<Line> {
    reports
        .iter()
        .take(MOST_LINES)
        .map(|(name, report)| Line {
            name: format!("{name}, baseline"),
            points: points(report, &value),
            style: Style::Behind,
        })
        .collect()
}

fn left_out(count: usize) -> String {
    if count > MOST_LINES {
        format!(
            "<p>{} of {count} results are drawn; the table has all.</p>\n",
            MOST_LINES
        )
    } else {
        String::new()
    }
}

fn sizes(lines: &[Line]) -> Axis {
    Axis::sizes(
        lines
            .iter()
            .flat_map(|line| line.points.iter().map(|point| point.0 as u64)),
    )
}

fn heights(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines
        .iter()
        .flat_map(|line| line.points.iter().map(|point| point.1))
}

/// Bandwidth and message rate by size.
pub(super) fn bandwidth(content: &Content) -> Drawn {
    let reports = of_kind(&content.benches, Figure::Bandwidth);
    if reports.is_empty() {
        return Ok(String::new());
    }
    let before = of_kind(&content.baseline, Figure::Bandwidth);
    let mut html = "<h2>Bandwidth</h2>\n".to_owned();
    let gbps = |row: &Row| row.gbit_per_second;
    let mut drawn = behind(&before, gbps);
    drawn.extend(own_lines(&reports, gbps));
    let x = sizes(&drawn);
    let mut rates: Vec<f64> = reports
        .iter()
        .filter_map(|(_, report)| line_rate(content, report))
        .collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    rates.truncate(4);
    let (low, high) = x.ends();
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
    let frame = Frame {
        y: Axis::from_zero(heights(&drawn)),
        x,
        x_title: "message size".to_owned(),
        y_title: "bandwidth (Gb/s)".to_owned(),
    };
    html.push_str(&figure(
        &lines(&frame, &drawn)?,
        "Bandwidth by message size; with several runs, their mean.",
    ));
    let rate = |row: &Row| {
        row.messages_per_second
            .map(|rate| rate / 1e6)
            .filter(|rate| *rate > 0.0)
    };
    let mut drawn = behind(&before, rate);
    drawn.extend(own_lines(&reports, rate));
    let frame = Frame {
        x: sizes(&drawn),
        y: Axis::decades(heights(&drawn)),
        x_title: "message size".to_owned(),
        y_title: "messages (million/s)".to_owned(),
    };
    if reports.iter().any(|(_, report)| report.rows.len() > 1) {
        html.push_str(&figure(
            &lines(&frame, &drawn)?,
            "Messages a second by message size.",
        ));
    }
    html.push_str(&left_out(reports.len()));
    let mut rows = Vec::new();
    for (name, report) in &reports {
        for row in &report.rows {
            let share = row.gbit_per_second.zip(line_rate(content, report));
            let baseline = before
                .iter()
                .filter(|(_, known)| known.bench == report.bench)
                .find_map(|(_, known)| {
                    known
                        .rows
                        .iter()
                        .find(|known| known.bytes == row.bytes)?
                        .gbit_per_second
                })
                .filter(|before| *before > 0.0);
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

fn percent(share: Option<f64>) -> String {
    share.map_or("–".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

fn interval(row: &Row) -> Cell {
    Cell::Number(row.interval.as_ref().map_or("–".to_owned(), |interval| {
        format!("{} – {}", number(interval.low), number(interval.high))
    }))
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

/// Latency by size, and its distribution.
pub(super) fn latency(content: &Content) -> Drawn {
    let reports = of_kind(&content.benches, Figure::Latency);
    if reports.is_empty() {
        return Ok(String::new());
    }
    let before = of_kind(&content.baseline, Figure::Latency);
    let mut html = "<h2>Latency</h2>\n".to_owned();
    let several = reports.iter().any(|(_, report)| report.rows.len() > 1);
    if several {
        let median = |row: &Row| {
            row.latency
                .map(|latency| latency.p50_us)
                .filter(|us| *us > 0.0)
        };
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
        let frame = Frame {
            x: sizes(&drawn),
            y: Axis::decades(heights(&drawn)),
            x_title: "message size".to_owned(),
            y_title: "latency (µs)".to_owned(),
        };
        html.push_str(&figure(
            &lines(&frame, &drawn)?,
            "Median and 99th percentile of latency by message size.",
        ));
    }
    html.push_str(&distribution(&reports, &before)?);
    let mut rows = Vec::new();
    for (name, report) in &reports {
        for row in &report.rows {
            let Some(latency) = row.latency else { continue };
            let baseline = before
                .iter()
                .filter(|(_, known)| known.bench == report.bench)
                .find_map(|(_, known)| {
                    known
                        .rows
                        .iter()
                        .find(|known| known.bytes == row.bytes)?
                        .latency
                })
                .filter(|before| before.p50_us > 0.0);
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
                baseline.map(|before| latency.p50_us / before.p50_us),
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

/// Heat maps, the distribution of figures, and what stands out.
pub(super) fn mesh(judged: &JudgedMesh) -> Drawn {
    let mesh = &judged.mesh;
    let mut html = format!("<h2>Mesh of {} nodes</h2>\n", mesh.nodes.len());
    let outliers = &judged.judgement.outliers;
    if outliers.is_empty() {
        html.push_str("<p>Nothing stands out.</p>\n");
    } else {
        let rows = outliers
            .iter()
            .map(|outlier| {
                vec![
                    Cell::Marked(outlier.kind.to_string(), "bad"),
                    text(&outlier.subject),
                    text(&outlier.sentence),
                    text(outlier.kind.remedy()),
                ]
            })
            .collect();
        html.push_str("<h3>What stands out</h3>\n");
        html.push_str(&bounded(&["Kind", "Name", "Found", "Where to look"], rows));
    }
    for (figure_of, what) in [
        (Figure::Bandwidth, "bandwidth"),
        (Figure::Latency, "latency"),
    ] {
        let values: Vec<f64> = mesh
            .pairs
            .iter()
            .flat_map(|pair| match figure_of {
                Figure::Bandwidth => [pair.there_gbps, pair.back_gbps],
                Figure::Latency => [pair.latency_us, None],
            })
            .flatten()
            .collect();
        if values.is_empty() {
            continue;
        }
        for rail in 0..mesh.rails().min(MOST_MAPS) {
            let from = match figure_of {
                Figure::Bandwidth => "From the row's node to the column's",
                Figure::Latency => {
                    "Half of a round trip, median, between the row's node and the column's"
                }
            };
            let whole = if mesh.nodes.len() > 96 {
                "; each square is the worst of a block of nodes"
            } else {
                ""
            };
            let caption = format!("Rail {rail}, {what}. {from}{whole}. Darker is worse.");
            html.push_str(&figure(&heat::map(mesh, rail, figure_of)?, &caption));
        }
        let unit = figure_of.unit().replace("us", "µs");
        let plot = histogram(&values, &format!("{what} ({unit})"))?;
        html.push_str(&figure(
            &plot,
            &format!("How {what} is distributed over all pairs."),
        ));
    }
    Ok(html)
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
