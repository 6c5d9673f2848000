//! A cache that has less room than what is read: what goes, what stays, and what readers notice.

use std::fs::{self, File};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures::executor::block_on;
use trackbed_cache::agent::Keeps;
use trackbed_cache::registry::{Namespace, Readers};
use trackbed_cache::{AgentConfig, AgentError, DatasetName, Digest};

use crate::support::*;

const MIB: u64 = 1 << 20;

/// Folders of 5 MiB each, of large and small files.
fn folders() -> Cluster {
    let mut files = Files::new();
    for (seed, folder) in ["a", "b", "c"].into_iter().enumerate() {
        let seed = 100 * (1 + seed as u64);
        files.insert(format!("{folder}/large").into_bytes(), bytes(seed, 4 << 20));
        for n in 0..8 {
            let path = format!("{folder}/small/{n}").into_bytes();
            files.insert(path, bytes(seed + n, 128 << 10));
        }
    }
    Cluster::new(files)
}

/// A node that holds two of the folders at a time, with all of them registered.
fn start(cluster: &Cluster, change: impl FnOnce(&mut AgentConfig)) -> Node {
    let mut config = cluster.config("n");
    config.capacity = 12 * MIB;
    change(&mut config);
    let node = cluster.try_start(config).expect("starts");
    for folder in ["a", "b", "c"] {
        node.register_folder(folder, Readers::AsBefore);
    }
    node
}

fn evicting(cluster: &Cluster) -> Node {
    let node = start(cluster, |_| {});
    node.agent.begin_evicting(Box::new(Default::default));
    node
}

fn name(folder: &str) -> DatasetName {
    folder.parse().expect("a name")
}

impl Node {
    fn warm(&self, folder: &str) {
        block_on(self.open_named(folder).warm()).expect("all of it");
    }

    fn held(&self, folder: &str) -> u64 {
        let versions = self.agent.versions_on_disk(&name(folder));
        versions.expect("registered")[0].bytes
    }

    fn evict(&self, folder: &str) -> Result<Vec<(Digest, u64)>, AgentError> {
        block_on(self.agent.evict(&name(folder), None))
    }

    fn read_all(&self, cluster: &Cluster, folder: &str) {
        let files = cluster.origin.below(&format!("{folder}/"));
        assert_all_right(&self.open_named(folder), &files);
    }
}

#[test]
fn what_was_not_used_for_longest_makes_room_and_comes_again_when_it_is_read() {
    let cluster = folders();
    let node = evicting(&cluster);
    node.warm("a");
    node.warm("b");
    node.read_all(&cluster, "a");
    node.warm("c");
    assert_eq!(["a", "b", "c"].map(|f| node.held(f) / MIB), [5, 0, 5]);
    let counters = node.agent.counters();
    assert_eq!(counters.evicted_versions, 1);
    assert_eq!(counters.evicted_bytes, 5 * MIB);
    assert_eq!(counters.stored_bytes, 10 * MIB);
    assert_eq!(counters.unstored_chunks, 0);
    for folder in ["b", "a", "c", "b"] {
        node.read_all(&cluster, folder);
        // Readers have their bytes before the disk has.
        block_on(node.agent.flush());
        assert!(node.agent.counters().stored_bytes <= 12 * MIB);
    }
    assert!(node.open_named("b").progress().is_complete());
}

#[test]
fn looking_at_a_version_and_starting_the_node_are_no_uses_of_it() {
    let cluster = folders();
    let node = evicting(&cluster);
    node.warm("b");
    node.warm("a");
    block_on(node.agent.flush());
    node.stop();
    let mut config = cluster.config("n");
    config.capacity = 12 * MIB;
    let node = cluster.try_start(config).expect("starts");
    node.agent.begin_evicting(Box::new(Default::default));
    for folder in ["a", "b"] {
        let seen = block_on(node.agent.look_at(&name(folder), None)).expect("opens");
        assert!(seen.progress().is_complete());
    }
    node.warm("c");
    assert_eq!(["a", "b", "c"].map(|f| node.held(f) / MIB), [5, 0, 5]);
}

