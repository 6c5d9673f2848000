use serde_json::json;

use crate::support::Cluster;

/// Waits until a line is among what the first controller counts.
async fn counts(cluster: &Cluster, controller: usize, line: &str) {
    let text = || cluster.metrics[controller].text();
    let there = || text().lines().any(|it| it == line).then_some(());
    cluster
        .eventually(there, || format!("no {line}: {}", text()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_gangs_is_counted_and_the_leader_says_so() {
    let mut cluster = Cluster::start(2).await;
    cluster.submit("resnet", 1, 6, json!({}));
    cluster.phase("resnet", "Running").await;
    for line in [
        "trackbed_controller_leading 1",
        "trackbed_controller_gangs_admitted_total 1",
        "trackbed_controller_queue_seconds_count 1",
        "trackbed_controller_placement_seconds_count 1",
        "trackbed_controller_jobs{phase=\"Running\"} 1",
        "trackbed_controller_jobs{phase=\"Queued\"} 0",
        "trackbed_controller_accelerators{hardware=\"unnamed\",state=\"busy\"} 6",
        "trackbed_controller_accelerators{hardware=\"unnamed\",state=\"free\"} 10",
        "trackbed_controller_utilisation_ratio{hardware=\"unnamed\"} 0.375",
        "trackbed_controller_fragmentation_ratio{hardware=\"unnamed\"} 0.2",
        "trackbed_controller_gang_restarts_total{reason=\"PodFailed\"} 0",
    ] {
        counts(&cluster, 0, line).await;
    }
    assert_eq!(cluster.metrics[0].is_alive(), Ok(()));
    assert_eq!(cluster.metrics[0].is_ready(), Ok(()));

    let pod = cluster.pods("resnet").remove(0);
    let name = pod["metadata"]["name"].as_str().expect("a name");
    cluster.machines.end("a", name, "Failed");
    let failed = "trackbed_controller_gang_restarts_total{reason=\"PodFailed\"} 1";
    counts(&cluster, 0, failed).await;
    counts(&cluster, 0, "trackbed_controller_gangs_admitted_total 2").await;

    // Another one waits, is ready to lead, and does when the first has gone.
    cluster.controller("two").await;
    let ready = || cluster.metrics[1].is_ready().ok();
    cluster
        .eventually(ready, || "it never is ready".to_owned())
        .await;
    counts(&cluster, 1, "trackbed_controller_leading 0").await;
    cluster.kill_first();
    counts(&cluster, 1, "trackbed_controller_leading 1").await;
    counts(&cluster, 1, "trackbed_controller_jobs{phase=\"Running\"} 1").await;
}
