//! The planner of gangs: how long a plan takes beside its limit, and what jobs see of its policy beside
//! what they see of others, on generated traces and on files; and how many gangs a second a controller
//! admits.

mod admissions;
mod load;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use trackbed_controller::{
    plan::{Discipline, plan},
    simulate::{Cluster, Outcome, Policy, Trace, generate, simulate},
};

use crate::{
    BenchError,
    paired::{Better, Pair},
    progress::Progress,
    row::{Case, Row},
    selection::Selection,
    session::Session,
};

/// Times that each figure is taken on every change, and in the long run.
const RUNS: (usize, usize) = (5, 20);
/// Plans of which the slowest but one in a hundred counts.
const PLANS: usize = 100;
/// Sizes of cluster and queue, and the limit of a plan in milliseconds.
const SIZES: [(usize, f64); 2] = [(1_000, 50.0), (10_000, 500.0)];
/// The least gangs a second that a controller admits.
const ADMISSIONS: f64 = 200.0;
/// The cluster that traces are played on: 160 accelerators.
const CLUSTER: &str = "20x8:v100";
/// Generated traces: jobs in each, and their seeds. They keep 9 of 10 accelerators busy.
const GENERATED: (usize, std::ops::RangeInclusive<u64>) = (2_000, 1..=3);
/// By how much run times are said wrongly, in the cases that end so.
const WRONG: f64 = 3.0;
/// The mean completion time may be this many times that of the shortest job first.
const BESIDE_SJF: f64 = 1.05;

/// Which cases, and how often.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    selection: Selection,
    /// Times that each figure is taken [default: 5, with --long 20].
    #[arg(long)]
    pairs: Option<usize>,
    /// A folder of traces, in the forms that `trackbed simulate` reads: .trace, .csv, gzipped or not.
    #[arg(long, value_name = "FOLDER", env = "TRACKBED_TRACES")]
    traces: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
enum Measure {
    /// A plan with so many nodes and gangs, beside milliseconds.
    Plan(usize, f64),
    /// Admissions a second, beside a number of them.
    Admissions(f64),
    Jct,
    Wait,
    Utilisation,
}

#[derive(Debug)]
struct Wanted {
    name: String,
    measure: Measure,
    trace: String,
    wrong: bool,
}

/// Measures each case and hands over its row when it is done.
pub fn measure(
    options: &Options,
    long: bool,
    print: &mut dyn FnMut(Row),
) -> Result<(), BenchError> {
    let traces = traces(options.traces.as_deref())?;
    let cases = cases(traces.iter().map(|(name, _)| name.as_str()));
    let Some(wanted) = options
        .selection
        .of("controller", cases, |case| &case.name)?
    else {
        return Ok(());
    };
    // A ratio is made of two figures at least.
    let runs = options
        .pairs
        .unwrap_or(if long { RUNS.1 } else { RUNS.0 })
        .max(2);
    let mut played = Played {
        traces,
        outcomes: HashMap::new(),
    };
    let progress = Progress::bar();
    progress.expect(wanted.len() as u64);
    let mut session = Session::new(&progress, print);
    for wanted in &wanted {
        progress.case(&wanted.name);
        let pairs = match wanted.measure {
            Measure::Plan(size, limit) => Ok(plans(size, runs)
                .into_iter()
                .map(|ours| Pair { ours, peer: limit })
                .collect::<Vec<_>>()),
            Measure::Admissions(limit) => (0..runs)
                .map(|_| admissions::rate().map(|ours| Pair { ours, peer: limit }))
                .collect(),
            _ => played.pairs(wanted, runs),
        };
        match pairs {
            Ok(pairs) => session.row(case(wanted).row(&pairs)),
            Err(error) => session.fail(&wanted.name, &error),
        }
        progress.step();
    }
    progress.finish();
    session.end()
}

