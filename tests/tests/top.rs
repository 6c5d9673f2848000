//! `trackbed top` as an administrator meets it: of running daemons, by its output and in a terminal.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::{Value, json};
use trackbed_apiserver::{ApiServer, Machines};
use trackbed_tests::cluster::{Cluster, trackbed};
use trackbed_tests::controller::{Controller, api_server};
use trackbed_tests::daemon::free_address;
use trackbed_tests::machine::{Adapter, Machine};
use trackbed_tests::plugin::{DevicePlugin, VF};
use trackbed_tests::{privilege, tree};

/// Far beyond what anything here takes, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// Nodes at the usual ports of metrics, the first of which has a device plugin; all of a dataset is on it.
async fn nodes(count: usize) -> (Cluster, DevicePlugin) {
    let mut cluster = Cluster::prepare(count).expect("prepares");
    for node in &mut cluster.nodes {
        let address = format!("{}:7422", node.address);
        node.flag("--metrics-listen", address);
        node.start().await.expect("starts");
    }
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("writes");
    cluster.register("demo", &origin).await;
    cluster.nodes[0].complete("demo").await.expect("completes");
    cluster.nodes[1].mount("demo").await.expect("mounts");
    fs::read(cluster.nodes[1].target("demo").join("large/aligned.bin")).expect("reads");

    let machine = Machine::new();
    machine.adapter(&Adapter::ROCE, 0);
    machine.virtual_functions(&Adapter::ROCE, 3, 1);
    machine.set_port(&Adapter::ROCE, &Adapter::ROCE.vf(2), 3, false);
    let mut plugin = DevicePlugin::new(machine).expect("prepares");
    let address = format!("{}:7423", cluster.nodes[0].address);
    plugin.daemon.flag("--metrics-listen", address);
    plugin.daemon.start().expect("starts");
    plugin.kubelet.healthy(VF, 2).await;
    let given = plugin
        .kubelet
        .admit(VF, "trainer", &["mt2042x00123-0-0-vf0"]);
    given.await.expect("given");
    (cluster, plugin)
}

fn top(words: &[&str]) -> Command {
    let mut command = Command::new(trackbed());
    command.arg("top").args(words).stdin(Stdio::null());
    command
}

/// What `trackbed top --output json` prints, once it is as wanted: a busy machine's daemons may be late.
async fn shown(command: impl Fn() -> Command, wanted: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let view = printed(command()).await;
        if wanted(&view) {
            return view;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "it is never as wanted: {view:#}"
        );
    }
}

async fn printed(mut command: Command) -> Value {
    command.args(["--once", "--interval", "1", "--output", "json"]);
    let ran = tokio::task::spawn_blocking(move || command.output());
    let ran = ran.await.expect("no panic").expect("runs");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}");
    serde_json::from_slice(&ran.stdout).expect("JSON")
}

/// Whether all nodes have answered, twice.
fn answer(view: &Value, cluster: &Cluster) -> bool {
    let rows = view["nodes"].as_array().expect("rows");
    let answers = |name: &str| {
        let mut rows = rows.iter();
        rows.any(|row| row["name"] == name && row["trouble"].is_null() && row["sent"].is_u64())
    };
    cluster.nodes.iter().all(|node| answers(&node.name))
}

