//! One `trackbed node` as an administrator runs it: what it refuses and how it says so, what its
//! admin socket and metrics answer, and that it ends cleanly.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than a node takes to start or end on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with all that a node needs: registry, certificate, cache.
struct Site {
    folder: tempfile::TempDir,
    control: String,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let control = free_address();
        let registry = folder.path().join("registry");
        fs::create_dir(&registry).unwrap();
        let members =
            serde_json::json!({"members": [{"name": "n1", "control": control, "weight": 100}]});
        fs::write(registry.join("members.json"), members.to_string()).unwrap();
        issue("n1", folder.path());
        Site { folder, control }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The node's flags, each of which a test may leave out or replace.
    fn flags(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.path(name).display().to_string();
        vec![
            ("--name", "n1".into()),
            ("--registry", path("registry")),
            ("--cache-dir", path("cache")),
            ("--memory", "40MiB".into()),
            ("--control-listen", self.control.clone()),
            ("--fabric", "tcp".into()),
            ("--tls-ca", path("ca.pem")),
            ("--tls-cert", path("tls.pem")),
            ("--tls-key", path("tls.key")),
            ("--admin-socket", path("admin.sock")),
        ]
    }

    fn with(&self, flag: &'static str, value: &str) -> Vec<(&'static str, String)> {
        let mut flags = self.flags();
        flags.retain(|(name, _)| *name != flag);
        flags.push((flag, value.to_owned()));
        flags
    }

    fn dataset(&self, arguments: &[&str]) -> Output {
        trackbed()
            .args(["dataset", "--output", "json", "--admin-socket"])
            .arg(self.path("admin.sock"))
            .args(arguments)
            .output()
            .unwrap()
    }
}

/// An address on loopback that nobody listens on.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

fn issue(name: &str, folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    fs::write(
        folder.join("ca.pem"),
        params.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    fs::write(
        folder.join("tls.pem"),
        params.signed_by(&key, &issuer).unwrap().pem(),
    )
    .unwrap();
    fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
}

fn trackbed() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trackbed"));
    command.env_remove("TRACKBED_LOG").stdin(Stdio::null());
    command
}