fn case(wanted: &Wanted) -> Case {
    let (peer_name, unit, better) = match wanted.measure {
        Measure::Plan(..) => ("limit", "ms", Better::Lower),
        Measure::Admissions(_) => ("limit", "gangs/s", Better::Higher),
        Measure::Jct => (
            "the least of fifo, skip-fifo, easy, drf and 1.05 sjf",
            "h",
            Better::Lower,
        ),
        Measure::Wait => ("skip-fifo", "h", Better::Lower),
        Measure::Utilisation => ("the most of all others", "%", Better::Higher),
    };
    Case {
        bench: "controller",
        name: wanted.name.clone(),
        peer_name,
        unit,
        better,
        goal: 1.0,
    }
}

fn cases<'a>(traces: impl Iterator<Item = &'a str> + Clone) -> Vec<Wanted> {
    let plan = |(size, limit): (usize, f64)| Wanted {
        name: format!("plan/{size}"),
        measure: Measure::Plan(size, limit),
        trace: String::new(),
        wrong: false,
    };
    let mut cases: Vec<Wanted> = SIZES.into_iter().map(plan).collect();
    cases.push(Wanted {
        name: "admissions".to_owned(),
        measure: Measure::Admissions(ADMISSIONS),
        trace: String::new(),
        wrong: false,
    });
    for (kind, measure) in [
        ("jct", Measure::Jct),
        ("wait-p99", Measure::Wait),
        ("utilisation", Measure::Utilisation),
    ] {
        for trace in traces.clone() {
            for wrong in [false, true] {
                let ending = if wrong { "/wrong-3x" } else { "" };
                cases.push(Wanted {
                    name: format!("{kind}/{trace}{ending}"),
                    measure,
                    trace: trace.to_owned(),
                    wrong,
                });
            }
        }
    }
    cases
}

