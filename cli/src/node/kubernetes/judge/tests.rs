use super::*;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

fn dataset(spec: Value, status: Value) -> Dataset {
    let object = json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
        "metadata": { "name": "cats", "namespace": "team-a", "generation": 3 },
        "spec": spec, "status": status });
    serde_json::from_value(object).expect("a dataset")
}

fn version() -> String {
    "0".repeat(64)
}

fn node(name: &str, present: i64, warmed: Option<i64>) -> CacheNode {
    let object = json!({ "apiVersion": "trackbed.io/v1", "kind": "CacheNode",
        "metadata": { "name": name, "labels": { "gpu": "yes" } }, "spec": { "address": "a:1" },
        "status": { "datasets": [{ "namespace": "team-a", "name": "cats", "version": version(),
            "bytes": 1000, "bytesPresent": present, "warmedGeneration": warmed }] } });
    serde_json::from_value(object).expect("a node")
}

fn judged(dataset: &Dataset, nodes: &[CacheNode]) -> DatasetStatus {
    judge(&facts(dataset, nodes))
}

fn facts<'a>(dataset: &'a Dataset, nodes: &'a [CacheNode]) -> Facts<'a> {
    Facts {
        dataset,
        nodes,
        listing: false,
        due: false,
        trouble: None,
        listed_refresh: None,
        now: Time(Timestamp::from_second(1000).expect("a time")),
    }
}

fn says(status: &DatasetStatus, kind: &str) -> (String, String, String) {
    let found = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind);
    let found = found.expect("the condition").clone();
    (found.status, found.reason, found.message)
}

#[test]
fn a_new_dataset_waits_is_listed_or_fails_with_the_reason() {
    let new = dataset(json!({ "origin": "s3://sets" }), Value::Null);
    let waits = judged(&new, &[]);
    assert_eq!(
        (waits.phase, waits.cached_percent),
        (Some(Phase::Pending), None)
    );
    let listing = judge(&Facts {
        listing: true,
        ..facts(&new, &[])
    });
    assert_eq!(listing.phase, Some(Phase::Listing));
    let failed = judge(&Facts {
        trouble: Some("no such bucket: correct it"),
        ..facts(&new, &[])
    });
    assert_eq!(failed.phase, Some(Phase::Failed));
    assert_eq!(
        says(&failed, READY),
        (
            "False".into(),
            "OriginFailed".into(),
            "no such bucket: correct it".into()
        )
    );
    assert_eq!(failed.observed_generation, Some(3));
}

#[test]
fn a_version_goes_on_being_ready_when_a_newer_one_cannot_be_made() {
    let there = dataset(
        json!({ "origin": "s3://sets" }),
        json!({ "version": version() }),
    );
    let status = judge(&Facts {
        trouble: Some("away"),
        ..facts(&there, &[node("a", 250, None), node("b", 10, None)])
    });
    assert_eq!(status.phase, Some(Phase::Ready));
    assert_eq!(
        (status.cached_percent, status.bytes),
        (Some(25), Some(1000))
    );
    let (holds, reason, _) = says(&status, READY);
    assert_eq!((holds.as_str(), reason.as_str()), ("True", "RefreshFailed"));
    assert_eq!(status.nodes.len(), 2);
}

#[test]
fn warm_means_that_every_chosen_node_says_so_of_this_generation() {
    let spec = json!({ "origin": "s3://sets", "warmUp": { "nodeSelector": { "gpu": "yes" } } });
    let there = dataset(spec, json!({ "version": version() }));
    let mut nodes = vec![node("a", 1000, Some(3)), node("b", 1000, Some(2))];
    let mut other = node("c", 0, None);
    other.metadata.labels = None;
    nodes.push(other);
    let status = judged(&there, &nodes);
    assert_eq!(
        (status.warm_nodes, status.selected_nodes),
        (Some(1), Some(2))
    );
    assert_eq!(
        (status.phase, status.cached_percent),
        (Some(Phase::Warming), Some(99))
    );
    nodes[1] = node("b", 1000, Some(3));
    let status = judged(&there, &nodes);
    assert_eq!(
        (status.phase, status.cached_percent),
        (Some(Phase::Warm), Some(100))
    );
    assert_eq!(says(&status, WARMED).0, "True");
}

#[test]
fn nothing_is_warm_before_the_version_that_is_due() {
    let spec = json!({ "origin": "s3://sets", "warmUp": {}, "refresh": 2 });
    let there = dataset(spec, json!({ "version": version(), "listedRefresh": 1 }));
    let nodes = [node("a", 1000, Some(3))];
    let due = Facts {
        due: true,
        ..facts(&there, &nodes)
    };
    let status = judge(&due);
    assert_eq!(status.phase, Some(Phase::Listing));
    assert_eq!(says(&status, READY).0, "True");
    assert_eq!(says(&status, WARMED).1, "Refreshing");
    let away = judge(&Facts {
        trouble: Some("away"),
        ..due
    });
    assert_eq!(away.phase, Some(Phase::Warm));
    assert_eq!(says(&away, READY).1, "RefreshFailed");
    // Its lead has listed it since.
    let listed = judge(&Facts {
        listed_refresh: Some(2),
        ..facts(&there, &nodes)
    });
    assert_eq!(
        (listed.phase, listed.listed_refresh),
        (Some(Phase::Warm), Some(2))
    );
}

#[test]
fn a_node_that_cannot_is_named_and_a_selector_that_fits_nobody_too() {
    let warm = |selector: Value| {
        let spec =
            json!({ "origin": "s3://sets", "warmUp": { "percent": 50, "nodeSelector": selector } });
        dataset(spec, json!({ "version": version() }))
    };
    let mut full = node("b", 100, None);
    full.status.as_mut().expect("a status").datasets[0].trouble = Some("the disk is full".into());
    let status = judged(&warm(json!({})), &[node("a", 250, None), full]);
    let (_, reason, message) = says(&status, WARMED);
    assert_eq!(reason, "Trouble");
    assert!(message.contains("b: the disk is full"), "{message}");
    assert_eq!(status.cached_percent, Some((50 + 20) / 2));
    let status = judged(&warm(json!({ "gpu": "no" })), &[node("a", 0, None)]);
    assert_eq!(says(&status, WARMED).1, "NoNode");
    assert_eq!(status.phase, Some(Phase::Warming));
}

#[test]
fn a_condition_keeps_its_time_while_it_holds_so_that_nothing_is_written_twice() {
    let mut there = dataset(
        json!({ "origin": "s3://sets", "warmUp": {} }),
        json!({ "version": version() }),
    );
    let nodes = [node("a", 1000, Some(3))];
    let first = judged(&there, &nodes);
    there.status = Some(DatasetStatus {
        version: Some(version()),
        ..first.clone()
    });
    let later = Facts {
        now: Time(Timestamp::from_second(9999).expect("a time")),
        ..facts(&there, &nodes)
    };
    assert_eq!(judge(&later), first);
}

#[test]
fn what_another_version_left_on_a_disk_does_not_count() {
    let there = dataset(
        json!({ "origin": "s3://sets" }),
        json!({ "version": "1".repeat(64) }),
    );
    let status = judged(&there, &[node("a", 1000, Some(3))]);
    assert_eq!(status.cached_percent, Some(0));
    assert!(status.nodes.is_empty());
}
