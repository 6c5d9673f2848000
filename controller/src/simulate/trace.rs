//! Jobs, as somebody submitted them.

use crate::plan::Millis;
use flate2::read::GzDecoder;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};
use thiserror::Error;

/// The most jobs of a trace.
const MOST: usize = 1_000_000;
/// The most bytes of a file, unpacked.
const MOST_BYTES: u64 = 1 << 30;
/// The most accelerators of a job.
const MOST_GPUS: u32 = 100_000;

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its name, unique in the trace.
    pub name: String,
    /// Who submitted it.
    pub team: String,
    /// Its accelerators.
    pub gpus: u32,
    /// When it was submitted, after the first one.
    pub submitted: Millis,
    /// How long it runs, on each kind of hardware that it can run on; under "" for any other.
    pub run_times: BTreeMap<String, Millis>,
    /// What its user says of its run time is this many times the truth.
    pub said: f64,
}

/// Jobs in the order in which they were submitted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// The jobs.
    pub jobs: Vec<Job>,
}

/// Why a trace can't be read.
#[derive(Debug, Error)]
pub enum TraceError {
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line makes no sense.
    #[error("{} line {line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The steps a second of its jobs are nowhere.
    #[error(
        "{}: this trace counts steps: how many a second each job makes is in a throughputs.json, which \
         is not beside it: name it with --throughputs",
        path.display()
    )]
    NoThroughputs {
        /// The trace.
        path: PathBuf,
    },
    /// The file of throughputs makes no sense.
    #[error("{}: {why}", path.display())]
    Throughputs {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Job {
    /// How long it runs on this hardware.
    pub fn run_time(&self, hardware: &str) -> Millis {
        let known = self
            .run_times
            .get(hardware)
            .or_else(|| self.run_times.get(""));
        known
            .or_else(|| self.run_times.values().max())
            .copied()
            .unwrap_or(1)
            .max(1)
    }
}

impl Trace {
    /// Reads a trace, gzipped or not: lines `name,team,gpus,submitted,run` under a heading that says so,
    /// times in seconds; or the tab-separated lines of Gavel's traces (type, command, steps argument, needs
    /// data, steps, arrival in seconds, GPUs), whose run times follow from a file of steps a second:
    /// `throughputs`, or else `throughputs.json` or `throughputs.json.gz` beside the trace. Jobs that come
    /// first are taken to be submitted at 0.
    pub fn read(path: &Path, throughputs: Option<&Path>) -> Result<Self, TraceError> {
        let lines = text(path)?.lines().enumerate();
        let mut jobs = Vec::new();
        let mut speeds = None;
        let mut heading = false;
        let line_error = |line: usize, why: String| TraceError::Line {
            path: path.to_owned(),
            line,
            why,
        };
        for (index, line) in lines {
            let line = line.map_err(|source| TraceError::Read {
                path: path.to_owned(),
                source,
            })?;
            let wrong = |why: String| line_error(index + 1, why);
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            if jobs.len() >= MOST {
                return Err(wrong(format!("a trace has at most {MOST} jobs")));
            }
            if line.contains('\t') {
                if speeds.is_none() {
                    speeds = Some(Throughputs::read(&beside(path, throughputs)?)?);
                }
                let speeds = speeds.as_ref().expect("read above");
                jobs.push(speeds.job(&line, jobs.len()).map_err(wrong)?);
            } else if heading {
                jobs.push(row(&line).map_err(wrong)?);
            } else if line.trim() == HEADING {
                heading = true;
            } else {
                return Err(wrong(format!("the first line of a table is {HEADING}")));
            }
        }
        if jobs.is_empty() {
            return Err(line_error(1, "there is no job in it".to_owned()));
        }
        jobs.sort_by_key(|job| job.submitted);
        let first = jobs[0].submitted;
        jobs.iter_mut().for_each(|job| job.submitted -= first);
        Ok(Trace { jobs })
    }

    /// The trace as a table that [`Trace::read`] reads, with the run times on `hardware`.
    pub fn table(&self, hardware: &str) -> String {
        let seconds = |time: Millis| time as f64 / 1e3;
        let mut table = format!("{HEADING}\n");
        for job in &self.jobs {
            table += &format!(
                "{},{},{},{:.3},{:.3}\n",
                job.name,
                job.team,
                job.gpus,
                seconds(job.submitted),
                seconds(job.run_time(hardware))
            );
        }
        table
    }

    /// The time from the first submission to the last.
    pub fn span(&self) -> Millis {
        self.jobs.last().map_or(0, |job| job.submitted)
    }

    /// With run times that users say wrongly: by a factor between 1/`most` and `most`, as likely too long
    /// as too short.
    pub fn misjudged(mut self, most: f64, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for job in &mut self.jobs {
            job.said = most.max(1.0).powf(random.random_range(-1.0..=1.0));
        }
        self
    }
}

const HEADING: &str = "name,team,gpus,submitted,run";

fn row(line: &str) -> Result<Job, String> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [name, team, gpus, submitted, run] = fields[..] else {
        return Err(format!("{} fields, not the 5 of {HEADING}", fields.len()));
    };
    Ok(Job {
        name: name.to_owned(),
        team: team.to_owned(),
        gpus: gpus_of(gpus)?,
        submitted: millis(submitted, "submitted")?,
        run_times: BTreeMap::from([(String::new(), millis(run, "run")?.max(1))]),
        said: 1.0,
    })
}

