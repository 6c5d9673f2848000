//! The device plugin with 1,016 virtual functions, as kubelet sees it: a process on a machine that is
//! files in memory. There is no peer to measure; each figure has a limit.

mod plugin;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::runtime::Runtime;
use trackbed_deviceplugin::discover::Discovery;
use trackbed_tests::machine::Machine;

use crate::{
    BenchError,
    paired::{Better, Pair},
    progress::Progress,
    row::{Case, Row},
    selection::Selection,
    session::Session,
};
use plugin::{Running, VFS, machine};

/// Times that each figure is taken on every change, and in the long run.
const RUNS: (usize, usize) = (5, 20);
/// How long the plugin is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(10);

/// The cases: name, unit, limit.
const CASES: [(&str, &str, f64); 6] = [
    ("allocate/p99", "ms", 1.0),
    ("discover/1016", "ms", 100.0),
    ("fault/update", "ms", 1000.0),
    ("kubelet-restart", "ms", 2000.0),
    ("idle/cpu", "% of a core", 0.5),
    ("memory", "MiB", 30.0),
];

/// Which cases, and how often.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    selection: Selection,
    /// Times that each figure is taken [default: 5, with --long 20].
    #[arg(long)]
    pairs: Option<usize>,
}

/// Measures each case and hands over its row when it is done.
pub fn measure(
    options: &Options,
    long: bool,
    print: &mut dyn FnMut(Row),
) -> Result<(), BenchError> {
    let Some(wanted) = options
        .selection
        .of("deviceplugin", CASES, |(name, ..)| name)?
    else {
        return Ok(());
    };
    let runs = options.pairs.unwrap_or(if long { RUNS.1 } else { RUNS.0 });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(BenchError::io("starting a runtime"))?;
    let machine = machine()?;
    let progress = Progress::bar();
    progress.expect((wanted.len() * runs) as u64);
    let mut session = Session::new(&progress, print);
    for (name, unit, limit) in wanted {
        let figures = (0..runs).map(|_| figure(name, &runtime, &machine));
        match figures.collect::<Result<Vec<f64>, BenchError>>() {
            Ok(figures) => {
                let pairs: Vec<_> = figures
                    .into_iter()
                    .map(|ours| Pair { ours, peer: limit })
                    .collect();
                let case = Case {
                    bench: "deviceplugin",
                    name: name.to_owned(),
                    peer_name: "limit",
                    unit,
                    better: Better::Lower,
                    goal: 1.0,
                };
                session.row(case.row(&pairs));
            }
            Err(error) => session.fail(name, &error),
        }
    }
    progress.finish();
    session.end()
}

fn figure(name: &str, runtime: &Runtime, machine: &Machine) -> Result<f64, BenchError> {
    if name == "discover/1016" {
        return discover(machine);
    }
    runtime.block_on(async {
        let mut running = Running::start(machine).await?;
        let figure = match name {
            "allocate/p99" => allocate(&running).await,
            "fault/update" => running.fault().await,
            "kubelet-restart" => running.restart_kubelet().await,
            "idle/cpu" => idle(running.pid()).await,
            _ => memory(running.pid()),
        };
        running.stop().await;
        figure
    })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn discover(machine: &Machine) -> Result<f64, BenchError> {
    let began = Instant::now();
    let found = Discovery::new(machine.root())
        .look()
        .map_err(|error| BenchError::Unavailable(error.to_string()))?;
    let took = milliseconds(began);
    let virtual_functions = found.iter().filter(|it| it.is_virtual()).count();
    if virtual_functions != VFS {
        return Err(BenchError::Unavailable(format!(
            "{virtual_functions} of {VFS} virtual functions were found"
        )));
    }
    Ok(took)
}

/// Each device once, one at a time: the slowest but one of a hundred.
async fn allocate(running: &Running<'_>) -> Result<f64, BenchError> {
    let mut times = Vec::new();
    for id in running.ids() {
        times.push(running.allocate(id).await?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() * 99 / 100])
}

/// Processor time while nothing happens, in percent of a core.
async fn idle(pid: u32) -> Result<f64, BenchError> {
    let before = nanoseconds(pid)?;
    tokio::time::sleep(IDLE).await;
    let used = nanoseconds(pid)?.saturating_sub(before);
    // Never none at all: a ratio is made of it.
    Ok(used.max(1) as f64 / IDLE.as_nanos() as f64 * 100.0)
}

/// Time on a processor of all threads, from the first field of their schedstat
/// (Documentation/scheduler/sched-stats).
fn nanoseconds(pid: u32) -> Result<u64, BenchError> {
    let folder = format!("/proc/{pid}/task");
    let listing = || BenchError::io(format!("listing {folder}"));
    let mut all = 0;
    for task in std::fs::read_dir(&folder).map_err(listing())? {
        let path = task.map_err(listing())?.path().join("schedstat");
        // A thread may end meanwhile.
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let on_processor = text.split(' ').next().and_then(|it| it.parse::<u64>().ok());
        all += on_processor.ok_or(BenchError::Output {
            program: path.display().to_string(),
            output: text,
        })?;
    }
    Ok(all)
}

/// VmRSS of proc_pid_status(5), in MiB.
fn memory(pid: u32) -> Result<f64, BenchError> {
    let path = format!("/proc/{pid}/status");
    let status = read(Path::new(&path))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|size| size.trim().strip_suffix(" kB"))
        .and_then(|size| size.parse::<f64>().ok())
        .map(|kibibytes| kibibytes / 1024.0)
        .ok_or(BenchError::Output {
            program: path,
            output: status,
        })
}

fn read(path: &Path) -> Result<String, BenchError> {
    std::fs::read_to_string(path).map_err(BenchError::io(format!("reading {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What machines look for; changing a name is changing an interface.
    #[test]
    fn the_cases_have_the_names_that_machines_know() {
        let names = CASES.map(|(name, ..)| name);
        let known = [
            "allocate/p99",
            "discover/1016",
            "fault/update",
            "kubelet-restart",
            "idle/cpu",
            "memory",
        ];
        assert_eq!(names, known);
    }

    #[test]
    fn processor_time_and_memory_of_a_process_are_read() {
        let pid = std::process::id();
        assert!(nanoseconds(pid).is_ok_and(|time| time > 0));
        assert!(memory(pid).is_ok_and(|mebibytes| mebibytes > 1.0));
    }
}
