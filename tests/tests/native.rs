//! A complete dataset is shown as plain files, and goes on without the node's process.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
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

fn largest_file(folder: &Path) -> std::path::PathBuf {
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
    files.into_iter().max().expect("some files").1
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
    let version = fs::read_dir(node.cache().join("versions"));
    let version = version.expect("lists").next().expect("one").expect("lists");
    let victim = largest_file(&version.path().join("tree"));
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
