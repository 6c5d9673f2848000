//! Pods, as Kubernetes treats them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trackbed_apiserver::ApiServer;

async fn start() -> ApiServer {
    ApiServer::start(&[]).await.expect("serves")
}

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "a" },
        "spec": { "containers": [{ "name": "c" }] } });
    let fields = spec.as_object().expect("an object").clone();
    pod["spec"]
        .as_object_mut()
        .expect("an object")
        .extend(fields);
    pod
}

fn required(terms: Value) -> Value {
    json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } })
}

/// Whether a merge is taken.
fn takes(server: &ApiServer, name: &str, patch: Value) -> bool {
    let merge = || server.merge("Pod", "a", name, &patch);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(merge)).is_ok()
}

#[tokio::test]
async fn a_gated_pod_gets_narrower_and_is_bound_only_without_gates() {
    let server = start().await;
    let rule = |value: &str| json!({ "key": "gpu", "operator": "In", "values": [value] });
    let name = json!([{ "key": "metadata.name", "operator": "In", "values": ["n1"] }]);
    let terms = json!([{ "matchExpressions": [rule("a")] }, { "matchExpressions": [rule("b")] }]);
    let gates = json!([{ "name": "one" }, { "name": "two" }]);
    server.create(&pod(
        "p",
        json!({ "schedulingGates": gates, "affinity": required(terms) }),
    ));
    assert!(
        server
            .bind("a", "p", "n1")
            .is_err_and(|why| why.contains("schedulingGates"))
    );
    let more = json!({ "spec": { "schedulingGates": [{ "name": "one" }, { "name": "three" }] } });
    assert!(!takes(&server, "p", more), "gates are not added");
    let wider = required(json!([{ "matchExpressions": [rule("a")], "matchFields": name }]));
    assert!(
        !takes(&server, "p", json!({ "spec": { "affinity": wider } })),
        "each term stays"
    );
    let narrower = required(json!([
        { "matchExpressions": [rule("a")], "matchFields": name },
        { "matchExpressions": [rule("b")], "matchFields": name }]));
    let release = json!({ "spec": { "affinity": narrower, "schedulingGates": null } });
    assert!(
        takes(&server, "p", release),
        "the patch that takes the last gate may narrow too"
    );
    let other = required(json!([{ "matchFields": name }]));
    assert!(!takes(
        &server,
        "p",
        json!({ "spec": { "affinity": other } })
    ));
    assert!(!takes(
        &server,
        "p",
        json!({ "spec": { "nodeName": "n2" } })
    ));
    server.bind("a", "p", "n1").expect("it may be bound");
    assert!(server.bind("a", "p", "n2").is_err(), "once");
}

#[tokio::test]
async fn a_pod_with_a_kubelet_goes_when_that_says_so() {
    let server = start().await;
    for name in ["bound", "free"] {
        server.create(&pod(name, json!({})));
    }
    server.bind("a", "bound", "n1").expect("bound");
    server.delete("Pod", "a", "bound");
    server.delete("Pod", "a", "free");
    assert!(server.get("Pod", "a", "free").is_none());
    let left = server.get("Pod", "a", "bound").expect("it ends");
    assert!(left["metadata"]["deletionTimestamp"].is_string());
    server.merge_status(
        "Pod",
        "a",
        "bound",
        &json!({ "status": { "phase": "Running" } }),
    );
    server.ended("a", "bound");
    assert!(server.get("Pod", "a", "bound").is_none());
}

#[tokio::test]
async fn what_has_lost_its_owners_is_collected() {
    let server = start().await;
    let owner = |name: &str| {
        let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "a" } });
        server.create(&object)["metadata"]["uid"].clone()
    };
    let (one, two) = (owner("one"), owner("two"));
    let owned = |name: &str, owners: &[&Value]| {
        let mut pod = pod(name, json!({}));
        let owners: Vec<_> = owners
            .iter()
            .map(|uid| json!({ "apiVersion": "v1", "kind": "Service", "name": "x", "uid": uid }))
            .collect();
        pod["metadata"]["ownerReferences"] = owners.into();
        server.create(&pod);
    };
    owned("of-one", &[&one]);
    owned("of-both", &[&one, &two]);
    server.delete("Service", "a", "one");
    owned("too-late", &[&one]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.get("Pod", "a", "of-one").is_some() || server.get("Pod", "a", "too-late").is_some()
    {
        assert!(Instant::now() < deadline, "they stay");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        server.get("Pod", "a", "of-both").is_some(),
        "it has another owner"
    );
}
