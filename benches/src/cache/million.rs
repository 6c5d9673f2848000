//! A dataset of a million files: how long listing and mounting it takes, and what that costs in memory.

use std::{
    fs::{self, File},
    path::Path,
    time::Instant,
};

use trackbed_tests::{cluster::Cluster, node::Node};

use super::{Settings, refused};
use crate::{
    BenchError,
    dataset::SMALL_BYTES,
    paired::{Better, Pair},
    row::Case,
    session::Session,
};

/// The names of the rows.
pub(super) const NAMES: [&str; 2] = ["million-files/mount", "million-files/memory"];
/// Seconds until the mount is there.
const SECONDS: f64 = 60.0;
/// The most memory of the agent, in MiB.
const MEBIBYTES: f64 = 300.0;
/// Files of a directory.
const IN_A_FOLDER: usize = 1000;
/// Fewer say nothing; more take minutes.
const RUNS: usize = 2;

/// Measures both rows.
pub(super) fn measure(
    session: &mut Session<'_>,
    settings: &Settings,
    wanted: &[String],
) -> Result<(), BenchError> {
    let folder = tempfile::tempdir().map_err(BenchError::io("making a folder"))?;
    write(folder.path(), settings.files)?;
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (seconds, mebibytes) = run(settings, folder.path())?;
        times.push(Pair {
            ours: seconds,
            peer: SECONDS,
        });
        memory.push(Pair {
            ours: mebibytes,
            peer: MEBIBYTES,
        });
    }
    for (name, unit, pairs) in [(NAMES[0], "s", times), (NAMES[1], "MiB", memory)] {
        let case = Case {
            bench: "cache",
            name: name.to_owned(),
            peer_name: "limit",
            unit,
            better: Better::Lower,
            goal: 1.0,
        };
        if wanted.contains(&case.name) {
            session.row(case.row(&pairs));
        }
    }
    Ok(())
}

/// Makes the files, of the usual size and without a block on the disk: none is read.
fn write(root: &Path, files: usize) -> Result<(), BenchError> {
    const THREADS: usize = 4;
    let folders: Vec<usize> = (0..files.div_ceil(IN_A_FOLDER)).collect();
    let one = |index: &usize| -> std::io::Result<()> {
        let folder = root.join(format!("{index:05}"));
        fs::create_dir(&folder)?;
        let first = index * IN_A_FOLDER;
        for file in first..files.min(first + IN_A_FOLDER) {
            let path = folder.join(format!("{file:08}.jpg"));
            File::create(path)?.set_len(SMALL_BYTES as u64)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = folders
            .chunks(folders.len().div_ceil(THREADS).max(1))
            .map(|some| scope.spawn(|| some.iter().try_for_each(one)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("it does not panic"))
    })
    .map_err(BenchError::io(format!(
        "writing {files} files to {}",
        root.display()
    )))
}

/// Seconds from nothing to a mount that is listed, and the agent's most memory by then in MiB.
fn run(settings: &Settings, origin: &Path) -> Result<(f64, f64), BenchError> {
    let runtime = &settings.runtime;
    let cluster = runtime
        .block_on(Cluster::start(1))
        .map_err(BenchError::io("starting a node"))?;
    let node = &cluster.nodes[0];
    let start = Instant::now();
    let mount = runtime
        .block_on(async {
            node.register("million", &format!("file://{}", origin.display()))
                .await?;
            node.mount("million").await
        })
        .map_err(refused)?;
    // The first look at it, as a pod's: the root and one of its folders.
    let listed = BenchError::io("listing the mount");
    let looked = fs::read_dir(&mount).and_then(|mut folders| {
        let folder = folders.next().transpose()?;
        folder.map_or(Ok(0), |folder| {
            fs::read_dir(folder.path()).map(Iterator::count)
        })
    });
    let found = looked.map_err(listed)?;
    let seconds = start.elapsed().as_secs_f64();
    if found != IN_A_FOLDER.min(settings.files) {
        return Err(BenchError::Unavailable(format!(
            "a folder of the mount has {found} files of {IN_A_FOLDER}"
        )));
    }
    Ok((seconds, peak_memory(node)?))
}

/// VmHWM of proc(5), in MiB.
fn peak_memory(node: &Node) -> Result<f64, BenchError> {
    let path = format!("/proc/{}/status", node.pid().unwrap_or_default());
    let status = fs::read_to_string(&path).map_err(BenchError::io(format!("reading {path}")))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|size| size.trim().strip_suffix(" kB"))
        .and_then(|size| size.parse::<f64>().ok())
        .map(|kibibytes| kibibytes / 1024.0)
        .ok_or_else(|| BenchError::Output {
            program: path,
            output: status.clone(),
        })
}