fn node(flags: &[(&str, String)]) -> Command {
    let mut command = trackbed();
    command.arg("node");
    for (flag, value) in flags {
        command.args([*flag, value]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs a node that is to refuse; what it says and its exit code.
fn refusal(flags: &[(&str, String)]) -> (String, Option<i32>) {
    let output = wait(node(flags).spawn().unwrap());
    let said = String::from_utf8_lossy(&output.stderr);
    // Logs may come before; the last line is the sentence.
    (
        said.lines().last().unwrap_or_default().to_owned(),
        output.status.code(),
    )
}

fn wait(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            // The panic names it.
            let _ = child.kill();
            panic!("the node did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// A node that runs, killed at the end of a test that fails.
struct Running(Option<Child>);

impl Running {
    /// Starts it and waits until its admin socket answers.
    fn start(site: &Site, flags: &[(&str, String)]) -> Running {
        let mut running = Running(Some(node(flags).spawn().unwrap()));
        let start = Instant::now();
        while !site.dataset(&["ls"]).status.success() {
            let child = running.0.as_mut().unwrap();
            assert!(child.try_wait().unwrap().is_none(), "the node ended");
            assert!(start.elapsed() < PATIENCE, "the node does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    /// Asks it to end, as a service manager does.
    fn end(mut self) -> Output {
        let child = self.0.take().unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        wait(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn what_is_wrong_with_a_setting_is_said_with_the_setting() {
    let site = Site::new();
    let missing = site.path("missing").display().to_string();
    fs::write(site.path("config.yaml"), "fabric: tcp\nmemroy: 1GiB\n").unwrap();
    let config = site.path("config.yaml").display().to_string();
    issue("other", &{
        let other = site.path("other");
        fs::create_dir(&other).unwrap();
        other
    });
    let other = site.path("other/tls.pem").display().to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let held = listener.local_addr().unwrap().to_string();
    for (flag, value, words) in [
        ("--config", &*config, &["memroy", "line 2"][..]),
        ("--name", "n2", &["tls.pem", "[n1]", "n2"]),
        ("--tls-key", &missing, &["--tls-key", &missing]),
        ("--tls-cert", &other, &["--tls-cert", "[other]", "n1"]),
        ("--registry", &missing, &[&missing, "members"]),
        ("--memory", "1MiB", &["--memory", "at least"]),
        ("--memory", "lots", &["lots", "512MiB"]),
        (
            "--control-listen",
            &held,
            &["--control-listen", &held, "another port"],
        ),
        (
            "--metrics-listen",
            &held,
            &["--metrics-listen", &held, "another port"],
        ),
        (
            "--csi-endpoint",
            "tcp://1.2.3.4:5",
            &["--csi-endpoint", "unix:///"],
        ),
    ] {
        let output = wait(node(&site.with(flag, value)).spawn().unwrap());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {said}");
        for word in words {
            assert!(
                said.contains(word),
                "{flag} {value}: {word:?} is not in: {said}"
            );
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_node_that_is_no_member_is_told_where_to_add_it() {
    let site = Site::new();
    let members = r#"{"members": [{"name": "n7", "control": "127.0.0.1:1", "weight": 100}]}"#;
    fs::write(site.path("registry/members.json"), members).unwrap();
    let (said, code) = refusal(&site.flags());
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("n1 is not a member") && said.contains("registry"),
        "{said}"
    );
}

#[test]
fn a_cache_that_another_node_uses_is_left_alone() {
    let site = Site::new();
    let running = Running::start(&site, &site.flags());
    let mut flags = site.with("--control-listen", &free_address());
    flags.retain(|(name, _)| *name != "--admin-socket");
    let second = site.path("second.sock").display().to_string();
    flags.push(("--admin-socket", second));
    let (said, code) = refusal(&flags);
    assert!(code.is_some_and(|code| code != 0), "{said}");
    assert!(
        said.contains("used by another agent") && said.contains("cache"),
        "{said}"
    );
    assert!(running.end().status.success());
}

#[test]
fn a_dataset_is_registered_listed_and_looked_at_over_the_admin_socket() {
    let site = Site::new();
    let origin = site.path("origin");
    fs::create_dir(&origin).unwrap();
    fs::write(origin.join("file"), b"0123456789").unwrap();
    let url = format!("file://{}", origin.display());
    let running = Running::start(&site, &site.flags());

    let object = |output: Output| -> Value {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let registered = object(site.dataset(&["register", "digits", &url]));
    assert_eq!(registered["version"].as_str().unwrap().len(), 64);
    assert_eq!(
        object(site.dataset(&["ls"])),
        serde_json::json!([registered])
    );
    let status = object(site.dataset(&["status", "digits"]));
    assert_eq!(status["dataset"], registered);
    assert_eq!(
        (status["files"].as_u64(), status["bytes"].as_u64()),
        (Some(1), Some(10))
    );
    assert_eq!(status["chunks_present"], 0);

    // Who may read it is told with the registration, and stays until it is told anew.
    assert_eq!(registered["namespaces"], Value::Null);
    let only = ["register", "digits", &url, "--namespace", "team-a,team-b"];
    let expected = serde_json::json!(["team-a", "team-b"]);
    for arguments in [&only[..], &only[..3]] {
        assert_eq!(object(site.dataset(arguments))["namespaces"], expected);
    }
    let for_all = ["register", "digits", &url, "--all-namespaces"];
    assert_eq!(object(site.dataset(&for_all))["namespaces"], Value::Null);

    for arguments in [
        &["register", "Bad Name", &url][..],
        &["register", "x", &url, "--namespace", "Team A"],
        &["register", "x", "ftp://host/path"],
        &["register", "x", "file:///nowhere/at/all"],
        &["status", "unknown"],
    ] {
        let output = site.dataset(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(1 | 2)),
            "{arguments:?}: {said}"
        );
        assert!(said.starts_with("trackbed: "), "{arguments:?}: {said}");
    }
    assert!(running.end().status.success());
}

#[test]
fn a_dataset_is_pinned_and_evicted_over_the_admin_socket() {
    let site = Site::new();
    let origin = site.path("origin");
    fs::create_dir(&origin).unwrap();
    fs::write(origin.join("file"), vec![7; 3 << 20]).unwrap();
    let mut flags = site.with("--cache-capacity", "4MiB");
    flags.push(("--cache-disk-percent", "100".into()));
    let running = Running::start(&site, &flags);
    let asked = |arguments: &[&str]| -> Value {
        let output = site.dataset(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let url = format!("file://{}", origin.display());
    let registered = asked(&["register", "cats", &url]);
    let version = registered["version"].as_str().unwrap();
    asked(&["warm", "cats"]);
    let named = format!("cats@{}", &version[..12]);
    assert_eq!(asked(&["pin", &named])["pinned"], true);
    let on_node = &asked(&["status", "cats"])["versions"][0];
    assert_eq!(
        (&on_node["pinned"], &on_node["bytes"]),
        (&true.into(), &(3 << 20).into())
    );

    let refused = site.dataset(&["evict", "cats"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("unpin it first"),
        "{said}"
    );
    assert_eq!(asked(&["unpin", "cats"])["version"], version);
    let evicted = &asked(&["evict", &named])["evicted"];
    assert_eq!(evicted[0]["bytes"], 3 << 20);
    assert_eq!(asked(&["evict", "cats"])["evicted"], serde_json::json!([]));
    let status = asked(&["status", "cats"]);
    assert_eq!(
        (&status["chunks_present"], &status["chunks"]),
        (&0.into(), &1.into())
    );
    for (unknown, why) in [
        ("cats@12345678abcd", "no version"),
        ("cats@1", "version"),
        ("dogs", "no dataset"),
    ] {
        let refused = site.dataset(&["evict", unknown]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(why), "{said}");
    }
    asked(&["warm", "cats"]);
    running.end();
}

#[test]
fn a_node_asked_to_end_leaves_no_socket_and_starts_again() {
    let site = Site::new();
    for _ in 0..2 {
        let running = Running::start(&site, &site.flags());
        let output = running.end();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        assert!(!site.path("admin.sock").exists());
    }
}

#[test]
fn metrics_of_cache_and_fabric_are_scraped_over_http() {
    let site = Site::new();
    let address = free_address();
    let running = Running::start(&site, &site.with("--metrics-listen", &address));
    let mut stream = TcpStream::connect(&address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    for metric in [
        "trackbed_cache_origin_read_bytes_total 0",
        "trackbed_fabric_links_open{kind=\"tcp\"} 0",
    ] {
        assert!(answer.contains(metric), "{metric} is not in: {answer}");
    }
    assert!(running.end().status.success());
}

#[test]
fn without_a_node_the_admin_commands_say_whom_they_asked() {
    let site = Site::new();
    let output = site.dataset(&["ls"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("admin.sock") && said.contains("trackbed node"),
        "{said}"
    );
}
