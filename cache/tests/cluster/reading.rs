//! Right bytes, once from the origin.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use futures::executor::block_on;
use futures::future::join_all;
use trackbed_cache::ReadError;
use trackbed_cache::manifest::{CHUNK_BYTES, EntryIndex};

use crate::support::*;

#[test]
fn any_part_of_any_file_reads_as_at_the_origin() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b", "c"]);
    cluster.register(&nodes[0]);
    let paths: Vec<_> = cluster.origin.files().keys().cloned().collect();
    thread::scope(|scope| {
        for (seed, node) in (0..).zip(&nodes) {
            let (paths, files) = (&paths, cluster.origin.files());
            scope.spawn(move || {
                let version = node.open();
                let mut random = Random(seed);
                for _ in 0..300 {
                    let path = &paths[random.below(paths.len() as u64) as usize];
                    let file = &files[path];
                    let entry = version.manifest().find(path).expect("listed");
                    let offset = random.below(file.len() as u64 + 100);
                    let len = random.below(300_000) as usize;
                    let found = block_on(version.read(entry, offset, len)).expect("read");
                    let rest = file.get(offset as usize..).unwrap_or(&[]);
                    assert!(found.len() <= len.min(rest.len()));
                    assert_eq!(found.is_empty(), len == 0 || rest.is_empty());
                    assert!(
                        found[..] == rest[..found.len()],
                        "{offset}+{len} of {path:?}"
                    );
                }
            });
        }
    });
}

#[test]
fn however_many_nodes_read_it_the_origin_gives_each_byte_once() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b", "c"]);
    cluster.register(&nodes[0]);
    thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| assert_all_right(&node.open(), cluster.origin.files()));
        }
    });
    for node in &nodes {
        // Readers have their bytes before the disk has them.
        block_on(node.agent.flush());
    }
    let counters: Vec<_> = nodes.iter().map(|node| node.agent.counters()).collect();
    let from_origin: u64 = counters.iter().map(|counters| counters.origin_bytes).sum();
    assert_eq!(from_origin, cluster.origin.total());
    // Each node got from its peers what it did not read from the origin itself.
    for (node, counters) in nodes.iter().zip(&counters) {
        assert!(node.open().progress().is_complete(), "{}", node.name);
        assert_eq!(
            counters.origin_bytes + counters.peer_in_bytes,
            cluster.origin.total()
        );
        assert_eq!(counters.stored_bytes, cluster.origin.total());
        assert_eq!(
            (counters.peer_failures, counters.fill_errors),
            (0, 0),
            "{}",
            node.name
        );
    }
    let sent: u64 = counters
        .iter()
        .map(|counters| counters.peer_out_bytes)
        .sum();
    // Where the machine was slow enough for a second owner to be asked too, both may have sent it.
    let hedges: u64 = counters.iter().map(|counters| counters.hedges).sum();
    let once = 2 * cluster.origin.total();
    assert!((once..=once + hedges * CHUNK_BYTES as u64).contains(&sent));
}

#[test]
fn warming_brings_all_of_it_and_reading_then_asks_nobody() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b"]);
    cluster.register(&nodes[0]);
    let version = nodes[1].open();
    let warmed = block_on(version.warm()).expect("all of it");
    assert_eq!(warmed.bytes, cluster.origin.total());
    assert!(version.progress().is_complete());
    let before = nodes[1].agent.counters();
    assert_all_right(&version, cluster.origin.files());
    let after = nodes[1].agent.counters();
    assert_eq!(before.fills, after.fills);
    assert_eq!(block_on(version.warm()).expect("nothing to do").chunks, 0);
}

#[test]
fn readers_of_one_chunk_share_one_read_of_the_origin() {
    let file = (b"big".to_vec(), bytes(1, 4 << 20));
    let cluster = Cluster::new(Files::from([file]));
    let node = cluster.start("a");
    cluster.register(&node);
    let version = node.open();
    let entry = version.manifest().find(b"big").expect("listed");
    let reads = block_on(join_all(
        (0..50).map(|n| version.read(entry, n * 1000, 1000)),
    ));
    for (n, read) in reads.into_iter().enumerate() {
        let at = n * 1000;
        assert!(read.expect("read")[..] == cluster.origin.files()[&b"big"[..]][at..at + 1000]);
    }
    assert_eq!(cluster.origin.reads.load(Relaxed), 1);
    assert_eq!(node.agent.counters().fills_joined, 49);
}

#[test]
fn a_dataset_is_opened_on_nodes_that_never_saw_its_origin_listed() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b"]);
    let record = cluster.register(&nodes[0]);
    let (there, here) = (nodes[0].open(), nodes[1].open());
    assert_eq!(here.manifest().digest(), record.version);
    assert_eq!(here.manifest().encode(), there.manifest().encode());
    assert_eq!(here.origin(), record.origin);
}

#[test]
fn what_is_no_file_is_an_error_and_not_a_panic() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    cluster.register(&node);
    let version = node.open();
    let root = block_on(version.read(EntryIndex::ROOT, 0, 10));
    assert!(matches!(root, Err(ReadError::NotAFile { .. })));
    let beyond = block_on(version.read(EntryIndex(u32::MAX), 0, 10));
    assert!(matches!(beyond, Err(ReadError::NoSuchEntry { .. })));
    let unknown = block_on(node.agent.open(&"other".parse().expect("a name"), None));
    let error = unknown.err().expect("unknown").to_string();
    assert!(
        error.contains("no dataset other") && error.contains("register"),
        "{error}"
    );
}