fn named<'v>(rows: &'v Value, name: &str) -> &'v Value {
    let rows = rows.as_array().expect("rows");
    let found = rows.iter().find(|row| row["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {rows:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_answers_is_shown_beside_what_does_not() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, _plugin) = nodes(3).await;
    // One that is gone, and one that takes connections and says nothing.
    let gone = free_address();
    let silent = TcpListener::bind("127.0.0.1:0").expect("listens");
    let silent = (silent.local_addr().expect("bound"), silent);
    let registry = cluster.folder().join("registry").display().to_string();
    let metrics = format!("gone={gone},silent={}", silent.0);
    let command = || top(&["--registry", &registry, "--metrics", &metrics]);
    // Which pod has a device is known once kubelet was asked.
    let view = shown(command, |view| {
        view["devices"][0]["pods"] == json!(["ns/trainer"]) && answer(view, &cluster)
    });
    let view = view.await;
    for node in &cluster.nodes {
        let row = named(&view["nodes"], &node.name);
        assert!(row["received"].is_u64() && row["sent"].is_u64(), "{row}");
    }
    let one = named(&view["nodes"], "node-1");
    assert!(one["usedBytes"].as_u64() > Some(15 << 20), "{one}");
    for (name, why) in [("gone", "nobody listens"), ("silent", "no answer")] {
        let row = named(&view["nodes"], name);
        let trouble = row["trouble"].as_str().expect("told");
        assert!(trouble.contains(why) && row["received"].is_null(), "{row}");
    }
    let demo = named(&view["datasets"], "demo");
    assert_eq!(demo["cachedPercent"], 100);
    let counts = ["complete", "nodes"].map(|it| demo[it].as_u64());
    // What owners keep for others counts too, and what is prefetched.
    assert!(counts[0] >= Some(1) && counts[1] >= Some(2), "{demo}");
    assert!(
        demo["presentBytes"].as_u64() > demo["bytes"].as_u64(),
        "{demo}"
    );
    let devices = &view["devices"][0];
    assert_eq!(devices["node"], "node-1");
    assert_eq!(devices["resource"], VF);
    let counts = ["healthy", "unhealthy", "held"].map(|it| devices[it].clone());
    assert_eq!(counts, [json!(2), json!(1), json!(1)], "{devices}");
    assert_eq!(view["jobs"], Value::Null);

    // Without a terminal it prints once, whatever it was told.
    let ran = top(&["--registry", &registry]).output().expect("runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}");
    for part in ["NODES  3 of 3 answer", "node-2", "DATASETS", "demo", VF] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

fn create_job(api: &ApiServer, name: &str, pods: u32) {
    let template = json!({ "spec": { "containers": [{ "name": "c", "image": "i",
        "resources": { "limits": { "nvidia.com/gpu": "8" } } }] } });
    api.create(
        &json!({ "apiVersion": "trackbed.io/v1", "kind": "Caffe2Job",
            "metadata": { "name": name, "namespace": "vision" },
            "spec": { "roles": [{ "name": "worker", "replicas": pods, "template": template }],
                "rendezvous": { "type": "FileStore", "path": "/share" } } }),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_s_nodes_and_the_gangs_that_wait_are_found_by_its_api_server() {
    if privilege::missing("mounting") {
        return;
    }
    let (cluster, _plugin) = nodes(2).await;
    let api = api_server().await;
    for node in &cluster.nodes {
        let address = format!("{}:7420", node.address);
        api.create(
            &json!({ "apiVersion": "trackbed.io/v1", "kind": "CacheNode",
            "metadata": { "name": node.name }, "spec": { "address": address } }),
        );
    }
    let machines = Machines::start(&api);
    machines.add(&api, "node-1", 8);
    let controller = Controller::start(&api, "one").expect("starts");
    create_job(&api, "wide", 2);
    let waits = || {
        let job = api.get("Caffe2Job.trackbed.io", "vision", "wide")?;
        let message = job["status"]["message"].as_str()?.to_owned();
        message.contains("missing").then_some(message)
    };
    let why = controller.until(waits).await;

    let kubeconfig = cluster.folder().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig()).expect("writes");
    let asking = |words: &[&str]| {
        let mut command = top(words);
        command.env("KUBECONFIG", &kubeconfig);
        command
    };
    let view = shown(
        || asking(&["--kubernetes"]),
        |view| view["troubles"] == json!([]) && answer(view, &cluster),
    );
    let view = view.await;
    assert_eq!(view["devices"][0]["node"], "node-1");
    let job = named(&view["jobs"], "wide");
    assert_eq!(
        (&job["phase"], &job["message"]),
        (&json!("Queued"), &json!(why))
    );

    // An API server that is away is told, and the daemons are shown that are known otherwise.
    api.stop().await;
    let known = format!("node-1={}:7422", cluster.nodes[0].address);
    let view = shown(
        || asking(&["--kubernetes", "--metrics", &known]),
        |view| named(&view["nodes"], "node-1")["trouble"].is_null(),
    );
    let troubles = view.await["troubles"].to_string();
    assert!(
        troubles.contains("listing nodes") && troubles.contains("listing jobs"),
        "{troubles}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_what_is_and_is_as_it_was_afterwards() {
    let gone = format!("lonely={}", free_address());
    let size = Winsize {
        ws_row: 30,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(&size, None).expect("a terminal");
    let modes = || {
        tcgetattr(&terminal.slave)
            .expect("a terminal's modes")
            .local_flags
    };
    let before = modes();
    assert!(before.contains(LocalFlags::ECHO));
    let side = || -> OwnedFd { terminal.slave.try_clone().expect("a descriptor") };
    let child = Command::new(trackbed())
        .args(["top", "--interval", "1", "--metrics", &gone])
        .env("TERM", "xterm")
        .stdin(side())
        .stdout(side())
        .stderr(side())
        .spawn();
    let mut child = child.expect("starts");
    let mut master = File::from(terminal.master.try_clone().expect("a descriptor"));
    let (said, hear) = std::sync::mpsc::channel();
    // Reads until this test has ended.
    thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(count) = master.read(&mut some) {
            if said.send(some[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::new();
    let has = |seen: &[u8], part: &str| String::from_utf8_lossy(seen).contains(part);
    while !(has(&seen, "lonely") && has(&seen, "NODES")) {
        let more = hear.recv_timeout(PATIENCE);
        seen.extend(more.unwrap_or_else(|_| panic!("only {}", String::from_utf8_lossy(&seen))));
    }
    assert!(!modes().contains(LocalFlags::ECHO), "keys are its own");
    let mut keys = File::from(terminal.master.try_clone().expect("a descriptor"));
    keys.write_all(b"\tq").expect("pressed");
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not end");
        thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success());
    assert_eq!(modes(), before);
}

#[test]
fn what_cannot_be_asked_is_refused_with_the_remedy() {
    for (words, said) in [
        (&[][..], "--kubernetes, --registry"),
        (&["--metrics", "https://n1:7422"], "HOST:PORT"),
        (&["--metrics", "n1:7422", "--interval", "0"], "--interval"),
    ] {
        let ran = top(words).output().expect("runs");
        assert_eq!(ran.status.code(), Some(2));
        let err = String::from_utf8_lossy(&ran.stderr);
        assert!(err.contains(said), "{err}");
    }
}
