//! A node with several disks: where versions go, what a full or failing disk costs, and what a restart
//! finds.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use trackbed_cache::registry::{Namespace, Readers};
use trackbed_cache::{AgentConfig, AgentError, DiskStatus};

use crate::support::*;

const MIB: u64 = 1 << 20;
const FOLDERS: [&str; 4] = ["a", "b", "c", "d"];

/// Folders of 5 MiB each: those, and "e".
fn folders() -> Cluster {
    let mut files = Files::new();
    for (seed, folder) in (1..).zip(FOLDERS.into_iter().chain(["e"])) {
        files.insert(format!("{folder}/large").into_bytes(), bytes(seed, 4 << 20));
        for n in 0..8 {
            let path = format!("{folder}/small/{n}").into_bytes();
            files.insert(path, bytes(100 * seed + n, 128 << 10));
        }
    }
    Cluster::new(files)
}

fn directory(cluster: &Cluster, disk: usize) -> PathBuf {
    cluster.cache_dir("n").join(disk.to_string())
}

/// Node "n" with that many disks, of 12 MiB each: two folders and a bit.
fn config(cluster: &Cluster, disks: usize) -> AgentConfig {
    let mut config = cluster.config("n");
    config.cache_dirs = (0..disks).map(|disk| directory(cluster, disk)).collect();
    config.capacity = 12 * MIB;
    config.disk_trial_every = Duration::from_millis(20);
    config
}

impl Node {
    fn register_and_warm(&self, folder: &str) {
        self.register_folder(folder, Readers::AsBefore);
        block_on(self.open_named(folder).warm()).expect("all of it");
        block_on(self.agent.flush());
    }

    fn on_disks(&self) -> Vec<u64> {
        let disks = self.agent.disks().into_iter();
        disks.map(|disk| disk.stored_bytes / MIB).collect()
    }

    fn lies_in(&self, folder: &str) -> PathBuf {
        let version = self.open_named(folder).directory();
        let disk = version.ancestors().nth(2).map(Path::to_owned);
        disk.expect("a cache directory")
    }

    fn is_complete(&self, folder: &str) -> bool {
        self.open_named(folder).progress().is_complete()
    }
}

fn assert_right(cluster: &Cluster, node: &Node, folder: &str) {
    let files = cluster.origin.below(&format!("{folder}/"));
    assert_all_right(&node.open_named(folder), &files);
}

#[test]
fn versions_spread_over_the_disks_and_a_restart_finds_them_where_they_are() {
    let cluster = folders();
    let node = cluster.try_start(config(&cluster, 2)).expect("starts");
    FOLDERS
        .iter()
        .for_each(|folder| node.register_and_warm(folder));
    assert_eq!(node.on_disks(), [10, 10]);
    assert_eq!(node.agent.counters().stored_bytes, 20 * MIB);
    let lay = FOLDERS.map(|folder| node.lies_in(folder));
    node.stop();

    let mut other_order = config(&cluster, 2);
    other_order.cache_dirs.reverse();
    let node = cluster.try_start(other_order).expect("starts");
    assert_eq!(FOLDERS.map(|folder| node.lies_in(folder)), lay);
    for folder in FOLDERS {
        assert_right(&cluster, &node, folder);
        assert!(node.is_complete(folder), "{folder}");
    }
    assert_eq!(node.agent.counters().origin_bytes, 0, "all of it was there");
}

#[test]
fn what_is_to_come_of_a_version_counts_when_the_next_one_is_given_a_disk() {
    let cluster = folders();
    let node = cluster.try_start(config(&cluster, 4)).expect("starts");
    let open = FOLDERS.map(|folder| {
        node.register_folder(folder, Readers::AsBefore);
        node.open_named(folder)
    });
    let mut directories =
        open.map(|version| version.directory().ancestors().nth(2).map(Path::to_owned));
    directories.sort();
    let expected: Vec<_> = (0..4).map(|disk| Some(directory(&cluster, disk))).collect();
    assert_eq!(directories.as_slice(), expected);
}

#[test]
fn a_full_disk_makes_room_among_its_own_versions() {
    let cluster = folders();
    let mut small = config(&cluster, 2);
    small.capacity = 8 * MIB;
    let node = cluster.try_start(small).expect("starts");
    node.agent.begin_evicting(Box::new(Default::default));
    node.register_and_warm("a");
    node.register_and_warm("b");
    let kept = node.lies_in("b");
    assert_ne!(node.lies_in("a"), kept);
    // The same length as "a" and "b": it goes to either, whose version it replaces.
    node.register_and_warm("c");
    assert_eq!(node.on_disks(), [5, 5]);
    let gone = if node.lies_in("c") == kept { "b" } else { "a" };
    for folder in ["a", "b", "c"] {
        assert_eq!(node.is_complete(folder), folder != gone, "{folder}");
    }
    assert_right(&cluster, &node, gone);
}

#[test]
fn a_quota_holds_for_all_disks_together() {
    let cluster = folders();
    let team = Namespace::parse("team").expect("valid");
    let mut config = config(&cluster, 2);
    config.quotas = [(team.clone(), 6 * MIB)].into();
    let node = cluster.try_start(config).expect("starts");
    node.agent.begin_evicting(Box::new(Default::default));
    for folder in ["a", "b"] {
        node.register_folder(folder, Readers::Only([team.clone()].into()));
        block_on(node.open_named(folder).warm()).expect("all of it");
        block_on(node.agent.flush());
    }
    assert_ne!(node.lies_in("a"), node.lies_in("b"));
    assert_eq!(node.agent.counters().stored_bytes, 5 * MIB);
    assert!(node.is_complete("b") && !node.is_complete("a"));
}

