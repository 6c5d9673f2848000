use std::collections::BTreeMap;

use serde_json::{Value, json};
use trackbed_controller::reconcile::{TeamConfig, TeamQuota};

use crate::support::{Cluster, node, template};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_fails_has_all_start_anew_with_a_new_run_id() {
    let cluster = Cluster::start(2).await;
    cluster.submit("resnet", 4, 4, json!({}));
    let first = cluster.phase("resnet", "Running").await;
    cluster.machines.end("a", "resnet-1-worker-2", "Failed");
    let second = cluster
        .until("resnet", |status| {
            status["phase"] == "Running" && status["attempt"] == 2
        })
        .await;
    assert_ne!(first["runId"], second["runId"]);
    assert_eq!(second["restarts"], 1);
    assert!(
        cluster
            .pods("resnet")
            .iter()
            .all(|pod| pod["metadata"]["labels"]["trackbed.io/attempt"] == "2")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_takes_no_pod_costs_an_attempt_and_is_avoided() {
    let cluster = Cluster::impatient(2).await;
    cluster.submit("here", 1, 8, json!({}));
    let status = cluster.phase("here", "Running").await;
    let used = status["placement"][0]["node"]
        .as_str()
        .expect("placed")
        .to_owned();
    let other = if used == "n0" { "n1" } else { "n0" };
    // The other one is free, as far as anybody can see, and takes nothing.
    cluster.machines.refuse(other, true);
    cluster.submit("there", 1, 8, json!({}));
    let status = cluster
        .until("there", |status| status["bindFailures"] == 1)
        .await;
    let queued = status["queuedAt"].clone();
    assert_eq!(status["mistrusted"][0]["node"], other);
    cluster.succeed("here");
    let status = cluster.phase("there", "Running").await;
    assert_eq!(status["placement"][0]["node"], used.as_str());
    assert_eq!(status["queuedAt"], queued, "it kept its place");
    assert!(cluster.told("there").iter().any(|it| it == "NotBound"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_part_of_a_gang_stays_where_the_rest_can_t_come() {
    let cluster = Cluster::impatient(2).await;
    cluster.machines.refuse("n1", true);
    cluster.submit("wide", 2, 8, json!({}));
    cluster
        .until("wide", |status| status["bindFailures"] == 1)
        .await;
    // Until there are other nodes, it holds none.
    let free = || {
        let pods = cluster.pods("wide");
        (pods.len() == 2 && pods.iter().all(|pod| node(pod).is_none())).then_some(())
    };
    cluster
        .eventually(free, || format!("{:#?}", cluster.pods("wide")))
        .await;
    cluster.machines.add(&cluster.api, "n2", 8);
    cluster.phase("wide", "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_others_are_counted_and_nodes_that_keep_pods_away_are_left_out() {
    let cluster = Cluster::idle(3).await;
    cluster.machines.steal(&cluster.api, "thief", "n0", 8);
    cluster.api.merge(
        "Node",
        "",
        "n1",
        &json!({ "spec": { "taints": [{ "key": "x", "effect": "NoSchedule" }] } }),
    );
    let mut cluster = cluster;
    cluster.controller("one").await;
    cluster.submit("resnet", 1, 8, json!({}));
    let status = cluster.phase("resnet", "Running").await;
    assert_eq!(status["placement"][0]["node"], "n2");
    assert_eq!(status["attempt"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_can_t_be_run_says_why_and_the_others_go_on() {
    let mut cluster = Cluster::idle(1).await;
    cluster.config.teams = vec![TeamConfig {
        name: "a".to_owned(),
        quotas: BTreeMap::new(),
    }];
    cluster.controller("one").await;
    let wrong = json!({ "spec": { "containers": "caffe2" } });
    cluster.submit(
        "no-template",
        1,
        0,
        json!({ "roles": [{ "name": "worker", "template": wrong }] }),
    );
    cluster.submit("no-team", 1, 1, json!({ "team": "unheard-of" }));
    let mut far = template(1);
    far["spec"]["nodeSelector"] = json!({ "zone": "moon" });
    cluster.submit(
        "no-node",
        1,
        1,
        json!({ "roles": [{ "name": "worker", "template": far }] }),
    );
    cluster.submit("fine", 1, 1, json!({}));
    cluster.phase("fine", "Running").await;
    for (job, words) in [
        ("no-template", "PodTemplateSpec"),
        ("no-team", "unheard-of"),
        ("no-node", "node selector"),
    ] {
        let says = |status: &Value| {
            status["message"]
                .as_str()
                .is_some_and(|it| it.contains(words))
        };
        let status = cluster.until(job, says).await;
        assert_eq!(status["phase"], "Queued");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_restarts_the_gang_elsewhere() {
    let cluster = Cluster::start(2).await;
    cluster.submit("resnet", 1, 8, json!({}));
    let status = cluster.phase("resnet", "Running").await;
    let lost = status["placement"][0]["node"]
        .as_str()
        .expect("placed")
        .to_owned();
    cluster.api.delete("Node", "", &lost);
    cluster.api.ended("a", "resnet-1-worker-0");
    let status = cluster
        .until("resnet", |status| {
            status["phase"] == "Running" && status["attempt"] == 2
        })
        .await;
    assert_ne!(status["placement"][0]["node"], lost.as_str());
    assert_eq!(status["restarts"], 0, "that was not its fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_job_gives_its_nodes_back_until_it_is_resumed() {
    let cluster = Cluster::start(1).await;
    cluster.submit("resnet", 1, 8, json!({}));
    cluster.phase("resnet", "Running").await;
    let suspend = |suspend: bool| {
        let patch = json!({ "spec": { "runPolicy": { "suspend": suspend } } });
        cluster
            .api
            .merge("Caffe2Job.trackbed.io", "a", "resnet", &patch);
    };
    suspend(true);
    cluster.phase("resnet", "Suspended").await;
    cluster
        .eventually(
            || cluster.pods("resnet").is_empty().then_some(()),
            String::new,
        )
        .await;
    cluster.submit("other", 1, 8, json!({}));
    cluster.phase("other", "Running").await;
    suspend(false);
    cluster.phase("resnet", "Queued").await;
    cluster.succeed("other");
    cluster.phase("resnet", "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_team_has_borrowed_goes_back_to_whom_it_belongs() {
    let mut cluster = Cluster::idle(1).await;
    let team = |name: &str, nominal: u32| {
        let quota = TeamQuota {
            nominal,
            borrow: None,
        };
        TeamConfig {
            name: name.to_owned(),
            quotas: BTreeMap::from([("h100".to_owned(), quota)]),
        }
    };
    cluster.config.teams = vec![team("owner", 8), team("guest", 0)];
    let labels = json!({ "metadata": { "labels": { "nvidia.com/gpu.product": "h100" } } });
    cluster.api.merge("Node", "", "n0", &labels);
    cluster.controller("one").await;
    cluster.submit("borrowed", 1, 8, json!({ "team": "guest" }));
    cluster.phase("borrowed", "Running").await;
    cluster.submit("owned", 1, 8, json!({ "team": "owner" }));
    cluster.phase("owned", "Running").await;
    let status = cluster
        .until("borrowed", |status| {
            status["phase"] == "Queued" && status["attempt"] == 2
        })
        .await;
    assert_eq!(status["restarts"], 0, "that was not its fault");
    let told = || cluster.told("borrowed");
    let heard = || told().iter().any(|it| it == "Preempted").then_some(());
    cluster.eventually(heard, || format!("{:?}", told())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_vanishes_under_a_pinned_pod_does_not_keep_the_job() {
    let cluster = Cluster::impatient(1).await;
    cluster.machines.refuse("n0", true);
    cluster.submit("resnet", 1, 8, json!({}));
    cluster.phase("resnet", "Admitted").await;
    cluster.api.delete("Node", "", "n0");
    cluster.machines.add(&cluster.api, "n1", 8);
    let status = cluster.phase("resnet", "Running").await;
    assert_eq!(status["placement"][0]["node"], "n1");
}
