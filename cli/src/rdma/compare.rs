//! `trackbed rdma compare`.

mod rank;

use super::input::{self, ResultFile};
use super::{print, print_json, table};
use crate::Output;
use crate::exit::Failure;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use trackbed_rdma::bench::{Figure, Report};

const AFTER_HELP: &str = "\
Examples:
  trackbed rdma bench write bandwidth node-1 --runs 10 --output json > before.json
  trackbed rdma bench write bandwidth node-1 --runs 10 --output json > after.json
  trackbed rdma compare before.json after.json

Runs of equal measurements (operation, size, options) are compared by a rank test (Mann-Whitney U,
exact for small numbers, Holm's correction over all cases). A file may hold several results, one
after another; their runs count together. Four runs on each side are the fewest that can differ.
Exit status: 0 B is the same or better in every case, 1 worse in one, 2 undecided in one and worse
in none, 3 there is nothing to compare.";

/// Compare two results by a rank test, with a verdict
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct CompareArgs {
    /// What was before
    a: PathBuf,

    /// What is now
    b: PathBuf,

    /// Differences smaller than this are the same, in percent
    #[arg(long, default_value_t = 2.0, value_name = "PERCENT")]
    margin: f64,

    /// How sure a verdict must be
    #[arg(long, default_value_t = 0.95, value_name = "SHARE")]
    confidence: f64,

    /// The form of what is printed
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    output: Output,
}

/// How a case turned out for B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// The whole interval is within the margin.
    Same,
    /// Surely better.
    Better,
    /// Surely worse.
    Worse,
    /// The runs don't tell.
    Inconclusive,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Same => "same",
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::Inconclusive => "inconclusive",
        })
    }
}

/// One measurement that both files have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Case {
    /// What was measured, and of what size.
    pub(super) name: String,
    /// `Gb/s` or `us`.
    pub(super) unit: &'static str,
    /// Median before, and how many runs it is of.
    pub(super) a: f64,
    pub(super) a_runs: usize,
    /// Median now.
    pub(super) b: f64,
    pub(super) b_runs: usize,
    /// B over A, by Hodges and Lehmann, and its interval.
    pub(super) ratio: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// The chance that a run of B is better than one of A; 0.5 when they are alike.
    pub(super) superiority: f64,
    /// Of the rank test, two-sided, corrected for the number of cases.
    pub(super) p: f64,
    pub(super) verdict: Verdict,
}

#[derive(Serialize)]
struct Comparison<'a> {
    verdict: Verdict,
    cases: &'a [Case],
    only_a: &'a [String],
    only_b: &'a [String],
}

pub(crate) fn run(args: CompareArgs) -> Result<(), Failure> {
    if !(0.0..100.0).contains(&args.margin) {
        return Err(Failure::unable(format!(
            "--margin {}: give 0 to 100 percent",
            args.margin
        )));
    }
    if !(0.5..1.0).contains(&args.confidence) {
        return Err(Failure::unable(format!(
            "--confidence {}: give 0.5 to 0.999, such as 0.95",
            args.confidence
        )));
    }
    let (a, b) = (runs(&reports(&args.a)?), runs(&reports(&args.b)?));
    let cases = cases(&a, &b, args.margin / 100.0, 1.0 - args.confidence);
    if cases.is_empty() {
        return Err(Failure::unable(format!(
            "{} and {} have no measurement in common: {} against {}; measure the same operation, \
             sizes and options",
            args.a.display(),
            args.b.display(),
            names(a.keys()),
            names(b.keys())
        )));
    }
    let only = |one: &Runs, other: &Runs| -> Vec<String> {
        let keys = one.keys().filter(|key| !other.contains_key(*key));
        keys.map(|key| key.name.clone()).collect()
    };
    let (only_a, only_b) = (only(&a, &b), only(&b, &a));
    let (verdict, code) = overall(&cases);
    match args.output {
        Output::Json => print_json(&Comparison {
            verdict,
            cases: &cases,
            only_a: &only_a,
            only_b: &only_b,
        })?,
        Output::Table => print(&text(&cases, &only_a, &only_b, verdict))?,
    }
    match code {
        0 => Ok(()),
        code => Err(Failure::silent(code)),
    }
}

