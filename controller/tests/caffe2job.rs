//! What a cluster takes as a Caffe2Job, and what it refuses.

use kube::CustomResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use trackbed_apiserver::ApiServer;
use trackbed_controller::api::caffe2job::{NetworkMode, RendezvousType, converted};
use trackbed_controller::api::{Caffe2Job, KubeflowCaffe2Job};

async fn start() -> (ApiServer, Client) {
    let definitions = [Caffe2Job::crd(), KubeflowCaffe2Job::crd()];
    let definitions = definitions.map(|it| serde_json::to_value(it).expect("JSON"));
    let server = ApiServer::start(&definitions).await.expect("serves");
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let client = Client::try_from(config.expect("a configuration")).expect("a client");
    (server, client)
}

fn template() -> Value {
    json!({ "spec": { "containers": [{ "name": "caffe2", "image": "caffe2",
        "args": ["--shard_id=$(SHARD_ID)"], "resources": { "limits": { "nvidia.com/gpu": 2 } } }] } })
}

fn role(name: &str, replicas: i32) -> Value {
    json!({ "name": name, "replicas": replicas, "template": template() })
}

/// Creates it as it is written; gives the stored object or the reasons for refusing it.
async fn create(client: &Client, name: &str, spec: Value) -> Result<Value, String> {
    let api: Api<kube::api::DynamicObject> = Api::namespaced_with(
        client.clone(),
        "a",
        &kube::api::ApiResource::erase::<Caffe2Job>(&()),
    );
    let object = json!({ "apiVersion": "trackbed.io/v1", "kind": "Caffe2Job",
        "metadata": { "name": name, "namespace": "a" }, "spec": spec });
    let object = serde_json::from_value(object).expect("an object");
    match api.create(&PostParams::default(), &object).await {
        Ok(object) => Ok(serde_json::to_value(object).expect("JSON")),
        Err(kube::Error::Api(status)) if status.code == 422 => Err(status.message),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_job_gets_its_defaults_and_keeps_its_pods_as_they_are_written() {
    let (_server, client) = start().await;
    let mut unusual = template();
    unusual["spec"]["fieldOfAnotherKubernetes"] = json!({ "kept": true });
    let spec = json!({ "roles": [{ "name": "worker", "template": unusual }] });
    create(&client, "one", spec).await.expect("taken");
    let api: Api<Caffe2Job> = Api::namespaced(client, "a");
    let spec = api.get("one").await.expect("there").spec;
    assert_eq!(spec.roles[0].replicas, 1);
    assert_eq!(
        spec.roles[0].template["spec"]["fieldOfAnotherKubernetes"]["kept"],
        true
    );
    assert_eq!(spec.run_policy.backoff_limit, 6);
    assert_eq!(spec.network.mode, NetworkMode::Auto);
    assert_eq!(spec.network.resource, "trackbed.io/rdma");
}

#[tokio::test]
async fn a_job_that_cannot_be_is_refused_with_the_reason() {
    let (_server, client) = start().await;
    let two = |more: Value| {
        let mut spec = json!({ "roles": [role("worker", 2)] });
        spec.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        spec
    };
    let wrong = [
        (
            json!({ "roles": [role("worker", 0)] }),
            "must be at least 1",
        ),
        (json!({ "roles": [] }), "minItems"),
        (
            json!({ "roles": [role("worker", 1), role("worker", 2)] }),
            "duplicate value",
        ),
        (json!({ "roles": [role("Worker_1", 1)] }), "small letters"),
        (
            json!({ "roles": [role("a", 4000), role("b", 97)] }),
            "4096 pods",
        ),
        (
            two(json!({ "chief": { "role": "master" } })),
            "chief names a pod",
        ),
        (
            two(json!({ "chief": { "role": "worker", "index": 2 } })),
            "chief names a pod",
        ),
        (
            two(json!({ "rendezvous": { "type": "None" } })),
            "have to meet",
        ),
        (
            two(json!({ "rendezvous": { "type": "ExistingRedis" } })),
            "host is for",
        ),
        (
            two(json!({ "rendezvous": { "type": "Redis", "path": "/x" } })),
            "path is for",
        ),
        (
            two(json!({ "network": { "mode": "smoke-signals" } })),
            "unsupported value",
        ),
        (
            two(json!({ "dataset": { "name": "cats", "mountPath": "data" } })),
            "begins with /",
        ),
        (
            two(json!({ "runPolicy": { "backoffLimit": -1 } })),
            "at least 0",
        ),
    ];
    for (spec, reason) in wrong {
        let refused = create(&client, "wrong", spec.clone()).await;
        let refused = refused.expect_err(&format!("{spec} was taken"));
        assert!(refused.contains(reason), "{refused}\n  has no {reason:?}");
    }
    let long = create(&client, &"x".repeat(64), two(json!({}))).await;
    assert!(long.is_err_and(|why| why.contains("63 characters")));
}

#[tokio::test]
async fn what_a_job_is_made_of_stays_while_it_has_nodes() {
    let (_server, client) = start().await;
    let spec = json!({ "roles": [role("worker", 2)], "dataset": { "name": "cats", "mountPath": "/data" } });
    create(&client, "job", spec).await.expect("taken");
    let api: Api<Caffe2Job> = Api::namespaced(client, "a");
    let change = async |patch: Value| {
        let how = PatchParams::default();
        let done = api.patch("job", &how, &Patch::Merge(patch)).await;
        done.map(drop).map_err(|error| error.to_string())
    };
    let grown = json!({ "spec": { "roles": [role("worker", 3)] } });
    change(grown.clone()).await.expect("it has no nodes yet");
    let placed = json!({ "status": { "placement": [{ "pod": "job-1-worker-0", "node": "n1" }] } });
    api.patch_status("job", &PatchParams::default(), &Patch::Merge(placed))
        .await
        .expect("placed");
    let refused = [
        (
            json!({ "spec": { "roles": [role("worker", 2)] } }),
            "replicas",
        ),
        (
            json!({ "spec": { "dataset": { "name": "dogs" } } }),
            "dataset",
        ),
        (json!({ "spec": { "dataset": null } }), "dataset"),
        (
            json!({ "spec": { "network": { "mode": "tcp" } } }),
            "network",
        ),
        (
            json!({ "spec": { "rendezvous": { "type": "Redis" } } }),
            "rendezvous",
        ),
    ];
    for (patch, what) in refused {
        let why = change(patch.clone()).await.expect_err("taken");
        assert!(
            why.contains(what) && why.contains("suspend"),
            "{patch}: {why}"
        );
    }
    change(json!({ "spec": { "priority": 7, "runPolicy": { "suspend": true } } }))
        .await
        .expect("these may change at any time");
}

#[tokio::test]
async fn kubeflow_s_manifests_are_taken_as_they_are() {
    let (server, client) = start().await;
    // As users have them: with fields that never meant anything.
    server.create(&json!({ "apiVersion": "kubeflow.org/v1alpha1", "kind": "Caffe2Job",
        "metadata": { "name": "example-job", "namespace": "a" },
        "spec": { "RuntimeID": "abc", "backend": "redis",
            "backendSpecs": { "backendType": "redis", "redisHost": "redis-service", "redisPort": 6379 },
            "replicaSpecs": { "replicas": 2, "caffe2ReplicaType": "WORKER", "template": template() },
            "terminationPolicy": { "chief": { "replicaName": "WORKER", "replicaIndex": 0 } } } }));
    let api: Api<KubeflowCaffe2Job> = Api::namespaced(client.clone(), "a");
    let job = api.get("example-job").await.expect("there");
    assert_eq!(job.spec.wanted_run_id(), Some("abc"));
    let meant = converted(&job.spec);
    let rendezvous = meant.rendezvous.clone().expect("said");
    assert_eq!(rendezvous.kind, RendezvousType::ExistingRedis);
    assert_eq!(meant.roles[0].template, template());
    // What it means is a job that the other kind takes.
    let meant = serde_json::to_value(&meant).expect("JSON");
    create(&client, "converted", meant).await.expect("taken");
}
