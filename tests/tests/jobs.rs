//! Caffe2 jobs as users and administrators meet them: the example of the documentation, the controller as a
//! process, the commands, and what its role allows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use trackbed_apiserver::{ApiServer, Machines};
use trackbed_controller::reconcile::ControllerConfig;
use trackbed_tests::controller::{Controller, api_server};
use trackbed_tests::manifests;

/// The blocks of YAML on the page about jobs.
fn examples() -> Vec<Value> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/jobs.md");
    let page = fs::read_to_string(page).expect("the page");
    let blocks = page.split("```yaml\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    blocks
        .map(|text| serde_saphyr::from_str(text).expect("YAML"))
        .collect()
}

fn phase(api: &ApiServer, kind: &str, name: &str) -> Value {
    let job = api.get(kind, "vision", name).unwrap_or_default();
    job["status"]["phase"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_s_example_is_a_job_and_its_configuration_one_of_the_controller_s() {
    let examples = examples();
    let [job, config] = &examples[..] else {
        panic!("{} examples", examples.len());
    };
    let stored = api_server().await.create(job);
    // Nothing of it is unknown, which the API server would have dropped.
    fn is_in(part: &Value, whole: &Value) -> bool {
        match part {
            Value::Object(fields) => fields
                .iter()
                .all(|(name, value)| is_in(value, &whole[name])),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .all(|(at, item)| is_in(item, &whole[at])),
            _ => part == whole,
        }
    }
    assert!(is_in(&job["spec"], &stored["spec"]), "{stored:#}");
    let config: ControllerConfig = serde_json::from_value(config.clone()).expect("a configuration");
    config.check().expect("one that can be");
    assert_eq!(config.teams.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_show_what_runs_and_what_is_in_the_way() {
    let api = api_server().await;
    let machines = Machines::start(&api);
    machines.add(&api, "n0", 8);
    let controller = Controller::start(&api, "one").expect("starts");
    let template = json!({ "spec": { "containers": [{ "name": "c", "image": "i",
        "resources": { "limits": { "nvidia.com/gpu": "4" } } }] } });
    for (name, replicas) in [("fits", 1), ("wide", 2)] {
        api.create(
            &json!({ "apiVersion": "trackbed.io/v1", "kind": "Caffe2Job",
            "metadata": { "name": name, "namespace": "vision" },
            "spec": { "roles": [{ "name": "worker", "replicas": replicas, "template": template }],
                "rendezvous": { "type": "FileStore", "path": "/share" } } }),
        );
        if name == "fits" {
            controller
                .until(|| (phase(&api, "Caffe2Job.trackbed.io", name) == "Running").then_some(()))
                .await;
        }
    }
    let waits = || {
        let job = api.get("Caffe2Job.trackbed.io", "vision", "wide")?;
        let message = job["status"]["message"].as_str()?.to_owned();
        message.contains("missing").then_some(())
    };
    controller.until(waits).await;

    let (status, said) = controller.command(&["queue"]).await;
    assert_eq!(status, Some(0), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert!(
        lines[1].contains("fits") && lines[1].contains("Running") && lines[1].contains("1/1"),
        "{said}"
    );
    assert!(
        lines[2].contains("wide") && lines[2].contains("Queued") && lines[2].contains("0/2"),
        "{said}"
    );
    let (_, said) = controller
        .command(&["queue", "--namespace", "elsewhere"])
        .await;
    assert!(said.contains("no job"), "{said}");

    let why = ["job", "why", "wide", "--namespace", "vision"];
    let (status, said) = controller.command(&why).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains("takes 8 accelerators") && said.contains("4 are free"),
        "{said}"
    );
    let (_, said) = controller
        .command(&[&why[..], &["--output", "json"]].concat())
        .await;
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let room = &said["room"][0];
    assert_eq!(
        (&room["role"], &room["wanted"]),
        (&json!("worker"), &json!(2))
    );
    assert_eq!(room["hardware"][0]["pods"], 1);
    assert_eq!(room["hardware"][0]["podsWhenEmpty"], 2);

    let (status, said) = controller.command(&["job", "why", "unknown"]).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("trackbed queue --all"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_s_role_allows_all_that_it_calls_and_nothing_else() {
    let api = api_server().await;
    let machines = Machines::start(&api);
    machines.add(&api, "n0", 8);
    machines.add(&api, "n1", 8);
    let condition = json!({ "type": "Ready", "status": "True", "reason": "Listed", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z" });
    api.create(&json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
        "metadata": { "name": "cats", "namespace": "vision" }, "spec": { "origin": "s3://cats" } }));
    let cached = |percent: i32| {
        let status = json!({ "status": { "cachedPercent": percent, "conditions": [condition] } });
        api.merge_status("Dataset", "vision", "cats", &status);
    };
    cached(0);
    let controller = Controller::start(&api, "one").expect("starts");
    // All that a controller does with a job: has its data warmed, starts it with a redis, deletes it.
    let template = json!({ "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    api.create(
        &json!({ "apiVersion": "trackbed.io/v1", "kind": "Caffe2Job",
        "metadata": { "name": "ours", "namespace": "vision" },
        "spec": { "roles": [{ "name": "worker", "replicas": 2, "template": template }],
            "runPolicy": { "ttlSecondsAfterFinished": 0 },
            "dataset": { "name": "cats", "mountPath": "/data", "warmShare": 10 } } }),
    );
    api.create(
        &json!({ "apiVersion": "kubeflow.org/v1alpha1", "kind": "Caffe2Job",
        "metadata": { "name": "theirs", "namespace": "vision" },
        "spec": { "replicaSpecs": { "template": template } } }),
    );
    let warmed = || {
        let dataset = api.get("Dataset", "vision", "cats")?;
        (dataset["spec"]["warmUp"]["percent"] == 10).then_some(())
    };
    controller.until(warmed).await;
    cached(10);
    for (kind, name) in [
        ("Caffe2Job.trackbed.io", "ours"),
        ("Caffe2Job.kubeflow.org", "theirs"),
    ] {
        controller
            .until(|| (phase(&api, kind, name) == "Running").then_some(()))
            .await;
        machines.end("vision", &format!("{name}-1-worker-0"), "Succeeded");
    }
    controller
        .until(|| (phase(&api, "Caffe2Job.kubeflow.org", "theirs") == "Succeeded").then_some(()))
        .await;
    controller
        .until(|| {
            api.get("Caffe2Job.trackbed.io", "vision", "ours")
                .is_none()
                .then_some(())
        })
        .await;
    // The lease is renewed a while after it was made.
    let renewed = || {
        api.calls()
            .contains_key(&("update".into(), "leases.coordination.k8s.io".into()))
            .then_some(())
    };
    controller.until(renewed).await;
    let called: BTreeSet<_> = api.calls().into_keys().collect();

    let file = manifests::folder().join("kustomize/base/trackbed.yaml");
    let base = manifests::objects(&fs::read_to_string(file).expect("hack/render has made it"));
    let rules = |kind: &str, namespace: &str| {
        let key = (
            kind.to_owned(),
            namespace.to_owned(),
            "trackbed-controller".to_owned(),
        );
        manifests::allowed(base.get(&key).expect("the controller's role"))
    };
    let mut granted = rules("ClusterRole", "");
    granted.extend(rules("Role", manifests::NAMESPACE));
    assert_eq!(granted, called);
}
