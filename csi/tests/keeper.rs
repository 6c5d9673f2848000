//! Agent and keeper with each other: of different builds, of different protocols, one after the
//! other; and files that the kernel reads by itself.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::Folder;
use support::site::Site;
use support::{abort_connection, can_mount};
use trackbed_cache::Agent;
use trackbed_csi::expose::{Expose, VersionView};
use trackbed_csi::keeper::{self, KeeperConfig, KeeperError, KeptMounts, KeptMountsConfig};

/// Longer than anything here takes on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn mounts(socket: &Path, build: &str) -> KeptMounts {
    KeptMounts::new(KeptMountsConfig {
        socket: socket.to_owned(),
        build: build.to_owned(),
        passthrough: true,
        start: None,
    })
    .expect("threads")
}

/// A keeper on a thread of this process.
fn start_keeper(socket: &Path) -> JoinHandle<Result<(), KeeperError>> {
    let config = KeeperConfig {
        socket: socket.to_str().expect("plain").parse().expect("fits"),
        passthrough: true,
        end_when_idle: None,
        build: "old build".to_owned(),
    };
    let serving = thread::spawn(move || keeper::serve(config));
    wait_until(|| UnixStream::connect(socket).is_ok());
    serving
}

fn wait_until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it does not come to be");
        thread::sleep(Duration::from_millis(10));
    }
}

