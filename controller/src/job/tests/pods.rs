use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::world::{job, template};
use crate::job::*;

fn made(job: &Job, rdma: bool) -> Vec<Value> {
    let pods = members(job).map(|member| gated_pod(job, 3, "run-3", rdma, &member));
    let pods: Vec<_> = pods.collect::<Result<_, _>>().expect("pods");
    for pod in &pods {
        let typed: Pod = serde_json::from_value(pod.clone()).expect("a pod");
        let view = pod_view(&typed);
        assert!(view.gated && view.attempt == 3);
    }
    pods
}

fn environment<'p>(pod: &'p Value, name: &str) -> Option<&'p str> {
    let variables = pod["spec"]["containers"][0]["env"].as_array()?;
    let named: Vec<_> = variables.iter().filter(|it| it["name"] == name).collect();
    assert!(named.len() <= 1, "{name} is set twice");
    named.first()?["value"].as_str()
}

#[test]
fn pods_know_who_they_are_where_the_others_are_and_how_they_meet() {
    let roles = json!([{ "name": "worker", "replicas": 2, "template": template() },
        { "name": "reader", "replicas": 1, "template": template() }]);
    let job = job(json!({ "roles": roles, "rendezvous": { "type": "Redis" } }));
    let pods = made(&job, false);
    let names: Vec<_> = pods
        .iter()
        .map(|pod| pod["metadata"]["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            Some("resnet-3-worker-0"),
            Some("resnet-3-worker-1"),
            Some("resnet-3-reader-0")
        ]
    );
    let last = &pods[2];
    assert_eq!(environment(last, "SHARD_ID"), Some("2"));
    assert_eq!(environment(last, "NUM_SHARDS"), Some("3"));
    assert_eq!(environment(last, "RUN_ID"), Some("run-3"));
    assert_eq!(
        environment(last, "REDIS_HOST"),
        Some("rendezvous.resnet-0f0e0d0c.a.svc")
    );
    assert_eq!(environment(last, "REDIS_PORT"), Some("6379"));
    assert_eq!(environment(last, "NFS_PATH"), Some(""));
    assert_eq!(environment(last, "DISTRIBUTED_TRANSPORT"), Some("tcp"));
    let config: Value =
        serde_json::from_str(environment(last, "CAFFE2_CONFIG").expect("set")).expect("JSON");
    assert_eq!(
        config,
        json!({ "cluster": {
                "worker": ["worker-0.resnet-0f0e0d0c.a.svc:2222", "worker-1.resnet-0f0e0d0c.a.svc:2222"],
                "reader": ["reader-0.resnet-0f0e0d0c.a.svc:2222"] },
            "task": { "type": "reader", "index": 0 } })
    );
    // Those hosts are what the Service and the pods' own names make.
    let service = service(&job);
    assert_eq!(service["metadata"]["name"], "resnet-0f0e0d0c");
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
    assert_eq!(
        (&last["spec"]["hostname"], &last["spec"]["subdomain"]),
        (&json!("reader-0"), &json!("resnet-0f0e0d0c"))
    );
    assert_eq!(
        last["metadata"]["labels"][JOB_UID_LABEL],
        service["spec"]["selector"][JOB_UID_LABEL]
    );
    assert_eq!(
        last["metadata"]["ownerReferences"][0]["uid"],
        job.uid.as_str()
    );
}

#[test]
fn what_a_template_says_stays_but_for_what_the_gang_needs() {
    let template = json!({
        "metadata": { "labels": { "mine": "1" }, "annotations": { "a": "b" } },
        "spec": { "restartPolicy": "Always", "hostNetwork": true, "newInKubernetes": [1],
            "schedulingGates": [{ "name": "mine" }],
            "initContainers": [{ "name": "fetch", "image": "x" }],
            "containers": [{ "name": "caffe2", "image": "x", "args": ["--shard_id=$(SHARD_ID)"],
                "env": [{ "name": "RUN_ID", "value": "always-the-same" },
                    { "name": "MINE", "value": "$(SHARD_ID)" }] }] } });
    let job = job(json!({ "roles": [{ "name": "worker", "template": template }] }));
    let pod = &made(&job, false)[0];
    let spec = &pod["spec"];
    assert_eq!(spec["restartPolicy"], "Never");
    assert_eq!(
        spec["dnsPolicy"], "ClusterFirstWithHostNet",
        "hosts of the cluster resolve"
    );
    assert_eq!(spec["newInKubernetes"], json!([1]));
    assert_eq!(
        spec["schedulingGates"],
        json!([{ "name": "mine" }, { "name": GATE }])
    );
    assert_eq!(environment(pod, "RUN_ID"), Some("run-3"));
    let variables = spec["containers"][0]["env"].as_array().expect("a list");
    assert_eq!(
        variables.last(),
        Some(&json!({ "name": "MINE", "value": "$(SHARD_ID)" })),
        "those before it can be referred to"
    );
    assert_eq!(
        spec["containers"][0]["args"],
        json!(["--shard_id=$(SHARD_ID)"]),
        "Kubernetes fills it in"
    );
    assert!(spec["initContainers"][0]["env"].is_array());
    assert_eq!(pod["metadata"]["labels"]["mine"], "1");
    assert_eq!(pod["metadata"]["annotations"]["a"], "b");
    assert!(spec.get("volumes").is_none());
}

