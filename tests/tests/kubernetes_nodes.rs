//! Nodes in a cluster: `trackbed node --kubernetes` against an API server. Datasets are objects, so are
//! the nodes; what is to be warmed is warmed, what is where is told.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kube::CustomResourceExt;
use serde_json::{Value, json};
use trackbed_apiserver::ApiServer;
use trackbed_controller::api::{CacheNode, Dataset};
use trackbed_tests::cluster::{Cluster, trackbed};
use trackbed_tests::{manifests, privilege, tree};

/// Far beyond what anything here takes, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster with an API server, and an origin that its nodes share.
struct Kubernetes {
    api: ApiServer,
    nodes: Cluster,
    origin: PathBuf,
}

impl Kubernetes {
    async fn start(nodes: usize) -> Kubernetes {
        let mut kubernetes = Kubernetes::prepare(nodes).await;
        for node in &mut kubernetes.nodes.nodes {
            node.start().await.expect("starts");
        }
        kubernetes
    }

    async fn prepare(nodes: usize) -> Kubernetes {
        let definitions = [Dataset::crd(), CacheNode::crd()];
        let definitions = definitions.map(|it| serde_json::to_value(it).expect("JSON"));
        let api = ApiServer::start(&definitions).await.expect("serves");
        let mut nodes = Cluster::prepare(nodes).expect("prepares");
        // Were it looked at, it would have no members.
        fs::write(nodes.folder().join("registry/members.json"), "{}").expect("writes");
        let kubeconfig = nodes.folder().join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig()).expect("writes");
        let origin = nodes.folder().join("origin");
        tree::write(&origin).expect("writes");
        for node in &mut nodes.nodes {
            node.flag("--kubernetes", true);
            node.flag("--report-every", 1);
            node.flag("--share-folder", origin.display());
            node.env("KUBECONFIG", &kubeconfig.display().to_string());
        }
        Kubernetes { api, nodes, origin }
    }

    fn create(&self, name: &str, spec: Value) {
        self.api
            .create(&json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
            "metadata": { "name": name, "namespace": "team-a" }, "spec": spec }));
    }

    fn url(&self) -> String {
        format!("file://{}", self.origin.display())
    }

    /// Waits until a dataset's status tells of the object as it is, and is as wanted; gives it.
    async fn status(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let look = || {
            let object = self.api.get("Dataset", "team-a", name);
            let object = object.filter(|object| {
                object["status"]["observedGeneration"] == object["metadata"]["generation"]
            });
            object.map_or(Value::Null, |object| object["status"].clone())
        };
        self.until(|| Some(look()).filter(&wanted), || look().to_string())
            .await
    }

    async fn until<T>(
        &self,
        mut there: impl FnMut() -> Option<T>,
        found: impl Fn() -> String,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(there) = there() {
                return there;
            }
            if Instant::now() > deadline {
                let logs: Vec<_> = self.nodes.nodes.iter().map(|node| node.log()).collect();
                panic!(
                    "it did not become so: {}\n{}",
                    found(),
                    logs.join("\n---\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs `trackbed dataset --kubernetes …`; gives what it prints, or its exit status and what it says.
    async fn command(&self, words: &[&str]) -> Result<Value, (Option<i32>, String)> {
        let mut command = std::process::Command::new(trackbed());
        command
            .args(["dataset", "--kubernetes", "--output", "json"])
            .args(words);
        command.env("KUBECONFIG", self.nodes.folder().join("kubeconfig"));
        let ran = tokio::task::spawn_blocking(move || command.output()).await;
        let ran = ran.expect("no panic").expect("runs");
        match ran.status.success() {
            true => Ok(serde_json::from_slice(&ran.stdout).expect("JSON")),
            false => Err((
                ran.status.code(),
                String::from_utf8_lossy(&ran.stderr).into_owned(),
            )),
        }
    }

    fn calls(&self, verb: &str, resource: &str) -> u64 {
        let calls = self.api.calls();
        *calls
            .get(&(verb.to_owned(), resource.to_owned()))
            .unwrap_or(&0)
    }
}

fn condition<'s>(status: &'s Value, kind: &str) -> &'s Value {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .find(|condition| condition["type"] == kind)
        .unwrap_or(&Value::Null)
}

async fn same(mount: &Path, origin: &Path) {
    let (mount, origin) = (mount.to_owned(), origin.to_owned());
    let compared = tokio::task::spawn_blocking(move || {
        let found = tree::read(&mount).expect("the mount is readable");
        tree::assert_same(&found, &tree::read(&origin).expect("readable"));
    });
    compared.await.expect("they are the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_object_is_listed_once_warmed_on_the_chosen_nodes_and_says_where_it_is() {
    let kubernetes = Kubernetes::start(3).await;
    for name in ["node-1", "node-2"] {
        let labels = json!({ "metadata": { "labels": { "gpu": "yes" } } });
        let object = kubernetes
            .until(|| kubernetes.api.get("CacheNode", "", name), String::new)
            .await;
        assert!(
            object["spec"]["address"]
                .as_str()
                .is_some_and(|it| it.ends_with(":7420"))
        );
        kubernetes.api.merge("CacheNode", "", name, &labels);
    }
    let spec =
        json!({ "origin": kubernetes.url(), "warmUp": { "nodeSelector": { "gpu": "yes" } } });
    kubernetes.create("cats", spec);
    let status = kubernetes
        .status("cats", |status| status["phase"] == "Warm")
        .await;
    assert_eq!(status["cachedPercent"], 100);
    assert_eq!(
        (&status["warmNodes"], &status["selectedNodes"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(condition(&status, "Ready")["status"], "True");
    assert_eq!(condition(&status, "Warmed")["status"], "True");
    assert_eq!(status["observedGeneration"], 1);
    // A list that is merged by its key is in the order in which the API server came to know them.
    let nodes = status["nodes"].as_array().expect("a list");
    let full: BTreeSet<_> = nodes
        .iter()
        .filter(|it| it["percent"] == 100)
        .filter_map(|it| it["node"].as_str())
        .collect();
    assert_eq!(full, BTreeSet::from(["node-1", "node-2"]));
    for node in &kubernetes.nodes.nodes[..2] {
        let here = node.status("team-a.cats").await.expect("answers");
        assert_eq!(here.bytes_present, here.bytes);
        assert_eq!(Some(here.bytes as i64), status["bytes"].as_i64());
    }
    let read = kubernetes.nodes.origin_bytes().await;
    assert_eq!(
        Some(read as i64),
        status["bytes"].as_i64(),
        "each byte leaves the origin once"
    );
    let node = kubernetes
        .api
        .get("CacheNode", "", "node-1")
        .expect("there");
    assert_eq!(node["status"]["datasets"][0]["name"], "cats");
    assert_eq!(
        node["metadata"]["labels"]["gpu"], "yes",
        "what others set stays"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pods_of_its_namespace_and_those_it_is_shared_with_read_a_dataset() {
    if privilege::missing("mounting") {
        return;
    }
    let kubernetes = Kubernetes::start(1).await;
    kubernetes.create(
        "cats",
        json!({ "origin": kubernetes.url(), "sharedWith": ["team-b"] }),
    );
    let status = kubernetes
        .status("cats", |status| status["phase"] == "Ready")
        .await;
    let name = status["volumeDataset"].as_str().expect("a name");
    assert_eq!(name, "team-a.cats");
    let node = &kubernetes.nodes.nodes[0];
    for refused in [None, Some("team-c")] {
        node.mount_for(name, refused).await.expect_err("not theirs");
    }
    let mount = node.mount_for(name, Some("team-b")).await.expect("shared");
    same(&mount, &kubernetes.origin).await;
    node.unmount(name).await.expect("unmounts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_drops_out_and_is_back_when_it_runs_again() {
    let mut kubernetes = Kubernetes::start(3).await;
    kubernetes.create("cats", json!({ "origin": kubernetes.url(), "warmUp": {} }));
    kubernetes
        .status("cats", |status| status["warmNodes"] == 3)
        .await;
    kubernetes.nodes.nodes[2].kill();
    let status = kubernetes
        .status("cats", |status| status["selectedNodes"] == 2)
        .await;
    let named = |status: &Value| {
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().any(|it| it["node"] == "node-3")
    };
    assert!(!named(&status), "{status}");
    assert!(
        kubernetes.api.get("CacheNode", "", "node-3").is_some(),
        "its object stays"
    );
    // Those that are left serve what there is to serve, and what comes anew.
    kubernetes.create(
        "dogs",
        json!({ "origin": kubernetes.url(), "warmUp": { "percent": 50 } }),
    );
    kubernetes
        .status("dogs", |status| status["phase"] == "Warm")
        .await;
    kubernetes.nodes.nodes[2].start().await.expect("starts");
    kubernetes
        .status("cats", |status| status["warmNodes"] == 3 && named(status))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_the_api_server_is_away_even_on_a_node_that_starts_meanwhile() {
    if privilege::missing("mounting") {
        return;
    }
    let mut kubernetes = Kubernetes::start(2).await;
    kubernetes.create("cats", json!({ "origin": kubernetes.url() }));
    kubernetes
        .status("cats", |status| status["phase"] == "Ready")
        .await;
    let file = kubernetes.nodes.nodes[0].cache().join("kubernetes.json");
    let remembered = || fs::read_to_string(&file).unwrap_or_default();
    let knows = || Some(()).filter(|()| remembered().contains("team-a.cats"));
    kubernetes.until(knows, &remembered).await;
    let both = || Some(()).filter(|()| remembered().contains("node-2"));
    kubernetes.until(both, &remembered).await;
    kubernetes.api.stop().await;
    let mount = kubernetes.nodes.nodes[1]
        .mount_for("team-a.cats", Some("team-a"))
        .await;
    same(&mount.expect("mounts"), &kubernetes.origin).await;
    kubernetes.nodes.nodes[0].kill();
    kubernetes.nodes.nodes[0].start().await.expect("starts");
    let mount = kubernetes.nodes.nodes[0]
        .mount_for("team-a.cats", Some("team-a"))
        .await;
    same(&mount.expect("mounts"), &kubernetes.origin).await;
    kubernetes.api.resume().await.expect("its port is free");
    kubernetes.create("dogs", json!({ "origin": kubernetes.url(), "warmUp": {} }));
    kubernetes
        .status("dogs", |status| status["warmNodes"] == 2)
        .await;
    for node in &kubernetes.nodes.nodes {
        node.unmount("team-a.cats").await.expect("unmounts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_cannot_be_had_says_why_and_what_to_do_and_the_others_go_on() {
    let kubernetes = Kubernetes::start(1).await;
    let secret = "hunter2-the-secret-key";
    kubernetes
        .api
        .create(&json!({ "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "half", "namespace": "team-a" },
        "data": { "AWS_SECRET_ACCESS_KEY": "aHVudGVyMi10aGUtc2VjcmV0LWtleQ==" } }));
    let bucket = "s3://sets/cats?endpoint=http://192.0.2.1:9&region=eu-west-1";
    let bad = [
        (
            "forbidden",
            json!({ "origin": "file:///etc" }),
            "--share-folder",
        ),
        (
            "gone",
            json!({ "origin": format!("{}/gone", kubernetes.url()) }),
            "gone",
        ),
        (
            "unknown",
            json!({ "origin": bucket, "credentials": { "secretName": "none" } }),
            "make the Secret",
        ),
        (
            "half",
            json!({ "origin": bucket, "credentials": { "secretName": "half" } }),
            "AWS_ACCESS_KEY_ID",
        ),
    ];
    for (name, spec, _) in &bad {
        kubernetes.create(name, spec.clone());
    }
    kubernetes.create("good", json!({ "origin": kubernetes.url() }));
    kubernetes
        .status("good", |status| status["phase"] == "Ready")
        .await;
    for (name, _, says) in &bad {
        let status = kubernetes
            .status(name, |status| status["phase"] == "Failed")
            .await;
        let why = condition(&status, "Ready")["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(why.contains(says), "{name}: {why}");
        assert!(!status.to_string().contains(secret), "{status}");
    }
    assert!(!kubernetes.nodes.nodes[0].log().contains(secret));
    // What is put right is tried at once.
    let fixed = json!({ "spec": { "origin": kubernetes.url() } });
    kubernetes
        .api
        .merge("Dataset", "team-a", "forbidden", &fixed);
    kubernetes
        .status("forbidden", |status| status["phase"] == "Ready")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raised_refresh_makes_a_version_of_what_is_there_by_then() {
    let kubernetes = Kubernetes::start(2).await;
    kubernetes.create("cats", json!({ "origin": kubernetes.url(), "warmUp": {} }));
    let first = kubernetes
        .status("cats", |status| status["phase"] == "Warm")
        .await;
    fs::write(kubernetes.origin.join("new"), "meow").expect("writes");
    let raised = json!({ "spec": { "refresh": 1 } });
    kubernetes.api.merge("Dataset", "team-a", "cats", &raised);
    let again = |status: &Value| status["phase"] == "Warm" && status["version"] != first["version"];
    let second = kubernetes.status("cats", again).await;
    assert_eq!(second["earlierVersions"], json!([first["version"]]));
    // And back: the version that is shown is the spec's.
    let pinned = json!({ "spec": { "version": first["version"] } });
    kubernetes.api.merge("Dataset", "team-a", "cats", &pinned);
    kubernetes
        .status("cats", |status| {
            status["warmNodes"] == 2 && status["bytes"] == first["bytes"]
        })
        .await;
    let shown = kubernetes.nodes.nodes[0]
        .status("team-a.cats")
        .await
        .expect("answers");
    assert_eq!(
        shown.dataset.map(|it| json!(it.version)),
        Some(first["version"].clone())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_object_says_is_pinned_is_not_evicted_until_it_says_otherwise() {
    let kubernetes = Kubernetes::start(1).await;
    let spec = json!({ "origin": kubernetes.url(), "warmUp": {}, "pinned": true });
    kubernetes.create("cats", spec);
    kubernetes
        .status("cats", |status| status["phase"] == "Warm")
        .await;
    let node = &kubernetes.nodes.nodes[0];
    let is_pinned = async |wanted: bool| {
        let told = async || {
            let status = node.status("team-a.cats").await.expect("answers");
            status.versions.iter().any(|version| version.pinned)
        };
        let told_so = async {
            while told().await != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), told_so).await
    };
    is_pinned(true).await.expect("pinned");
    let otherwise = json!({ "spec": { "pinned": false } });
    kubernetes
        .api
        .merge("Dataset", "team-a", "cats", &otherwise);
    is_pinned(false).await.expect("no longer pinned");

    // An object that is deleted keeps nothing, not even what it pinned.
    let again = json!({ "spec": { "pinned": true } });
    kubernetes.api.merge("Dataset", "team-a", "cats", &again);
    is_pinned(true).await.expect("pinned again");
    assert_eq!(pins_below(&node.cache()), 1);
    kubernetes.api.delete("Dataset", "team-a", "cats");
    let pins = async || {
        while pins_below(&node.cache()) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let gone = tokio::time::timeout(PATIENCE, pins()).await;
    gone.expect("nothing stays pinned");
}

/// How many versions in this cache's folder are marked as pinned.
fn pins_below(cache: &Path) -> usize {
    let versions = fs::read_dir(cache.join("versions")).expect("a folder");
    let versions = versions.map(|version| version.expect("an entry").path());
    versions
        .filter(|version| version.join("pinned").exists())
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_creates_datasets_lists_them_and_says_how_they_are() {
    let kubernetes = Kubernetes::start(1).await;
    let url = kubernetes.url();
    let made = [
        "create",
        "team-a/cats",
        &url,
        "--warm",
        "50",
        "--namespace",
        "team-b",
        "--pin",
    ];
    let made = kubernetes.command(&made).await.expect("created");
    assert_eq!(made["spec"]["warmUp"]["percent"], 50);
    assert_eq!(
        (&made["spec"]["sharedWith"], &made["spec"]["pinned"]),
        (&json!(["team-b"]), &json!(true))
    );
    let (code, twice) = kubernetes
        .command(&["create", "team-a/cats", &url])
        .await
        .expect_err("there");
    assert!(
        code == Some(2) && twice.contains("already exists"),
        "{twice}"
    );
    let (code, wrong) = kubernetes
        .command(&["create", "team-a/dogs", "ftp://x"])
        .await
        .expect_err("no");
    assert!(code == Some(2) && wrong.contains("s3://"), "{wrong}");
    kubernetes
        .status("cats", |status| status["phase"] == "Warm")
        .await;
    let status = kubernetes
        .command(&["status", "team-a/cats"])
        .await
        .expect("there");
    assert_eq!(status["status"]["phase"], "Warm");
    let listed = kubernetes.command(&["ls"]).await.expect("lists");
    assert_eq!(listed, json!([status]));
    let (code, _) = kubernetes
        .command(&["status", "team-a/none"])
        .await
        .expect_err("is not there");
    assert_eq!(code, Some(2));
    kubernetes.api.stop().await;
    let (code, away) = kubernetes.command(&["ls"]).await.expect_err("away");
    assert!(code == Some(1) && away.contains("API server"), "{away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_nothing_to_do_writes_heartbeats_and_nothing_else() {
    let kubernetes = Kubernetes::start(1).await;
    kubernetes.create("cats", json!({ "origin": kubernetes.url(), "warmUp": {} }));
    kubernetes
        .status("cats", |status| status["warmNodes"] == 1)
        .await;
    // What the last change has caused is over after some heartbeats.
    let beats = || kubernetes.calls("patch", "cachenodes.trackbed.io/status");
    let wait = async |more: u64| {
        let start = beats();
        kubernetes
            .until(
                || (beats() >= start + more).then_some(()),
                || beats().to_string(),
            )
            .await;
    };
    wait(8).await;
    let before = kubernetes.api.calls();
    wait(8).await;
    let heartbeat = (
        "patch".to_owned(),
        "cachenodes.trackbed.io/status".to_owned(),
    );
    for (call, count) in kubernetes.api.calls() {
        let more = count - before.get(&call).unwrap_or(&0);
        assert!(
            more == 0 || call == heartbeat || call.0 == "watch",
            "{call:?}: {more}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_s_role_allows_all_that_it_calls_and_nothing_else() {
    let kubernetes = Kubernetes::start(1).await;
    // All that a node does with an object: lists it, warms it, tells of its versions, reads its Secret.
    kubernetes.create(
        "cats",
        json!({ "origin": kubernetes.url(), "warmUp": {}, "pinned": true }),
    );
    let bucket = "s3://sets/cats?endpoint=http://192.0.2.1:9&region=eu-west-1";
    let spec = json!({ "origin": bucket, "credentials": { "secretName": "none" } });
    kubernetes.create("unknown", spec);
    kubernetes
        .status("cats", |status| {
            condition(status, "Warmed")["status"] == "True"
        })
        .await;
    kubernetes
        .status("unknown", |status| status["phase"] == "Failed")
        .await;
    let mut called: BTreeSet<_> = kubernetes.api.calls().into_keys().collect();
    // Applying what is not there yet is to create it, for which the API server wants that verb too.
    called.insert(("create".into(), "cachenodes.trackbed.io".into()));

    let file = manifests::folder().join("kustomize/base/trackbed.yaml");
    let base = manifests::objects(&fs::read_to_string(file).expect("hack/render has made it"));
    let role = base.get(&("ClusterRole".into(), String::new(), "trackbed-agent".into()));
    let mut granted = manifests::allowed(role.expect("the agent's role"));
    // In the namespaces that agent.secretNamespaces names, by a Role of theirs.
    granted.insert(("get".into(), "secrets".into()));
    assert_eq!(granted, called);
}
