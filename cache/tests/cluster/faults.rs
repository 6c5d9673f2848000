//! Discs, peers and origins that misbehave: right bytes from elsewhere, or an error that helps.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::executor::block_on;
use trackbed_cache::manifest::CHUNK_BYTES;
use trackbed_cache::registry::Readers;
use trackbed_cache::seal::{SEAL_BYTES, Seal};
use trackbed_rdma::fabric::{ChunkRequest, ChunkSource, Payload, Refusal};
use trackbed_rdma::slab::Slab;

use crate::support::*;

fn flip(path: &std::path::Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("a cache file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside the file");
    byte[0] ^= 0x40;
    file.write_all_at(&byte, at).expect("written");
    file.sync_all().expect("synced");
}

#[test]
fn a_flipped_byte_in_the_cache_is_never_served() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b"]);
    let record = cluster.register(&nodes[0]);
    for node in &nodes {
        block_on(node.open().warm()).expect("all of it");
        block_on(node.agent.flush());
    }
    let directory = cluster.version_dir("a", record.version);
    let mut random = Random(5);
    let mut flipped = 0;
    let mut damaged = files_below(&directory.join("tree"));
    damaged.push(directory.join("small.pack"));
    for path in damaged {
        let len = path.metadata().expect("there").len();
        // One byte in each chunk that lies there in full.
        for chunk in 0..len.div_ceil(CHUNK_BYTES as u64) {
            let begin = chunk * CHUNK_BYTES as u64;
            flip(&path, begin + random.below((len - begin).min(1_500_000)));
            flipped += 1;
        }
    }
    let version = nodes[0].open();
    assert_all_right(&version, cluster.origin.files());
    let counters = nodes[0].agent.counters();
    assert_eq!(counters.corrupt_blocks, flipped, "each was noticed once");
    let from_origin: u64 = nodes
        .iter()
        .map(|node| node.agent.counters().origin_bytes)
        .sum();
    assert_eq!(
        from_origin,
        cluster.origin.total(),
        "the peer had all of it"
    );

    // It was repaired on disk, too: another reading finds nothing wrong.
    block_on(nodes[0].agent.flush());
    assert!(version.progress().is_complete());
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(nodes[0].agent.counters().corrupt_blocks, flipped);
}

#[test]
fn damage_is_noticed_before_a_peer_gets_it() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b"]);
    let record = cluster.register(&nodes[0]);
    block_on(nodes[0].open().warm()).expect("all of it");
    flip(
        &cluster.version_dir("a", record.version).join("small.pack"),
        100_000,
    );
    assert_all_right(&nodes[1].open(), cluster.origin.files());
    assert_eq!(nodes[1].agent.counters().peer_corrupt_chunks, 0);
}

#[test]
fn damaged_seals_and_shortened_files_are_fetched_again() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    let record = cluster.register(&node);
    block_on(node.open().warm()).expect("all of it");
    block_on(node.agent.flush());
    node.stop();
    let directory = cluster.version_dir("a", record.version);
    flip(&directory.join("seals"), 20);
    let shorten = |name: &str, len| {
        let file = OpenOptions::new()
            .write(true)
            .open(directory.join(name))
            .expect("there");
        file.set_len(len).expect("shortened");
    };
    shorten("tree/shards/5.tar", 5 << 20);
    std::fs::remove_file(directory.join("tree/shards/3.tar")).expect("removed");
    let node = cluster.start("a");
    assert_all_right(&node.open(), cluster.origin.files());
    block_on(node.agent.flush());
    assert!(node.open().progress().is_complete());
    assert_all_right(&node.open(), cluster.origin.files());
}

#[test]
fn a_cache_that_is_full_still_reads_right() {
    let cluster = Cluster::new(some_files());
    let mut config = cluster.config("a");
    config.capacity = 6 << 20;
    let node = cluster.try_start(config).expect("starts");
    cluster.register(&node);
    let version = node.open();
    for _ in 0..2 {
        assert_all_right(&version, cluster.origin.files());
    }
    let counters = node.agent.counters();
    assert!(
        counters.stored_bytes <= 6 << 20,
        "{} stored",
        counters.stored_bytes
    );
    assert!(counters.stored_bytes > 0 && counters.unstored_chunks > 0);
    assert!(!version.progress().is_complete());
}