#[test]
fn rdma_gives_devices_and_the_right_to_lock_memory() {
    let network = json!({ "mode": "auto", "resource": "trackbed.io/roce", "devicesPerPod": 2 });
    let job = job(json!({ "network": network }));
    let pod = &made(&job, true)[0];
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["trackbed.io/roce"], "2");
    assert_eq!(
        container["securityContext"]["capabilities"]["add"],
        json!(["IPC_LOCK"])
    );
    assert_eq!(environment(pod, "DISTRIBUTED_TRANSPORT"), Some("ibverbs"));
    let plain = &made(&job, false)[0]["spec"]["containers"][0];
    assert!(plain.get("resources").is_none() && plain.get("securityContext").is_none());
}

#[test]
fn the_dataset_is_a_volume_of_our_driver_in_every_container() {
    let job = job(json!({ "dataset": { "name": "cats", "mountPath": "/data/" } }));
    let spec = &made(&job, false)[0]["spec"];
    assert_eq!(
        spec["volumes"],
        json!([{ "name": "trackbed-dataset", "csi": { "driver": "csi.trackbed.io", "readOnly": true,
            "volumeAttributes": { "dataset": "a.cats" } } }])
    );
    assert_eq!(
        spec["containers"][0]["volumeMounts"],
        json!([{ "name": "trackbed-dataset", "mountPath": "/data", "readOnly": true }])
    );
    let mut taken = job.clone();
    taken.spec.roles[0].template["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "own", "mountPath": "/data" }]);
    let member = members(&taken).next().expect("a pod");
    let refused = gated_pod(&taken, 1, "r", false, &member).expect_err("two at one place");
    assert!(refused.to_string().contains("/data"));
}

#[test]
fn kubeflow_s_labels_are_on_kubeflow_s_pods_and_its_jobs_do_not_collide() {
    let mut job = job(json!({}));
    job.key.kind = JobKind::Kubeflow;
    job.run_id_prefix = Some("77".to_owned());
    let pod = &made(&job, false)[1];
    let labels = &pod["metadata"]["labels"];
    assert_eq!(labels["group_name"], "kubeflow.org");
    assert_eq!(labels["caffe2_job_key"], "a-resnet");
    assert_eq!(labels["runtime_id"], "77");
    assert_eq!(labels["caffe2_replica_type"], "WORKER");
    assert_eq!(labels["caffe2_replica_index"], "1");
    // Whose a pod is, the uid says: a-b/c and a/b-c are two.
    assert_eq!(labels[JOB_UID_LABEL], job.uid.as_str());
    let owner = &pod["metadata"]["ownerReferences"][0];
    assert_eq!(owner["apiVersion"], "kubeflow.org/v1alpha1");
}

#[test]
fn a_service_has_a_name_that_may_be_one() {
    let mut job = job(json!({}));
    for name in ["3d", "with.dots", &"x".repeat(60)] {
        job.key.name = name.to_owned();
        let service = service_name(&job);
        assert_eq!(service, format!("gang-{}", job.uid));
        assert!(service.len() <= 63);
    }
}

#[test]
fn one_patch_pins_every_term_and_takes_the_gate() {
    let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "gpu", "operator": "In", "values": ["a100"] }] },
            { "matchExpressions": [{ "key": "gpu", "operator": "In", "values": ["h100"] }] }] } } });
    let mut template = template();
    template["spec"]["affinity"] = affinity;
    let job = job(json!({ "roles": [{ "name": "worker", "template": template }] }));
    let mut pod = made(&job, false)[0].clone();
    pod["metadata"]["uid"] = "u".into();
    pod["metadata"]["resourceVersion"] = "7".into();
    let patch = release_patch(&serde_json::from_value(pod).expect("a pod"), "n1");
    assert_eq!(
        patch["metadata"],
        json!({ "uid": "u", "resourceVersion": "7" })
    );
    assert_eq!(patch["spec"]["schedulingGates"], Value::Null);
    let terms =
        patch["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"]
            .as_array()
            .expect("terms");
    assert_eq!(terms.len(), 2);
    for (term, gpu) in terms.iter().zip(["a100", "h100"]) {
        assert_eq!(
            term["matchFields"],
            json!([{ "key": "metadata.name", "operator": "In", "values": ["n1"] }])
        );
        assert_eq!(term["matchExpressions"][0]["values"], json!([gpu]));
    }
}