fn gpus_of(text: &str) -> Result<u32, String> {
    let gpus: Option<u32> = text.parse().ok();
    gpus.filter(|gpus| (1..=MOST_GPUS).contains(gpus))
        .ok_or_else(|| format!("{text} is no number of GPUs from 1 to {MOST_GPUS}"))
}

/// A time in seconds; at most a thousand years.
fn millis(text: &str, what: &str) -> Result<Millis, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (0.0..=3.2e10).contains(seconds))
        .map(|seconds| (seconds * 1e3).round() as Millis)
        .ok_or_else(|| format!("{what} is {text}, no number of seconds"))
}

fn text(path: &Path) -> Result<Box<dyn BufRead>, TraceError> {
    let read = |source| TraceError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    let packed = path.extension().is_some_and(|extension| extension == "gz");
    let unpacked: Box<dyn Read> = if packed {
        Box::new(GzDecoder::new(file))
    } else {
        Box::new(file)
    };
    Ok(Box::new(BufReader::new(unpacked.take(MOST_BYTES))))
}

fn beside(trace: &Path, named: Option<&Path>) -> Result<PathBuf, TraceError> {
    let names = ["throughputs.json", "throughputs.json.gz"];
    let mut candidates = names.iter().map(|name| trace.with_file_name(name));
    named
        .map(Path::to_owned)
        .or_else(|| candidates.find(|candidate| candidate.exists()))
        .ok_or_else(|| TraceError::NoThroughputs {
            path: trace.to_owned(),
        })
}

/// Steps a second of each kind of job with so many accelerators, on each kind of hardware.
struct Throughputs {
    /// (type, hardware) to (GPUs, steps a second), ascending.
    steps: HashMap<String, BTreeMap<String, BTreeMap<u32, f64>>>,
}

impl Throughputs {
    /// Gavel's simulation_throughputs.json: hardware, then `('TYPE', GPUS)`, then `null` for a job that has
    /// its accelerators to itself.
    fn read(path: &Path) -> Result<Self, TraceError> {
        let wrong = |why: String| TraceError::Throughputs {
            path: path.to_owned(),
            why,
        };
        let whole: BTreeMap<String, BTreeMap<String, BTreeMap<String, serde_json::Value>>> =
            serde_json::from_reader(text(path)?).map_err(|error| wrong(error.to_string()))?;
        let mut steps: HashMap<String, BTreeMap<String, BTreeMap<u32, f64>>> = HashMap::new();
        for (hardware, jobs) in whole {
            // How gangs fare that are spread over more machines than they need; ours are not.
            if hardware.ends_with("_unconsolidated") {
                continue;
            }
            for (key, rates) in jobs {
                let inner = key.strip_prefix("('").and_then(|key| key.strip_suffix(')'));
                let parts = inner.and_then(|key| key.rsplit_once("', "));
                let parsed = parts.and_then(|(kind, gpus)| Some((kind, gpus.parse::<u32>().ok()?)));
                let (kind, gpus) =
                    parsed.ok_or_else(|| wrong(format!("{key} is not ('TYPE', GPUS)")))?;
                let rate = rates.get("null").and_then(serde_json::Value::as_f64);
                if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
                    let of_kind = steps.entry(kind.to_owned()).or_default();
                    of_kind
                        .entry(hardware.clone())
                        .or_default()
                        .insert(gpus, rate);
                }
            }
        }
        Ok(Throughputs { steps })
    }

    fn job(&self, line: &str, index: usize) -> Result<Job, String> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [kind, _, _, _, steps, submitted, gpus] = fields[..] else {
            return Err(format!("{} fields, not the 7 of a job", fields.len()));
        };
        let gpus = gpus_of(gpus.trim())?;
        let steps: f64 = steps
            .parse()
            .map_err(|_| format!("{steps} is no number of steps"))?;
        let on = self
            .steps
            .get(kind)
            .ok_or_else(|| format!("no throughput of {kind} is known"))?;
        let mut run_times = BTreeMap::new();
        for (hardware, rates) in on {
            // A gang larger than any that was measured makes steps as fast as the largest that was.
            let rate = rates
                .range(..=gpus)
                .next_back()
                .or_else(|| rates.iter().next());
            if let Some((_, rate)) = rate {
                run_times.insert(
                    hardware.clone(),
                    millis(&(steps / rate).to_string(), "the run time")?,
                );
            }
        }
        Ok(Job {
            name: format!("job-{index}"),
            team: kind.split(' ').next().unwrap_or(kind).to_owned(),
            gpus,
            submitted: millis(submitted, "the arrival")?,
            run_times,
            said: 1.0,
        })
    }
}
