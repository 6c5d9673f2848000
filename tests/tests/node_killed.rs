//! What a pod sees of a node that is killed and comes back: nothing. And of a keeper that is killed:
//! errors, and never wrong bytes.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::signal::{Signal, kill},
};
use trackbed_tests::{cluster::Cluster, privilege, tree};

/// Longer than anything here takes on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the node is killed; `TRACKBED_KILL_ROUNDS` says otherwise.
const KILL_ROUNDS: u64 = 50;

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

/// A file as the mount gives it, asked for anew: the kernel keeps no page of it.
fn uncached(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(file)
}

/// Some bytes of a file, from the mount and from the origin.
fn a_read(
    mount: &Path,
    origin: &Path,
    files: &[PathBuf],
    dice: &mut Dice,
) -> (PathBuf, io::Result<Vec<u8>>, Vec<u8>) {
    let path = &files[dice.below(files.len() as u64) as usize];
    let whole = fs::read(origin.join(path)).expect("the origin is read");
    let from = dice.below(whole.len() as u64) as usize;
    let to = (from + 1 + dice.below(700_000) as usize).min(whole.len());
    let read = || {
        let mut bytes = vec![0; to.saturating_sub(from)];
        uncached(&mount.join(path))?.read_exact_at(&mut bytes, from as u64)?;
        Ok(bytes)
    };
    let wanted = whole.get(from..to).unwrap_or_default().to_vec();
    (path.clone(), read(), wanted)
}

/// All files below a folder.
fn files_of(origin: &Path) -> Vec<PathBuf> {
    let entries = tree::read(origin).expect("the origin is read");
    let files = entries.into_iter();
    files
        .filter(|(_, entry)| matches!(entry, tree::Entry::File(..)))
        .map(|(path, _)| path)
        .collect()
}

/// A process that ends with its test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(child: &mut Child, what: &str) {
    let begun = Instant::now();
    while child.try_wait().expect("a child of ours").is_none() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a process sleeps inside a read that nobody answers: it no longer gets on.
fn wait_until_it_waits(child: &Child) {
    let begun = Instant::now();
    let waits = || {
        fs::read_to_string(format!("/proc/{}/stat", child.id()))
            .is_ok_and(|stat| stat.contains(") D ") || stat.contains(") S "))
    };
    let mut seen = 0;
    while seen < 20 {
        seen = if waits() { seen + 1 } else { 0 };
        assert!(begun.elapsed() < PATIENCE, "it does not wait");
        thread::sleep(Duration::from_millis(10));
    }
}

