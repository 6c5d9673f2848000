//! A dataset's mount beside the same files read natively, on the same disk.
//!
//! One node holds the whole dataset and shows it natively; what is measured is what a pod pays for
//! reading it through the mount: cold, with every cache dropped, and warm, from the page cache.

use trackbed_tests::cluster::Cluster;

use super::{Settings, drop_caches, refused};
use crate::{
    BenchError,
    dataset::{self, Pattern},
    paired::Better,
    row::Case,
    session::Session,
};

/// The ratio wanted: as good as native, within what a machine's noise can tell.
const GOAL: f64 = 0.95;

/// What is read, and how many reads make a run: cold and warm.
const PATTERNS: [(&str, Pattern, [usize; 2]); 4] = [
    ("sequential", Pattern::Sequential, [1, 1]),
    ("random-4k", Pattern::Random(4 << 10), [1_000, 50_000]),
    ("random-128k", Pattern::Random(128 << 10), [500, 5_000]),
    ("small-files", Pattern::SmallFiles, [1, 1]),
];
const TEMPERATURES: [&str; 2] = ["cold", "warm"];

/// The names of the rows.
pub(super) fn names() -> Vec<String> {
    let each = |(name, _, _): (&str, Pattern, [usize; 2])| {
        TEMPERATURES.map(|temperature| format!("{name}/{temperature}"))
    };
    PATTERNS.into_iter().flat_map(each).collect()
}

/// Measures those that are wanted.
pub(super) fn measure(
    session: &mut Session<'_>,
    settings: &Settings,
    wanted: &[String],
) -> Result<(), BenchError> {
    let runtime = &settings.runtime;
    let cluster = runtime
        .block_on(Cluster::start(1))
        .map_err(BenchError::io("starting a node"))?;
    let native = cluster.folder().join("origin");
    dataset::write(&native)?;
    let node = &cluster.nodes[0];
    let mounted = runtime
        .block_on(async {
            node.register("bench", &format!("file://{}", native.display()))
                .await?;
            node.complete("bench").await?;
            node.mount("bench").await
        })
        .map_err(refused)?;

    for (name, pattern, runs) in PATTERNS {
        for (temperature, reads) in TEMPERATURES.into_iter().zip(runs) {
            let case = Case {
                bench: "cache",
                name: format!("{name}/{temperature}"),
                peer_name: "native",
                unit: pattern.unit(),
                better: Better::Higher,
                goal: GOAL,
            };
            if !wanted.contains(&case.name) {
                continue;
            }
            let run = |root, seed: &mut u64| {
                if temperature == "cold" {
                    drop_caches()?;
                } else {
                    pattern.warm(root)?;
                }
                *seed += 1;
                pattern.read(root, reads, *seed)
            };
            // Both read the same places in a pair.
            let (mut ours, mut peer) = (0, 0);
            session.measure(
                &case,
                settings.pairs,
                &mut || run(&mounted, &mut ours),
                &mut || run(&native, &mut peer),
            );
        }
    }
    runtime.block_on(node.unmount("bench")).map_err(refused)
}
