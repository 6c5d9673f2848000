//! Volumes that are part of a pod's own specification: published without being staged, and gone
//! when they are unpublished.

use std::fs;

use nix::mount::{MntFlags, umount2};
use tonic::Code;
use trackbed_csi::expose::VersionView;
use trackbed_proto::csi::v1::NodePublishVolumeRequest;
use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;

use crate::support::cluster::{Cluster, Folder, capability, mounts_below};
use crate::support::{abort_connection, can_mount};
use crate::{cats, datasets};

const ID: &str = "csi-5a0e3c";

/// Attributes of a pod's author, the code they get, and what the error names.
type Wrong<'a> = (&'a [(&'a str, &'a str)], Code, &'a str);

/// As kubelet sends it, with attributes of the pod's author.
fn publish(cluster: &Cluster, target: &str, own: &[(&str, &str)]) -> NodePublishVolumeRequest {
    let told = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "train-0"),
        ("csi.storage.k8s.io/pod.namespace", "team-a"),
        ("csi.storage.k8s.io/pod.uid", "1"),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
    ];
    let context = told.iter().chain(own);
    NodePublishVolumeRequest {
        volume_id: ID.to_owned(),
        target_path: cluster.text(target),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        readonly: true,
        volume_context: context
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
        ..Default::default()
    }
}

fn remembered(cluster: &Cluster) -> usize {
    let state = fs::read_dir(cluster.path("state")).expect("lists");
    let is_file = |item: std::io::Result<fs::DirEntry>| {
        item.expect("lists").file_type().expect("stats").is_file()
    };
    state.filter_map(|item| is_file(item).then_some(())).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_brings_its_own_volume_and_nothing_stays_of_it() {
    if !can_mount() {
        return;
    }
    let mut cluster = Cluster::start(&datasets()).await;
    for _ in 0..2 {
        for _ in 0..2 {
            let request = publish(&cluster, "pod", &[("dataset", "cats")]);
            let published = cluster.node.node_publish_volume(request).await;
            published.expect("publishes");
        }
        let read = fs::read_to_string(cluster.path("pod/cat.txt"));
        assert_eq!(read.expect("reads"), "meow");
        assert_eq!(mounts_below(cluster.folder.path()), 2);
        let condition = cluster.condition(ID, "pod").await;
        assert!(!condition.abnormal, "{condition:?}");
        for _ in 0..2 {
            let unpublish = cluster.unpublish(ID, "pod");
            let unpublished = cluster.node.node_unpublish_volume(unpublish).await;
            unpublished.expect("unpublishes");
        }
        assert!(!cluster.path("pod").exists());
        assert_eq!(mounts_below(cluster.folder.path()), 0);
        assert_eq!(remembered(&cluster), 0);
    }
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_s_volume_that_cannot_be_is_refused_by_name_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    datasets.put("cats", &cats("purr, purr"));
    let mut cluster = Cluster::start(&datasets).await;
    let others = cats("woof!").manifest().digest().to_string();
    let wrong: [Wrong<'_>; 5] = [
        (&[("datset", "cats")], Code::InvalidArgument, "datset"),
        (&[], Code::InvalidArgument, "names no dataset"),
        (&[("dataset", "lions")], Code::NotFound, "lions"),
        (&[("dataset", "No")], Code::InvalidArgument, "No"),
        // The digest of a dataset that is not the named one opens nothing.
        (
            &[("dataset", "cats"), ("version", &others)],
            Code::NotFound,
            &others,
        ),
    ];
    for (own, code, named) in wrong {
        let request = publish(&cluster, "pod", own);
        let refused = cluster.node.node_publish_volume(request).await;
        let refused = refused.expect_err("refused");
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(named), "{refused}");
        assert!(!cluster.path("pod").exists());
    }
    // A target where it cannot be mounted.
    fs::write(cluster.path("a-file"), "precious").expect("writes");
    let request = publish(&cluster, "a-file", &[("dataset", "cats")]);
    let code = code!(cluster.node.node_publish_volume(request));
    assert_eq!(code, Code::FailedPrecondition);
    assert_eq!(mounts_below(cluster.folder.path()), 0);
    assert_eq!(remembered(&cluster), 0);
    // A version that the dataset had before is its own.
    let before = cats("meow").manifest().digest().to_string();
    let request = publish(
        &cluster,
        "pod",
        &[("dataset", "cats"), ("version", &before)],
    );
    let published = cluster.node.node_publish_volume(request).await;
    published.expect("publishes");
    let read = fs::read_to_string(cluster.path("pod/cat.txt"));
    assert_eq!(read.expect("reads"), "meow");
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_s_volume_is_mounted_again_by_the_next_driver_and_still_gone_at_the_end() {
    if !can_mount() {
        return;
    }
    let datasets = datasets();
    let mut cluster = Cluster::start_in(Folder::new(), datasets.clone(), false).await;
    let request = publish(&cluster, "pod", &[("dataset", "cats")]);
    let published = cluster.node.node_publish_volume(request.clone()).await;
    published.expect("publishes");
    let connection = cluster.connection("pod");
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    abort_connection(connection);
    // As in a new container: the driver's own folder shows no mount any more.
    let staging = fs::read_dir(folder.path().join("state/inline")).expect("lists");
    for item in staging {
        umount2(&item.expect("lists").path(), MntFlags::MNT_DETACH).expect("unmounts");
    }
    let mut cluster = Cluster::start_in(folder, datasets, true).await;
    while cluster.condition(ID, "pod").await.abnormal {
        tokio::task::yield_now().await;
    }
    let read = fs::read_to_string(cluster.path("pod/cat.txt"));
    assert_eq!(read.expect("reads"), "meow");
    let published = cluster.node.node_publish_volume(request).await;
    published.expect("publishes again");
    let unpublish = cluster.unpublish(ID, "pod");
    let unpublished = cluster.node.node_unpublish_volume(unpublish).await;
    unpublished.expect("unpublishes");
    assert_eq!(mounts_below(cluster.folder.path()), 0);
    cluster.stop().await.1.expect("ends well");
}