#[test]
fn what_is_open_or_mounted_stays_and_readers_of_the_rest_get_their_bytes_all_the_same() {
    let cluster = folders();
    let node = start(&cluster, |_| {});
    let mounted = block_on(node.agent.open(&name("b"), None)).expect("opens");
    let mounted = mounted.manifest().digest();
    node.agent
        .begin_evicting(Box::new(move || [mounted].into()));
    let in_use = node.open_named("a");
    node.warm("a");
    node.warm("b");
    let error = block_on(node.open_named("c").warm()).expect_err("no room");
    assert!(
        error.to_string().contains("give the cache more space"),
        "{error}"
    );
    node.read_all(&cluster, "c");
    block_on(node.agent.flush());
    assert_eq!(["a", "b"].map(|f| node.held(f) / MIB), [5, 5]);
    assert!(node.agent.counters().stored_bytes <= 12 * MIB);
    assert!(node.agent.counters().unstored_chunks > 0);
    for (folder, why) in [("a", "unmount it first"), ("b", "unmount it first")] {
        let error = node.evict(folder).expect_err("kept");
        assert!(matches!(
            error,
            AgentError::Kept {
                keeps: Keeps::InUse,
                ..
            }
        ));
        assert!(error.to_string().contains(why), "{error}");
    }
    // Nobody has it open any more: room is made of it.
    drop(in_use);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    node.warm("c");
    assert_eq!(["a", "b", "c"].map(|f| node.held(f) / MIB), [0, 5, 5]);
}

#[test]
fn what_is_pinned_stays_over_restarts_until_it_is_unpinned() {
    let cluster = folders();
    let node = evicting(&cluster);
    block_on(node.agent.pin(&name("a"), None, true)).expect("pinned");
    node.warm("a");
    node.warm("b");
    block_on(node.agent.flush());
    node.stop();
    let node = evicting(&cluster);
    node.warm("c");
    assert_eq!(["a", "b", "c"].map(|f| node.held(f) / MIB), [5, 0, 5]);
    let error = node.evict("a").expect_err("pinned");
    assert!(error.to_string().contains("unpin it first"), "{error}");
    block_on(node.agent.pin(&name("a"), None, false)).expect("unpinned");
    let evicted = node.evict("a").expect("evicted");
    assert_eq!(
        evicted
            .iter()
            .map(|(_, bytes)| bytes / MIB)
            .collect::<Vec<_>>(),
        [5]
    );
    assert_eq!(node.evict("a").expect("nothing is there"), []);
    node.read_all(&cluster, "a");
}

#[test]
fn when_versions_were_last_used_is_known_after_a_restart() {
    let cluster = folders();
    let node = evicting(&cluster);
    node.warm("b");
    node.warm("a");
    node.read_all(&cluster, "b");
    block_on(node.agent.flush());
    node.stop();
    let mut config = cluster.config("n");
    config.capacity = 6 * MIB;
    // Less room than there was: at the start already.
    let node = cluster.try_start(config).expect("starts");
    node.agent.begin_evicting(Box::new(Default::default));
    while node.agent.counters().stored_bytes > 6 * MIB {
        std::thread::yield_now();
    }
    assert_eq!(["a", "b"].map(|f| node.held(f) / MIB), [0, 5]);
}

#[test]
fn a_file_that_is_open_reads_right_after_its_version_was_evicted() {
    let cluster = folders();
    let node = evicting(&cluster);
    node.warm("a");
    let path = node.open_named("a").directory().join("tree/large");
    let mut open = File::open(&path).expect("there");
    node.evict("a").expect("evicted");
    assert!(!path.exists());
    let mut content = Vec::new();
    open.read_to_end(&mut content).expect("reads");
    assert!(content == cluster.origin.files()[&b"a/large"[..]]);
    assert_eq!(node.agent.counters().stored_bytes, 0);
}

