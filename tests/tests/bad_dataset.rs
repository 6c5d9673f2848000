//! Datasets that are odd, or go bad while they are mounted: what is odd is shown as it is, what is
//! bad is an error of its own volume that names the object and the remedy, and other volumes go on.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, FileTimes},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use nix::errno::Errno;
use tokio::task::block_in_place;
use tonic::Code;
use trackbed_proto::csi::v1::{NodeGetVolumeStatsRequest, VolumeCondition};
use trackbed_tests::{
    cluster::Cluster,
    node::{Node, stage_request},
    privilege,
    s3_server::S3Server,
    tree,
};

const BUCKET: &str = "sets";

/// The condition of a mounted volume, as kubelet asks for it.
async fn condition(node: &Node, volume: &str) -> VolumeCondition {
    let request = NodeGetVolumeStatsRequest {
        volume_id: volume.to_owned(),
        volume_path: node.target(volume).display().to_string(),
        ..Default::default()
    };
    let mut csi = node.csi().await.expect("the socket is there");
    let answer = csi.node_get_volume_stats(request).await;
    let answer = answer.expect("a published volume has stats").into_inner();
    answer.volume_condition.expect("it has a condition")
}

/// The volume is bad, and its condition has these words in it: at once or a moment later, as the
/// process that answers reads tells the one that is asked here.
async fn assert_bad(node: &Node, volume: &str, words: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let VolumeCondition { abnormal, message } = condition(node, volume).await;
        if abnormal && words.iter().all(|word| message.contains(word)) {
            return;
        }
        assert!(Instant::now() < deadline, "not all of {words:?}: {message}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The volume called `good` shows what is at its origin, and its condition is well.
async fn assert_good(node: &Node, origin: &Path) {
    let expected = tree::read(origin).expect("the origin is read");
    let found = tree::read(&node.target("good")).expect("the mount is read");
    tree::assert_same(&found, &expected);
    let condition = condition(node, "good").await;
    assert!(!condition.abnormal, "{}", condition.message);
}

/// A node, and the origin of a dataset that it has mounted as `good`.
async fn node_with_good() -> (Cluster, PathBuf) {
    let cluster = Cluster::start(1).await.expect("a node starts");
    let origin = cluster.folder().join("good-origin");
    fs::create_dir(&origin).expect("a folder");
    tree::write_chunks(&origin, 3).expect("an origin is written");
    cluster.register("good", &origin).await;
    cluster.nodes[0].mount("good").await.expect("it mounts");
    (cluster, origin)
}

fn errno_of_reading(path: &Path) -> Errno {
    let length = fs::read(path).map(|bytes| bytes.len());
    let error = length.expect_err("it can't be read");
    Errno::from_raw(error.raw_os_error().expect("of the kernel"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_or_another_one_is_an_error_of_its_own_volume() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, good) = node_with_good().await;
    let node = &cluster.nodes[0];
    let origin = cluster.folder().join("origin");
    fs::create_dir(&origin).expect("a folder");
    // Larger than what is packed together: each is brought apart.
    for name in ["kept.bin", "deleted.bin", "changed.bin", "cut.bin"] {
        fs::write(origin.join(name), vec![7; 2 << 20]).expect("written");
    }
    cluster.register("bad", &origin).await;
    let mount = node.mount("bad").await.expect("it mounts");

    // All before anything is read: reading on brings what comes next while it is as it was.
    fs::remove_file(origin.join("deleted.bin")).expect("deleted");
    // Other bytes of the same length, and a time that is not the one listed.
    fs::write(origin.join("changed.bin"), vec![8; 2 << 20]).expect("written");
    let later = SystemTime::now() + Duration::from_secs(60);
    let changed = File::options().write(true).open(origin.join("changed.bin"));
    let times = FileTimes::new().set_modified(later);
    changed.and_then(|file| file.set_times(times)).expect("set");
    let cut = File::options().write(true).open(origin.join("cut.bin"));
    cut.and_then(|file| file.set_len(1 << 20)).expect("cut");

    let remedy = "register the dataset again";
    for (name, what) in [
        ("deleted.bin", "is gone"),
        ("changed.bin", "changed since"),
        ("cut.bin", "changed since"),
    ] {
        assert_eq!(errno_of_reading(&mount.join(name)), Errno::EIO, "{name}");
        assert_bad(node, "bad", &[name, what, remedy]).await;
    }

    assert_eq!(
        fs::read(mount.join("kept.bin")).expect("it is as it was listed"),
        vec![7; 2 << 20]
    );
    assert_good(node, &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_with_another_etag_and_wrong_credentials_are_errors_of_their_own_volume() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, good) = node_with_good().await;
    let node = &cluster.nodes[0];
    let server = block_in_place(S3Server::start).expect("a server starts");
    let object = |key: &str, byte: u8| [(key.to_owned(), vec![byte; 2 << 20])];
    server.create_bucket(BUCKET).expect("made");
    block_in_place(|| {
        for key in ["changed/first.bin", "denied/second.bin"] {
            server.put(BUCKET, object(key, 1)).expect("put");
        }
    });
    let credentials = cluster.folder().join("credentials");
    fs::copy(server.credentials_file(), &credentials).expect("copied");
    let url = format!(
        "s3://{BUCKET}/denied?endpoint={}&credentials={}",
        server.endpoint(),
        credentials.display()
    );
    let changed = server.origin_url(BUCKET, "changed");
    for (name, url) in [("changed", &changed), ("denied", &url)] {
        node.register(name, url).await.expect("it registers");
        node.mount(name).await.expect("it mounts");
    }

    block_in_place(|| server.put(BUCKET, object("changed/first.bin", 2))).expect("put");
    let first = node.target("changed").join("first.bin");
    assert_eq!(errno_of_reading(&first), Errno::EIO);
    let words = [
        "first.bin",
        "changed since",
        "ETag",
        "register the dataset again",
    ];
    assert_bad(node, "changed", &words).await;

    let wrong = "[default]\naws_access_key_id = other\naws_secret_access_key = hunter2\n";
    fs::write(&credentials, wrong).expect("written");
    let second = node.target("denied").join("second.bin");
    assert_eq!(errno_of_reading(&second), Errno::EIO);
    assert_bad(
        node,
        "denied",
        &["second.bin", "denied", "check the credentials"],
    )
    .await;
    let told = condition(node, "denied").await.message + &node.log();
    assert!(!told.contains("hunter2"), "{told}");

    assert_good(node, &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_without_end_and_a_key_that_is_no_path_are_refused_and_hold_up_nothing() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, good) = node_with_good().await;
    let node = &cluster.nodes[0];
    let endless = block_in_place(S3Server::start).expect("a server starts");
    endless.pretend_object(BUCKET, "a", 1);
    endless.repeat_pages_for_ever();
    let status = node
        .register("endless", &endless.origin_url(BUCKET, ""))
        .await
        .expect_err("it never ends");
    assert!(status.message().contains("never ends"), "{status}");

    let long = format!("train/{}", "x".repeat(256));
    let odd = block_in_place(S3Server::start).expect("a server starts");
    odd.pretend_object(BUCKET, &long, 1);
    let status = node
        .register("odd", &odd.origin_url(BUCKET, "train"))
        .await
        .expect_err("no file can have that name");
    for word in [&long[..], "longer than 255 bytes", "rename or delete"] {
        assert!(status.message().contains(word), "{word:?}: {status}");
    }
    assert_good(node, &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_context_with_an_unknown_key_is_refused_by_name_and_mounts_nothing() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, good) = node_with_good().await;
    let node = &cluster.nodes[0];
    let staging = cluster.folder().join("staging");
    fs::create_dir(&staging).expect("a folder");
    let mut request = stage_request("good", &staging);
    request.volume_context = HashMap::from([("verison".to_owned(), "1".to_owned())]);
    let mut csi = node.csi().await.expect("the socket is there");
    let status = csi.node_stage_volume(request).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    for word in ["verison", "\"dataset\"", "\"version\""] {
        assert!(status.message().contains(word), "{word:?}: {status}");
    }
    assert_eq!(fs::read_dir(&staging).expect("listed").count(), 0);
    assert_good(node, &good).await;
}

/// Makes `name` in the folder that is so many levels below `root`, each with a name of 200 bytes, and
/// returns its path.
fn deep(root: &Path, levels: usize, name: &str) -> PathBuf {
    let mut at = PathBuf::new();
    for _ in 0..levels {
        at.push("d".repeat(200));
    }
    fs::create_dir_all(root.join(&at)).expect("folders are made");
    at.push(name);
    fs::write(root.join(&at), "deep").expect("written");
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_files_are_shown_as_they_are() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, good) = node_with_good().await;
    let node = &cluster.nodes[0];
    let origin = cluster.folder().join("origin");
    fs::create_dir(&origin).expect("a folder");
    fs::write(origin.join("empty"), "").expect("written");
    fs::write(origin.join(OsStr::from_bytes(b"\xff\xfe\n\x01")), "name").expect("written");
    fs::write(origin.join("n".repeat(255)), "long").expect("written");
    deep(&origin, 17, "file");
    fs::write(origin.join("one"), "same").expect("written");
    fs::hard_link(origin.join("one"), origin.join("two")).expect("linked");
    symlink("../../../etc/passwd", origin.join("up")).expect("linked");
    symlink("t".repeat(4000), origin.join("far")).expect("linked");
    symlink("loop", origin.join("loop")).expect("linked");
    let expected = tree::read(&origin).expect("the origin is read");
    // Not read as a whole below: hence after the others were.
    let huge = File::create(origin.join("huge")).expect("made");
    let size = 5 << 40;
    match huge.set_len(size) {
        // File systems with smaller files.
        Err(error) if error.raw_os_error() == Some(Errno::EFBIG as i32) => {
            println!("skipped: this file system has no files of 5 TiB");
            return;
        }
        set => set.expect("sparse"),
    }
    huge.write_all_at(b"the end", size - 7).expect("written");
    huge.write_all_at(b"middle", size / 2).expect("written");

    cluster.register("odd", &origin).await;
    let mount = node.mount("odd").await.expect("it mounts");
    let shown = File::open(mount.join("huge")).expect("opened");
    assert_eq!(shown.metadata().expect("looked at").len(), size);
    let mut end = [0; 64];
    shown
        .read_exact_at(&mut end[..13], size - 13)
        .expect("read");
    assert_eq!(&end[..13], b"\0\0\0\0\0\0the end");
    shown.read_exact_at(&mut end[..6], size / 2).expect("read");
    assert_eq!(&end[..6], b"middle");
    assert_eq!(shown.read_at(&mut end, size).expect("at the end"), 0);
    // As often as they are named: a dataset has no links between its files.
    let links = |name: &str| fs::metadata(mount.join(name)).expect("looked at").nlink();
    assert_eq!((links("one"), links("two")), (1, 1));
    assert_eq!(
        fs::read(mount.join("loop")).map_err(|error| error.raw_os_error()),
        Err(Some(Errno::ELOOP as i32))
    );

    fs::remove_file(origin.join("huge")).expect("removed");
    let found = tree::read_where(&mount, |path| path != Path::new("huge"));
    let found = found.expect("the mount is read");
    tree::assert_same(&found, &expected);
    let condition = condition(node, "odd").await;
    assert!(!condition.abnormal, "{}", condition.message);
    assert_good(node, &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_of_more_than_4095_bytes_is_refused_by_name() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, good) = node_with_good().await;
    let origin = cluster.folder().join("origin");
    fs::create_dir(&origin).expect("a folder");
    // No call takes such a path at once: its lower half is made first and moved.
    let (upper, lower) = (origin.join("upper"), cluster.folder().join("lower"));
    fs::create_dir(&upper).expect("a folder");
    let below = deep(&upper, 15, "file");
    deep(&lower, 15, "file");
    let last = upper.join(below.parent().expect("a folder"));
    fs::rename(&lower, last.join("lower")).expect("moved");
    let url = format!("file://{}", origin.display());
    let status = cluster.nodes[0]
        .register("deep", &url)
        .await
        .expect_err("no program could open it");
    for word in ["upper/ddd", "4095", "shorten"] {
        assert!(status.message().contains(word), "{word:?}: {status}");
    }
    assert_good(&cluster.nodes[0], &good).await;
}