async fn opened(agent: &Agent) -> Arc<dyn VersionView> {
    let name = "set".parse().expect("a name");
    agent.open(&name, None).await.expect("registered")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_build_goes_on_with_what_the_last_one_mounted() {
    if !can_mount() {
        return;
    }
    let site = Site::new();
    let folder = Folder::new();
    let socket = folder.path().join("keeper.sock");
    let serving = start_keeper(&socket);
    let target = folder.path().canonicalize().expect("there").join("mount");
    fs::create_dir(&target).expect("makes");

    let agent = site.agent().await;
    site.register(&agent).await;
    let view = opened(&agent).await;
    let first = mounts(&socket, "build 1");
    let mounted = first.show(&view, "set", &target).expect("mounts");
    assert!(mounted.is_alive() && mounted.way().contains("FUSE"));
    assert_eq!(
        fs::read(target.join("labels.json")).expect("reads"),
        site.files[1].1
    );
    let (device, open) = (
        mounted.device(),
        fs::File::open(target.join("shards/0.tar")),
    );
    let open = open.expect("opens");
    mounted.leave();
    drop((first, view, agent));

    let agent = site.agent().await;
    let view = opened(&agent).await;
    let second = mounts(&socket, "build 2");
    assert_eq!(second.trouble(), None);
    let taken = second.adopt(&view, &target).expect("it is there and alive");
    assert_eq!(taken.device(), device);
    site.check(&target);
    let mut bytes = vec![0; 1000];
    open.read_exact_at(&mut bytes, 9 << 20 >> 1)
        .expect("still open");
    assert!(bytes == site.files[4].1[9 << 20 >> 1..][..1000]);
    assert!(
        second
            .prometheus_text()
            .contains("trackbed_csi_keeper_connected 1")
    );

    taken.unmount().expect("unmounts");
    assert!(second.adopt(&view, &target).is_none());
    second.end().expect("ends");
    serving.join().expect("no panic").expect("ends well");
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_is_read_by_the_kernel_once_it_was_verified() {
    if !can_mount() {
        return;
    }
    let site = Site::new();
    // Small ones left out, opens are worth asking about.
    for path in ["empty", "labels.json", "images/1.jpg", "images/2.jpg"] {
        fs::remove_file(site.origin().join(path)).expect("removes");
    }
    let folder = Folder::new();
    let socket = folder.path().join("keeper.sock");
    let serving = start_keeper(&socket);
    let target = folder.path().canonicalize().expect("there").join("mount");
    fs::create_dir(&target).expect("makes");
    let agent = site.agent().await;
    site.register(&agent).await;
    let view = opened(&agent).await;
    let mounts = mounts(&socket, "build");
    let mounted = mounts.show(&view, "set", &target).expect("mounts");
    if !mounted.way().contains("passthrough for whole files") {
        eprintln!("skipped: {}", mounted.way());
        return;
    }
    let shard = &site.files[4].1;
    let path = target.join("shards/0.tar");
    assert!(fs::read(&path).expect("reads") == *shard);
    agent.flush().await;
    // It is verified in the background after an open that could have had it. Another mount of the
    // version is cut off while the file is open: only what the kernel reads by itself goes on.
    let other = folder.path().canonicalize().expect("there").join("other");
    fs::create_dir(&other).expect("makes");
    let goes_on = || {
        let mounted = mounts.show(&view, "set", &other).expect("mounts");
        let file = fs::File::open(other.join("shards/0.tar")).expect("opens");
        abort_connection(mounted.device().1);
        let mut bytes = vec![0; shard.len()];
        let read = file.read_exact_at(&mut bytes, 0);
        mounted.unmount().expect("unmounts");
        read.map(|()| assert!(bytes == *shard)).is_ok()
    };
    let held = fs::File::open(&path).expect("opens");
    wait_until(goes_on);
    // In one mount a file is open in one way at a time, and every open works.
    assert!(fs::read(&path).expect("reads") == *shard);
    drop(held);
    for _ in 0..3 {
        assert!(fs::read(&path).expect("reads") == *shard);
    }
    // After somebody wrote to it, the kernel is not let at it: the next mount gives right bytes.
    let directory = Arc::clone(&view)
        .kept()
        .expect("it is on a disk")
        .directory();
    let file = fs::File::options()
        .write(true)
        .open(directory.join("tree/shards/0.tar"))
        .expect("opens");
    file.write_all_at(&[!shard[100]], 100).expect("writes");
    let next = mounts.show(&view, "set", &other).expect("mounts");
    assert!(fs::read(other.join("shards/0.tar")).expect("reads") == *shard);
    next.unmount().expect("unmounts");
    drop(mounted);
    mounts.end().expect("ends");
    serving.join().expect("no panic").expect("ends well");
}

/// Speaks the keeper's protocol as an old keeper would.
fn old_keeper(socket: &Path, protocol: u32) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("binds");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("an agent");
        let mut lengths = [0; 8];
        stream.read_exact(&mut lengths).expect("a frame");
        let head = u32::from_le_bytes([lengths[0], lengths[1], lengths[2], lengths[3]]);
        let mut text = vec![0; head as usize];
        stream.read_exact(&mut text).expect("a head");
        let asked: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(asked["what"]["hello"]["protocol"], keeper::PROTOCOL);
        let welcome = json!({"protocol": protocol, "oldest": protocol, "build": "0.0.1"});
        let answer = json!({"answer": asked["ask"], "what": {"welcome": welcome}}).to_string();
        let mut frame = (answer.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(answer.as_bytes());
        stream.write_all(&frame).expect("written");
        // Until the agent hangs up.
        drop(stream.read(&mut lengths));
    })
}

#[test]
fn a_keeper_that_is_too_old_or_too_new_is_told_with_what_to_do() {
    for (protocol, words) in [
        (
            0,
            [
                "older than this agent",
                "drain the node and restart the keeper",
            ],
        ),
        (
            keeper::PROTOCOL + 1,
            ["works only with agents", "upgrade the agent"],
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("keeper.sock");
        let keeper = old_keeper(&socket, protocol);
        let mounts = mounts(&socket, "new build");
        let trouble = mounts.trouble().expect("a sentence");
        for word in words {
            assert!(trouble.contains(word), "{trouble}");
        }
        assert!(trouble.contains("0.0.1"), "{trouble}");
        assert!(
            mounts
                .prometheus_text()
                .contains("trackbed_csi_keeper_unusable 1")
        );
        keeper.join().expect("no panic");
    }
}
