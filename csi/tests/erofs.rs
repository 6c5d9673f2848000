//! Versions of many small files, which the kernel shows from an EROFS image.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use support::cluster::{Cluster, Folder, mounts_below};
use support::many::Many;
use support::site::Site;
use support::{can_mount, pattern};
use trackbed_cache::open::VerifyProgress;
use trackbed_cache::{Agent, DatasetName, OpenVersion, Showable};
use trackbed_csi::expose::erofs::{self, Way, try_way};
use trackbed_csi::expose::fuse::InProcess;
use trackbed_csi::expose::mountinfo::{Mount, MountTable};
use trackbed_csi::expose::native::{self, Choice, NativeFirst};

/// The ways in which this machine mounts images.
fn ways() -> Vec<Way> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut ways = vec![Way::File, Way::Loop];
    ways.retain(|&way| match try_way(folder.path(), way) {
        Ok(()) => can_mount(),
        Err(error) => {
            eprintln!("skipped: no EROFS image is mounted by {way:?}: {error}");
            false
        }
    });
    ways
}

/// More than are ever laid out one by one.
const VERY_MANY: usize = 300_000;

/// A site with more small files than large ones.
fn site() -> Arc<Site> {
    let site = Site::new();
    for n in 0..300 {
        let path = site.origin().join(format!("small/{}/{n}", n % 7));
        fs::create_dir_all(path.parent().expect("below")).expect("makes");
        fs::write(&path, pattern(n * 211 % 70_000 + n % 2, n as u64)).expect("writes");
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000 + n as u64, 7);
        let file = fs::File::open(&path).expect("opens");
        file.set_modified(time).expect("sets");
    }
    let program = site.origin().join("images/1.jpg");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4750)).expect("sets");
    fs::create_dir(site.origin().join("nothing")).expect("makes");
    Arc::new(site)
}

async fn imaging(site: &Site) -> Agent {
    let change = |config: &mut trackbed_cache::AgentConfig| {
        config.lay_out = true;
        config.image_from = Some(100);
    };
    site.agent_with(change).await
}

fn set() -> DatasetName {
    "set".parse().expect("a name")
}

