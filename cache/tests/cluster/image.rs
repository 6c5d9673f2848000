//! Versions of many small files, shown as an EROFS image: only when all of it was verified, and kept
//! right. The image is read by the reader of the writer's own tests; that the kernel mounts it, the
//! tests of the CSI driver show.

#[path = "../../src/erofs/tests/reader.rs"]
mod reader;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use futures::executor::block_on;
use trackbed_cache::open::VerifyProgress;
use trackbed_cache::{OpenVersion, Showable};

use crate::support::*;

/// Far beyond what it takes, as the machine may be busy.
const SHOWN_WITHIN: Duration = Duration::from_secs(120);

/// Small files, several packs of them, and a large one.
fn mostly_small() -> Files {
    let mut files = Files::new();
    let mut random = Random(3);
    for n in 0..300 {
        let len = random.below(60_000) as usize;
        files.insert(
            format!("train/{:02}/{n}.jpg", n % 7).into_bytes(),
            bytes(n, len),
        );
    }
    files.insert(b"odd/\xff\xfe name\n".to_vec(), bytes(7, 5000));
    files.insert(b"empty".to_vec(), Vec::new());
    files.insert(b"large.tar".to_vec(), bytes(8, (5 << 20) + 9));
    files
}

impl Cluster {
    fn start_imaging(&self, name: &str) -> Node {
        let mut config = self.config(name);
        config.lay_out = true;
        config.image_from = Some(10);
        self.try_start(config).expect("the node starts")
    }
}

fn shown(version: &OpenVersion) -> Showable {
    let since = Instant::now();
    loop {
        match version.showable_now() {
            Showable::Checked(why) if since.elapsed() > SHOWN_WITHIN => panic!("{why}"),
            Showable::Checked(_) => std::thread::sleep(Duration::from_millis(5)),
            shown => return shown,
        }
    }
}

fn image(version: &OpenVersion) -> PathBuf {
    match shown(version) {
        Showable::Image(image) => image,
        other => panic!("{other}"),
    }
}

fn assert_image_right(image: &Path, files: &Files) {
    let found = reader::read(&fs::read(image).expect("readable"), u64::MAX);
    for (path, content) in files {
        let found = &found[path];
        assert!(found.content.as_ref() == Some(content), "{path:?}");
        assert_eq!((found.mode, found.mtime, found.links), (0o644, (0, 0), 1));
        assert_eq!(found.size, content.len() as u64);
    }
    let files_found = found.values().filter(|found| found.content.is_some());
    assert_eq!(files_found.count(), files.len());
}