async fn one_node(capacity: Option<&str>) -> (Cluster, PathBuf) {
    let mut cluster = Cluster::prepare(1).expect("folders are made");
    if let Some(capacity) = capacity {
        cluster.nodes[0].flag("--cache-capacity", capacity);
    }
    cluster.nodes[0].start().await.expect("a node starts");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    tree::write_chunks(&origin, 24).expect("an origin is written");
    cluster.register("demo", &origin).await;
    (cluster, origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_notices_nothing_of_a_node_that_is_killed_again_and_again() {
    if privilege::missing("mounting") {
        return;
    }
    let rounds = std::env::var("TRACKBED_KILL_ROUNDS")
        .map_or(KILL_ROUNDS, |rounds| rounds.parse().expect("a number"));
    // Less than the dataset has: part of it is on the disk, the rest has to be brought each time.
    let (mut cluster, origin) = one_node(Some("24MiB")).await;
    let files = files_of(&origin);
    let node = &mut cluster.nodes[0];
    let mount = node.mount("demo").await.expect("a dataset mounts");
    let keeper = node.keeper_process();

    let (ended, reads) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let readers: Vec<_> = (1..=4)
        .map(|seed| {
            let (mount, origin, files) = (mount.clone(), origin.clone(), files.clone());
            let (ended, reads) = (ended.clone(), reads.clone());
            thread::spawn(move || {
                let mut dice = Dice(seed * 0x9E37_79B9);
                while !ended.load(Ordering::Relaxed) {
                    let (path, found, wanted) = a_read(&mount, &origin, &files, &mut dice);
                    match found {
                        Ok(found) => assert!(found == wanted, "{} differs", path.display()),
                        Err(error) => panic!("{}: {error}", path.display()),
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut dice = Dice(0x7261_696C);
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(dice.below(250))).await;
        node.kill();
        tokio::time::sleep(Duration::from_millis(dice.below(60))).await;
        node.start().await.expect("a killed node starts again");
        let before = reads.load(Ordering::Relaxed);
        let begun = Instant::now();
        while reads.load(Ordering::Relaxed) == before {
            assert!(begun.elapsed() < PATIENCE, "reads do not go on");
            assert!(
                !readers.iter().any(thread::JoinHandle::is_finished),
                "a read failed"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    ended.store(true, Ordering::Relaxed);
    for reader in readers {
        reader
            .join()
            .expect("no read failed, and none gave other bytes");
    }
    let reads = reads.load(Ordering::Relaxed);
    println!("{rounds} kills, {reads} reads, none failed or wrong");
    assert_eq!(
        node.keeper_process(),
        keeper,
        "one keeper served all the time"
    );
    node.unmount("demo").await.expect("the dataset unmounts");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_the_disk_is_read_without_a_node_and_what_is_not_waits_for_it() {
    if privilege::missing("mounting") {
        return;
    }
    let (mut cluster, origin) = one_node(None).await;
    let node = &mut cluster.nodes[0];
    let mount = node.mount("demo").await.expect("a dataset mounts");
    let present = fs::read(mount.join("large/three-chunks.bin")).expect("reads");
    // The keeper is told what came to be on the disk a few times a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.kill();

    let mut again = Vec::new();
    let read = uncached(&mount.join("large/three-chunks.bin"))
        .and_then(|mut file| file.read_to_end(&mut again));
    read.expect("what is there needs no node");
    assert!(again == present);
    assert!(present == fs::read(origin.join("large/three-chunks.bin")).expect("reads"));
    assert_eq!(
        fs::read_dir(mount.join("chunks")).expect("lists").count(),
        24
    );
    assert_eq!(
        fs::metadata(mount.join("chunks/20.bin"))
            .expect("stats")
            .len(),
        1 << 20
    );

    // Readers of what is not there wait, however they read, and go away when they are killed.
    for flags in [&["iflag=direct"][..], &[]] {
        let mut reader = Command::new("dd")
            .arg(format!("if={}", mount.join("chunks/20.bin").display()))
            .args(["of=/dev/null", "bs=64k"])
            .args(flags)
            .stderr(Stdio::null())
            .spawn()
            .expect("dd starts");
        wait_until_it_waits(&reader);
        assert!(
            reader.try_wait().expect("a child").is_none(),
            "{flags:?}: it waits"
        );
        reader.kill().expect("it runs");
        wait(&mut reader, "a killed reader stays");
    }
    let waiting = {
        let path = mount.join("chunks/21.bin");
        thread::spawn(move || fs::read(path))
    };
    node.start().await.expect("a killed node starts again");
    let read = waiting
        .join()
        .expect("no panic")
        .expect("it only had to wait");
    assert!(read == fs::read(origin.join("chunks/21.bin")).expect("reads"));
    let read = fs::read(mount.join("chunks/20.bin")).expect("a killed reader does no harm");
    assert!(read == fs::read(origin.join("chunks/20.bin")).expect("reads"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_while_there_is_no_node_is_never_served() {
    if privilege::missing("mounting") {
        return;
    }
    let (mut cluster, origin) = one_node(None).await;
    let node = &mut cluster.nodes[0];
    let mount = node.mount("demo").await.expect("a dataset mounts");
    let path = "large/three-chunks.bin";
    let right = fs::read(mount.join(path)).expect("reads");
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.kill();

    let version = fs::read_dir(node.cache().join("versions"))
        .expect("lists")
        .next()
        .expect("a version")
        .expect("lists");
    let file = File::options()
        .read(true)
        .write(true)
        .open(version.path().join("tree").join(path))
        .expect("the cache's file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5_000_000).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], 5_000_000)
        .expect("writes");
    file.sync_all().expect("syncs");

    let waiting = {
        let path = mount.join(path);
        thread::spawn(move || {
            let mut bytes = Vec::new();
            uncached(&path)?.read_to_end(&mut bytes).map(|_| bytes)
        })
    };
    thread::sleep(Duration::from_millis(300));
    node.start().await.expect("a killed node starts again");
    let read = waiting
        .join()
        .expect("no panic")
        .expect("the node mends it");
    assert!(read == right, "a flipped bit was served");
    assert!(right == fs::read(origin.join(path)).expect("reads"));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_keeper_is_killed_reads_fail_and_the_next_pod_reads_again() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, origin) = one_node(None).await;
    let files = files_of(&origin);
    let node = &cluster.nodes[0];
    let mount = node.mount("demo").await.expect("a dataset mounts");
    let readers: Vec<_> = (1..=3)
        .map(|seed| {
            let (mount, origin, files) = (mount.clone(), origin.clone(), files.clone());
            thread::spawn(move || {
                let mut dice = Dice(seed * 0x9E37_79B9);
                let begun = Instant::now();
                loop {
                    let (path, found, wanted) = a_read(&mount, &origin, &files, &mut dice);
                    match found {
                        Ok(found) => assert!(found == wanted, "{} differs", path.display()),
                        Err(error) => return error,
                    }
                    assert!(begun.elapsed() < PATIENCE, "reads go on without a keeper");
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill(node.keeper_process(), Signal::SIGKILL).expect("the keeper runs");
    for reader in readers {
        let error = reader.join().expect("right bytes or an error");
        let errno = error.raw_os_error();
        assert!(
            [nix::libc::ENOTCONN, nix::libc::ECONNABORTED, nix::libc::EIO]
                .map(Some)
                .contains(&errno),
            "{error}"
        );
    }
    // What the kernel has not heard of it can't answer by itself.
    let unheard = fs::symlink_metadata(mount.join("a name that nobody asked for"));
    let refused = unheard.expect_err("nobody serves it");
    assert_eq!(refused.raw_os_error(), Some(nix::libc::ENOTCONN));

    // As kubelet does for the next pod; a new keeper is started.
    let mount = node.mount("demo").await.expect("a dataset mounts again");
    tree::assert_same(
        &tree::read(&mount).expect("the mount is read"),
        &tree::read(&origin).expect("the origin is read"),
    );
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts are readable");
    let here = mounts
        .lines()
        .filter(|line| line.contains(&node.folder.display().to_string()));
    assert_eq!(here.count(), 2, "staged once and published once:\n{mounts}");
    node.unmount("demo").await.expect("the dataset unmounts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_uses_a_keeper_that_runs_and_says_so_when_there_is_none() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::prepare(1).expect("folders are made");
    let socket = cluster.folder().join("keeper.sock");
    let node = &mut cluster.nodes[0];
    node.flag("--keeper", socket.display());
    node.start()
        .await
        .expect("a node starts without its keeper");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("an origin is written");
    cluster.register("demo", &origin).await;
    let node = &cluster.nodes[0];
    let refused = node.mount("demo").await.expect_err("nobody serves mounts");
    assert!(
        refused.message().contains("no keeper answers")
            && refused.message().contains("keeper.sock"),
        "{refused}"
    );

    let keeper = Command::new(trackbed_tests::cluster::trackbed())
        .args(["keeper", "--passthrough", "never", "--socket"])
        .arg(&socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut keeper = Ending(keeper.expect("a keeper starts"));
    let begun = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < PATIENCE, "the keeper does not answer");
        thread::sleep(Duration::from_millis(10));
    }
    let mount = node.mount("demo").await.expect("a dataset mounts");
    tree::assert_same(
        &tree::read(&mount).expect("the mount is read"),
        &tree::read(&origin).expect("the origin is read"),
    );
    // Anything else that connects does no harm.
    let mut stranger = UnixStream::connect(&socket).expect("connects");
    stranger.write_all(&[0xff; 64]).expect("writes");
    assert_eq!(stranger.read(&mut [0; 8]).unwrap_or(0), 0, "it is closed");
    drop(fs::read(mount.join("large/aligned.bin")).expect("still served"));

    node.unmount("demo").await.expect("the dataset unmounts");
    let ended = Command::new(trackbed_tests::cluster::trackbed())
        .args(["keeper", "--end", "--socket"])
        .arg(&socket)
        .status()
        .expect("the command runs");
    assert!(ended.success());
    wait(&mut keeper.0, "the keeper does not end when it is asked to");
    assert!(!socket.exists());
}
