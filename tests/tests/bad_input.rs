//! Bad input and broken parts: each ends in right data from elsewhere, or in an error that names
//! the thing and the remedy.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use trackbed_tests::{
    cluster::Cluster,
    privilege, tree,
    wire::{Harm, Wire},
};

/// Port of the nodes' data where a wire is laid before it.
const DATA_PORT: u16 = 7421;

fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_not_there_is_named() {
    let cluster = Cluster::start(1).await.expect("a node starts");
    let missing = cluster.folder().join("no-such-folder");
    let url = format!("file://{}", missing.display());
    let status = cluster.nodes[0]
        .register("demo", &url)
        .await
        .expect_err("there is no origin");
    assert_says(
        status.message(),
        &["no-such-folder", "No such file or directory", "check"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_dataset_is_refused() {
    let cluster = Cluster::start(1).await.expect("a node starts");
    let empty = cluster.folder().join("empty-origin");
    std::fs::create_dir(&empty).expect("a folder");
    let url = format!("file://{}", empty.display());
    let status = cluster.nodes[0]
        .register("demo", &url)
        .await
        .expect_err("nothing is there");
    assert_says(status.message(), &["empty-origin", "empty", "check"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_disk_does_not_stop_a_reader() {
    if privilege::missing("mounting a small disk") {
        return;
    }
    let mut cluster = Cluster::prepare(1).expect("folders are made");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    let expected = tree::read(&origin).expect("an origin is read");
    let disk = cluster.nodes[0].cache();
    // Room for the manifest and a chunk or two, of a dataset of 16 MiB.
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=9m", "trackbed-test", path(&disk)],
    );
    cluster.nodes[0].start().await.expect("a node starts");
    cluster.register("demo", &origin).await;
    let mount = cluster.nodes[0]
        .mount("demo")
        .await
        .expect("a registered dataset mounts");
    tree::assert_same(&tree::read(&mount).expect("the mount is read"), &expected);
    let remedy = [
        "the cache's disk is",
        "full",
        "served from memory",
        "free space",
    ];
    assert_says(&cluster.nodes[0].log(), &remedy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_fuse_device_is_named_with_the_remedy() {
    if privilege::missing("hiding /dev/fuse") {
        return;
    }
    const WITHOUT_FUSE: &str = "set -e; d=$(mktemp -d); mount -t tmpfs dev $d; \
        for n in null zero random urandom; do touch $d/$n; mount --bind /dev/$n $d/$n; done; \
        mount --move $d /dev; rmdir $d; exec \"$@\"";
    let mut cluster = Cluster::prepare(1).expect("folders are made");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    cluster.nodes[0].prefix(&["unshare", "--mount", "sh", "-c", WITHOUT_FUSE, "sh"]);
    cluster.nodes[0].start().await.expect("a node starts");
    cluster.register("demo", &origin).await;
    let status = cluster.nodes[0]
        .mount("demo")
        .await
        .expect_err("there is no /dev/fuse");
    assert_says(status.message(), &["/dev/fuse", "modprobe fuse"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_dies_in_mid_transfer_is_done_without() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::start(3).await.expect("three nodes start");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    let expected = tree::read(&origin).expect("an origin is read");
    cluster.register("demo", &origin).await;
    let mount = cluster.nodes[0]
        .mount("demo")
        .await
        .expect("a registered dataset mounts");
    let reader = tokio::task::spawn_blocking(move || tree::read(&mount));
    tokio::time::sleep(Duration::from_millis(30)).await;
    cluster.nodes[2].kill();
    let found = reader
        .await
        .expect("the reader does not panic")
        .expect("the mount is read");
    tree::assert_same(&found, &expected);
}

/// Two nodes; what the second sends to the first goes through a wire that does harm. Reads all of
/// a dataset on the first and checks it; returns how often harm was done, and the first one's log.
async fn read_through(harm: Harm) -> (u64, String) {
    let mut cluster = Cluster::prepare(2).expect("folders are made");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    // Which of the two owns a chunk is as good as chance. Of so many, some come over the wire.
    tree::write_chunks(&origin, 32).expect("an origin is written");
    let expected = tree::read(&origin).expect("an origin is read");
    let real = SocketAddr::from((cluster.nodes[1].address, DATA_PORT));
    let [a, b, c, d] = cluster.nodes[1].address.octets();
    let advertised = SocketAddr::from(([a, b, c, d + 100], DATA_PORT));
    let wire = Wire::lay(advertised, real, harm)
        .await
        .expect("a wire is laid");
    cluster.nodes[1].flag("--fabric-listen", real);
    cluster.nodes[1].flag("--fabric-advertise", advertised.ip());
    for node in &mut cluster.nodes {
        node.start().await.expect("a node starts");
    }
    cluster.register("demo", &origin).await;
    let mount = cluster.nodes[0]
        .mount("demo")
        .await
        .expect("a registered dataset mounts");
    tree::assert_same(&tree::read(&mount).expect("the mount is read"), &expected);
    (wire.harm_done(), cluster.nodes[0].log())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_flipped_on_the_wire_is_never_served() {
    if privilege::missing("mounting") {
        return;
    }
    let (flips, log) = read_through(Harm::FlipEvery(1 << 20)).await;
    assert!(flips > 0, "nothing was flipped");
    assert_says(&log, &["node-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_again_and_again_is_done_without() {
    if privilege::missing("mounting") {
        return;
    }
    let (cuts, _) = read_through(Harm::CutAfter(3 << 20)).await;
    assert!(cuts > 0, "nothing was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_stalls_is_done_without() {
    if privilege::missing("mounting") {
        return;
    }
    let (stalls, _) = read_through(Harm::StallAfter(3 << 20)).await;
    assert!(stalls > 0, "nothing stalled");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("test folders have plain names")
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{program} {arguments:?} failed"
    );
}
