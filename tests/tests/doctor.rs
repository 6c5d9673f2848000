//! `trackbed doctor` on this machine: what works is said to work, what does not is said with a remedy,
//! and nothing is left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use trackbed_tests::cluster::trackbed;
use trackbed_tests::privilege;

fn doctor(words: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(trackbed());
    command.args(["doctor", "--output", "json"]).args(words);
    let ran = command.output().expect("runs");
    let report = serde_json::from_slice(&ran.stdout)
        .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&ran.stderr)));
    (ran.status.code(), report)
}

fn finding<'r>(report: &'r Value, id: &str, subject: &str) -> &'r Value {
    let mut findings = report["findings"].as_array().expect("findings").iter();
    findings
        .find(|finding| finding["id"] == id && finding["subject"] == subject)
        .unwrap_or_else(|| panic!("no {id} of {subject} in {report}"))
}

fn mounts_below(folder: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let folder = folder.to_str().expect("UTF-8");
    table.lines().filter(|line| line.contains(folder)).count()
}

#[test]
fn what_a_node_needs_is_tried_and_nothing_is_left() {
    if privilege::missing("mounting for a trial") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (cache, second) = (folder.path().join("cache"), folder.path().join("second"));
    let (first, other) = (
        cache.to_str().expect("UTF-8"),
        second.to_str().expect("UTF-8"),
    );
    let (status, report) = doctor(&["--cache-dir", first, "--cache-dir", other]);
    assert_eq!(status, Some(0), "{report}");
    assert_eq!(report["verdict"], "pass");
    for id in ["kernel/io-uring", "kernel/fuse"] {
        assert_eq!(finding(&report, id, "node")["severity"], "ok", "{report}");
    }
    for id in [
        "kernel/fuse-passthrough",
        "kernel/erofs",
        "memory/memlock",
        "memory/hugepages",
    ] {
        finding(&report, id, "node");
    }
    for subject in [first, other] {
        finding(&report, "disk/direct", subject);
        finding(&report, "disk/room", subject);
    }
    assert_eq!(mounts_below(folder.path()), 0);
    for left in [cache, second] {
        assert_eq!(
            fs::read_dir(&left).expect("made").count(),
            0,
            "{}",
            left.display()
        );
    }
}

#[test]
fn what_does_not_work_is_a_failure_with_a_remedy_and_an_exit_status() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("writes");
    let cache = file.join("cache");
    let (cache, root) = (
        cache.to_str().expect("UTF-8"),
        folder.path().to_str().expect("UTF-8"),
    );
    let words = [
        "--cache-dir",
        cache,
        "--kubelet-root",
        root,
        "--memory",
        "1MiB",
    ];
    let (status, report) = doctor(&words);
    assert_eq!(status, Some(1), "{report}");
    let pods = format!("{root}/pods");
    for (id, subject) in [
        ("disk/write", cache),
        ("kubelet/folder", &pods),
        ("kernel/io-uring", "node"),
    ] {
        let finding = finding(&report, id, subject);
        assert_eq!(finding["severity"], "failure", "{finding}");
        assert!(
            finding["remedy"].as_str().is_some_and(|it| !it.is_empty()),
            "{finding}"
        );
    }
    // The gravest comes first.
    assert_eq!(report["findings"][0]["severity"], "failure");
}
