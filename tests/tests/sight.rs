//! What an administrator sees of running nodes: the reference of metrics is what they say, a real
//! Prometheus takes every alert, and every panel of the dashboards shows something.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use trackbed_apiserver::{ApiServer, Machines};
use trackbed_tests::cluster::Cluster;
use trackbed_tests::controller::{Controller, api_server};
use trackbed_tests::daemon::free_address;
use trackbed_tests::machine::{Adapter, Machine};
use trackbed_tests::plugin::DevicePlugin;
use trackbed_tests::{manifests, privilege, tree};

/// Far beyond what anything here takes, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The body of what is answered to a GET; `None` if nobody answers.
fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.to_owned())
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Two nodes of which one has read a dataset, and a device plugin with devices.
struct Scene {
    cluster: Cluster,
    agents: Vec<String>,
    plugin: String,
    _plugin: DevicePlugin,
    controller: Controller,
    _machines: Machines,
    _api: ApiServer,
}

impl Scene {
    async fn new() -> Scene {
        let mut cluster = Cluster::prepare(2).expect("prepares");
        let mut agents = Vec::new();
        for node in &mut cluster.nodes {
            let address = free_address();
            node.flag("--metrics-listen", &address);
            node.start().await.expect("starts");
            agents.push(address);
        }
        let origin = cluster.folder().join("origin");
        tree::write(&origin).expect("writes");
        cluster.register("demo", &origin).await;
        let mount = cluster.nodes[0].mount("demo").await.expect("mounts");
        tree::read(&mount).expect("reads");

        let machine = Machine::new();
        machine.adapter(&Adapter::ROCE, 0);
        machine.virtual_functions(&Adapter::ROCE, 2, 1);
        let plugin = free_address();
        let mut running = DevicePlugin::new(machine).expect("prepares");
        running.daemon.flag("--metrics-listen", &plugin);
        running.daemon.start().expect("starts");

        let api = api_server().await;
        let machines = Machines::start(&api);
        machines.add(&api, "node-1", 8);
        let controller = Controller::start(&api, "one").expect("starts");
        Scene {
            cluster,
            agents,
            plugin,
            _plugin: running,
            controller,
            _machines: machines,
            _api: api,
        }
    }
}

/// Kind and meaning of each metric of a text, by its name.
fn described(text: &str) -> BTreeMap<String, (String, String)> {
    let mut found: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let (Some("#"), Some(what), Some(name), Some(rest)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let entry = found.entry(name.to_owned()).or_default();
        match what {
            "HELP" => entry.1 = rest.trim_end_matches('.').to_owned(),
            "TYPE" => entry.0 = rest.to_owned(),
            _ => {}
        }
    }
    found
}

fn page(agent: &str, plugin: &str, controller: &str) -> String {
    let mut page =
        "# Reference: metrics\n\n<!-- Made by `TRACKBED_WRITE=1 cargo test -p trackbed-tests \
                    --test sight` of what running daemons say. -->\n"
            .to_owned();
    for (title, text) in [
        ("`trackbed node --metrics-listen`", agent),
        ("`trackbed device-plugin run --metrics-listen`", plugin),
        ("`trackbed controller run --metrics-listen`", controller),
    ] {
        page.push_str(&format!(
            "\n## {title}\n\n| Metric | Kind | Meaning |\n|---|---|---|\n"
        ));
        for (name, (kind, help)) in described(text) {
            page.push_str(&format!("| `{name}` | {kind} | {help} |\n"));
        }
    }
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_of_metrics_is_what_running_daemons_say() {
    if privilege::missing("mounting") {
        return;
    }
    let scene = Scene::new().await;
    let agent = until("metrics of a node", || get(&scene.agents[0], "/metrics"));
    let plugin = until("metrics of the plugin", || get(&scene.plugin, "/metrics"));
    let controller = &scene.controller.metrics;
    until("a controller that is well", || {
        let well = |path| get(controller, path).filter(|said| said == "ok\n");
        well("/healthz").and(well("/readyz"))
    });
    // With a plan's numbers.
    let controller = until("metrics of the controller", || {
        get(controller, "/metrics").filter(|text| text.contains("_fragmentation_ratio{"))
    });
    let all = [&agent, &plugin, &controller].map(|text| described(text));
    for (name, (kind, help)) in all.into_iter().flatten() {
        assert!(name.starts_with("trackbed_"), "{name}");
        assert!(
            !kind.is_empty() && !help.is_empty(),
            "{name} is not described"
        );
        assert_eq!(
            kind == "counter",
            name.ends_with("_total"),
            "{name} is a {kind}"
        );
    }
    let file = manifests::folder().join("../docs/metrics.md");
    let page = page(&agent, &plugin, &controller);
    if std::env::var_os("TRACKBED_WRITE").is_some() {
        fs::write(&file, &page).expect("writes");
    }
    let there = fs::read_to_string(&file).expect("docs/metrics.md");
    assert_eq!(
        there, page,
        "docs/metrics.md is out of date: its first lines say how it is made"
    );
}

/// A query as a part of a URL.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn api(address: &str, path: &str) -> Option<Value> {
    let answer: Value = serde_json::from_str(&get(address, path)?).ok()?;
    (answer["status"] == "success").then(|| answer["data"].clone())
}

