//! A pod reads the datasets that its namespace may, and no other.

use std::fs;

use tonic::{Code, Status};
use trackbed_proto::csi::v1::NodePublishVolumeRequest;

use crate::support::can_mount;
use crate::support::cluster::{Cluster, mounts_below};
use crate::{create_of, datasets};

const NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";

fn publish(cluster: &Cluster, namespace: Option<&str>, inline: bool) -> NodePublishVolumeRequest {
    let mut request = cluster.publish("cats", "pod");
    let mut context = vec![("dataset", "cats")];
    context.extend(namespace.map(|namespace| (NAMESPACE, namespace)));
    if inline {
        context.push(("csi.storage.k8s.io/ephemeral", "true"));
        request.staging_target_path.clear();
        request.volume_id = "csi-1".to_owned();
    }
    let context = context.into_iter();
    request.volume_context = context
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    request
}

fn is_denied(refused: &Status, names: &[&str]) {
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    for name in names {
        assert!(refused.message().contains(name), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pods_of_a_dataset_s_namespaces_read_it_staged_or_inline() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    datasets.only_for("cats", &["team-a", "team-b"]);
    let cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    for inline in [false, true] {
        let refused = node
            .node_publish_volume(publish(&cluster, Some("team-c"), inline))
            .await;
        is_denied(&refused.expect_err("refused"), &["team-c", "cats"]);
        let refused = node
            .node_publish_volume(publish(&cluster, None, inline))
            .await;
        is_denied(&refused.expect_err("refused"), &["podInfoOnMount", "cats"]);
        assert!(!cluster.path("pod").exists());
        assert_eq!(mounts_below(cluster.folder.path()), 1);

        let request = publish(&cluster, Some("team-b"), inline);
        let volume = request.volume_id.clone();
        assert_eq!(code!(node.node_publish_volume(request)), Code::Ok);
        let read = fs::read_to_string(cluster.path("pod/cat.txt"));
        assert_eq!(read.expect("reads"), "meow");
        let unpublish = cluster.unpublish(&volume, "pod");
        assert_eq!(code!(node.node_unpublish_volume(unpublish)), Code::Ok);
    }
    // Who is taken off the list gets it no more.
    datasets.only_for("cats", &[]);
    let refused = node
        .node_publish_volume(publish(&cluster, Some("team-a"), false))
        .await;
    is_denied(&refused.expect_err("refused"), &["team-a"]);
    drop(node);
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_without_namespaces_is_for_all_and_one_that_is_gone_for_nobody() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let cluster = Cluster::start(&datasets).await;
    let mut node = cluster.node.clone();
    assert_eq!(
        code!(node.node_stage_volume(cluster.stage("cats"))),
        Code::Ok
    );
    for namespace in [Some("anyone"), None] {
        let request = publish(&cluster, namespace, false);
        assert_eq!(code!(node.node_publish_volume(request)), Code::Ok);
    }
    datasets.forget("cats");
    let mut elsewhere = publish(&cluster, Some("anyone"), false);
    elsewhere.target_path = cluster.text("another-pod");
    assert_eq!(code!(node.node_publish_volume(elsewhere)), Code::NotFound);
    drop(node);
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test]
async fn a_claim_of_another_namespace_is_refused_when_it_is_made() {
    let datasets = datasets();
    datasets.only_for("cats", &["team-a"]);
    let mut cluster = Cluster::start(&datasets).await;
    let claim = |namespace: &str| {
        let mut request = create_of(&format!("pvc-{namespace}"), "cats");
        let key = "csi.storage.k8s.io/pvc/namespace".to_owned();
        request.parameters.insert(key, namespace.to_owned());
        request
    };
    let mut controller = cluster.controller.clone();
    let refused = controller.create_volume(claim("team-b")).await;
    is_denied(&refused.expect_err("refused"), &["team-b", "cats"]);
    cluster.create(claim("team-a")).await;
    // A provisioner that does not tell is trusted until a pod comes.
    cluster.create(create_of("untold", "cats")).await;
}
