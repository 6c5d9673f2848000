use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Cluster, node, template};

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_starts_whole_succeeds_and_leaves_nothing_when_it_is_deleted() {
    let cluster = Cluster::start(2).await;
    cluster.submit("resnet", 2, 8, json!({}));
    let status = cluster.phase("resnet", "Running").await;
    assert_eq!(status["replicaStatuses"]["active"], 2);
    let pods = cluster.pods("resnet");
    let nodes: BTreeSet<_> = pods.iter().filter_map(node).collect();
    assert_eq!(nodes, BTreeSet::from(["n0", "n1"]));
    let run_id = status["runId"].as_str().expect("it has one");
    for pod in &pods {
        let environment = pod["spec"]["containers"][0]["env"].to_string();
        assert!(environment.contains(run_id), "{environment}");
        let pinned = pod["spec"]["affinity"].to_string();
        assert!(pinned.contains(node(pod).expect("bound")), "{pinned}");
    }
    assert_eq!(cluster.api.all("Service").len(), 1);
    cluster.succeed("resnet");
    let status = cluster.phase("resnet", "Succeeded").await;
    assert!(status["completionTime"].is_string());
    for word in ["Queued", "Placed", "Bound", "Running", "Completed"] {
        let told = || cluster.told("resnet");
        let heard = || told().iter().any(|it| it == word).then_some(());
        cluster
            .eventually(heard, || format!("{word} of {:?}", told()))
            .await;
    }
    cluster.api.delete("Caffe2Job.trackbed.io", "a", "resnet");
    let left = || {
        (
            cluster.api.all("Pod"),
            cluster.api.all("Service"),
            cluster.api.all("Caffe2Job.trackbed.io"),
        )
    };
    let gone = || (left() == (vec![], vec![], vec![])).then_some(());
    cluster.eventually(gone, || format!("{:?}", left())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_waits_whole_says_what_is_missing_and_starts_when_there_is_room() {
    let cluster = Cluster::start(2).await;
    cluster.submit("first", 2, 6, json!({}));
    cluster.phase("first", "Running").await;
    cluster.submit("second", 2, 4, json!({}));
    let status = cluster
        .until("second", |status| {
            status["message"]
                .as_str()
                .is_some_and(|it| it.contains("missing"))
        })
        .await;
    assert!(
        status["message"]
            .as_str()
            .is_some_and(|it| it.contains("takes 8") && it.contains("4 are free")),
        "{status}"
    );
    assert!(
        cluster.pods("second").iter().all(|pod| node(pod).is_none()),
        "no part of it starts"
    );
    cluster.succeed("first");
    cluster.phase("second", "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubeflow_s_job_runs_as_it_is_with_a_redis_of_its_own() {
    let cluster = Cluster::start(2).await;
    cluster.api.create(&json!({ "apiVersion": "kubeflow.org/v1alpha1", "kind": "Caffe2Job",
        "metadata": { "name": "mnist", "namespace": "a" },
        "spec": { "RuntimeID": "77", "replicaSpecs": { "replicas": 2, "template": template(1) } } }));
    let status = || {
        cluster
            .api
            .get("Caffe2Job.kubeflow.org", "a", "mnist")
            .map(|it| it["status"].clone())
    };
    let running = || status().filter(|status| status["phase"] == "Running");
    let status = cluster
        .eventually(running, || format!("{:#?}", status()))
        .await;
    assert!(
        status["runId"]
            .as_str()
            .is_some_and(|it| it.starts_with("77-")),
        "{status}"
    );
    let pods = cluster.pods("mnist");
    assert_eq!(pods.len(), 3, "two workers and the redis");
    let worker = pods
        .iter()
        .find(|pod| pod["metadata"]["name"] == "mnist-1-worker-0");
    let environment = worker.expect("there")["spec"]["containers"][0]["env"].to_string();
    assert!(environment.contains("rendezvous.mnist-"), "{environment}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_gangs_share_the_nodes_and_none_is_placed_where_there_is_no_room() {
    let cluster = Cluster::start(4).await;
    let names: Vec<_> = (0..100).map(|at| format!("job-{at}")).collect();
    for (at, name) in names.iter().enumerate() {
        let (pods, gpus) = [(1, 8), (2, 4), (4, 8), (3, 2), (8, 1)][at % 5];
        cluster.submit(
            name,
            pods,
            gpus,
            json!({ "runPolicy": { "cleanPodPolicy": "All" } }),
        );
    }
    let unfinished = || {
        let jobs = cluster.api.all("Caffe2Job.trackbed.io");
        let mut left = 0;
        for job in &jobs {
            let phase = job["status"]["phase"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            left += usize::from(phase != "Succeeded");
            if phase == "Running" {
                cluster.succeed(job["metadata"]["name"].as_str().expect("a name"));
            }
        }
        left
    };
    cluster
        .eventually(
            || (unfinished() == 0).then_some(()),
            || format!("{} are left", unfinished()),
        )
        .await;
    for name in &names {
        let told = cluster.told(name);
        assert!(!told.iter().any(|it| it == "NotBound"), "{name}: {told:?}");
        assert_eq!(cluster.status(name)["attempt"], 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_time_after_the_end_is_over_is_deleted() {
    let cluster = Cluster::start(1).await;
    cluster.submit(
        "short",
        1,
        1,
        json!({ "runPolicy": { "ttlSecondsAfterFinished": 0 } }),
    );
    cluster.phase("short", "Running").await;
    cluster.succeed("short");
    let gone = || {
        cluster
            .api
            .get("Caffe2Job.trackbed.io", "a", "short")
            .is_none()
            .then_some(())
    };
    cluster
        .eventually(gone, || cluster.status("short").to_string())
        .await;
    cluster
        .eventually(
            || cluster.api.all("Pod").is_empty().then_some(()),
            String::new,
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_its_dataset_and_has_it_warmed() {
    let cluster = Cluster::start(1).await;
    cluster
        .api
        .create(&json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
        "metadata": { "name": "cats", "namespace": "a" }, "spec": { "origin": "s3://cats" } }));
    let status = |percent: i32| {
        let condition = json!({ "type": "Ready", "status": "True", "reason": "Listed", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let status = json!({ "status": { "cachedPercent": percent, "conditions": [condition] } });
        cluster.api.merge_status("Dataset", "a", "cats", &status);
    };
    status(10);
    let dataset = json!({ "name": "cats", "mountPath": "/data", "warmShare": 50 });
    cluster.submit("resnet", 1, 1, json!({ "dataset": dataset }));
    let warmed = || {
        let dataset = cluster.api.get("Dataset", "a", "cats")?;
        (dataset["spec"]["warmUp"]["percent"] == 50).then_some(())
    };
    cluster
        .eventually(warmed, || cluster.status("resnet").to_string())
        .await;
    let waiting = cluster.status("resnet");
    assert_eq!(waiting["phase"], "Queued");
    assert!(waiting["placement"] == Value::Null);
    status(60);
    cluster.phase("resnet", "Running").await;
}
