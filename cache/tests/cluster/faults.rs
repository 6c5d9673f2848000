//! Discs, peers and origins that misbehave: right bytes from elsewhere, or an error that helps.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use futures::executor::block_on;
use trackbed_cache::manifest::CHUNK_BYTES;

use crate::support::*;

fn flip(path: &std::path::Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("a cache file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside the file");
    byte[0] ^= 0x40;
    file.write_all_at(&byte, at).expect("written");
    file.sync_all().expect("synced");
}

#[test]
fn a_flipped_byte_in_the_cache_is_never_served() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b"]);
    let record = cluster.register(&nodes[0]);
    for node in &nodes {
        block_on(node.open().warm()).expect("all of it");
        block_on(node.agent.flush());
    }
    let directory = cluster.version_dir("a", record.version);
    let mut random = Random(5);
    let mut flipped = 0;
    let mut damaged = files_below(&directory.join("tree"));
    damaged.push(directory.join("small.pack"));
    for path in damaged {
        let len = path.metadata().expect("there").len();
        // One byte in each chunk that lies there in full.
        for chunk in 0..len.div_ceil(CHUNK_BYTES as u64) {
            let begin = chunk * CHUNK_BYTES as u64;
            flip(&path, begin + random.below((len - begin).min(1_500_000)));
            flipped += 1;
        }
    }
    let version = nodes[0].open();
    assert_all_right(&version, cluster.origin.files());
    let counters = nodes[0].agent.counters();
    assert_eq!(counters.corrupt_blocks, flipped, "each was noticed once");
    let from_origin: u64 = nodes
        .iter()
        .map(|node| node.agent.counters().origin_bytes)
        .sum();
    assert_eq!(
        from_origin,
        cluster.origin.total(),
        "the peer had all of it"
    );

    // It was repaired on disk, too: another reading finds nothing wrong.
    block_on(nodes[0].agent.flush());
    assert!(version.progress().is_complete());
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(nodes[0].agent.counters().corrupt_blocks, flipped);
}

#[test]
fn damage_is_noticed_before_a_peer_gets_it() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b"]);
    let record = cluster.register(&nodes[0]);
    block_on(nodes[0].open().warm()).expect("all of it");
    flip(
        &cluster.version_dir("a", record.version).join("small.pack"),
        100_000,
    );
    assert_all_right(&nodes[1].open(), cluster.origin.files());
    assert_eq!(nodes[1].agent.counters().peer_corrupt_chunks, 0);
}

#[test]
fn damaged_seals_and_shortened_files_are_fetched_again() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    let record = cluster.register(&node);
    block_on(node.open().warm()).expect("all of it");
    block_on(node.agent.flush());
    node.stop();
    let directory = cluster.version_dir("a", record.version);
    flip(&directory.join("seals"), 20);
    let shorten = |name: &str, len| {
        let file = OpenOptions::new()
            .write(true)
            .open(directory.join(name))
            .expect("there");
        file.set_len(len).expect("shortened");
    };
    shorten("tree/shards/5.tar", 5 << 20);
    std::fs::remove_file(directory.join("tree/shards/3.tar")).expect("removed");
    let node = cluster.start("a");
    assert_all_right(&node.open(), cluster.origin.files());
    block_on(node.agent.flush());
    assert!(node.open().progress().is_complete());
    assert_all_right(&node.open(), cluster.origin.files());
}

#[test]
fn a_cache_that_is_full_still_reads_right() {
    let cluster = Cluster::new(some_files());
    let mut config = cluster.config("a");
    config.capacity = 6 << 20;
    let node = cluster.try_start(config).expect("starts");
    cluster.register(&node);
    let version = node.open();
    for _ in 0..2 {
        assert_all_right(&version, cluster.origin.files());
    }
    let counters = node.agent.counters();
    assert!(
        counters.stored_bytes <= 6 << 20,
        "{} stored",
        counters.stored_bytes
    );
    assert!(counters.stored_bytes > 0 && counters.unstored_chunks > 0);
    assert!(!version.progress().is_complete());
}

#[test]
fn when_an_owner_dies_others_read_on() {
    let cluster = Cluster::new(some_files());
    let [a, b, c] = cluster.start_all(["a", "b", "c"]);
    cluster.register(&a);
    let (on_a, on_c) = (a.open(), c.open());
    // Links are up and some chunks have moved when the owner of a third of them goes.
    for path in cluster.origin.files().keys().take(30) {
        read_file(&on_c, path).expect("read");
    }
    b.stop();
    assert_all_right(&on_c, cluster.origin.files());
    assert_all_right(&on_a, cluster.origin.files());
    let from_origin: u64 = [&a, &c]
        .iter()
        .map(|node| node.agent.counters().origin_bytes)
        .sum();
    assert!(
        from_origin <= cluster.origin.total(),
        "the second owner stood in, for everyone"
    );
}

#[test]
fn without_any_living_peer_the_origin_is_read() {
    let cluster = Cluster::new(some_files());
    let [a, b, c] = cluster.start_all(["a", "b", "c"]);
    cluster.register(&a);
    let version = a.open();
    b.stop();
    c.stop();
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(a.agent.counters().origin_bytes, cluster.origin.total());
}

#[test]
fn a_changed_object_is_named_with_the_remedy_and_the_rest_reads_on() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b"]);
    cluster.register(&nodes[0]);
    let changed = b"shards/5.tar".to_vec();
    lock(&cluster.origin.changed).insert(changed.clone());
    for node in &nodes {
        let version = node.open();
        let error = read_file(&version, &changed).expect_err("changed");
        assert_eq!(error.errno(), libc::EIO);
        let text = error.to_string();
        for part in ["shards/5.tar", "changed since it was listed", "register"] {
            assert!(text.contains(part), "{text}");
        }
        for (path, expected) in cluster
            .origin
            .files()
            .iter()
            .filter(|(path, _)| **path != changed)
        {
            assert!(read_file(&version, path).expect("unchanged") == *expected);
        }
        assert!(block_on(version.warm()).is_err());
    }
}

#[test]
fn a_hiccup_of_the_origin_is_not_seen_by_readers() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    cluster.register(&node);
    cluster.origin.hiccups.store(3, Relaxed);
    assert_all_right(&node.open(), cluster.origin.files());
    assert_eq!(node.agent.counters().origin_errors, 3);
}