async fn image_of(version: &OpenVersion) -> PathBuf {
    loop {
        match version.showable() {
            Showable::Image(image) => return image,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Fills the cache and waits until upkeep has made the image.
async fn complete(agent: &Agent) -> PathBuf {
    let version = agent.open(&set(), None).await.expect("opens");
    version.warm().await.expect("all of it");
    image_of(&version).await
}

async fn start(folder: Folder, agent: &Agent, way: Way, unmount_on_exit: bool) -> Cluster {
    let expose = NativeFirst::new(Arc::new(InProcess), Choice::Auto).with_images(Some(way));
    let datasets = Arc::new(agent.clone());
    Cluster::start_exposing(folder, None, datasets, unmount_on_exit, expose).await
}

async fn stage_and_publish(cluster: &Cluster, target: &str) {
    let mut node = cluster.node.clone();
    let stage = cluster.stage("set");
    node.node_stage_volume(stage).await.expect("stages");
    let publish = cluster.publish("set", target);
    node.node_publish_volume(publish).await.expect("publishes");
}

fn mount(cluster: &Cluster, name: &str) -> Mount {
    let table = MountTable::read().expect("reads");
    table.top(&cluster.resolved(name)).expect("mounted").clone()
}

fn is_image(cluster: &Cluster, name: &str) -> bool {
    let mount = mount(cluster, name);
    mount.fs_type == "erofs" && native::version_of(&mount).is_some()
}

type Seen = BTreeMap<PathBuf, (u32, SystemTime, Option<Vec<u8>>)>;

/// All that is below a folder, but for set-uid and set-gid and the folder itself.
fn seen(folder: &Path) -> Seen {
    let (mut all, mut left) = (Seen::new(), vec![folder.to_owned()]);
    while let Some(directory) = left.pop() {
        for found in fs::read_dir(&directory).expect("lists") {
            let path = found.expect("lists").path();
            let metadata = fs::symlink_metadata(&path).expect("stats");
            let content = if metadata.is_dir() {
                left.push(path.clone());
                None
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).expect("reads");
                Some(target.into_os_string().into_encoded_bytes())
            } else {
                let content = fs::read(&path).expect("reads");
                assert_eq!(metadata.len(), content.len() as u64);
                Some(content)
            };
            let name = path.strip_prefix(folder).expect("below").to_owned();
            let time = metadata.modified().expect("a time");
            all.insert(name, (metadata.mode() & !0o6000, time, content));
        }
    }
    all
}

async fn check(site: &Arc<Site>, mount: PathBuf) {
    let origin = site.origin();
    let checking = tokio::task::spawn_blocking(move || {
        let (wanted, found) = (seen(&origin), seen(&mount));
        for (path, wanted) in &wanted {
            assert!(found.get(path) == Some(wanted), "{}", path.display());
        }
        assert_eq!(wanted.len(), found.len());
    });
    checking.await.expect("right");
}

fn loop_devices_of(image: &Path) -> usize {
    let devices = fs::read_dir("/sys/block").expect("lists");
    let backing = devices.filter_map(|device| {
        let path = device.expect("lists").path().join("loop/backing_file");
        fs::read_to_string(path).ok()
    });
    let image = image.to_str().expect("UTF-8");
    backing.filter(|file| file.trim_end() == image).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_many_small_files_is_shown_from_one_image_that_all_pods_share() {
    for way in ways() {
        let site = site();
        let agent = imaging(&site).await;
        site.register(&agent).await;
        let image = complete(&agent).await;
        let mut cluster = start(Folder::new(), &agent, way, true).await;
        stage_and_publish(&cluster, "pod").await;
        stage_and_publish(&cluster, "other").await;
        for name in ["staging-set", "pod", "other"] {
            assert!(is_image(&cluster, name), "{name}");
            assert_eq!(mount(&cluster, name).device, mount(&cluster, "pod").device);
        }
        assert_eq!(loop_devices_of(&image), usize::from(way == Way::Loop));
        let pod = cluster.path("pod");
        check(&site, pod.clone()).await;
        let options = mount(&cluster, "pod").options;
        for option in ["ro", "nosuid", "nodev", "noatime"] {
            assert!(options.split(',').any(|o| o == option), "{option}");
        }
        assert!(fs::write(pod.join("new"), b"x").is_err());
        let program = fs::metadata(pod.join("images/1.jpg")).expect("stats");
        assert_eq!((program.mode() & 0o7777, program.uid()), (0o750, 0));
        let condition = cluster.condition("set", "pod").await;
        assert!(!condition.abnormal, "{condition:?}");
        assert!(
            condition.message.contains("natively, from an EROFS image"),
            "{condition:?}"
        );
        assert_eq!(
            agent.counters().served_bytes,
            0,
            "nothing was read through the agent"
        );

        let mut node = cluster.node.clone();
        let unpublish = cluster.unpublish("set", "pod");
        node.node_unpublish_volume(unpublish)
            .await
            .expect("unpublishes");
        check(&site, cluster.path("other")).await;
        let (folder, ended) = cluster.stop().await;
        ended.expect("ends well");
        assert_eq!(mounts_below(folder.path()), 0);
        while loop_devices_of(&image) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left = fs::read_dir(image.parent().expect("in a directory")).expect("lists");
        let named = left.filter(|file| {
            let name = file.as_ref().expect("lists").file_name();
            name.to_string_lossy().starts_with("image.")
        });
        assert_eq!(named.count(), 2, "the image and its marker");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_completes_later_is_an_image_for_the_next_pods_and_the_first_reads_on() {
    for way in ways() {
        let site = site();
        let agent = imaging(&site).await;
        site.register(&agent).await;
        let mut cluster = start(Folder::new(), &agent, way, true).await;
        stage_and_publish(&cluster, "first").await;
        assert!(!is_image(&cluster, "first"));
        complete(&agent).await;
        let condition = cluster.condition("set", "first").await;
        assert!(
            condition.message.contains("can be shown natively"),
            "{condition:?}"
        );
        for pod in ["second", "third"] {
            stage_and_publish(&cluster, pod).await;
            assert!(is_image(&cluster, pod));
        }
        assert_eq!(
            mount(&cluster, "second").device,
            mount(&cluster, "third").device
        );
        // Repeated, as kubelet does.
        stage_and_publish(&cluster, "second").await;
        stage_and_publish(&cluster, "first").await;
        for pod in ["first", "second", "third"] {
            check(&site, cluster.path(pod)).await;
            let condition = cluster.condition("set", pod).await;
            assert!(!condition.abnormal, "{condition:?}");
        }
        let mut node = cluster.node.clone();
        for pod in ["second", "first", "third"] {
            let unpublish = cluster.unpublish("set", pod);
            node.node_unpublish_volume(unpublish)
                .await
                .expect("unpublishes");
        }
        let unstage = cluster.unstage("set");
        node.node_unstage_volume(unstage).await.expect("unstages");
        assert_eq!(mounts_below(cluster.folder.path()), 0);
        cluster.stop().await.1.expect("ends well");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_stay_mounted_without_agent_and_driver_and_are_taken_over_and_kept_from_eviction() {
    for way in ways() {
        let site = site();
        let agent = imaging(&site).await;
        site.register(&agent).await;
        complete(&agent).await;
        let cluster = start(Folder::new(), &agent, way, false).await;
        stage_and_publish(&cluster, "pod").await;
        let before = ["staging-set", "pod"].map(|name| mount(&cluster, name).id);
        let open = fs::File::open(cluster.path("pod/shards/0.tar")).expect("opens");
        agent.flush().await;
        let (folder, _) = cluster.stop().await;
        drop(agent);
        check(&site, folder.path().join("pod")).await;
        open.read_exact_at(&mut [0; 100], 5 << 20).expect("reads");

        let agent = imaging(&site).await;
        let mut cluster = start(folder, &agent, way, true).await;
        while cluster.condition("set", "pod").await.abnormal {
            tokio::task::yield_now().await;
        }
        let after = ["staging-set", "pod"].map(|name| mount(&cluster, name).id);
        assert_eq!(before, after);
        stage_and_publish(&cluster, "pod").await;
        stage_and_publish(&cluster, "another").await;
        assert_eq!(
            mount(&cluster, "another").device,
            mount(&cluster, "pod").device
        );
        check(&site, cluster.path("another")).await;

        // Kept while it is mounted, also if nobody but the kernel knows of that.
        let mounted = Arc::clone(&cluster.mounted);
        agent.begin_evicting(Box::new(move || mounted()));
        agent.evict(&set(), None).await.expect_err("it is mounted");
        let (folder, ended) = cluster.stop().await;
        ended.expect("ends well");
        assert_eq!(mounts_below(folder.path()), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_mended_beneath_pods_and_an_image_that_is_made_anew_is_for_new_mounts() {
    for way in ways() {
        let site = site();
        let agent = imaging(&site).await;
        site.register(&agent).await;
        let image = complete(&agent).await;
        let cluster = start(Folder::new(), &agent, way, true).await;
        stage_and_publish(&cluster, "pod").await;
        let version = agent.open(&set(), None).await.expect("opens");
        // A file's first block.
        let wanted = pattern(9 << 20, 3);
        let bytes = fs::read(&image).expect("reads");
        let at = bytes
            .windows(64)
            .step_by(4096)
            .position(|found| *found == wanted[..64]);
        let at = at.expect("in the image") as u64 * 4096 + 10;
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&image)
            .expect("opens");
        file.write_all_at(&[bytes[at as usize] ^ 1], at)
            .expect("writes");
        file.sync_all().expect("syncs");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("sets");
        agent.when_images_are_mended(Box::new(erofs::forget_pages));
        let damaged = fs::read(cluster.path("pod/shards/0.tar")).expect("reads");
        assert!(
            damaged[..64] != wanted[..64],
            "and it is in memory from now on"
        );
        let report = version.verify(&VerifyProgress::default()).await;
        assert_eq!((report.mended, report.lost), (1, 0), "{report:?}");
        check(&site, cluster.path("pod")).await;

        fs::remove_file(&image).expect("removes");
        assert!(matches!(version.showable_now(), Showable::Checked(_)));
        assert_eq!(image_of(&version).await, image);
        stage_and_publish(&cluster, "new").await;
        assert!(is_image(&cluster, "new"));
        let devices = ["pod", "new"].map(|name| mount(&cluster, name).device);
        assert_ne!(devices[0], devices[1]);
        check(&site, cluster.path("pod")).await;
        check(&site, cluster.path("new")).await;
        cluster.stop().await.1.expect("ends well");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_way_to_mount_it_an_image_s_version_is_shown_by_fuse_and_the_reason_is_said() {
    if !can_mount() {
        return;
    }
    let site = site();
    let agent = imaging(&site).await;
    site.register(&agent).await;
    complete(&agent).await;
    for choice in [Choice::Auto, Choice::Fuse] {
        let datasets = Arc::new(agent.clone());
        let cluster = Cluster::start_showing(Folder::new(), None, datasets, true, choice).await;
        stage_and_publish(&cluster, "pod").await;
        assert!(!is_image(&cluster, "pod"));
        check(&site, cluster.path("pod")).await;
        cluster.stop().await.1.expect("ends well");
    }
    let datasets = Arc::new(agent.clone());
    let cluster = Cluster::start_showing(Folder::new(), None, datasets, true, Choice::Native).await;
    let mut node = cluster.node.clone();
    let refused = node.node_stage_volume(cluster.stage("set")).await;
    let refused = refused.expect_err("it can't be mounted");
    assert!(refused.message().contains("EROFS"), "{}", refused.message());
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_300_000_small_files_becomes_native() {
    let Some(&way) = ways().first() else {
        return;
    };
    let site = Site::new();
    let change = |config: &mut trackbed_cache::AgentConfig| {
        config.lay_out = true;
        config.image_from = Choice::Auto.image_from();
    };
    let origin = Arc::new(Many(VERY_MANY));
    let agent = site.agent_of(change, |shard| Arc::new(shard), origin).await;
    site.register(&agent).await;
    complete(&agent).await;
    let mut cluster = start(Folder::new(), &agent, way, true).await;
    stage_and_publish(&cluster, "pod").await;
    assert!(is_image(&cluster, "pod"));
    let condition = cluster.condition("set", "pod").await;
    assert!(
        condition.message.contains("from an EROFS image"),
        "{condition:?}"
    );
    let pod = cluster.path("pod");
    let checking = tokio::task::spawn_blocking(move || {
        assert_eq!(
            fs::read_dir(pod.join("many")).expect("lists").count(),
            VERY_MANY / 1000
        );
        for number in 0..VERY_MANY {
            let path = pod.join(Many::path(number));
            if number % 1000 == 0 {
                let folder = fs::read_dir(path.parent().expect("in a folder"));
                assert_eq!(folder.expect("lists").count(), 1000);
            }
            let found = fs::read_to_string(path).expect("reads");
            assert!(found == Many::content(number), "{number}");
        }
    });
    checking.await.expect("right");
    cluster.stop().await.1.expect("ends well");
}