#[test]
fn when_an_owner_dies_others_read_on() {
    let cluster = Cluster::new(some_files());
    let [a, b, c] = cluster.start_all(["a", "b", "c"]);
    cluster.register(&a);
    let (on_a, on_c) = (a.open(), c.open());
    // Links are up and some chunks have moved when the owner of a third of them goes.
    for path in cluster.origin.files().keys().take(30) {
        read_file(&on_c, path).expect("read");
    }
    b.stop();
    assert_all_right(&on_c, cluster.origin.files());
    assert_all_right(&on_a, cluster.origin.files());
    let from_origin: u64 = [&a, &c]
        .iter()
        .map(|node| node.agent.counters().origin_bytes)
        .sum();
    assert!(
        from_origin <= cluster.origin.total(),
        "the second owner stood in, for everyone"
    );
}

/// Answers every request with bytes of its own and a seal that fits them, or with damaged bytes.
struct Liar {
    slab: Arc<Slab>,
    seal_of_its_own: bool,
    len: u32,
}

impl ChunkSource for Liar {
    fn serve(
        &self,
        _: &str,
        _: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>> {
        let (slab, len) = (Arc::clone(&self.slab), self.len);
        let own = self.seal_of_its_own;
        Box::pin(async move {
            let mut lease = slab.lease().await;
            lease[..len as usize].fill(0x66);
            let sealed = Seal::of(&lease[..len as usize]).ok_or(Refusal::Failed)?;
            lease[CHUNK_BYTES..][..SEAL_BYTES].copy_from_slice(&sealed.encode());
            if !own {
                lease[len as usize / 2] ^= 1;
            }
            Ok(Payload { lease, len })
        })
    }
}

#[test]
fn wrong_bytes_from_a_peer_are_counted_and_fetched_elsewhere() {
    // The peer's chunks are damaged on the way, or are right but shorter than they must be.
    for (seal_of_its_own, len) in [(false, 4 << 20), (true, 1 << 20)] {
        let file = (b"big".to_vec(), bytes(3, 8 * (4 << 20)));
        let cluster = Cluster::new(Files::from([file]));
        let node = cluster.start("a");
        cluster.add_impostor("liar", |slab| {
            let slab = Arc::clone(slab);
            Arc::new(Liar {
                slab,
                seal_of_its_own,
                len,
            })
        });
        cluster.register(&node);
        assert_all_right(&node.open(), cluster.origin.files());
        let counters = node.agent.counters();
        assert!(counters.peer_corrupt_chunks > 0);
        assert_eq!(counters.peer_in_chunks, 0);
        assert_eq!(counters.origin_bytes, cluster.origin.total());
    }
}

/// Takes every request and never answers one, as a node does whose disk hangs.
struct TarPit;

impl ChunkSource for TarPit {
    fn serve(
        &self,
        _: &str,
        _: ChunkRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Payload, Refusal>> + Send>> {
        Box::pin(std::future::pending())
    }
}

#[test]
fn an_owner_that_hangs_holds_up_nobody_who_can_get_the_chunk_from_the_other_one() {
    let cluster = Cluster::new(some_files());
    let a = cluster.start("a");
    cluster.register(&a);
    block_on(a.open().warm()).expect("all of it");
    cluster.add_impostor("pit", |_| Arc::new(TarPit));
    let reader = cluster.start("reader");
    // Each chunk is then owned by the two others, and first by the one that hangs half of the time.
    for member in &mut *lock(&cluster.town.members) {
        member.weight = u32::from(member.name != "reader");
    }
    assert_all_right(&reader.open(), cluster.origin.files());
    let counters = reader.agent.counters();
    assert!(
        counters.hedges > 0 && counters.hedges_won > 0,
        "{counters:?}"
    );
    assert_eq!(counters.origin_bytes, 0, "what a had was enough");
    assert_eq!(counters.fill_errors, 0);
}

#[test]
fn an_owner_that_dies_in_the_middle_of_reading_is_not_noticed_by_readers() {
    let cluster = Cluster::new(some_files());
    let [a, b, c] = cluster.start_all(["a", "b", "c"]);
    cluster.register(&a);
    let version = c.open();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| assert_all_right(&version, cluster.origin.files()));
        while cluster.origin.reads.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        b.stop();
        reading.join().expect("read");
    });
}

