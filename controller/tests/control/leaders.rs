use std::time::Duration;

use serde_json::json;

use crate::support::Cluster;

fn holder(cluster: &Cluster) -> Option<String> {
    let lease = cluster
        .api
        .get("Lease", "trackbed", "trackbed-controller")?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_controller_goes_on_where_one_died() {
    let mut cluster = Cluster::start(2).await;
    cluster.eventually(|| holder(&cluster), String::new).await;
    cluster.controller("two").await;
    for at in 0..10 {
        cluster.submit(&format!("job-{at}"), 2, 4, json!({}));
    }
    cluster
        .until("job-0", |status| status["attempt"] == 1)
        .await;
    assert_eq!(holder(&cluster).as_deref(), Some("one"));
    // Somewhere between a status and what follows of it.
    cluster.kill_first();
    cluster.api.cut_watches();
    let unfinished = || {
        let names = (0..10).map(|at| format!("job-{at}"));
        let left = names.filter(|name| {
            let status = cluster.status(name);
            if status["phase"] == "Running" {
                cluster.succeed(name);
            }
            status["phase"] != "Succeeded"
        });
        left.count()
    };
    cluster
        .eventually(
            || (unfinished() == 0).then_some(()),
            || format!("{} left", unfinished()),
        )
        .await;
    assert_eq!(holder(&cluster).as_deref(), Some("two"));
    for at in 0..10 {
        let status = cluster.status(&format!("job-{at}"));
        assert_eq!(
            status["attempt"], 1,
            "job-{at} went on and was not begun anew"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_the_lease_does_nothing_until_it_is_free() {
    let cluster = Cluster::start(1).await;
    cluster.submit("before", 1, 1, json!({}));
    cluster.phase("before", "Running").await;
    // Somebody else has it, and gives signs.
    let take = || {
        let now = k8s_openapi::jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            .to_string();
        let spec = json!({ "spec": { "holderIdentity": "other", "renewTime": now, "leaseDurationSeconds": 3 } });
        cluster
            .api
            .merge("Lease", "trackbed", "trackbed-controller", &spec);
    };
    take();
    // Longer than who has lost it acts on.
    for _ in 0..25 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        take();
    }
    cluster.submit("after", 1, 1, json!({}));
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        take();
    }
    assert!(
        cluster.status("after").is_null(),
        "nobody leads: {}",
        cluster.status("after")
    );
    assert!(cluster.pods("after").is_empty());
    // The other one gives no more signs.
    cluster.phase("after", "Running").await;
    assert_eq!(holder(&cluster).as_deref(), Some("one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_after_outages_stalls_and_a_lost_history() {
    let cluster = Cluster::start(2).await;
    cluster.submit("one", 2, 2, json!({}));
    cluster.phase("one", "Running").await;
    cluster.api.stall_watches(true);
    cluster.submit("two", 2, 2, json!({}));
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.api.forget_history();
    cluster.api.stall_watches(false);
    cluster.api.cut_watches();
    cluster.phase("two", "Running").await;
    cluster.api.answer_with(Some(503));
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.api.answer_with(None);
    cluster.submit("three", 2, 2, json!({}));
    cluster.phase("three", "Running").await;
    cluster.api.stop().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.api.resume().await.expect("comes back");
    cluster.submit("four", 2, 2, json!({}));
    cluster.phase("four", "Running").await;
    for job in ["one", "two", "three", "four"] {
        assert_eq!(cluster.status(job)["attempt"], 1, "{job} ran on");
    }
}
