//! Complete versions shown to pods as plain files, with no process in the way.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use support::can_mount;
use support::cluster::{Cluster, Folder, mounts_below};
use support::site::Site;
use tonic::Code;
use trackbed_cache::open::{Part, WarmProgress};
use trackbed_cache::{Agent, DatasetName, Showable};
use trackbed_csi::expose::mountinfo::MountTable;
use trackbed_csi::expose::native::{self, Choice};

async fn laying_out(site: &Site) -> Agent {
    site.agent_with(|config| config.lay_out = true).await
}

fn set() -> DatasetName {
    "set".parse().expect("a name")
}

/// Fills the cache and waits until upkeep has laid the version out.
async fn complete(agent: &Agent) {
    let version = agent.open(&set(), None).await.expect("opens");
    version.warm().await.expect("all of it");
    while !matches!(version.showable(), Showable::Native(_)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn stage_and_publish(cluster: &Cluster, target: &str) {
    let mut node = cluster.node.clone();
    let stage = cluster.stage("set");
    node.node_stage_volume(stage).await.expect("stages");
    let publish = cluster.publish("set", target);
    node.node_publish_volume(publish).await.expect("publishes");
}

fn is_native(cluster: &Cluster, name: &str) -> bool {
    let table = MountTable::read().expect("reads");
    let top = table.top(&cluster.resolved(name)).expect("mounted");
    native::version_of(top).is_some()
}

async fn check(site: &Arc<Site>, mount: &Path) {
    let (site, mount) = (site.clone(), mount.to_owned());
    let checked = tokio::task::spawn_blocking(move || site.check(&mount));
    checked.await.expect("right");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_version_is_shown_as_plain_read_only_files_and_says_so() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let program = site.origin().join("images/1.jpg");
    let mode = fs::Permissions::from_mode(0o4750);
    fs::set_permissions(&program, mode).expect("sets");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    let folder = fs::File::open(site.origin().join("shards")).expect("opens");
    folder.set_modified(time).expect("sets");
    let agent = laying_out(&site).await;
    site.register(&agent).await;
    complete(&agent).await;
    let mut cluster = Cluster::start_with(Arc::new(agent.clone())).await;
    stage_and_publish(&cluster, "pod").await;
    assert!(is_native(&cluster, "staging-set") && is_native(&cluster, "pod"));
    let pod = cluster.path("pod");
    check(&site, &pod).await;

    let table = MountTable::read().expect("reads");
    let top = table.top(&cluster.resolved("pod")).expect("mounted");
    for option in ["ro", "nosuid", "nodev", "noatime"] {
        assert!(top.options.split(',').any(|o| o == option), "{option}");
    }
    assert!(fs::write(pod.join("new"), b"x").is_err());
    assert!(fs::write(pod.join("labels.json"), b"x").is_err());
    // As at the origin, but for set-uid.
    let shown = fs::metadata(pod.join("images/1.jpg")).expect("stats");
    assert_eq!(shown.mode() & 0o7777, 0o750);
    for path in ["shards", "labels.json", "shards/0.tar", "empty"] {
        let listed = fs::symlink_metadata(site.origin().join(path)).expect("stats");
        let shown = fs::symlink_metadata(pod.join(path)).expect("stats");
        assert_eq!(
            shown.modified().expect("a time"),
            listed.modified().expect("a time"),
            "{path}"
        );
        assert_eq!(shown.mode(), listed.mode(), "{path}");
    }
    assert_eq!(
        fs::read_link(pod.join("latest")).expect("a link"),
        Path::new("shards/0.tar")
    );
    let condition = cluster.condition("set", "pod").await;
    assert!(!condition.abnormal, "{condition:?}");
    assert!(condition.message.contains("natively"), "{condition:?}");

    let served = agent.counters().served_bytes;
    assert_eq!(served, 0, "nothing was read through the agent");
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 0);
}

/// By then the agent has forgotten what it wrote, and nothing tells that somebody else did.
#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_flips_between_the_fill_and_the_laying_out_never_reaches_a_pod() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = laying_out(&site).await;
    site.register(&agent).await;
    let version = agent.open(&set(), None).await.expect("opens");
    let part = Part::Paths(vec![b"shards/0.tar".into()]);
    let progress = WarmProgress::default();
    let warmed = version.warm_part(&part, &progress).await;
    warmed.expect("a part of it");
    agent.flush().await;
    let cached = version.directory().join("tree/shards/0.tar");
    let file = fs::File::options().read(true).write(true).open(&cached);
    let file = file.expect("there");
    let time = file.metadata().expect("stats").modified().expect("a time");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], 1000).expect("writes");
    file.sync_all().expect("syncs");
    file.set_modified(time).expect("sets");
    drop(version);

    complete(&agent).await;
    let cluster = Cluster::start_with(Arc::new(agent.clone())).await;
    stage_and_publish(&cluster, "pod").await;
    assert!(is_native(&cluster, "pod"));
    check(&site, &cluster.path("pod")).await;
    assert_eq!(agent.counters().mended_chunks, 1);
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_completes_later_is_native_for_the_next_pod_and_the_first_one_reads_on() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = laying_out(&site).await;
    site.register(&agent).await;
    let mut cluster = Cluster::start_with(Arc::new(agent.clone())).await;
    stage_and_publish(&cluster, "first").await;
    assert!(!is_native(&cluster, "first"));
    let condition = cluster.condition("set", "first").await;
    assert!(
        condition.message.contains("not natively") && condition.message.contains("not here yet"),
        "{condition:?}"
    );
    complete(&agent).await;
    stage_and_publish(&cluster, "second").await;
    assert!(!is_native(&cluster, "first") && is_native(&cluster, "second"));
    check(&site, &cluster.path("first")).await;
    check(&site, &cluster.path("second")).await;
    // Repeated, as kubelet does.
    stage_and_publish(&cluster, "second").await;
    stage_and_publish(&cluster, "first").await;
    for pod in ["first", "second"] {
        let condition = cluster.condition("set", pod).await;
        assert!(!condition.abnormal, "{condition:?}");
    }
    let mut node = cluster.node.clone();
    for pod in ["first", "second"] {
        let unpublish = cluster.unpublish("set", pod);
        node.node_unpublish_volume(unpublish)
            .await
            .expect("unpublishes");
    }
    let unstage = cluster.unstage("set");
    node.node_unstage_volume(unstage).await.expect("unstages");
    assert_eq!(mounts_below(cluster.folder.path()), 0);
    // Staged again, it is native.
    stage_and_publish(&cluster, "third").await;
    assert!(is_native(&cluster, "staging-set") && is_native(&cluster, "third"));
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn native_mounts_go_on_without_agent_and_driver_and_are_taken_over_by_the_next() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = laying_out(&site).await;
    site.register(&agent).await;
    complete(&agent).await;
    let cluster = Cluster::start_in(Folder::new(), Arc::new(agent.clone()), false).await;
    stage_and_publish(&cluster, "pod").await;
    let pod = cluster.path("pod");
    let id = |cluster: &Cluster, name| {
        let table = MountTable::read().expect("reads");
        table.top(&cluster.resolved(name)).expect("mounted").id
    };
    let before = [id(&cluster, "staging-set"), id(&cluster, "pod")];
    let open = fs::File::open(pod.join("shards/0.tar")).expect("opens");
    agent.flush().await;
    let (folder, _) = cluster.stop().await;
    drop(agent);

    check(&site, &pod).await;
    open.read_exact_at(&mut [0; 100], 5 << 20).expect("reads");
    let agent = laying_out(&site).await;
    let mut cluster = Cluster::start_in(folder, Arc::new(agent.clone()), true).await;
    loop {
        let condition = cluster.condition("set", "pod").await;
        if !condition.abnormal {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(before, [id(&cluster, "staging-set"), id(&cluster, "pod")]);
    stage_and_publish(&cluster, "pod").await;
    stage_and_publish(&cluster, "another").await;
    assert!(is_native(&cluster, "another"));
    check(&site, &cluster.path("another")).await;
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_versions_are_shown_can_be_chosen() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = laying_out(&site).await;
    site.register(&agent).await;
    let datasets = Arc::new(agent.clone());
    let native_only = Choice::Native;
    let cluster =
        Cluster::start_showing(Folder::new(), None, datasets.clone(), true, native_only).await;
    let mut node = cluster.node.clone();
    let refused = node.node_stage_volume(cluster.stage("set")).await;
    let refused = refused.expect_err("it is not here yet");
    assert_eq!(refused.code(), Code::Unavailable);
    for part in ["not here yet", "warm it", "--expose auto"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
    complete(&agent).await;
    stage_and_publish(&cluster, "pod").await;
    assert!(is_native(&cluster, "pod"));
    cluster.stop().await.1.expect("ends well");

    let cluster = Cluster::start_showing(Folder::new(), None, datasets, true, Choice::Fuse).await;
    stage_and_publish(&cluster, "pod").await;
    assert!(!is_native(&cluster, "staging-set") && !is_native(&cluster, "pod"));
    check(&site, &cluster.path("pod")).await;
    cluster.stop().await.1.expect("ends well");
}