/// Every expression of every dashboard, with where it is.
fn expressions() -> Vec<(String, String)> {
    let folder = manifests::folder().join("monitoring/dashboards");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("dashboards") {
        let path: PathBuf = entry.expect("a file").path();
        let text = fs::read_to_string(&path).expect("readable");
        let dashboard: Value = serde_json::from_str(&text).expect("JSON");
        let mut ids = BTreeSet::new();
        for panel in dashboard["panels"].as_array().expect("panels") {
            assert!(
                ids.insert(panel["id"].as_u64()),
                "{}: an id is there twice",
                path.display()
            );
            for target in panel["targets"].as_array().expect("targets") {
                let expression = target["expr"].as_str().expect("an expression");
                let place = format!("{}: {}", path.display(), panel["title"]);
                found.push((place, expression.replace("$__rate_interval", "10s")));
            }
        }
    }
    found
}

fn start_prometheus(
    program: &Path,
    folder: &Path,
    agents: &[String],
    plugin: &str,
) -> (Running, String) {
    let alerts = manifests::folder().join("monitoring/alerts.yaml");
    let alerts = alerts.canonicalize().expect("there");
    // One agent is not there.
    let config = format!(
        "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
         rule_files: [{alerts:?}]\n\
         scrape_configs:\n\
         - {{ job_name: trackbed-agent, static_configs: [{{ targets: [{:?}, {:?}, {:?}] }}] }}\n\
         - {{ job_name: trackbed-device-plugin, static_configs: [{{ targets: [{plugin:?}] }}] }}\n",
        agents[0],
        agents[1],
        free_address(),
    );
    let file = folder.join("prometheus.yml");
    fs::write(&file, config).expect("writes");
    let address = free_address();
    let log = fs::File::create(folder.join("prometheus.log")).expect("a log");
    let mut command = Command::new(program);
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!(
        "--storage.tsdb.path={}",
        folder.join("tsdb").display()
    ));
    command.arg(format!("--web.listen-address={address}"));
    command
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(log);
    (Running(command.spawn().expect("starts")), address)
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_takes_every_alert_and_every_panel_shows_something() {
    if privilege::missing("mounting") {
        return;
    }
    let Some(program) = std::env::var_os("TRACKBED_PROMETHEUS") else {
        println!("skipped: it takes TRACKBED_PROMETHEUS, its program (hack/test has it)");
        return;
    };
    let scene = Scene::new().await;
    let folder = scene.cluster.folder();
    let (_prometheus, address) =
        start_prometheus(Path::new(&program), folder, &scene.agents, &scene.plugin);
    let query = |expression: &str| {
        let path = format!("/api/v1/query?query={}", encoded(expression));
        let data = api(&address, &path)?;
        data["result"]
            .as_array()
            .filter(|found| !found.is_empty())
            .cloned()
    };
    until("three daemons that are scraped", || {
        query("sum(up) == 3").or_else(|| {
            let log = fs::read_to_string(folder.join("prometheus.log")).unwrap_or_default();
            assert!(!log.contains("level=error"), "{log}");
            None
        })
    });

    // Every rule was evaluated, and the one agent that is not there was noticed.
    let rules = until("rules that were evaluated", || {
        let groups = api(&address, "/api/v1/rules")?["groups"]
            .as_array()?
            .clone();
        let rules: Vec<Value> = groups
            .iter()
            .filter_map(|group| group["rules"].as_array())
            .flatten()
            .cloned()
            .collect();
        let done = !rules.is_empty() && rules.iter().all(|rule| rule["health"] != "unknown");
        let down = rules
            .iter()
            .any(|rule| rule["name"] == "TrackbedAgentDown" && rule["state"] == "pending");
        (done && down).then_some(rules)
    });
    let runbooks =
        fs::read_to_string(manifests::folder().join("../docs/runbooks.md")).expect("runbooks");
    for rule in &rules {
        let name = rule["name"].as_str().expect("a name");
        assert_eq!(rule["health"], "ok", "{name}: {rule}");
        let runbook = rule["annotations"]["runbook"].as_str().expect("a runbook");
        assert_eq!(runbook, format!("docs/runbooks.md#{}", name.to_lowercase()));
        assert!(
            runbooks.contains(&format!("\n## {name}\n")),
            "{name} has no runbook"
        );
    }
    let chapters = runbooks.lines().filter(|line| line.starts_with("## "));
    assert_eq!(chapters.count(), rules.len(), "a runbook has no alert");

    let expressions = expressions();
    assert!(expressions.len() > 20, "{}", expressions.len());
    for (place, expression) in &expressions {
        until(&format!("data of {place}: {expression}"), || {
            query(expression)
        });
    }
}