/// The p99 of so many plans, for each run.
fn plans(size: usize, runs: usize) -> Vec<f64> {
    let clusters: Vec<_> = (0..5).map(|seed| load::cluster(size, seed)).collect();
    let queues: Vec<_> = clusters
        .iter()
        .zip(0..)
        .map(|(it, seed)| load::queue(it, size, seed))
        .collect();
    let slowest = || {
        let mut times: Vec<f64> = (0..PLANS)
            .map(|index| {
                let (cluster, queue) = (&clusters[index % 5], &queues[index % 5]);
                let began = Instant::now();
                let planned = plan(cluster, queue, load::NOW, &Discipline::default());
                let took = began.elapsed().as_secs_f64() * 1e3;
                std::hint::black_box(planned);
                took
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[PLANS * 99 / 100 - 1]
    };
    (0..runs).map(|_| slowest()).collect()
}

fn traces(folder: Option<&Path>) -> Result<Vec<(String, Trace)>, BenchError> {
    let cluster: Cluster = CLUSTER.parse().expect("the cluster is a constant");
    let (jobs, seeds) = GENERATED;
    let made = seeds.map(|seed| {
        (
            format!("generated-{seed}"),
            generate(jobs, cluster.gpus(), 0.9, seed),
        )
    });
    let mut traces: Vec<(String, Trace)> = made.collect();
    let Some(folder) = folder else {
        return Ok(traces);
    };
    let listing = || BenchError::io(format!("listing {}", folder.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(listing())? {
        paths.push(entry.map_err(listing())?.path());
    }
    paths.sort();
    for path in paths {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let bare = name.strip_suffix(".gz").unwrap_or(&name);
        let Some(bare) = bare
            .strip_suffix(".trace")
            .or_else(|| bare.strip_suffix(".csv"))
        else {
            continue;
        };
        let trace =
            Trace::read(&path, None).map_err(|error| BenchError::Unavailable(error.to_string()))?;
        traces.push((bare.to_owned(), trace));
    }
    Ok(traces)
}

/// Simulations, each played once.
struct Played {
    traces: Vec<(String, Trace)>,
    /// By trace, error's seed and policy.
    outcomes: HashMap<(String, Option<u64>, Policy), Outcome>,
}

impl Played {
    /// A simulation has no noise: the same jobs make the same figure. Errors are drawn anew for each pair.
    fn pairs(&mut self, wanted: &Wanted, runs: usize) -> Result<Vec<Pair>, BenchError> {
        let seeds: Vec<Option<u64>> = if wanted.wrong {
            (0..runs as u64).map(Some).collect()
        } else {
            vec![None; 2]
        };
        seeds
            .into_iter()
            .map(|seed| self.pair(wanted, seed))
            .collect()
    }

    fn pair(&mut self, wanted: &Wanted, seed: Option<u64>) -> Result<Pair, BenchError> {
        for policy in Policy::ALL {
            self.play(&wanted.trace, seed, policy)?;
        }
        let of = |policy| &self.outcomes[&(wanted.trace.clone(), seed, policy)];
        let hours = |time: f64| time / 3_600_000.0;
        let others = || {
            Policy::ALL
                .into_iter()
                .filter(|policy| *policy != Policy::Trackbed)
        };
        Ok(match wanted.measure {
            Measure::Wait => {
                // A wait of nothing would make no ratio; a second is as good.
                let wait = |policy| hours(of(policy).wait(0.99).max(1000) as f64);
                Pair {
                    ours: wait(Policy::Trackbed),
                    peer: wait(Policy::SkipFifo),
                }
            }
            Measure::Utilisation => {
                let share = |policy| 100.0 * of(policy).utilisation();
                let best = others().map(share).fold(0.0, f64::max);
                Pair {
                    ours: share(Policy::Trackbed),
                    peer: best,
                }
            }
            _ => {
                let bound = |policy| {
                    let allowed = if policy == Policy::Sjf {
                        BESIDE_SJF
                    } else {
                        1.0
                    };
                    hours(of(policy).mean_jct()) * allowed
                };
                let least = others().map(bound).fold(f64::INFINITY, f64::min);
                Pair {
                    ours: hours(of(Policy::Trackbed).mean_jct()),
                    peer: least,
                }
            }
        })
    }

    fn play(&mut self, name: &str, seed: Option<u64>, policy: Policy) -> Result<(), BenchError> {
        let key = (name.to_owned(), seed, policy);
        if self.outcomes.contains_key(&key) {
            return Ok(());
        }
        let (_, trace) = self
            .traces
            .iter()
            .find(|(known, _)| known == name)
            .expect("a case of a trace");
        let said = match seed {
            Some(seed) => trace.clone().misjudged(WRONG, seed),
            None => trace.clone(),
        };
        let cluster = CLUSTER.parse().expect("the cluster is a constant");
        let outcome = simulate(&said, &cluster, policy, &mut |_| {})
            .map_err(|error| BenchError::Unavailable(format!("{name}: {error}")))?;
        self.outcomes.insert(key, outcome);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What machines look for; changing a name is changing an interface.
    #[test]
    fn the_cases_have_the_names_that_machines_know() {
        let cases = cases(["0e4a51"].into_iter());
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        let known = [
            "plan/1000",
            "plan/10000",
            "admissions",
            "jct/0e4a51",
            "jct/0e4a51/wrong-3x",
            "wait-p99/0e4a51",
            "wait-p99/0e4a51/wrong-3x",
            "utilisation/0e4a51",
            "utilisation/0e4a51/wrong-3x",
        ];
        assert_eq!(names, known);
    }

    #[test]
    fn a_folder_of_traces_is_read_and_what_is_none_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = generate(20, 160, 0.9, 1);
        std::fs::write(folder.path().join("mine.csv"), made.table("")).expect("written");
        std::fs::write(folder.path().join("README.md"), "no trace").expect("written");
        let names: Vec<String> = traces(Some(folder.path()))
            .expect("traces")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["generated-1", "generated-2", "generated-3", "mine"]);
    }

    #[test]
    fn the_planner_is_measured_with_full_clusters_and_mixed_queues() {
        let cluster = load::cluster(200, 1);
        let queue = load::queue(&cluster, 200, 1);
        let planned = plan(&cluster, &queue, load::NOW, &Discipline::default());
        assert!(!planned.admissions.is_empty() && !planned.blocked.is_empty());
        assert!(planned.reservation.is_some());
    }
}