/// What makes two measurements comparable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The operation.
    bench: String,
    /// Message size in bytes.
    bytes: u64,
    /// Every option but sizes, runs and how long.
    options: String,
    /// For people.
    name: String,
}

pub(super) type Runs = BTreeMap<Key, (Figure, Vec<f64>)>;

fn reports(path: &std::path::Path) -> Result<Vec<Report>, Failure> {
    let reports: Vec<Report> = input::read(path)?
        .into_iter()
        .filter_map(|result| match result {
            ResultFile::Bench(report) => Some(*report),
            _ => None,
        })
        .collect();
    if reports.is_empty() {
        return Err(Failure::unable(format!(
            "{} holds no result of `trackbed rdma bench`",
            path.display()
        )));
    }
    Ok(reports)
}

/// The runs of each measurement. A row without runs is one run.
pub(super) fn runs(reports: &[Report]) -> Runs {
    let mut runs = Runs::new();
    for report in reports {
        let not_compared = ["size", "runs", "iterations", "duration", "warmup", "settle"];
        let options: Vec<String> = report
            .plan
            .options()
            .into_iter()
            .filter(|(option, _)| !not_compared.contains(option))
            .map(|(option, value)| format!("{option} {value}"))
            .collect();
        for row in &report.rows {
            let (value, figure) = row.figure();
            let key = Key {
                bench: report.bench.clone(),
                bytes: row.bytes,
                options: options.join(", "),
                name: format!("{}, {} bytes", report.bench, row.bytes),
            };
            let (_, values) = runs.entry(key).or_insert((figure, Vec::new()));
            if row.runs.is_empty() {
                values.push(value);
            } else {
                values.extend(&row.runs);
            }
        }
    }
    for (_, values) in runs.values_mut() {
        // A ratio needs them positive; a run that moved nothing can't be compared.
        values.retain(|value| value.is_finite() && *value > 0.0);
    }
    runs.retain(|_, (_, values)| !values.is_empty());
    runs
}

/// Compares what both have.
pub(super) fn cases(a: &Runs, b: &Runs, margin: f64, alpha: f64) -> Vec<Case> {
    let mut cases: Vec<Case> = a
        .iter()
        .filter_map(|(key, (figure, before))| {
            let (_, now) = b.get(key)?;
            let log = |values: &[f64]| values.iter().map(|value| value.ln()).collect::<Vec<_>>();
            let (x, y) = (log(before), log(now));
            let shift = rank::shift(&x, &y, alpha);
            let test = rank::mann_whitney(&x, &y);
            Some(Case {
                name: key.name.clone(),
                unit: figure.unit(),
                a: rank::median(before),
                a_runs: before.len(),
                b: rank::median(now),
                b_runs: now.len(),
                ratio: shift.estimate.exp(),
                low: shift.low.exp(),
                high: shift.high.exp(),
                superiority: match figure {
                    Figure::Bandwidth => test.superiority,
                    Figure::Latency => 1.0 - test.superiority,
                },
                p: test.p,
                verdict: Verdict::Inconclusive,
            })
        })
        .collect();
    rank::holm(&mut cases, |case| &mut case.p);
    for case in &mut cases {
        case.verdict = verdict(case, margin, alpha);
    }
    cases
}

fn verdict(case: &Case, margin: f64, alpha: f64) -> Verdict {
    let (least, most) = (1.0 - margin, 1.0 + margin);
    if least <= case.low && case.high <= most {
        return Verdict::Same;
    }
    // Sure that it differs, and by more than the margin.
    if case.p < alpha && !(least..=most).contains(&case.ratio) {
        let more = case.ratio > 1.0;
        return if more == (case.unit == Figure::Bandwidth.unit()) {
            Verdict::Better
        } else {
            Verdict::Worse
        };
    }
    Verdict::Inconclusive
}

fn overall(cases: &[Case]) -> (Verdict, u8) {
    let any = |verdict| cases.iter().any(|case| case.verdict == verdict);
    if any(Verdict::Worse) {
        (Verdict::Worse, 1)
    } else if any(Verdict::Inconclusive) {
        (Verdict::Inconclusive, 2)
    } else if any(Verdict::Better) {
        (Verdict::Better, 0)
    } else {
        (Verdict::Same, 0)
    }
}

