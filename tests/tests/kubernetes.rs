//! Nodes beside a kubelet: one that registers itself, and volumes that are created on one node and
//! read on another.

use std::fs;

use trackbed_proto::csi::v1::volume_capability::access_mode::Mode;
use trackbed_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use trackbed_proto::csi::v1::{
    CreateVolumeRequest, ListVolumesRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability,
};
use trackbed_proto::pluginregistration::v1::{InfoRequest, RegistrationStatus};
use trackbed_tests::cluster::Cluster;
use trackbed_tests::node::{publish_request, stage_request};
use trackbed_tests::privilege;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_created_on_one_node_is_read_on_another() {
    if privilege::missing("mounting") {
        return;
    }
    let cluster = Cluster::start(2).await.expect("starts");
    let origin = cluster.folder().join("origin");
    fs::create_dir(&origin).expect("makes");
    fs::write(origin.join("cat.txt"), "meow").expect("writes");
    cluster.register("cats", &origin).await;
    let [one, two] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    let mut controller = one.controller().await.expect("serves");
    let request = CreateVolumeRequest {
        name: "pvc-1".to_owned(),
        volume_capabilities: vec![VolumeCapability {
            access_mode: Some(AccessMode {
                mode: Mode::MultiNodeReaderOnly.into(),
            }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }],
        parameters: [("dataset".to_owned(), "cats".to_owned())].into(),
        ..Default::default()
    };
    let created = controller.create_volume(request.clone()).await;
    let volume = created.expect("creates").into_inner().volume;
    let volume = volume.expect("a volume");
    assert_eq!(volume.capacity_bytes, 4);
    // The other node's controller knows it, and makes no second one.
    let mut controller = two.controller().await.expect("serves");
    let listed = controller.list_volumes(ListVolumesRequest::default()).await;
    let listed = listed.expect("lists").into_inner().entries;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].volume.as_ref(), Some(&volume));
    let again = controller.create_volume(request).await;
    let again = again.expect("is there").into_inner().volume;
    assert_eq!(again.as_ref(), Some(&volume));

    let (staging, target) = (two.folder.join("staging/pvc-1"), two.target("pvc-1"));
    let mut stage = stage_request(&volume.volume_id, &staging);
    stage.volume_context = volume.volume_context.clone();
    let mut publish = publish_request(&volume.volume_id, &staging, &target);
    publish.volume_context = volume.volume_context.clone();
    let mut csi = two.csi().await.expect("serves");
    csi.node_stage_volume(stage).await.expect("stages");
    csi.node_publish_volume(publish).await.expect("publishes");
    let read = tokio::fs::read_to_string(target.join("cat.txt")).await;
    assert_eq!(read.expect("reads"), "meow");
    let unpublish = NodeUnpublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        target_path: target.display().to_string(),
    };
    csi.node_unpublish_volume(unpublish)
        .await
        .expect("unpublishes");
    let unstage = NodeUnstageVolumeRequest {
        volume_id: volume.volume_id,
        staging_target_path: staging.display().to_string(),
    };
    csi.node_unstage_volume(unstage).await.expect("unstages");
    assert!(!target.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_names_no_dataset_is_an_empty_directory_that_needs_no_process() {
    if privilege::missing("mounting") {
        return;
    }
    let mut cluster = Cluster::start(1).await.expect("starts");
    let node = &mut cluster.nodes[0];
    let request = CreateVolumeRequest {
        name: "sanity".to_owned(),
        volume_capabilities: vec![VolumeCapability {
            access_mode: Some(AccessMode {
                mode: Mode::MultiNodeReaderOnly.into(),
            }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }],
        ..Default::default()
    };
    let mut controller = node.controller().await.expect("serves");
    let created = controller.create_volume(request).await;
    let volume = created.expect("creates").into_inner().volume;
    let id = volume.expect("a volume").volume_id;
    let (staging, target) = (node.folder.join("staging/sanity"), node.target("sanity"));
    let mut csi = node.csi().await.expect("serves");
    let stage = stage_request(&id, &staging);
    csi.node_stage_volume(stage).await.expect("stages");
    let publish = publish_request(&id, &staging, &target);
    csi.node_publish_volume(publish).await.expect("publishes");
    drop((csi, controller));
    node.kill();
    assert_eq!(fs::read_dir(&target).expect("lists").count(), 0);
    assert!(fs::write(target.join("new"), "x").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_kubelet_refuses_ends_and_says_why() {
    let mut cluster = Cluster::prepare(1).expect("prepares");
    let registry = cluster.folder().join("plugins_registry");
    fs::create_dir(&registry).expect("makes");
    let node = &mut cluster.nodes[0];
    node.flag("--kubelet-plugins-registry", registry.display());
    node.start().await.expect("starts");
    let mut kubelet = node.registration(&registry).await.expect("serves");
    let info = kubelet.get_info(InfoRequest {}).await;
    let info = info.expect("answers").into_inner();
    assert_eq!(
        info.endpoint,
        node.folder.join("csi.sock").display().to_string()
    );
    let status = RegistrationStatus {
        plugin_registered: false,
        error: "another driver has this name".to_owned(),
    };
    let told = kubelet.notify_registration_status(status).await;
    told.expect("answers");
    let code = node.wait();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    let log = node.log();
    assert!(log.contains("another driver has this name"), "{log}");
    assert_eq!(fs::read_dir(&registry).expect("lists").count(), 0);
}
