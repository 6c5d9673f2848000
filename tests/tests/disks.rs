//! A node with two disks, as a user has it: `--cache-dir` twice.

use std::collections::BTreeSet;
use std::fs;

use trackbed_tests::cluster::Cluster;
use trackbed_tests::{privilege, tree};

const DATASETS: [&str; 2] = ["one", "two"];

#[tokio::test(flavor = "multi_thread")]
async fn datasets_go_to_both_disks_and_are_all_there_after_kill_9() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::prepare(1).expect("a node is prepared");
    let second = cluster.nodes[0].folder.join("cache-2");
    let first = cluster.nodes[0].cache();
    cluster.nodes[0].flag("--cache-dir", second.display());
    // Both are on one file system here, the room on which changes from moment to moment.
    cluster.nodes[0].flag("--cache-capacity", "1GiB");
    cluster.nodes[0].start().await.expect("it starts");
    let mut expected = vec![];
    for name in DATASETS {
        let origin = cluster.folder().join(name);
        tree::write(&origin).expect("an origin is written");
        // No two datasets are the same version.
        fs::write(origin.join("name"), name).expect("written");
        expected.push(tree::read(&origin).expect("an origin is read"));
        cluster.register(name, &origin).await;
        let node = &cluster.nodes[0];
        node.complete(name).await.expect("all of it is on the disk");
    }
    let node = &mut cluster.nodes[0];
    let mut directories = BTreeSet::new();
    for name in DATASETS {
        let status = node.status(name).await.expect("known");
        directories.insert(status.versions[0].directory.clone());
    }
    let both = [&first, &second].map(|directory| directory.display().to_string());
    assert_eq!(directories, BTreeSet::from(both));

    node.kill();
    node.start().await.expect("it starts again");
    for (name, expected) in DATASETS.into_iter().zip(&expected) {
        let mount = node.mount(name).await.expect("mounts");
        tree::assert_same(&tree::read(&mount).expect("reads"), expected);
    }
    let counters = node.counters().await.expect("counted");
    assert_eq!(counters.origin_bytes, 0, "all of it was on the disks");
    for name in DATASETS {
        node.unmount(name).await.expect("unmounts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_are_one_are_refused_with_their_names() {
    let mut cluster = Cluster::prepare(1).expect("a node is prepared");
    let node = &mut cluster.nodes[0];
    let nested = node.cache().join("nested");
    node.flag("--cache-dir", nested.display());
    assert!(node.start().await.is_err());
    let log = node.log();
    assert!(
        log.contains(&nested.display().to_string()) && log.contains("one directory for each disk"),
        "{log}"
    );
}
