//! A real cache agent behind the driver: a directory as origin, read through a pod's mount.

mod support;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use support::can_mount;
use support::cluster::{Cluster, mounts_below};
use support::site::Site;
use trackbed_cache::{Agent, Device};
use trackbed_rdma::shard::Shard;
use trackbed_rdma::slab::Lease;

async fn staged(agent: &Agent) -> Cluster {
    let cluster = Cluster::start_with(Arc::new(agent.clone())).await;
    let mut node = cluster.node.clone();
    node.node_stage_volume(cluster.stage("set"))
        .await
        .expect("stages");
    node.node_publish_volume(cluster.publish("set", "pod"))
        .await
        .expect("publishes");
    cluster
}

async fn in_pod<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// Damages every cached file of at least a block, a byte in each block.
fn flip_bytes_below(folder: &Path) -> usize {
    let mut flipped = 0;
    for item in fs::read_dir(folder).expect("lists") {
        let path = item.expect("lists").path();
        let meta = fs::symlink_metadata(&path).expect("stats");
        if meta.is_dir() {
            flipped += flip_bytes_below(&path);
        } else if path.file_name().is_some_and(|name| name == "small.pack")
            || path.components().any(|part| part.as_os_str() == "tree")
        {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .expect("opens");
            for offset in (100..meta.len()).step_by(64 << 10) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset).expect("reads");
                file.write_all_at(&[byte[0] ^ 0x10], offset)
                    .expect("writes");
                flipped += 1;
            }
            file.sync_all().expect("syncs");
        }
    }
    flipped
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reads_what_the_origin_has_and_what_is_cached_needs_no_origin() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = site.agent().await;
    site.register(&agent).await;
    let mut cluster = staged(&agent).await;
    let condition = cluster.condition("set", "pod").await;
    assert!(condition.message.contains(" 0.0 %"), "{condition:?}");
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    agent.flush().await;
    let condition = cluster.condition("set", "pod").await;
    assert!(condition.message.contains(" 100.0 %"), "{condition:?}");
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(mounts_below(folder.path()), 0);
    drop(agent);

    // The node comes back, the origin does not.
    fs::rename(site.origin(), site.path("elsewhere")).expect("renames");
    let agent = site.agent().await;
    let cluster = staged(&agent).await;
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_flipped_in_the_cache_never_reaches_a_pod() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let agent = site.agent().await;
    site.register(&agent).await;
    let cluster = staged(&agent).await;
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    agent.flush().await;
    cluster.stop().await.1.expect("ends well");
    drop(agent);

    // With the origin there, the right bytes come from it.
    assert!(flip_bytes_below(&site.path("cache")) > 100);
    let agent = site.agent().await;
    let cluster = staged(&agent).await;
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    agent.flush().await;
    cluster.stop().await.1.expect("ends well");
    drop(agent);

    // Without it, there is an error.
    assert!(flip_bytes_below(&site.path("cache")) > 100);
    fs::rename(site.origin(), site.path("elsewhere")).expect("renames");
    let agent = site.agent().await;
    let cluster = staged(&agent).await;
    for path in ["images/1.jpg", "shards/0.tar"] {
        let path = cluster.path("pod").join(path);
        let refused = in_pod(move || fs::read(path))
            .await
            .expect_err("unreadable");
        assert_eq!(refused.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
    }
    cluster.stop().await.1.expect("ends well");
}

/// A disk that fails every read and write while it is broken.
struct Breakable {
    shard: Shard,
    broken: AtomicBool,
}

impl Breakable {
    fn check(&self) -> io::Result<()> {
        match self.broken.load(SeqCst) {
            true => Err(nix::errno::Errno::EIO.into()),
            false => Ok(()),
        }
    }
}

impl Device for Breakable {
    fn read_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Lease,
        at: usize,
        len: usize,
    ) -> BoxFuture<'_, (Lease, io::Result<usize>)> {
        match self.check() {
            Ok(()) => Device::read_at(&self.shard, file, offset, lease, at, len),
            Err(error) => async { (lease, Err(error)) }.boxed(),
        }
    }

    fn write_at(
        &self,
        file: Arc<File>,
        offset: u64,
        lease: Arc<Lease>,
        at: usize,
        len: usize,
    ) -> BoxFuture<'_, io::Result<()>> {
        match self.check() {
            Ok(()) => Device::write_at(&self.shard, file, offset, lease, at, len),
            Err(error) => async { Err(error) }.boxed(),
        }
    }

    fn fdatasync(&self, file: Arc<File>) -> BoxFuture<'_, io::Result<()>> {
        match self.check() {
            Ok(()) => Device::fdatasync(&self.shard, file),
            Err(error) => async { Err(error) }.boxed(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_keeps_failing_is_read_around_and_the_volume_says_so_until_it_works() {
    if !can_mount() {
        return;
    }
    let site = Arc::new(Site::new());
    let mut disk = None;
    let quickly = |config: &mut trackbed_cache::AgentConfig| {
        config.disk_trial_every = Duration::from_millis(20);
    };
    let agent = site.agent_on(quickly, |shard| {
        let broken = AtomicBool::new(false);
        let breakable = Arc::new(Breakable { shard, broken });
        disk = Some(Arc::clone(&breakable));
        breakable
    });
    let agent = agent.await;
    let disk = disk.expect("made");
    site.register(&agent).await;
    let mut cluster = staged(&agent).await;
    assert!(!cluster.condition("set", "pod").await.abnormal);
    disk.broken.store(true, SeqCst);
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    let open = agent.open(&"set".parse().expect("a name"), None).await;
    let open = open.expect("opens");
    while open.trouble().is_none() {
        // It fails: nothing can be kept.
        open.warm().await.expect_err("not kept");
    }
    let condition = cluster.condition("set", "pod").await;
    assert!(
        condition.abnormal && condition.message.contains("out of service"),
        "{condition:?}"
    );
    let metrics = agent.counters().prometheus_text();
    assert!(
        metrics.contains("trackbed_cache_disks_out_of_service 1"),
        "{metrics}"
    );

    disk.broken.store(false, SeqCst);
    while cluster.condition("set", "pod").await.abnormal {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    open.warm().await.expect("it is kept again");
    let (reader, pod) = (site.clone(), cluster.path("pod"));
    in_pod(move || reader.check(&pod)).await;
    drop(open);
    cluster.stop().await.1.expect("ends well");
}