#[test]
fn a_crash_while_evicting_leaves_a_version_of_which_nothing_is_marked() {
    let cluster = folders();
    let node = evicting(&cluster);
    node.warm("a");
    node.warm("b");
    block_on(node.agent.flush());
    let directory = |folder| node.open_named(folder).directory();
    let (a, b) = (directory("a"), directory("b"));
    node.stop();
    // Both were just moved aside; of one, a part was removed since.
    for version in [&a, &b] {
        fs::rename(version, version.with_extension("evicted")).expect("renamed");
    }
    let aside = b.with_extension("evicted");
    fs::remove_file(aside.join("tree/large")).expect("removed");
    fs::remove_file(aside.join("presence.a")).expect("removed");

    let node = evicting(&cluster);
    assert_eq!(node.agent.counters().stored_bytes, 0);
    for (folder, version) in [("a", a), ("b", b)] {
        assert!(!version.with_extension("evicted").exists());
        assert_eq!(node.open_named(folder).progress().chunks_present, 0);
        node.read_all(&cluster, folder);
    }
    block_on(node.agent.flush());
    let directory = node.open_named("a").directory();
    node.stop();
    // Another had begun: one that holds nothing was there already, of what was held a part was left.
    let left = directory.with_extension("evicted");
    fs::create_dir_all(left.join("tree")).expect("made");
    fs::write(left.join("presence.a"), b"half").expect("written");
    let node = evicting(&cluster);
    assert!(!left.exists());
    assert_eq!(node.held("a") / MIB, 5);
    for folder in ["a", "b"] {
        node.read_all(&cluster, folder);
    }
    assert_eq!(node.agent.counters().corrupt_blocks, 0);
}

#[test]
fn a_namespace_s_quota_costs_its_own_datasets_and_no_others() {
    let cluster = folders();
    let team = Namespace::parse("team-a").expect("valid");
    let node = start(&cluster, |config| {
        config.capacity = 100 * MIB;
        config.quotas = [(team.clone(), 6 * MIB)].into();
    });
    for folder in ["a", "b"] {
        node.register_folder(folder, Readers::Only([team.clone()].into()));
    }
    node.agent.begin_evicting(Box::new(Default::default));
    node.warm("c");
    node.warm("a");
    node.warm("b");
    assert_eq!(["a", "b", "c"].map(|f| node.held(f) / MIB), [0, 5, 5]);
    let in_use = node.open_named("b");
    block_on(node.open_named("a").warm()).expect_err("no room in the quota");
    node.read_all(&cluster, "a");
    drop(in_use);
    assert_eq!(node.held("c") / MIB, 5);
}

#[test]
fn readers_get_right_bytes_while_versions_come_and_go() {
    let cluster = folders();
    let node = evicting(&cluster);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers = [3, 5, 7].map(|seed| {
            let (cluster, node) = (&cluster, &node);
            scope.spawn(move || {
                let mut random = Random(seed);
                for _ in 0..12 {
                    let folder = ["a", "b", "c"][random.below(3) as usize];
                    node.read_all(cluster, folder);
                }
            })
        });
        let evicting = scope.spawn(|| {
            let mut random = Random(11);
            while !done.load(Relaxed) {
                let folder = ["a", "b", "c"][random.below(3) as usize];
                match node.evict(folder) {
                    Ok(_) | Err(AgentError::Kept { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                assert!(node.agent.counters().stored_bytes <= 12 * MIB);
            }
        });
        for reader in readers {
            reader.join().expect("right bytes");
        }
        done.store(true, Relaxed);
        evicting.join().expect("nothing failed");
    });
    let counters = node.agent.counters();
    assert!(counters.evicted_versions > 0);
    assert_eq!(
        (
            counters.corrupt_blocks,
            counters.disk_errors,
            counters.fill_errors
        ),
        (0, 0, 0)
    );
    block_on(node.agent.flush());
    let held: u64 = ["a", "b", "c"].map(|folder| node.held(folder)).iter().sum();
    assert_eq!(node.agent.counters().stored_bytes, held);
}
