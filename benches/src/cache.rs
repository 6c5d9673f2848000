//! A dataset's mount beside the same files read natively, on the same disk.
//!
//! One node holds the whole dataset and shows it natively; what is measured is what a pod pays for
//! reading it through the mount: cold, with every cache dropped, and warm, from the page cache.

use std::path::Path;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use trackbed_tests::cluster::Cluster;

use crate::{
    BenchError,
    dataset::{self, Pattern},
    paired::{Better, Pair},
    row::{Case, Row},
};

/// Pairs on every change, and in the long run.
const PAIRS: (usize, usize) = (5, 40);
/// The ratio wanted: as good as native, within what a machine's noise can tell.
const GOAL: f64 = 0.95;

/// What is read, and how many reads make a run: cold and warm.
const PATTERNS: [(&str, Pattern, usize, usize); 4] = [
    ("sequential", Pattern::Sequential, 1, 1),
    ("random-4k", Pattern::Random(4 << 10), 1_000, 50_000),
    ("random-128k", Pattern::Random(128 << 10), 500, 5_000),
    ("small-files", Pattern::SmallFiles, 1, 1),
];

/// How often.
#[derive(Debug, Args)]
pub struct Options {
    /// Pairs of runs for each case [default: 5, with --long 40].
    #[arg(long)]
    pairs: Option<usize>,
}

/// Measures each case and hands over its row when it is done.
pub fn measure(
    options: &Options,
    long: bool,
    print: &mut dyn FnMut(Row),
) -> Result<(), BenchError> {
    drop_caches()?;
    let pairs = options
        .pairs
        .unwrap_or(if long { PAIRS.1 } else { PAIRS.0 });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(BenchError::io("starting a runtime"))?;
    let bar = ProgressBar::new((PATTERNS.len() * 2 * pairs) as u64).with_style(
        ProgressStyle::with_template("{msg:32} {bar:30} {pos}/{len} pairs, {eta} left")
            .expect("the template is a constant"),
    );
    bar.set_message("writing the dataset");
    bar.tick();
    let cluster = runtime
        .block_on(Cluster::start(1))
        .map_err(BenchError::io("starting a node"))?;
    let native = cluster.folder().join("origin");
    dataset::write(&native)?;
    let node = &cluster.nodes[0];
    bar.set_message("filling the cache");
    let mounted = runtime
        .block_on(async {
            node.register("bench", &format!("file://{}", native.display()))
                .await?;
            node.complete("bench").await?;
            node.mount("bench").await
        })
        .map_err(|status| BenchError::Unavailable(status.message().to_owned()))?;

    for (name, pattern, cold_reads, warm_reads) in PATTERNS {
        for (temperature, reads) in [("cold", cold_reads), ("warm", warm_reads)] {
            let case = Case {
                bench: "cache",
                name: format!("{name}/{temperature}"),
                peer_name: "native",
                unit: pattern.unit(),
                better: Better::Higher,
                goal: GOAL,
            };
            bar.set_message(case.name.clone());
            let measured = pair_up(
                pairs,
                &mounted,
                &native,
                |root, seed| {
                    if temperature == "cold" {
                        drop_caches()?;
                    } else {
                        pattern.warm(root)?;
                    }
                    pattern.read(root, reads, seed)
                },
                || bar.inc(1),
            )?;
            bar.suspend(|| print(case.row(&measured)));
        }
    }
    bar.finish_and_clear();
    runtime
        .block_on(node.unmount("bench"))
        .map_err(|status| BenchError::Unavailable(status.message().to_owned()))
}

fn pair_up(
    pairs: usize,
    mounted: &Path,
    native: &Path,
    read: impl Fn(&Path, u64) -> Result<f64, BenchError>,
    done: impl Fn(),
) -> Result<Vec<Pair>, BenchError> {
    (0..pairs as u64)
        .map(|seed| {
            // Each goes first half of the time, so that neither always finds a settled disk.
            let pair = if seed % 2 == 0 {
                let ours = read(mounted, seed)?;
                Pair {
                    ours,
                    peer: read(native, seed)?,
                }
            } else {
                let peer = read(native, seed)?;
                Pair {
                    ours: read(mounted, seed)?,
                    peer,
                }
            };
            done();
            Ok(pair)
        })
        .collect()
}

/// Empties the page cache, the directory cache and the inode cache of this machine.
fn drop_caches() -> Result<(), BenchError> {
    const SWITCH: &str = "/proc/sys/vm/drop_caches";
    std::fs::write(SWITCH, "3").map_err(|error| {
        BenchError::Unavailable(format!(
            "cold reads need empty caches, and {SWITCH} can't be written ({error}): run as root"
        ))
    })
}
