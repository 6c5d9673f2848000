//! A disk that fails in every way that disks do: right bytes from elsewhere or an error, never zeros.

use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use trackbed_cache::registry::Readers;

use crate::support::*;

const FAULTS: [Fault; 10] = [
    Fault::Read(libc::EIO),
    Fault::FlipRead,
    Fault::ShortRead,
    Fault::Write(libc::EIO),
    Fault::Write(libc::ENOSPC),
    Fault::Write(libc::EROFS),
    Fault::TornWrite,
    Fault::LostWrite,
    Fault::FlipWrite,
    Fault::Sync(libc::EIO),
];

/// Starts node "n" on a faulty disk.
fn start(cluster: &Cluster) -> (Node, Arc<Faulty>) {
    let mut config = cluster.config("n");
    config.disk_trial_every = Duration::from_millis(20);
    cluster.start_on_faulty(config)
}

#[test]
fn whatever_the_disk_does_readers_get_right_bytes_and_so_they_do_after_a_restart() {
    let mut files = Files::new();
    for n in 0..12 {
        files.insert(format!("small/{n}").into_bytes(), bytes(n, 70_000));
    }
    files.insert(b"large/0".to_vec(), bytes(100, (5 << 20) + 1));
    files.insert(b"large/1".to_vec(), bytes(101, 1 << 20));
    for fault in FAULTS {
        for percent in [20, 100] {
            eprintln!("{fault:?} in {percent} of 100");
            let cluster = Cluster::new(files.clone());
            let (node, disk) = start(&cluster);
            cluster.register(&node);
            let version = node.open();
            // Some of it is on the disk already.
            read_file(&version, b"small/1").expect("right");
            read_file(&version, b"large/1").expect("right");
            disk.plan(Some(fault), percent, "/versions/");
            for _ in 0..2 {
                assert_all_right(&version, cluster.origin.files());
            }
            // Not all of it can be kept.
            let _ = block_on(version.warm());
            block_on(node.agent.flush());
            assert_all_right(&version, cluster.origin.files());
            assert!(disk.struck() > 0);
            drop(version);
            node.stop();
            drop(disk);

            let node = cluster.start("n");
            let version = node.open();
            assert_all_right(&version, cluster.origin.files());
            block_on(version.warm()).expect("the disk is well again");
            assert!(version.progress().is_complete());
        }
    }
}

#[test]
fn what_nobody_else_has_is_an_error_and_other_versions_go_on() {
    let mut files = Files::new();
    for folder in ["a", "b"] {
        files.insert(format!("{folder}/large").into_bytes(), bytes(1, 5 << 20));
    }
    let cluster = Cluster::new(files);
    let (node, disk) = start(&cluster);
    cluster.register(&node);
    node.register_folder("b", Readers::AsBefore);
    let (all, b) = (node.open(), node.open_named("b"));
    for version in [&all, &b] {
        block_on(version.warm()).expect("all of it");
    }
    block_on(node.agent.flush());
    lock(&cluster.origin.changed).insert(b"a/large".to_vec());
    let digest = all.manifest().digest().to_string();
    for fault in [Fault::Read(libc::EIO), Fault::FlipRead, Fault::ShortRead] {
        disk.plan(Some(fault), 100, &digest);
        let error = read_file(&all, b"a/large").expect_err("nobody has it");
        assert_eq!(error.errno(), libc::EIO, "{fault:?}");
        assert!(error.to_string().contains("large"), "{error}");
        assert_all_right(&b, &cluster.origin.below("b/"));
    }
}

#[test]
fn a_disk_that_keeps_failing_is_served_around_says_so_and_is_used_again_when_it_works() {
    let cluster = Cluster::new(some_files());
    let (node, disk) = start(&cluster);
    cluster.register(&node);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    block_on(node.agent.flush());
    assert_eq!(version.trouble(), None);
    disk.plan(Some(Fault::Read(libc::EIO)), 100, "");
    while version.trouble().is_none() {
        assert_all_right(&version, cluster.origin.files());
    }
    let trouble = version.trouble().expect("out of service");
    for part in [
        "out of service",
        "reading",
        "peers and the origin",
        "replace",
    ] {
        assert!(trouble.contains(part), "{trouble}");
    }
    assert_eq!(node.agent.counters().disks_out, 1);
    assert_eq!(
        version.held().iter().sum::<u64>(),
        0,
        "nobody is told to read it"
    );
    let struck = disk.struck();
    let errors = node.agent.counters().disk_errors;
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(
        node.agent.counters().disk_errors,
        errors,
        "it is not even asked"
    );
    // But for the trials.
    while disk.struck() < struck + 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.agent.counters().disks_out, 1);

    disk.plan(None, 100, "");
    while version.trouble().is_some() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.agent.counters().disks_out, 0);
    block_on(version.warm()).expect("it is kept again");
    assert!(version.progress().is_complete());
    let read = node.agent.counters().origin_bytes;
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(node.agent.counters().origin_bytes, read);
}