/// Needs a mount namespace, which takes CAP_SYS_ADMIN; the test of a used-up capacity does not.
#[test]
fn a_disk_that_is_full_still_reads_right() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_err() {
        eprintln!("skipped: making a mount namespace takes CAP_SYS_ADMIN");
        return;
    }
    let cluster = Cluster::new(some_files());
    let directory = cluster.cache_dir("a");
    std::fs::create_dir_all(&directory).expect("made");
    let private = nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC;
    let none: Option<&str> = None;
    nix::mount::mount(none, "/", none, private, none).expect("a namespace of its own");
    let size = Some("size=12m");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &directory, Some("tmpfs"), flags, size).expect("mounted");

    let node = cluster.start("a");
    cluster.register(&node);
    let version = node.open();
    for _ in 0..2 {
        assert_all_right(&version, cluster.origin.files());
        block_on(node.agent.flush());
    }
    let counters = node.agent.counters();
    assert!(
        counters.stored_chunks > 0 && counters.unstored_chunks > 0,
        "{counters:?}"
    );
    assert!(counters.stored_bytes < 12 << 20, "{counters:?}");
    assert_eq!(counters.corrupt_blocks, 0);

    // With somebody to make room, another version goes.
    drop(version);
    node.agent.begin_evicting(Box::new(Default::default));
    node.register_folder("odd", Readers::AsBefore);
    node.register_folder("shards", Readers::AsBefore);
    block_on(node.open_named("odd").warm()).expect("fits now");
    let shards = node.open_named("shards");
    assert_all_right(&shards, &cluster.origin.below("shards/"));
    assert!(node.agent.counters().evicted_versions > 0);
    drop(shards);
    node.stop();
    nix::mount::umount2(&directory, nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
}

#[test]
fn without_any_living_peer_the_origin_is_read() {
    let cluster = Cluster::new(some_files());
    let [a, b, c] = cluster.start_all(["a", "b", "c"]);
    cluster.register(&a);
    let version = a.open();
    b.stop();
    c.stop();
    assert_all_right(&version, cluster.origin.files());
    assert_eq!(a.agent.counters().origin_bytes, cluster.origin.total());
}

#[test]
fn a_changed_object_is_named_with_the_remedy_and_the_rest_reads_on() {
    let cluster = Cluster::new(some_files());
    let nodes = cluster.start_all(["a", "b"]);
    cluster.register(&nodes[0]);
    let changed = b"shards/5.tar".to_vec();
    lock(&cluster.origin.changed).insert(changed.clone());
    for node in &nodes {
        let version = node.open();
        let error = read_file(&version, &changed).expect_err("changed");
        assert_eq!(error.errno(), libc::EIO);
        let text = error.to_string();
        for part in ["shards/5.tar", "changed since it was listed", "register"] {
            assert!(text.contains(part), "{text}");
        }
        for (path, expected) in cluster
            .origin
            .files()
            .iter()
            .filter(|(path, _)| **path != changed)
        {
            assert!(read_file(&version, path).expect("unchanged") == *expected);
        }
        assert!(block_on(version.warm()).is_err());
    }
}

#[test]
fn a_hiccup_of_the_origin_is_not_seen_by_readers() {
    let cluster = Cluster::new(some_files());
    let node = cluster.start("a");
    cluster.register(&node);
    cluster.origin.hiccups.store(3, Relaxed);
    assert_all_right(&node.open(), cluster.origin.files());
    assert_eq!(node.agent.counters().origin_errors, 3);
}
