//! The demo as a person runs it: the binary, its exit status, what it prints, and that nothing of
//! it is left however it ends.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// In the environment of the demo and so of all its processes, each test with a value of its own.
const MARK: &str = "TRACKBED_TEST_MARK";

/// What this machine cannot do, as an exit code.
const UNABLE: i32 = 3;

/// Longer than anything here takes on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with an origin and a place for the demo's own folder.
struct Ground {
    folder: tempfile::TempDir,
    mark: String,
}

impl Ground {
    fn new(test: &str) -> Ground {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("origin")).unwrap();
        fs::create_dir(folder.path().join("work")).unwrap();
        Ground {
            folder,
            mark: format!("{MARK}={test}-{}", std::process::id()),
        }
    }

    fn origin(&self) -> PathBuf {
        self.folder.path().join("origin")
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Files of all kinds: many small ones, a large one, an empty one, links, odd names and modes.
    fn fill_origin(&self, large: usize) {
        let at = |path: &str| self.origin().join(path);
        for folder in 0..5 {
            fs::create_dir_all(at(&format!("small/{folder}"))).unwrap();
            for file in 0..40 {
                let bytes = vec![(folder * 40 + file) as u8; 100 * file + 1];
                fs::write(at(&format!("small/{folder}/{file:02}")), bytes).unwrap();
            }
        }
        let bytes: Vec<u8> = (0..large as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        fs::write(at("large file ü.bin"), bytes).unwrap();
        fs::write(at("empty"), b"").unwrap();
        fs::create_dir(at("nothing in it")).unwrap();
        symlink("small/0/01", at("link")).unwrap();
        symlink("/nowhere/at/all", at("dangling")).unwrap();
        fs::set_permissions(at("small/1/01"), fs::Permissions::from_mode(0o750)).unwrap();
    }

    fn demo(&self, arguments: &[&str]) -> Command {
        self.demo_of(&self.origin(), arguments)
    }

    fn demo_of(&self, dataset: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackbed"));
        let (name, value) = self.mark.split_once('=').unwrap();
        command
            .args(["demo", "--output", "json", "--work-dir"])
            .arg(self.work())
            .arg("--dataset")
            .arg(dataset)
            .args(arguments)
            .env(name, value)
            .stdin(Stdio::null());
        command
    }

    /// Processes of the demo that run, by id.
    fn processes(&self) -> Vec<String> {
        let marked = |path: &Path| {
            fs::read(path.join("environ")).is_ok_and(|environ| {
                environ
                    .split(|c| *c == 0)
                    .any(|v| v == self.mark.as_bytes())
            })
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let marked = entries.filter(|entry| marked(&entry.path()));
        marked
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Waits until no process of the demo runs, then looks for anything else of it.
    fn assert_nothing_is_left(&self, when: &str) {
        let start = Instant::now();
        while !self.processes().is_empty() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{when}: processes {:?} are left",
                self.processes()
            );
            sleep(Duration::from_millis(20));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let work = self.work();
        assert!(
            !mounts.contains(work.to_str().unwrap()),
            "{when}: a mount is left:\n{mounts}"
        );
    }

    fn assert_work_is_empty(&self, when: &str) {
        let left: Vec<_> = fs::read_dir(self.work()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{when}: files are left: {left:?}");
    }
}

fn wait(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            // The assertion below names it; the namespaces take the rest along.
            let _ = child.kill();
            panic!("the demo did not end within {PATIENCE:?}");
        }
        sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Runs it to its end; `None` where the machine has no namespaces or no FUSE for us.
fn run(mut command: Command) -> Option<Output> {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = wait(child);
    if output.status.code() == Some(UNABLE) {
        eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(output)
}

fn object(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn check_report(report: &Value, files: u64) {
    let number = |key: &str| report[key].as_u64().unwrap();
    assert_eq!(number("dataset_files"), files);
    assert_eq!(report["digest_ok"], true);
    assert_eq!(report["fabric"], "tcp");
    assert!(
        number("origin_bytes") >= number("dataset_bytes"),
        "{report}"
    );
    assert!(
        number("origin_bytes") * 100 <= number("dataset_bytes") * 102,
        "{report}"
    );
    assert!(number("peer_bytes") > 0, "{report}");
    let nodes = report["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 2);
    assert!(
        nodes
            .iter()
            .all(|node| node["bytes"] == report["dataset_bytes"]),
        "{report}"
    );
}

#[test]
fn two_nodes_read_every_byte_and_each_byte_leaves_the_origin_once() {
    let ground = Ground::new("whole");
    ground.fill_origin(9 << 20);
    let Some(output) = run(ground.demo(&["--fabric", "tcp"])) else {
        return;
    };
    check_report(&object(&output), 202);
    ground.assert_nothing_is_left("after a whole run");
    ground.assert_work_is_empty("after a whole run");
}

#[test]
fn nodes_on_loopback_do_the_same() {
    let ground = Ground::new("loopback");
    ground.fill_origin(5 << 20);
    let arguments = ["--fabric", "tcp", "--network", "loopback", "--nodes", "2"];
    let Some(output) = run(ground.demo(&arguments)) else {
        return;
    };
    let report = object(&output);
    assert_eq!(report["network"], "loopback");
    check_report(&report, 202);
    ground.assert_nothing_is_left("after a run on loopback");
    ground.assert_work_is_empty("after a run on loopback");
}

#[test]
fn ctrl_c_at_any_moment_leaves_nothing() {
    let ground = Ground::new("interrupted");
    ground.fill_origin(64 << 20);
    for millis in [5, 60, 250, 600, 1100, 1800, 2700] {
        let when = format!("interrupted after {millis} ms");
        let child = ground
            .demo(&["--fabric", "tcp"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(millis));
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        let code = wait(child).status.code();
        if code == Some(UNABLE) {
            eprintln!("skipped: this machine has no namespaces or FUSE for the demo");
            return;
        }
        // Before it handles signals there is nothing to take down, and the signal itself ends it.
        assert!(matches!(code, Some(130 | 0) | None), "{when}: {code:?}");
        ground.assert_nothing_is_left(&when);
        ground.assert_work_is_empty(&when);
    }
}

#[test]
fn a_killed_demo_takes_everything_with_it_and_the_next_one_clears_up() {
    let ground = Ground::new("killed");
    ground.fill_origin(64 << 20);
    let mut child = ground
        .demo(&["--fabric", "tcp"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let mounted = || {
        let folders = fs::read_dir(ground.work()).unwrap().flatten();
        folders
            .into_iter()
            .any(|folder| folder.path().join("node-1/pods/demo").exists())
    };
    while !mounted() {
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(UNABLE), "ended before it mounted");
            eprintln!("skipped: this machine has no namespaces or FUSE for the demo");
            return;
        }
        assert!(start.elapsed() < PATIENCE, "the demo does not mount");
        sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    ground.assert_nothing_is_left("killed while mounted");
    // Only the files of the killed supervisor are still there.
    let refused = ground
        .demo_of(Path::new("/nowhere/at/all"), &[])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    ground.assert_work_is_empty("after the next demo");
}

#[test]
fn a_dataset_that_cannot_be_used_is_said_in_a_sentence() {
    let ground = Ground::new("refused");
    let Some(output) = run(ground.demo(&[])) else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("has no files") && said.contains("--dataset"),
        "{said}"
    );
    assert!(output.stdout.is_empty());
    ground.assert_work_is_empty("after a refusal");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    if geteuid().is_root() {
        eprintln!("skipped: root can read every file");
        return;
    }
    let ground = Ground::new("unreadable");
    ground.fill_origin(1);
    let secret = ground.origin().join("secret");
    fs::write(&secret, b"x").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let Some(output) = run(ground.demo(&[])) else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("secret"), "{said}");
}

#[test]
fn verbs_without_a_device_say_where_they_can_be_seen() {
    if Path::new("/sys/module/ib_core").exists() {
        eprintln!("skipped: this machine has RDMA");
        return;
    }
    let ground = Ground::new("verbs");
    ground.fill_origin(1);
    let output = ground.demo(&["--fabric", "verbs"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNABLE), "{said}");
    assert!(said.contains("hack/vm run -- trackbed demo"), "{said}");
}
