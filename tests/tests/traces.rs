//! Traces as an operator gets them: nothing unless it is asked for, and then what kubelet and users had done.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use trackbed_apiserver::Machines;
use trackbed_tests::cluster::{Cluster, trackbed};
use trackbed_tests::collector::{Collector, Span};
use trackbed_tests::controller::{Controller, api_server};
use trackbed_tests::daemon::free_address;
use trackbed_tests::machine::{Adapter, Machine};
use trackbed_tests::plugin::{DevicePlugin, VF};
use trackbed_tests::{privilege, tree};

/// Far beyond what anything here takes, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);
const FLAG: &str = "--otlp-endpoint";

/// Waits for a span.
async fn span(collector: &Collector, what: &str, wanted: impl Fn(&Span) -> bool) -> Span {
    let begun = Instant::now();
    loop {
        let spans = collector.spans();
        if let Some(found) = spans.iter().find(|span| wanted(span)) {
            return found.clone();
        }
        assert!(begun.elapsed() < PATIENCE, "no {what} in {spans:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubelet_and_users_had_an_agent_do_is_traced_where_that_is_asked_for() {
    if privilege::missing("mounting") {
        return;
    }
    let collector = Collector::start().await.expect("listens");
    let mut cluster = Cluster::prepare(2).expect("prepares");
    // The second was not asked to.
    cluster.nodes[0].flag(FLAG, &collector.endpoint);
    for node in &mut cluster.nodes {
        node.start().await.expect("starts");
    }
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("writes");
    cluster.register("demo", &origin).await;
    cluster.nodes[0].warm("demo").await.expect("warms");
    for node in &cluster.nodes {
        node.mount("demo").await.expect("mounts");
        node.mount("unknown").await.expect_err("there is none");
    }
    let log = cluster.nodes[0].log();
    assert!(!log.contains("csi.stage"), "the log is as it was: {log}");
    // What was not sent by then is, at the end.
    assert!(cluster.nodes[0].terminate().success());
    assert!(cluster.nodes[1].terminate().success());

    let of = async |name: &str, attribute: &str, value: &str| {
        let wanted = |span: &Span| span.name == name && span.has(attribute, value);
        span(&collector, name, wanted).await
    };
    let registered = of("dataset.register", "dataset", "demo").await;
    assert_eq!(registered.service, "trackbed-agent");
    of("csi.publish", "volume", "demo").await;
    let staged = of("csi.stage", "volume", "demo").await;
    assert!(!staged.failed);
    let refused = of("csi.stage", "volume", "unknown").await;
    assert!(refused.failed, "{refused:?}");
    assert!(
        refused.events.iter().any(|it| it.contains("refused")),
        "the log's lines are in it: {refused:?}"
    );
    let spans = collector.spans();
    let staged = spans.iter().filter(|span| span.name == "csi.stage");
    let staged = staged.filter(|span| span.has("volume", "demo"));
    assert_eq!(staged.count(), 1, "only one agent traces: {spans:#?}");
    let warmed = spans.iter().any(|span| span.name == "dataset.warm");
    assert!(warmed, "{spans:#?}");
    let ours = ["csi.", "dataset."];
    let strange = |span: &&Span| !ours.iter().any(|it| span.name.starts_with(it));
    assert!(
        spans.iter().find(strange).is_none(),
        "what libraries do is no one's matter: {spans:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_that_are_given_and_jobs_that_are_started_are_traced() {
    let collector = Collector::start().await.expect("listens");
    let machine = Machine::new();
    machine.adapter(&Adapter::ROCE, 0);
    machine.virtual_functions(&Adapter::ROCE, 1, 1);
    let mut plugin = DevicePlugin::new(machine).expect("prepares");
    plugin.daemon.flag(FLAG, &collector.endpoint);
    plugin.daemon.start().expect("starts");
    plugin.kubelet.healthy(VF, 1).await;
    let id = "mt2042x00123-0-0-vf0";
    plugin.kubelet.admit(VF, "a", &[id]).await.expect("given");
    plugin
        .kubelet
        .admit(VF, "b", &[id])
        .await
        .expect_err("held");
    for failed in [false, true] {
        let allocated = |span: &Span| {
            span.service == "trackbed-device-plugin"
                && span.name == "deviceplugin.allocate"
                && span.has("pool", "vf")
                && span.failed == failed
        };
        span(&collector, "allocation", allocated).await;
    }

    let api = api_server().await;
    let machines = Machines::start(&api);
    machines.add(&api, "n0", 8);
    let mut controller = Controller::start(&api, "one").expect("starts");
    controller.daemon.kill();
    let endpoint = &collector.endpoint;
    controller
        .daemon
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    controller.daemon.start().expect("starts");
    let template = json!({ "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    api.create(
        &json!({ "apiVersion": "trackbed.io/v1", "kind": "Caffe2Job",
            "metadata": { "name": "job", "namespace": "vision" },
            "spec": { "roles": [{ "name": "worker", "replicas": 1, "template": template }],
                "rendezvous": { "type": "FileStore", "path": "/share" } } }),
    );
    let acted = |span: &Span| {
        span.service == "trackbed-controller" && span.name == "job.act" && span.has("job", "job")
    };
    span(&collector, "job", acted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_collector_is_gone_serves_and_ends() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::prepare(1).expect("prepares");
    let nobody = format!("http://{}", free_address());
    cluster.nodes[0].flag(FLAG, nobody);
    cluster.nodes[0].start().await.expect("starts");
    let origin = cluster.folder().join("origin");
    tree::write(&origin).expect("writes");
    cluster.register("demo", &origin).await;
    let mount = cluster.nodes[0].mount("demo").await.expect("mounts");
    tree::assert_same(
        &tree::read(&mount).expect("reads"),
        &tree::read(&origin).expect("reads"),
    );
    assert!(cluster.nodes[0].terminate().success());
}

#[test]
fn an_endpoint_that_cannot_be_is_refused_with_the_remedy() {
    for (endpoint, said) in [
        ("https://collector:4317", "without TLS"),
        ("collector:4317", "http://HOST:PORT"),
        ("nonsense", "--otlp-endpoint nonsense"),
    ] {
        let ran = Command::new(trackbed())
            .args(["controller", "run", "--name", "one", FLAG, endpoint])
            .env("KUBECONFIG", "/nowhere")
            .output()
            .expect("runs");
        assert_eq!(ran.status.code(), Some(2));
        let err = String::from_utf8_lossy(&ran.stderr);
        assert!(err.contains(said), "{err}");
    }
}
