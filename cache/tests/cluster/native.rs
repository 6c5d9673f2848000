//! Versions shown as plain files: only when all of it was verified, and kept right.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use trackbed_cache::open::{Part, VerifyProgress, WarmProgress};
use trackbed_cache::{OpenVersion, Showable};

use crate::support::*;

/// Far beyond what it takes, as the machine may be busy.
const SHOWN_WITHIN: Duration = Duration::from_secs(120);

impl Cluster {
    fn start_laying_out(&self, name: &str) -> Node {
        let mut config = self.config(name);
        config.lay_out = true;
        self.try_start(config).expect("the node starts")
    }
}

fn tree(version: &OpenVersion) -> PathBuf {
    let since = Instant::now();
    loop {
        match version.showable() {
            Showable::Native(tree) => return tree,
            Showable::Image(image) => panic!("an image: {}", image.display()),
            Showable::Checked(why) if since.elapsed() > SHOWN_WITHIN => panic!("{why}"),
            Showable::Checked(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn assert_tree_right(tree: &Path, files: &Files) {
    let found = files_below(tree);
    assert_eq!(found.len(), files.len());
    for path in found {
        use std::os::unix::ffi::OsStrExt;
        let name = path.strip_prefix(tree).expect("below").as_os_str();
        let content = fs::read(&path).expect("readable");
        assert!(content == files[name.as_bytes()], "{name:?}");
        let metadata = path.metadata().expect("there");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o644, "{name:?}");
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        assert_eq!(metadata.modified().expect("a time"), epoch, "{name:?}");
    }
}

/// Changes a byte on the disk, and nothing that tells.
fn damage(path: &Path, at: u64) {
    let before = path.metadata().expect("there");
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("a cache file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
    file.sync_all().expect("synced");
    file.set_modified(before.modified().expect("a time"))
        .expect("set");
}

#[test]
fn a_complete_version_becomes_a_tree_of_plain_files_as_at_the_origin() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start_laying_out("a");
    cluster.register(&node);
    let version = node.open();
    assert!(matches!(version.showable(), Showable::Checked(_)));
    block_on(version.warm()).expect("all of it");
    assert_tree_right(&tree(&version), cluster.origin.files());
    assert_all_right(&version, cluster.origin.files());
    // All of it was read back before it was shown, once.
    let checked = node.agent.counters().checked_bytes;
    assert_eq!(checked, cluster.origin.total());
}

#[test]
fn what_changes_on_the_disk_between_a_fill_and_the_laying_out_is_mended_before_it_is_shown() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start_laying_out("a");
    let record = cluster.register(&node);
    let version = node.open();
    let part = Part::Paths(vec![b"train".into(), b"shards/5.tar".into()]);
    block_on(version.warm_part(&part, &WarmProgress::default())).expect("a part of it");
    block_on(node.agent.flush());
    let directory = cluster.version_dir("a", record.version);
    damage(&directory.join("tree/shards/5.tar"), (4 << 20) + 5);
    damage(&directory.join("small.pack"), 5);

    block_on(version.warm()).expect("the rest of it");
    assert_tree_right(&tree(&version), cluster.origin.files());
    let counters = node.agent.counters();
    assert_eq!((counters.corrupt_blocks, counters.unmended_chunks), (2, 0));
}

#[test]
fn a_file_that_is_written_to_after_it_was_read_back_and_before_it_is_shown_is_read_again() {
    let cluster = Cluster::new(some_files());
    let mut config = cluster.config("a");
    config.lay_out = true;
    config.verify_rate = 16 << 20;
    let node = cluster.try_start(config).expect("the node starts");
    let record = cluster.register(&node);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    // The packs and the first files were read by now, the last ones were not.
    while node.agent.counters().checked_bytes < cluster.origin.total() / 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let directory = cluster.version_dir("a", record.version);
    damage(&directory.join("tree/shards/1.tar"), 5);
    damage(&directory.join("tree/train/03/3.jpg"), 10);
    assert!(matches!(version.showable(), Showable::Checked(_)));
    assert_tree_right(&tree(&version), cluster.origin.files());
    // The small file was copied anew.
    assert_eq!(node.agent.counters().mended_chunks, 1);
}

#[test]
fn after_the_agent_was_killed_nothing_is_verified_again_and_after_a_reboot_everything() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start_laying_out("a");
    let record = cluster.register(&node);
    block_on(node.open().warm()).expect("all of it");
    tree(&node.open());
    let directory = cluster.version_dir("a", record.version);
    while !directory.join("verified").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    node.stop();

    let node = cluster.start_laying_out("a");
    let version = node.open();
    assert!(matches!(version.showable(), Showable::Native(_)));
    assert_eq!(node.agent.counters().checked_bytes, 0);
    drop(version);
    node.stop();

    // What a reboot does to it: it names another boot.
    let verified = directory.join("verified");
    let mut bytes = fs::read(&verified).expect("there");
    bytes[8..44].fill(b'0');
    fs::write(&verified, bytes).expect("written");
    let mut damaged = files_below(&directory.join("tree"));
    damaged.retain(|path| path.metadata().expect("there").len() > 1000);
    for path in &damaged {
        damage(path, 997);
    }
    let node = cluster.start_laying_out("a");
    let version = node.open();
    assert_tree_right(&tree(&version), cluster.origin.files());
    let counters = node.agent.counters();
    assert!(counters.checked_bytes > 0);
    assert!(counters.mended_chunks > 0 && counters.unmended_chunks == 0);
}

#[test]
fn a_kill_in_the_middle_of_laying_out_leaves_nothing_that_is_shown() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    let record = cluster.register(&node);
    block_on(node.open().warm()).expect("all of it");
    block_on(node.agent.flush());
    node.stop();
    let directory = cluster.version_dir("a", record.version).join("tree");
    // What half of it could have left: a short file, a wrong one, a link where a file belongs.
    fs::create_dir_all(directory.join("train/00")).expect("made");
    fs::write(directory.join("train/00/0.jpg"), b"half").expect("written");
    fs::write(directory.join("train/00/7.jpg"), vec![7; 200_000]).expect("written");

    let node = cluster.start_laying_out("a");
    assert_tree_right(&tree(&node.open()), cluster.origin.files());
}

