//! Lists of volumes, and volumes one by one, whichever node is asked.

use tonic::Code;
use trackbed_proto::csi::v1::{
    ControllerGetVolumeRequest, DeleteVolumeRequest, ListVolumesRequest, ListVolumesResponse,
};

use crate::support::cluster::Cluster;
use crate::{TEN_GIB, cats, create_of, create_request, datasets};

async fn list(cluster: &mut Cluster, max_entries: i32, token: &str) -> ListVolumesResponse {
    let request = ListVolumesRequest {
        max_entries,
        starting_token: token.to_owned(),
    };
    let answer = cluster.controller.list_volumes(request).await;
    answer.expect("lists").into_inner()
}

async fn delete(cluster: &mut Cluster, volume_id: &str) {
    let request = DeleteVolumeRequest {
        volume_id: volume_id.to_owned(),
    };
    let deleted = cluster.controller.delete_volume(request).await;
    deleted.expect("deletes");
}

fn ids(list: &ListVolumesResponse) -> Vec<String> {
    let volumes = list.entries.iter().map(|entry| entry.volume.as_ref());
    volumes
        .map(|volume| volume.expect("a volume").volume_id.clone())
        .collect()
}

#[tokio::test]
async fn a_new_volume_is_listed_and_a_deleted_one_is_not() {
    let mut cluster = Cluster::start(&datasets()).await;
    assert!(list(&mut cluster, 0, "").await.entries.is_empty());
    let volume = cluster.create(create_request("sanity")).await;
    assert_eq!(
        ids(&list(&mut cluster, 0, "").await),
        std::slice::from_ref(&volume.volume_id)
    );
    delete(&mut cluster, &volume.volume_id).await;
    assert!(list(&mut cluster, 0, "").await.entries.is_empty());
}

#[tokio::test]
async fn pages_take_volumes_added_and_deleted_between_them() {
    let mut cluster = Cluster::start(&datasets()).await;
    let mut expected = Vec::new();
    for name in ["sanity0", "sanity1", "sanity2"] {
        expected.push(cluster.create(create_request(name)).await.volume_id);
    }
    let first = list(&mut cluster, 2, "").await;
    assert_eq!(ids(&first), expected[..2]);
    for id in ids(&first) {
        delete(&mut cluster, &id).await;
    }
    expected.push(
        cluster
            .create(create_request("new-addition"))
            .await
            .volume_id,
    );
    let rest = list(&mut cluster, 0, &first.next_token).await;
    assert_eq!(ids(&rest), expected[2..]);
    assert_eq!(rest.next_token, "");
}

#[tokio::test]
async fn a_token_that_was_never_given_is_aborted() {
    let mut cluster = Cluster::start(&datasets()).await;
    for starting_token in ["invalid-token", "0", &"f".repeat(5000)] {
        let request = ListVolumesRequest {
            starting_token: starting_token.to_owned(),
            ..Default::default()
        };
        let code = code!(cluster.controller.list_volumes(request));
        assert_eq!(code, Code::Aborted, "{starting_token}");
    }
    let request = ListVolumesRequest {
        max_entries: -1,
        ..Default::default()
    };
    let code = code!(cluster.controller.list_volumes(request));
    assert_eq!(code, Code::InvalidArgument);
}

#[tokio::test]
async fn a_volume_tells_how_it_is() {
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let volume = cluster.create(create_of("a", "cats")).await;
    let of = |id: &str| ControllerGetVolumeRequest {
        volume_id: id.to_owned(),
    };
    let mut controller = cluster.controller.clone();
    let mut condition = async |id: &str| {
        let answer = controller.controller_get_volume(of(id)).await;
        let answer = answer.expect("answers").into_inner();
        let status = answer.status.expect("a status");
        (
            answer.volume.expect("a volume"),
            status.volume_condition.expect("a condition"),
        )
    };
    let (found, fine) = condition(&volume.volume_id).await;
    assert_eq!(found, volume);
    assert!(!fine.abnormal && fine.message.contains("cats"), "{fine:?}");
    // One that an administrator wrote down, of the size of its data.
    let (written, fine) = condition("cats").await;
    assert_eq!(written.capacity_bytes, 200_004);
    assert!(!fine.abnormal, "{fine:?}");

    datasets.put("cats", &cats("purr, purr"));
    let (_, fine) = condition(&volume.volume_id).await;
    assert!(
        !fine.abnormal && fine.message.contains("current one is"),
        "{fine:?}"
    );
    datasets.forget("cats");
    let (_, lost) = condition(&volume.volume_id).await;
    assert!(
        lost.abnormal && lost.message.contains("register it again"),
        "{lost:?}"
    );
    let empty = cluster.create(create_request("b")).await;
    let (_, empty) = condition(&empty.volume_id).await;
    assert!(
        empty.abnormal && empty.message.contains("StorageClass"),
        "{empty:?}"
    );

    let entries = list(&mut cluster, 0, "").await.entries;
    let abnormal = entries.into_iter().map(|entry| {
        let status = entry.status.expect("a status");
        status.volume_condition.expect("a condition").abnormal
    });
    assert_eq!(abnormal.collect::<Vec<_>>(), [true, true]);
    let mut controller = cluster.controller.clone();
    for (id, expected) in [("", Code::InvalidArgument), ("fake-vol-id", Code::NotFound)] {
        assert_eq!(code!(controller.controller_get_volume(of(id))), expected);
    }
}

#[tokio::test]
async fn a_restarted_driver_knows_what_was_created() {
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let volume = cluster.create(create_of("a", "cats")).await;
    datasets.put("cats", &cats("purr, purr"));
    let (folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    let mut cluster = Cluster::start_in(folder, datasets, true).await;
    assert_eq!(
        ids(&list(&mut cluster, 0, "").await),
        std::slice::from_ref(&volume.volume_id)
    );
    assert_eq!(cluster.create(create_of("a", "cats")).await, volume);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_create_one_name_at_a_time_all_get_the_same() {
    let cluster = Cluster::start(&datasets()).await;
    let mut calls = tokio::task::JoinSet::new();
    for caller in 0..16 {
        let mut controller = cluster.controller.clone();
        let mut request = create_of("shared", ["cats", "dogs"][caller % 2]);
        request.capacity_range = None;
        calls.spawn(async move { controller.create_volume(request).await });
    }
    let mut made = Vec::new();
    while let Some(ended) = calls.join_next().await {
        match ended.expect("no panic") {
            Ok(answer) => made.push(answer.into_inner().volume.expect("a volume")),
            Err(refused) => assert_eq!(refused.code(), Code::AlreadyExists),
        }
    }
    // All that wanted the dataset of the quickest got its volume, and the others nothing.
    assert_eq!(made.len(), 8);
    made.dedup();
    assert_eq!(made.len(), 1);
    assert!(made[0].capacity_bytes < TEN_GIB);
}
