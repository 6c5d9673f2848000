//! A dataset that is registered again after it has grown or changed.

use std::thread;

use futures::executor::block_on;
use trackbed_cache::registry::Readers;

use crate::support::*;

/// Bytes of the chunks of the current version that the one before does not have.
fn new_bytes(node: &Node, before: &trackbed_cache::OpenVersion) -> u64 {
    let version = node.open();
    let (now, before) = (version.manifest(), before.manifest());
    let new = (0..now.chunks()).filter(|&chunk| now.same_chunk(chunk, before).is_none());
    new.map(|chunk| u64::from(now.chunk_len(chunk))).sum()
}

#[test]
fn what_is_unchanged_is_not_read_from_the_origin_again() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b", "c"]);
    cluster.register(&nodes[0]);
    let before = nodes.each_ref().map(Node::open);
    let warm = |nodes: &[Node]| {
        thread::scope(|scope| {
            for node in nodes {
                scope.spawn(|| block_on(node.open().warm()).expect("all of it"));
            }
        });
        for node in nodes {
            block_on(node.agent.flush());
        }
        let read = nodes.iter().map(|node| node.agent.counters().origin_bytes);
        read.sum::<u64>()
    };
    assert_eq!(warm(&nodes), cluster.origin.total());

    let put = |path: &str, seed, len| {
        lock(&cluster.origin.put).insert(path.into(), bytes(seed, len));
    };
    put("shards/new.tar", 1, 5 << 20);
    put("train/03/45.jpg", 2, 80_000);
    put("shards/5.tar", 3, (9 << 20) + 4095);
    cluster.register(&nodes[1]);
    let new = new_bytes(&nodes[0], &before[0]);
    assert!(
        new < cluster.origin.total() / 2 + (5 << 20),
        "{new} bytes are new"
    );
    assert_eq!(warm(&nodes), cluster.origin.total() + new);
    for (node, before) in nodes.iter().zip(&before) {
        assert_all_right(&node.open(), &cluster.origin.now());
        assert!(node.agent.counters().sibling_bytes > 0, "{}", node.name);
        // The one before is as it was.
        assert_all_right(before, cluster.origin.files());
    }
}

#[test]
fn a_damaged_version_gives_the_next_one_nothing_wrong() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    let first = cluster.register(&node);
    block_on(node.open().warm()).expect("all of it");
    block_on(node.agent.flush());
    node.stop();
    for path in files_below(&cluster.version_dir("a", first.version).join("tree")) {
        let mut found = std::fs::read(&path).expect("reads");
        found.iter_mut().step_by(5000).for_each(|byte| *byte ^= 1);
        std::fs::write(&path, found).expect("writes");
    }
    lock(&cluster.origin.put).insert(b"new".to_vec(), bytes(9, 70_000));
    let node = cluster.start("a");
    cluster.register(&node);
    block_on(node.open().warm()).expect("all of it");
    assert_all_right(&node.open(), &cluster.origin.now());
    assert!(node.agent.counters().corrupt_blocks > 0);
}

#[test]
fn datasets_of_two_origins_that_are_listed_alike_are_two_versions() {
    let mut files = Files::new();
    for (n, folder) in ["one", "two"].into_iter().enumerate() {
        files.insert(format!("{folder}/x").into_bytes(), bytes(n as u64, 5000));
    }
    let cluster = Cluster::new(files);
    cluster
        .origin
        .untold
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let node = cluster.start("a");
    let versions = ["one", "two"].map(|folder| {
        let record = node.register_folder(folder, Readers::All);
        let version = node.open_named(folder);
        assert_all_right(&version, &cluster.origin.below(&format!("{folder}/")));
        record.version
    });
    assert_ne!(versions[0], versions[1]);
}