/// Changes a byte on the disk, and nothing that tells.
fn damage(path: &Path, at: u64) {
    let before = path.metadata().expect("there");
    let file = fs::File::options().read(true).write(true).open(path);
    let file = file.expect("a cache file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
    file.sync_all().expect("synced");
    let time = before.modified().expect("a time");
    file.set_modified(time).expect("set");
}

fn inode(path: &Path) -> u64 {
    path.metadata().expect("there").ino()
}

/// A cluster with a node that has the version as an image.
fn imaged() -> (Cluster, Node, PathBuf) {
    let cluster = Cluster::new(mostly_small());
    let node = cluster.start_imaging("a");
    cluster.register(&node);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    let image = image(&version);
    drop(version);
    (cluster, node, image)
}

#[test]
fn a_complete_version_of_many_small_files_becomes_one_image_and_not_many_files() {
    let (cluster, node, image) = imaged();
    assert_image_right(&image, cluster.origin.files());
    let version = node.open();
    assert_all_right(&version, cluster.origin.files());
    let laid_out = files_below(&version.directory().join("tree"));
    assert_eq!(laid_out.len(), 1, "the large one: {laid_out:?}");
    // All of it was read back before it was shown, once.
    let counters = node.agent.counters();
    assert_eq!(counters.checked_bytes, cluster.origin.total());
    let both = cluster.origin.total() + image.metadata().expect("there").len();
    assert_eq!(counters.stored_bytes, both);
}

#[test]
fn versions_of_few_small_files_and_mostly_large_ones_are_laid_out_as_files() {
    let mut files = mostly_small();
    files.insert(b"larger.tar".to_vec(), bytes(9, 16 << 20));
    for (files, from) in [(files, 10), (mostly_small(), 10_000)] {
        let cluster = Cluster::new(files);
        let mut config = cluster.config("a");
        (config.lay_out, config.image_from) = (true, Some(from));
        let node = cluster.try_start(config).expect("starts");
        cluster.register(&node);
        let version = node.open();
        block_on(version.warm()).expect("all of it");
        let shown = shown(&version);
        assert!(matches!(shown, Showable::Native(_)), "{shown}");
    }
}

#[test]
fn what_the_disk_damages_in_an_image_is_found_by_verifying_and_mended_beneath_who_has_it_open() {
    let (cluster, node, image) = imaged();
    let version = node.open();
    let open = fs::File::open(&image).expect("opens");
    let len = open.metadata().expect("stats").len();
    // The superblock, an inode, the middle of some file, and the large file's last bytes.
    for at in [1024 + 80, 1152 + 4, len / 2, len - 4096] {
        damage(&image, at);
    }
    let before = fs::read(&image).expect("reads");
    let report = block_on(version.verify(&VerifyProgress::default()));
    assert_eq!((report.mended, report.lost), (3, 0), "{report:?}");
    assert_image_right(&image, cluster.origin.files());
    let mut seen = vec![0; len as usize];
    open.read_exact_at(&mut seen, 0).expect("reads");
    assert!(seen != before && seen == fs::read(&image).expect("reads"));
    assert!(matches!(version.showable_now(), Showable::Image(_)));
    let again = block_on(version.verify(&VerifyProgress::default()));
    assert_eq!((again.mended, again.lost), (0, 0));
}

#[test]
fn a_chunk_that_is_brought_again_is_right_in_the_image_too() {
    let (cluster, node, image) = imaged();
    let version = node.open();
    block_on(node.agent.flush());
    let before = inode(&image);
    let len = image.metadata().expect("there").len();
    damage(&image, len - 4096);
    damage(&version.directory().join("tree/large.tar"), (5 << 20) + 5);
    damage(&version.directory().join("small.pack"), (4 << 20) + 1000);
    let report = block_on(version.verify(&VerifyProgress::default()));
    assert_eq!((report.mended, report.lost), (2, 0), "{report:?}");
    assert_image_right(&image, cluster.origin.files());
    assert_eq!(inode(&image), before);
}

#[test]
fn half_an_image_that_a_kill_has_left_is_not_believed_and_made_anew() {
    let (cluster, node, image) = imaged();
    let directory = image.parent().expect("in a directory").to_owned();
    node.stop();
    let marker = directory.join("image.whole");
    let whole = fs::read(&image).expect("reads");
    // Nothing but a name; the beginning of one; all of it but the last bytes; all of it, but for the
    // marker; a marker of another kind of image. `verified` is as the kill left it.
    let mut unsynced = whole.clone();
    let end = unsynced.len() - 8192;
    unsynced[end..].fill(0);
    let old = br#"{"version":"VERSION","format":0,"bytes":1}"#;
    let digest = directory
        .file_name()
        .expect("a digest")
        .to_string_lossy()
        .into_owned();
    let old = String::from_utf8_lossy(old).replace("VERSION", &digest);
    let states: [(&[u8], Option<&str>); 5] = [
        (b"", None),
        (&whole[..whole.len() / 2], None),
        (&unsynced, None),
        (&whole, None),
        (&unsynced, Some(&old)),
    ];
    for (content, says) in states {
        fs::write(&image, content).expect("writes");
        let file = fs::File::options().write(true).open(&image).expect("opens");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("sets");
        // Held, so that its number is not given to the next.
        let before = inode(&image);
        let _ = fs::remove_file(&marker);
        if let Some(says) = says {
            fs::write(&marker, says).expect("writes");
        }
        let node = cluster.start_imaging("a");
        let version = node.open();
        let image = self::image(&version);
        assert_ne!(inode(&image), before, "another file");
        assert_image_right(&image, cluster.origin.files());
        drop(version);
        drop(file);
        node.stop();
    }
}

#[test]
fn after_the_agent_was_killed_nothing_is_verified_again_and_after_a_reboot_everything() {
    let (cluster, node, image) = imaged();
    let verified = image.with_file_name("verified");
    while !verified.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    node.stop();
    let before = inode(&image);
    let node = cluster.start_imaging("a");
    let version = node.open();
    assert!(matches!(version.showable_now(), Showable::Image(_)));
    let counters = node.agent.counters();
    assert_eq!(counters.checked_bytes, 0);
    let both = cluster.origin.total() + image.metadata().expect("there").len();
    assert_eq!(counters.stored_bytes, both);
    drop(version);
    node.stop();

    // What a reboot does to it: it names another boot.
    let mut bytes = fs::read(&verified).expect("there");
    bytes[8..44].fill(b'0');
    fs::write(&verified, bytes).expect("written");
    damage(&image, 4096 * 30);
    let node = cluster.start_imaging("a");
    let image = self::image(&node.open());
    assert_image_right(&image, cluster.origin.files());
    assert!(node.agent.counters().mended_chunks > 0);
    assert_eq!(inode(&image), before);
}

#[test]
fn an_image_that_somebody_has_written_to_shortened_or_removed_is_right_before_it_is_shown_again() {
    let (cluster, node, image) = imaged();
    let version = node.open();
    let before = inode(&image);
    let file = fs::File::options().write(true).open(&image).expect("opens");
    file.write_all_at(b"changed", 8192).expect("writes");
    assert!(matches!(version.showable_now(), Showable::Checked(_)));
    assert_image_right(&self::image(&version), cluster.origin.files());
    assert_eq!(inode(&image), before);

    file.set_len(12_345).expect("shortens");
    file.set_modified(SystemTime::UNIX_EPOCH).expect("sets");
    assert!(matches!(version.showable_now(), Showable::Checked(_)));
    assert_image_right(&self::image(&version), cluster.origin.files());
    assert_ne!(
        inode(&image),
        before,
        "another file: who has the old one keeps it"
    );

    fs::remove_file(&image).expect("removes");
    assert!(matches!(version.showable_now(), Showable::Checked(_)));
    assert_image_right(&self::image(&version), cluster.origin.files());
    drop(version);

    // The same while no agent runs.
    node.stop();
    let file = fs::File::options().write(true).open(&image).expect("opens");
    file.write_all_at(b"changed", 8192).expect("writes");
    let node = cluster.start_imaging("a");
    assert_image_right(&self::image(&node.open()), cluster.origin.files());
}

#[test]
fn a_node_that_shows_images_no_longer_lays_the_files_out_and_gives_the_image_up() {
    let (cluster, node, image) = imaged();
    node.stop();
    let mut config = cluster.config("a");
    config.lay_out = true;
    let node = cluster.try_start(config).expect("starts");
    let version = node.open();
    let shown = shown(&version);
    let Showable::Native(tree) = &shown else {
        panic!("{shown}");
    };
    assert_eq!(files_below(tree).len(), cluster.origin.files().len());
    assert!(!image.exists());
    let large = cluster.origin.files()[&b"large.tar"[..]].len() as u64;
    let stored = 2 * cluster.origin.total() - large;
    assert_eq!(node.agent.counters().stored_bytes, stored);
    drop(version);
    node.stop();
    // And files that are laid out stay.
    let node = cluster.start_imaging("a");
    assert!(matches!(self::shown(&node.open()), Showable::Native(_)));
}

#[test]
fn an_image_for_which_there_is_no_room_is_not_made_and_the_reason_is_said() {
    let cluster = Cluster::new(mostly_small());
    let mut config = cluster.config("a");
    (config.lay_out, config.image_from) = (true, Some(10));
    config.capacity = cluster.origin.total() + 1000;
    let node = cluster.try_start(config).expect("starts");
    let record = cluster.register(&node);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    let since = Instant::now();
    while !version.showable().to_string().contains("no room") {
        assert!(since.elapsed() < SHOWN_WITHIN, "{}", version.showable());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_all_right(&version, cluster.origin.files());
    let directory = cluster.version_dir("a", record.version);
    assert!(!directory.join("image.erofs").exists());
    assert_eq!(node.agent.counters().stored_bytes, cluster.origin.total());
}

#[test]
fn an_evicted_version_leaves_no_image_and_gives_back_all_it_took() {
    let (cluster, node, image) = imaged();
    node.agent.begin_evicting(Box::new(Default::default));
    let version = node.open().manifest().digest();
    let name = "d".parse().expect("a name");
    let evicted = block_on(node.agent.evict(&name, None)).expect("evicts");
    let both = cluster.origin.total();
    assert_eq!(evicted[0].0, version);
    assert!(evicted[0].1 > 2 * both);
    assert!(!image.exists());
    assert_eq!(node.agent.counters().stored_bytes, 0);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    assert_image_right(&self::image(&version), cluster.origin.files());
}

/// Copies a version's directory file by file, the marker first and the image last: each may be older than
/// what comes after it, as with a kill.
fn copy_as_killed(live: &Path, to: &Path) {
    fs::create_dir_all(to.join("tree")).expect("made");
    let names = [
        "image.whole",
        "verified",
        "presence.a",
        "presence.b",
        "manifest",
        "origin",
        "seals",
        "small.pack",
        "tree/large.tar",
        "image.erofs",
    ];
    for name in names {
        let Ok(mut from) = fs::File::open(live.join(name)) else {
            continue;
        };
        let mut copy = fs::File::create(to.join(name)).expect("made");
        std::io::copy(&mut from, &mut copy).expect("copied");
        let time = from.metadata().expect("stats").modified().expect("a time");
        copy.set_modified(time).expect("set");
    }
}

#[test]
fn a_kill_at_any_moment_of_making_an_image_leaves_none_that_is_believed_and_wrong() {
    let cluster = Cluster::new(mostly_small());
    let mut config = cluster.config("a");
    (config.lay_out, config.image_from) = (true, Some(10));
    // Slow enough that some of the moments are in the middle.
    config.verify_rate = 24 << 20;
    let node = cluster.try_start(config).expect("starts");
    let record = cluster.register(&node);
    let live = cluster.version_dir("a", record.version);
    let version = node.open();
    block_on(version.warm()).expect("all of it");
    block_on(node.agent.flush());
    let copy_of = |moment: usize| cluster.version_dir(&format!("killed-{moment}"), record.version);
    let (mut moments, mut whole) = (0, false);
    while !whole {
        whole = version.showable().is_native();
        copy_as_killed(&live, &copy_of(moments));
        moments += 1;
        std::thread::sleep(Duration::from_millis(40));
    }
    drop(version);
    node.stop();
    let mut unmarked = 0;
    for moment in 0..moments {
        let copy = copy_of(moment);
        match copy.join("image.whole").exists() {
            true => assert_image_right(&copy.join("image.erofs"), cluster.origin.files()),
            false => unmarked += 1,
        }
        let node = cluster.start_imaging(&format!("killed-{moment}"));
        assert_image_right(&image(&node.open()), cluster.origin.files());
        node.stop();
    }
    assert!(
        unmarked > 0 && unmarked < moments,
        "{unmarked} of {moments}"
    );
}