#[test]
fn a_disk_that_fails_costs_nothing_of_what_is_on_the_others() {
    let cluster = folders();
    let (node, faulty) = cluster.start_on_faulty(config(&cluster, 2));
    FOLDERS
        .iter()
        .for_each(|folder| node.register_and_warm(folder));
    let (failing, well) = (node.lies_in("a"), node.lies_in("b"));
    assert_ne!(failing, well);
    let version = node.open_named("a");
    faulty.plan(
        Some(Fault::Read(libc::EIO)),
        100,
        &failing.display().to_string(),
    );
    // All of them are more than memory keeps.
    for _ in 0..20 {
        FOLDERS
            .iter()
            .for_each(|folder| assert_right(&cluster, &node, folder));
    }
    let trouble = version.trouble().expect("out of service");
    assert!(
        trouble.contains(&failing.display().to_string()),
        "{trouble}"
    );
    assert_eq!(node.open_named("b").trouble(), None);
    let out = |disk: &DiskStatus| (disk.directory == failing, !disk.in_service);
    assert!(
        node.agent
            .disks()
            .iter()
            .map(out)
            .all(|(is, is_out)| is == is_out)
    );

    let read = node.agent.counters().origin_bytes;
    assert_right(&cluster, &node, "b");
    assert_eq!(
        node.agent.counters().origin_bytes,
        read,
        "\"b\" is on the other disk"
    );
    assert_right(&cluster, &node, "a");
    node.register_folder("e", Readers::AsBefore);
    assert_eq!(node.lies_in("e"), well);

    faulty.plan(None, 0, "");
    let since = Instant::now();
    while version.trouble().is_some() && since.elapsed() < Duration::from_secs(60) {
        // It is tried however often the other disk asks for room.
        node.agent.begin_evicting(Box::new(Default::default));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(version.trouble(), None);
    assert!(node.agent.disks().iter().all(|disk| disk.in_service));
}

#[test]
fn a_disk_that_fails_at_the_start_is_left_out_and_one_that_is_in_use_is_not() {
    let cluster = folders();
    let config = || config(&cluster, 3);
    let broken = directory(&cluster, 1);
    fs::create_dir_all(&broken).expect("made");
    // Opening a socket fails as a device does that is gone: ENXIO.
    let socket = UnixListener::bind(broken.join("lock")).expect("made");
    let node = cluster.try_start(config()).expect("starts on the others");
    let service: Vec<_> = node.agent.disks().into_iter().collect();
    let out: Vec<_> = service.iter().filter(|disk| !disk.in_service).collect();
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].directory, broken);
    assert_eq!(node.agent.counters().disks_out, 1);
    for folder in ["a", "b"] {
        node.register_and_warm(folder);
        assert!(node.is_complete(folder));
    }
    drop(socket);
    fs::remove_file(broken.join("lock")).expect("removed");

    // Another agent has the first directory: that is nothing to go on without.
    let refused = cluster
        .try_start(config())
        .err()
        .expect("refused")
        .to_string();
    assert!(refused.contains("another agent"), "{refused}");
}

#[test]
fn a_version_on_two_disks_is_used_from_the_one_that_has_more_of_it() {
    let cluster = folders();
    let node = cluster.try_start(config(&cluster, 1)).expect("starts");
    node.register_and_warm("a");
    let version = node.open_named("a").manifest().digest().to_string();
    node.stop();
    // An operator begins to move it, and does not get far.
    let (whole, part) = (directory(&cluster, 0), directory(&cluster, 1));
    let copy = part.join("versions").join(&version);
    fs::create_dir_all(part.join("versions")).expect("made");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([&whole.join("versions").join(&version), &copy])
        .status();
    assert!(copied.expect("runs").success());
    for presence in ["presence.a", "presence.b"] {
        fs::write(copy.join(presence), b"").expect("emptied");
    }

    for directories in [[&part, &whole], [&whole, &part]] {
        let mut config = config(&cluster, 2);
        config.cache_dirs = directories.map(|d| d.to_owned()).into();
        let node = cluster.try_start(config).expect("starts");
        assert_eq!(node.lies_in("a"), whole);
        assert!(node.is_complete("a") && copy.exists());
        node.stop();
    }
    let node = cluster.try_start(config(&cluster, 2)).expect("starts");
    node.agent.begin_evicting(Box::new(Default::default));
    let since = Instant::now();
    while copy.exists() && since.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!copy.exists(), "what is not used is removed");
    assert_right(&cluster, &node, "a");
}

#[test]
fn directories_that_are_no_disks_of_their_own_are_refused() {
    let cluster = folders();
    let mut nested = config(&cluster, 2);
    nested
        .cache_dirs
        .push(directory(&cluster, 0).join("deeper"));
    let refused = cluster.try_start(nested).err().expect("refused");
    assert!(matches!(refused, AgentError::Store(_)));
    assert!(refused.to_string().contains("deeper"), "{refused}");
    let refused = cluster
        .try_start(config(&cluster, 0))
        .err()
        .expect("refused");
    assert!(
        refused.to_string().contains("name one for each disk"),
        "{refused}"
    );
}
