//! Ends and beginnings, clean and otherwise.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use futures::executor::block_on;
use trackbed_cache::manifest::{CHUNK_BYTES, ChunkKind, Manifest};

use crate::support::*;

#[test]
fn what_was_cached_is_still_there_after_a_restart() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    cluster.register(&node);
    block_on(node.open().warm()).expect("all of it");
    block_on(node.agent.flush());
    let stored = node.agent.counters().stored_bytes;
    node.stop();
    let node = cluster.start("a");
    assert_eq!(
        node.agent.counters().stored_bytes,
        stored,
        "known before any version is open"
    );
    let version = node.open();
    assert!(version.progress().is_complete());
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(node.agent.counters().origin_bytes, 0);
}

#[test]
fn two_agents_do_not_share_a_cache_directory() {
    let cluster = Cluster::new(some_files());
    let _first = cluster.start("a");
    let error = cluster
        .try_start(cluster.config("a"))
        .err()
        .expect("locked")
        .to_string();
    assert!(error.contains("used by another agent"), "{error}");
}

/// A crash leaves what was synced, and any part of what was not. Taken here at many moments of a
/// fill: the presence bits as they are on disk, then the rest, with all chunks that are not marked
/// lost or turned into garbage.
#[test]
fn a_crash_at_any_moment_loses_nothing_marked_and_serves_nothing_unmarked() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    let record = cluster.register(&node);
    let version = node.open();
    let live = cluster.version_dir("a", record.version);
    let mut marked_at = Vec::new();
    let mut random = Random(9);
    for round in 0..6 {
        // Some more reading, and at times a commit.
        for (path, _) in cluster.origin.files().iter().skip(round * 22).take(22) {
            read_file(&version, path).expect("read");
        }
        if round % 2 == 1 {
            block_on(node.agent.flush());
        }
        let name = format!("crash-{round}");
        let crashed = cluster.version_dir(&name, record.version);
        copy_as_crashed(&live, &crashed, version.manifest(), &mut random);
        let origin_before = cluster
            .origin
            .reads
            .load(std::sync::atomic::Ordering::Relaxed);

        let other = cluster.start(&name);
        lock(&cluster.town.members).retain(|member| member.name == name);
        let reopened = other.open();
        let marked = reopened.progress().bytes_present;
        // Marked chunks are all whole: reading everything fetches just the others.
        assert_all_right(&reopened, cluster.origin.files());
        let counters = other.agent.counters();
        assert_eq!(
            counters.corrupt_blocks, 0,
            "round {round}: a marked chunk was not whole"
        );
        assert_eq!(counters.origin_bytes, cluster.origin.total() - marked);
        assert!(
            cluster
                .origin
                .reads
                .load(std::sync::atomic::Ordering::Relaxed)
                >= origin_before
        );
        marked_at.push(marked);
        other.stop();
        lock(&cluster.town.members).clear();
        lock(&cluster.town.members).push(trackbed_cache::Member {
            name: "a".into(),
            control: String::new(),
            weight: 1,
        });
    }
    assert!(marked_at.is_sorted() && marked_at[5] > 0, "{marked_at:?}");
}

fn copy_as_crashed(live: &Path, crashed: &Path, manifest: &Manifest, random: &mut Random) {
    fs::create_dir_all(crashed).expect("made");
    // Bits first: what is synced later than they were copied only adds to what they promise.
    for name in [
        "presence.a",
        "presence.b",
        "manifest",
        "origin",
        "seals",
        "small.pack",
    ] {
        fs::copy(live.join(name), crashed.join(name)).expect("copied");
    }
    fs::create_dir(crashed.join("tree")).expect("made");
    for file in files_below(&live.join("tree")) {
        let to = crashed.join(file.strip_prefix(live).expect("below"));
        fs::create_dir_all(to.parent().expect("below")).expect("made");
        fs::copy(&file, to).expect("copied");
    }
    // The second copy of the bits may be torn: the first one is synced before it is touched.
    if random.below(2) == 1 {
        let copy = fs::OpenOptions::new()
            .write(true)
            .open(crashed.join("presence.b"));
        copy.expect("there")
            .write_all_at(b"torn", random.below(4000))
            .expect("torn");
    }
    let bits = fs::read(crashed.join("presence.a")).expect("there");
    for chunk in 0..manifest.chunks() {
        // One page holds all bits of so few chunks; they begin at byte 28.
        if bits[28 + chunk as usize / 8] >> (chunk % 8) & 1 == 1 {
            continue;
        }
        let (file, offset) = match manifest.chunk_kind(chunk).expect("a chunk") {
            ChunkKind::Pack => ("small.pack".into(), u64::from(chunk) * CHUNK_BYTES as u64),
            ChunkKind::Part { entry, file_offset } => {
                let path = String::from_utf8(manifest.path(entry)).expect("large files' names are");
                (format!("tree/{path}"), file_offset)
            }
        };
        let Ok(file) = fs::OpenOptions::new().write(true).open(crashed.join(file)) else {
            continue;
        };
        let len = u64::from(manifest.chunk_len(chunk))
            .min(file.metadata().expect("there").len().saturating_sub(offset));
        let garbage = bytes(random.next(), random.below(len + 1) as usize);
        file.write_all_at(&garbage, offset).expect("garbage");
    }
}