fn names<'a>(keys: impl Iterator<Item = &'a Key>) -> String {
    let names: Vec<&str> = keys.map(|key| key.name.as_str()).take(8).collect();
    names.join("; ")
}

fn text(cases: &[Case], only_a: &[String], only_b: &[String], verdict: Verdict) -> String {
    let mut table = table(&[
        "CASE", "A", "B", "UNIT", "B/A", "INTERVAL", "P", "RUNS", "VERDICT",
    ]);
    for case in cases {
        table.add_row([
            case.name.clone(),
            format!("{:.3}", case.a),
            format!("{:.3}", case.b),
            case.unit.to_owned(),
            format!("{:.3}", case.ratio),
            format!("{:.3} to {:.3}", case.low, case.high),
            format!("{:.3}", case.p),
            format!("{}, {}", case.a_runs, case.b_runs),
            case.verdict.to_string(),
        ]);
    }
    let mut parts = vec![table.to_string()];
    for (only, file) in [(only_a, "A"), (only_b, "B")] {
        if !only.is_empty() {
            parts.push(format!("Only in {file}: {}", only.join("; ")));
        }
    }
    let too_few = cases
        .iter()
        .any(|case| case.verdict == Verdict::Inconclusive && (case.a_runs < 4 || case.b_runs < 4));
    let hint = if too_few {
        ": too few runs; measure with --runs 10"
    } else if verdict == Verdict::Inconclusive {
        ": more runs, or a quieter machine, would tell"
    } else {
        ""
    };
    parts.push(format!("B is {verdict}{hint}"));
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::{bandwidth, latency, report};
    use super::*;
    use trackbed_rdma::bench::Measure;

    fn compared(a: Report, b: Report) -> Vec<Case> {
        cases(&runs(&[a]), &runs(&[b]), 0.02, 0.05)
    }

    fn around(value: f64) -> Vec<f64> {
        (0..10)
            .map(|run| value * (1.0 + f64::from(run) / 2000.0))
            .collect()
    }

    fn write(value: f64) -> Report {
        report(Measure::Bandwidth, vec![bandwidth(65536, &around(value))])
    }

    #[test]
    fn less_bandwidth_is_worse_and_less_latency_better() {
        let case = &compared(write(190.0), write(150.0))[0];
        assert_eq!(case.verdict, Verdict::Worse);
        assert!((0.78..0.80).contains(&case.ratio), "{case:?}");
        assert_eq!(case.superiority, 0.0);
        assert_eq!(overall(std::slice::from_ref(case)).1, 1);
        let slow = report(Measure::Latency, vec![latency(2, &around(2.0))]);
        let fast = report(Measure::Latency, vec![latency(2, &around(1.5))]);
        let case = &compared(slow, fast)[0];
        assert_eq!(case.verdict, Verdict::Better);
        assert_eq!(case.superiority, 1.0);
    }

    #[test]
    fn a_difference_within_the_margin_is_the_same_however_sure() {
        let cases = compared(write(190.0), write(188.5));
        assert_eq!(cases[0].verdict, Verdict::Same);
        assert_eq!(overall(&cases), (Verdict::Same, 0));
    }

    #[test]
    fn too_few_or_too_noisy_runs_are_undecided() {
        let one = |value| report(Measure::Bandwidth, vec![bandwidth(65536, &[value])]);
        let cases = compared(one(190.0), one(100.0));
        assert_eq!(cases[0].verdict, Verdict::Inconclusive);
        assert!(text(&cases, &[], &[], Verdict::Inconclusive).contains("--runs 10"));
        assert_eq!(overall(&cases).1, 2);
    }

    #[test]
    fn what_was_measured_otherwise_is_not_compared() {
        let mut deeper = write(190.0);
        deeper.plan.depth = 256;
        assert_eq!(compared(write(190.0), deeper), []);
        let other = report(Measure::Bandwidth, vec![bandwidth(4096, &around(100.0))]);
        assert_eq!(compared(write(190.0), other), []);
    }

    #[test]
    fn several_results_of_one_file_count_together() {
        let runs = runs(&[write(190.0), write(191.0)]);
        assert_eq!(
            runs.values().next().map(|(_, values)| values.len()),
            Some(20)
        );
    }
}
