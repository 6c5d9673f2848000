//! A complete dataset is shown as plain files, and goes on without the node's process.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use trackbed_tests::cluster::{Cluster, trackbed};
use trackbed_tests::node::Node;
use trackbed_tests::{privilege, tree};

fn dataset(node: &Node, arguments: &[&str]) -> Output {
    Command::new(trackbed())
        .arg("dataset")
        .args(arguments)
        .arg("--admin-socket")
        .arg(node.folder.join("admin.sock"))
        .output()
        .expect("runs")
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Changes a byte of a file as a disk may, or somebody who has no business there.
fn flip(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], 100).expect("writes");
    file.sync_all().expect("syncs");
}

/// The tree of the only version that a node has.
fn tree_of(node: &Node) -> PathBuf {
    let versions = fs::read_dir(node.cache().join("versions"));
    let mut versions = versions.expect("lists");
    let version = versions.next().expect("one").expect("lists");
    version.path().join("tree")
}

fn largest_file(folder: &Path) -> PathBuf {
    files_by_size(folder).pop().expect("some files").1
}

fn files_by_size(folder: &Path) -> Vec<(u64, PathBuf)> {
    let mut files = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(folder).expect("lists") {
            let path = item.expect("lists").path();
            let meta = fs::symlink_metadata(&path).expect("stats");
            match meta.is_dir() {
                true => folders.push(path),
                false => files.push((meta.len(), path)),
            }
        }
    }
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_mount_goes_on_through_kill_9_and_damage_is_mended_beneath_it() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::start(1).await.expect("a node starts");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    let expected = tree::read(&origin).expect("an origin is read");
    cluster.register("demo", &origin).await;
    let node = &mut cluster.nodes[0];

    let status = said(&dataset(node, &["status", "demo"]));
    assert!(
        status.contains("by FUSE (") && status.contains("not here yet"),
        "{status}"
    );
    let warmed = dataset(node, &["warm", "demo"]);
    assert!(warmed.status.success(), "{}", said(&warmed));
    node.complete("demo").await.expect("it becomes native");
    let status = said(&dataset(node, &["status", "demo"]));
    assert!(status.contains("shown to pods natively"), "{status}");
    let mount = node.mount("demo").await.expect("mounts");
    tree::assert_same(&tree::read(&mount).expect("read"), &expected);

    node.kill();
    tree::assert_same(&tree::read(&mount).expect("read without a node"), &expected);
    node.start().await.expect("starts again");
    assert!(
        node.status("demo").await.expect("known").native,
        "not verified again"
    );

    // A byte rots on the disk.
    let victim = largest_file(&tree_of(node));
    let file = OpenOptions::new().read(true).write(true).open(&victim);
    let file = file.expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], 1000).expect("writes");
    file.sync_all().expect("syncs");
    drop(file);
    let verified = dataset(node, &["verify", "demo"]);
    assert!(verified.status.success(), "{}", said(&verified));
    assert!(
        said(&verified).contains("right again"),
        "{}",
        said(&verified)
    );
    tree::assert_same(&tree::read(&mount).expect("read"), &expected);
    let verified = said(&dataset(node, &["verify", "demo"]));
    assert!(verified.contains("are right"), "{verified}");

    // What nobody can put right is a failure.
    fs::remove_dir_all(&origin).expect("removes");
    let node = &cluster.nodes[0];
    let file = OpenOptions::new().read(true).write(true).open(&victim);
    let file = file.expect("opens");
    file.write_all_at(&byte.map(|b| b ^ 1), 1000)
        .expect("writes");
    file.sync_all().expect("syncs");
    let verified = dataset(node, &["verify", "demo"]);
    assert!(!verified.status.success());
    assert!(
        said(&verified).contains("could not be put right"),
        "{}",
        said(&verified)
    );
    node.unmount("demo").await.expect("unmounts");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_to_the_cache_s_files_is_found_before_they_are_shown_again() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::start(1).await.expect("a node starts");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    let expected = tree::read(&origin).expect("an origin is read");
    cluster.register("demo", &origin).await;
    let node = &mut cluster.nodes[0];
    node.complete("demo").await.expect("it becomes native");
    let mut files = files_by_size(&tree_of(node));
    let (_, large) = files.pop().expect("files");
    let small = files.into_iter().find(|(size, _)| *size > 1000);
    let (_, small) = small.expect("a small file");

    for (changed, while_it_runs) in [
        (&large, true),
        (&small, true),
        (&large, false),
        (&small, false),
    ] {
        if !while_it_runs {
            node.kill();
        }
        flip(changed);
        if !while_it_runs {
            node.start().await.expect("starts again");
        }
        let mount = node.mount("demo").await.expect("mounts");
        tree::assert_same(&tree::read(&mount).expect("read"), &expected);
        node.unmount("demo").await.expect("unmounts");
        node.complete("demo").await.expect("it is native again");
        let mount = node.mount("demo").await.expect("mounts");
        tree::assert_same(&tree::read(&mount).expect("read natively"), &expected);
        node.unmount("demo").await.expect("unmounts");
    }
}
