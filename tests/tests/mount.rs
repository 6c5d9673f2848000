//! `trackbed mount`: an origin as a folder, without Kubernetes and without a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use trackbed_tests::cluster::trackbed;
use trackbed_tests::{privilege, tree};

/// Far beyond what anything here takes, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    folder: tempfile::TempDir,
    origin: PathBuf,
    target: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        // The kernel limits a socket's path to 107 bytes, so the folder's name is short.
        let folder = tempfile::Builder::new()
            .prefix("tb")
            .tempdir()
            .expect("a folder");
        let (origin, target) = (folder.path().join("origin"), folder.path().join("target"));
        tree::write(&origin).expect("writes");
        fs::create_dir(&target).expect("makes");
        Scene {
            folder,
            origin,
            target,
        }
    }

    fn command(&self, source: &str, more: &[&str]) -> Command {
        let mut command = Command::new(trackbed());
        command.args(["mount", source]).arg(&self.target).args(more);
        command.arg("--cache-dir").arg(self.folder.path().join("c"));
        command.args(["--memory", "64MiB"]).stdin(Stdio::null());
        command
    }

    fn url(&self) -> String {
        format!("file://{}", self.origin.display())
    }

    /// Starts it, and waits until it has mounted.
    fn start(&self, more: &[&str]) -> Child {
        let log = self.log();
        let before = fs::read_to_string(&log).unwrap_or_default().len();
        let out = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .expect("opens");
        let mut child = self
            .command(&self.url(), more)
            .stderr(out)
            .spawn()
            .expect("starts");
        until(|| {
            assert!(child.try_wait().expect("asks").is_none(), "{}", self.said());
            fs::read_to_string(&log).unwrap_or_default()[before..].contains("mounted: Ctrl-C")
        });
        child
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mounts").expect("a table");
        table
            .lines()
            .any(|line| line.split(' ').nth(1) == self.target.to_str())
    }

    fn same(&self) {
        let found = tree::read(&self.target).expect("reads");
        tree::assert_same(&found, &tree::read(&self.origin).expect("reads"));
    }

    /// Whether a process runs that has this scene's folder in its command line.
    fn leaves_processes(&self) -> bool {
        let folder = self.folder.path().as_os_str().as_encoded_bytes();
        let processes = fs::read_dir("/proc").expect("lists").filter_map(Result::ok);
        let mut lines =
            processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        lines.any(|line| line.windows(folder.len()).any(|part| part == folder))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.is_mounted() {
            // What fails here shows as a busy temporary folder.
            let _ = Command::new("umount")
                .arg("--lazy")
                .arg(&self.target)
                .status();
        }
    }
}

fn until(mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < deadline, "it did not become so");
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("it runs");
}

#[test]
fn an_origin_is_a_folder_until_ctrl_c_and_nothing_is_left() {
    if privilege::missing("mounting") {
        return;
    }
    let scene = Scene::new();
    let mut child = scene.start(&[]);
    scene.same();
    assert!(fs::write(scene.target.join("new"), "x").is_err());
    signal(&child, Signal::SIGINT);
    assert!(child.wait().expect("ends").success(), "{}", scene.said());
    assert!(!scene.is_mounted());
    until(|| !scene.leaves_processes());
    // The next time shows what is there by then.
    fs::write(scene.origin.join("new"), "meow").expect("writes");
    let mut child = scene.start(&["--warm"]);
    scene.same();
    let unmounted = Command::new("umount")
        .arg(&scene.target)
        .status()
        .expect("runs");
    assert!(unmounted.success());
    assert!(
        child.wait().expect("ends by itself").success(),
        "{}",
        scene.said()
    );
    until(|| !scene.leaves_processes());
}

#[test]
fn one_that_was_killed_leaves_a_folder_that_is_read_on_and_taken_over() {
    if privilege::missing("mounting") {
        return;
    }
    let scene = Scene::new();
    let mut child = scene.start(&["--warm", "--expose", "fuse"]);
    scene.same();
    signal(&child, Signal::SIGKILL);
    child.wait().expect("ends");
    assert!(scene.is_mounted());
    scene.same();
    let mut child = scene.start(&["--expose", "fuse"]);
    scene.same();
    signal(&child, Signal::SIGTERM);
    assert!(child.wait().expect("ends").success(), "{}", scene.said());
    assert!(!scene.is_mounted());
    until(|| !scene.leaves_processes());
}

#[test]
fn what_cannot_be_mounted_is_refused_with_the_reason_and_leaves_nothing() {
    let scene = Scene::new();
    let refused = |source: &str, more: &[&str]| {
        let Output { status, stderr, .. } = scene.command(source, more).output().expect("runs");
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert!(!status.success(), "{said}");
        said
    };
    let said = refused("cats", &[]);
    assert!(said.contains("--registry"), "{said}");
    let said = refused(&format!("{}/gone", scene.url()), &[]);
    assert!(said.contains("gone"), "{said}");
    fs::write(scene.target.join("mine"), "x").expect("writes");
    let said = refused(&scene.url(), &[]);
    assert!(said.contains("not empty"), "{said}");
    assert!(!scene.is_mounted() && !scene.leaves_processes());
    assert_eq!(
        fs::read(Path::new(&scene.target).join("mine")).expect("is there"),
        b"x"
    );
}
