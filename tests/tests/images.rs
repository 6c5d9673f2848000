//! Datasets of many small files, shown from an EROFS image by a node that may be killed at any moment.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use trackbed_tests::cluster::{Cluster, trackbed};
use trackbed_tests::{privilege, tree};

const FILES: usize = 1500;
const KILLS: u64 = 8;

fn write_small_files(origin: &Path) {
    for n in 0..FILES {
        let path = origin.join(format!("{}/{n}.json", n % 30));
        fs::create_dir_all(path.parent().expect("below")).expect("makes");
        fs::write(path, format!("{{\"label\": {n}}}\n").repeat(n % 700)).expect("writes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_right_however_often_the_node_is_killed_while_it_is_made() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::prepare(1).expect("a folder");
    let origin = cluster.folder().join("origin");
    write_small_files(&origin);
    let expected = tree::read(&origin).expect("an origin is read");
    cluster.nodes[0].flag("--expose", "erofs");
    cluster.nodes[0].start().await.expect("starts");
    cluster.register("demo", &origin).await;
    let node = &mut cluster.nodes[0];
    if node.log().contains("without EROFS images") {
        eprintln!("skipped: this kernel mounts no EROFS image");
        return;
    }
    for round in 0..KILLS {
        node.warm("demo").await.expect("warms");
        tokio::time::sleep(Duration::from_millis(round * 11)).await;
        node.kill();
        node.start().await.expect("starts again");
        node.complete("demo").await.expect("it becomes native");
        let status = node.status("demo").await.expect("known");
        assert_eq!(status.native_from, "erofs", "{status:?}");
        let mount = node.mount("demo").await.expect("mounts");
        tree::assert_same(&tree::read(&mount).expect("read"), &expected);
        if round + 1 < KILLS {
            node.unmount("demo").await.expect("unmounts");
            let evicted = Command::new(trackbed())
                .args(["dataset", "evict", "demo", "--admin-socket"])
                .arg(node.folder.join("admin.sock"))
                .output();
            assert!(evicted.expect("runs").status.success());
        }
    }
    // And the mount needs no node.
    let mount = node.target("demo");
    node.kill();
    tree::assert_same(&tree::read(&mount).expect("read"), &expected);
    node.start().await.expect("starts again");
    let status = Command::new(trackbed())
        .args(["dataset", "status", "demo", "--admin-socket"])
        .arg(node.folder.join("admin.sock"))
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(
        said.contains("shown to pods natively, from an EROFS image"),
        "{said}"
    );
    node.unmount("demo").await.expect("unmounts");
}