#[test]
fn a_link_planted_in_the_tree_is_not_followed() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    let record = cluster.register(&node);
    block_on(node.open().warm()).expect("all of it");
    block_on(node.agent.flush());
    node.stop();
    let directory = cluster.version_dir("a", record.version).join("tree");
    let outside = cluster.cache_dir("outside");
    fs::create_dir_all(&outside).expect("made");
    fs::write(outside.join("0.jpg"), b"precious").expect("written");
    fs::create_dir_all(directory.join("train")).expect("made");
    std::os::unix::fs::symlink(&outside, directory.join("train/00")).expect("linked");

    let node = cluster.start_laying_out("a");
    let version = node.open();
    let since = Instant::now();
    let why = loop {
        match version.showable() {
            Showable::Checked(why) if why.contains("could not be laid out") => break why,
            shown => assert!(since.elapsed() < SHOWN_WITHIN, "{shown:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(why.contains("train/00"), "{why}");
    assert_eq!(fs::read(outside.join("0.jpg")).expect("there"), b"precious");
    assert_all_right(&version, cluster.origin.files());
}

#[test]
fn what_is_damaged_on_the_disk_is_found_by_verifying_and_mended_where_pods_see_it() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["b"]);
    let node = cluster.start_laying_out("a");
    let record = cluster.register(&node);
    block_on(nodes[0].open().warm()).expect("all of it");
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    let tree = tree(&version);
    block_on(node.agent.flush());
    let read_before = cluster.origin.reads.load(Relaxed);
    // One byte of a large file, of a copied small file, and of a pack.
    damage(&tree.join("shards/5.tar"), 5 << 20);
    damage(&tree.join("train/03/3.jpg"), 10);
    damage(
        &cluster.version_dir("a", record.version).join("small.pack"),
        (4 << 20) + 1000,
    );
    // A pod has a file open, and part of it in memory.
    let open = fs::File::open(tree.join("shards/5.tar")).expect("opens");
    open.read_exact_at(&mut [0; 4096], 5 << 20).expect("reads");

    let progress = VerifyProgress::default();
    let report = block_on(version.verify(&progress));
    assert_eq!((report.mended, report.lost), (3, 0), "{report:?}");
    assert_eq!(report.chunks, version.manifest().chunks());
    assert_eq!(progress.bytes(), cluster.origin.total());
    assert_eq!(node.agent.counters().mended_chunks, 3);
    assert_eq!(
        cluster.origin.reads.load(Relaxed),
        read_before,
        "the peer had it"
    );
    assert_tree_right(&tree, cluster.origin.files());
    let mut seen = [0; 4096];
    open.read_exact_at(&mut seen, 5 << 20).expect("reads");
    let wanted = &cluster.origin.files()[&b"shards/5.tar"[..]][5 << 20..][..4096];
    assert!(seen == wanted, "the open file shows the right bytes again");
    assert!(matches!(version.showable(), Showable::Native(_)));
    let again = block_on(version.verify(&VerifyProgress::default()));
    assert_eq!((again.mended, again.lost), (0, 0));
}

#[test]
fn damage_that_nobody_can_mend_is_said_and_the_version_is_not_shown_natively_any_more() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start_laying_out("a");
    cluster.register(&node);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    let tree = tree(&version);
    damage(&tree.join("shards/5.tar"), 100);
    lock(&cluster.origin.changed).insert(b"shards/5.tar".to_vec());
    let report = block_on(version.verify(&VerifyProgress::default()));
    assert_eq!((report.mended, report.lost), (0, 1));
    let why = report.why.expect("a reason").to_string();
    assert!(why.contains("shards/5.tar"), "{why}");
    assert!(matches!(version.showable(), Showable::Checked(_)));
}

#[test]
fn scrubbing_goes_on_by_itself_and_mends() {
    let cluster = Cluster::new(some_files());
    let mut config = cluster.config("a");
    config.scrub_every = Duration::ZERO;
    config.scrub_rate = u64::MAX;
    let node = cluster.try_start(config).expect("starts");
    let record = cluster.register(&node);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    block_on(node.agent.flush());
    let directory = cluster.version_dir("a", record.version);
    damage(&directory.join("tree/shards/3.tar"), 77);
    let since = Instant::now();
    while node.agent.counters().mended_chunks == 0 {
        assert!(since.elapsed() < SHOWN_WITHIN);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(version.progress().is_complete());
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(node.agent.counters().corrupt_blocks, 1);
}

#[test]
fn small_files_that_do_not_fit_twice_are_not_laid_out_and_the_reason_is_said() {
    let cluster = Cluster::new(some_files());
    let mut config = cluster.config("a");
    config.lay_out = true;
    config.capacity = cluster.origin.total() + 1000;
    let node = cluster.try_start(config).expect("starts");
    cluster.register(&node);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    let since = Instant::now();
    while !version.showable().to_string().contains("no room") {
        assert!(since.elapsed() < SHOWN_WITHIN, "{}", version.showable());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_all_right(&version, cluster.origin.files());
}
